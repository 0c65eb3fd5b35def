// SPDX-License-Identifier: Apache-2.0
// The Commands Supported and Effects log page, 05h, and the Supported Log Pages log page, 00h.
// NVM Express Base Specification 2.0, sections 5.16.1.6 and 5.16.1.1.

/// What a command does beside its data.
public struct CommandEffects: OptionSet, Sendable {
    /// The dword as in the page.
    public var rawValue: UInt32
    /// A dword as in the page.
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// CSUPP: the command is supported.
    public static let supported = Self(rawValue: 1 << 0)
    /// LBCC: user data may change.
    public static let logicalBlockContentChange = Self(rawValue: 1 << 1)
    /// NCC: capabilities of a namespace may change.
    public static let namespaceCapabilityChange = Self(rawValue: 1 << 2)
    /// NIC: the number of namespaces may change.
    public static let namespaceInventoryChange = Self(rawValue: 1 << 3)
    /// CCC: capabilities of the controller may change.
    public static let controllerCapabilityChange = Self(rawValue: 1 << 4)
    /// CSE 001b: no other command to the same namespace may be outstanding.
    public static let exclusiveOnNamespace = Self(rawValue: 1 << 16)
    /// CSE 010b: no other command to any namespace may be outstanding.
    public static let exclusiveOnController = Self(rawValue: 1 << 17)
}

/// Commands Supported and Effects: a dword for each opcode.
public struct CommandsSupportedAndEffects: Page {
    /// One entry for each admin opcode, 256.
    public var admin = [CommandEffects](repeating: [], count: 256)
    /// One entry for each I/O opcode, 256.
    public var io = [CommandEffects](repeating: [], count: 256)

    /// A page without commands.
    public init() {}

    /// Parses bytes that were copied from the device.
    public init(parsing bytes: [UInt8]) throws(PageError) { self = try Self.parsed(from: bytes) }

    /// The page as a controller returns it.
    public func encode() -> [UInt8] { encoded() }

    /// The effects of an admin command.
    public subscript(opcode: AdminOpcode) -> CommandEffects {
        get { admin[Int(opcode.rawValue)] }
        set { admin[Int(opcode.rawValue)] = newValue }
    }

    /// The effects of an I/O command.
    public subscript(opcode: IOOpcode) -> CommandEffects {
        get { io[Int(opcode.rawValue)] }
        set { io[Int(opcode.rawValue)] = newValue }
    }

    /// The name of the page in the specification.
    public static let pageName = "Commands Supported and Effects"

    /// Bytes of the whole page.
    public static let pageByteCount = 4096
}

extension CommandsSupportedAndEffects: LaidOutPage {
    mutating func visit(_ codec: inout PageCodec) {
        for opcode in 0..<256 {
            codec.field(&admin[opcode].rawValue, at: opcode &* 4, "ACS\(opcode)")
            codec.field(&io[opcode].rawValue, at: 1024 &+ opcode &* 4, "IOCS\(opcode)")
        }
    }
}

/// Supported Log Pages: a dword for each log page identifier, bit 0 set if it is supported.
public struct SupportedLogPages: Page {
    /// The identifiers of the pages that can be read.
    public var pages: Set<LogPageID> = []

    /// A page that names none.
    public init() {}

    /// Parses bytes that were copied from the device.
    public init(parsing bytes: [UInt8]) throws(PageError) { self = try Self.parsed(from: bytes) }

    /// The page as a controller returns it.
    public func encode() -> [UInt8] { encoded() }

    /// The name of the page in the specification.
    public static let pageName = "Supported Log Pages"

    /// Bytes of the whole page.
    public static let pageByteCount = 1024
}

extension SupportedLogPages: LaidOutPage {
    mutating func visit(_ codec: inout PageCodec) {
        for index in UInt8.min...UInt8.max {
            let page = LogPageID(rawValue: index)
            var raw: UInt32 = pages.contains(page) ? 1 : 0
            codec.field(&raw, at: Int(index) &* 4, "LID\(index)")
            if raw & 1 != 0 { pages.insert(page) }
        }
    }
}
