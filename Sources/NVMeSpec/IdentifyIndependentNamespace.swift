// SPDX-License-Identifier: Apache-2.0
// The page of a namespace that no I/O command set owns, CNS 08h. NVM Express Base Specification
// 2.0, section 5.17.2.8.

/// I/O Command Set Independent Identify Namespace.
public struct IdentifyIndependentNamespace: Page {
    /// NSFEAT: bit 4 the namespace has rotational media.
    public var nsfeat: UInt8 = 0
    /// NMIC: bit 0 the namespace may be shared by several controllers.
    public var nmic: UInt8 = 0
    /// RESCAP, reservation capabilities.
    public var rescap: UInt8 = 0
    /// FPI, format progress.
    public var fpi: UInt8 = 0
    /// ANAGRPID, ANA group.
    public var anagrpid: UInt32 = 0
    /// NSATTR: bit 0 the namespace is write protected.
    public var nsattr: UInt8 = 0
    /// NVMSETID, NVM set.
    public var nvmsetid: UInt16 = 0
    /// ENDGID, endurance group.
    public var endgid: UInt16 = 0
    /// NSTAT: bit 0 the namespace is ready.
    public var nstat: UInt8 = 0

    /// A page with every field zero.
    public init() {}

    /// Parses bytes that were copied from the device.
    public init(parsing bytes: [UInt8]) throws(PageError) {
        self = try Self.parsed(from: bytes)
    }

    /// The page as a controller returns it.
    public func encode() -> [UInt8] { encoded() }

    /// The name of the page in the specification.
    public static let pageName = "I/O Command Set Independent Identify Namespace"

    /// Bytes of the whole page.
    public static let pageByteCount = 4096
}

extension IdentifyIndependentNamespace: LaidOutPage {
    mutating func visit(_ codec: inout PageCodec) {
        codec.field(&nsfeat, at: 0, "NSFEAT")
        codec.field(&nmic, at: 1, "NMIC")
        codec.field(&rescap, at: 2, "RESCAP")
        codec.field(&fpi, at: 3, "FPI")
        codec.field(&anagrpid, at: 4, "ANAGRPID")
        codec.field(&nsattr, at: 8, "NSATTR")
        codec.field(&nvmsetid, at: 10, "NVMSETID")
        codec.field(&endgid, at: 12, "ENDGID")
        codec.field(&nstat, at: 14, "NSTAT")
    }
}
