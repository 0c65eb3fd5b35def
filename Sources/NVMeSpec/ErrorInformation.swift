// SPDX-License-Identifier: Apache-2.0
// One entry of the Error Information log page, 01h. NVM Express Base Specification 2.0,
// section 5.16.1.2.

/// An entry of the Error Information log; the page is a row of them, newest first.
public struct ErrorInformation: Page {
    /// Error count; 0 marks an entry that is not in use.
    public var errorCount: UInt64 = 0
    /// Submission queue of the command; FFFFh if there is none.
    public var sqID: UInt16 = 0
    /// Command ID; FFFFh if there is none.
    public var commandID: UInt16 = 0
    /// Status field with the phase tag in bit 0.
    public var statusAndPhase: UInt16 = 0
    /// 7:0 byte and 10:8 bit of the field at fault; FFFFh if there is none.
    public var parameterErrorLocation: UInt16 = 0
    /// First LBA with an error.
    public var lba: UInt64 = 0
    /// Namespace of the error.
    public var namespaceID: UInt32 = 0
    /// Log page with more, 0 if there is none.
    public var vendorLogPage: UInt8 = 0
    /// TRTYPE, 0 for PCIe.
    public var transportType: UInt8 = 0
    /// Command specific information.
    public var commandSpecific: UInt64 = 0
    /// Transport specific information.
    public var transportSpecific: UInt16 = 0

    /// A page with every field zero.
    public init() {}

    /// Parses bytes that were copied from the device.
    public init(parsing bytes: [UInt8]) throws(PageError) {
        self = try Self.parsed(from: bytes)
    }

    /// The page as a controller returns it.
    public func encode() -> [UInt8] { encoded() }

    /// The name of the page in the specification.
    public static let pageName = "Error Information entry"

    /// Bytes of the whole page.
    public static let pageByteCount = 64
}

extension ErrorInformation: LaidOutPage {
    mutating func visit(_ codec: inout PageCodec) {
        codec.field(&errorCount, at: 0, "Error Count")
        codec.field(&sqID, at: 8, "Submission Queue ID")
        codec.field(&commandID, at: 10, "Command ID")
        codec.field(&statusAndPhase, at: 12, "Status Field")
        codec.field(&parameterErrorLocation, at: 14, "Parameter Error Location")
        codec.field(&lba, at: 16, "LBA")
        codec.field(&namespaceID, at: 24, "Namespace")
        codec.field(&vendorLogPage, at: 28, "Vendor Specific Information Available")
        codec.field(&transportType, at: 29, "TRTYPE")
        codec.field(&commandSpecific, at: 32, "Command Specific Information")
        codec.field(&transportSpecific, at: 40, "Transport Type Specific Information")
    }
}

extension ErrorInformation {
    /// The status of the command, without the phase tag.
    public var status: Status {
        get { Status(rawValue: statusAndPhase >> 1) }
        set { statusAndPhase = newValue.rawValue << 1 | statusAndPhase & 1 }
    }

    /// Parses a page of `bytes.count / 64` entries, at most 256 (ELPE has eight bits).
    public static func parseAll(_ bytes: [UInt8]) throws(PageError) -> [ErrorInformation] {
        var entries: [ErrorInformation] = []
        for index in 0..<min(bytes.count / pageByteCount, 256) {
            let start = index &* pageByteCount
            entries.append(try Self(parsing: Array(bytes[start..<(start &+ pageByteCount)])))
        }
        return entries
    }
}
