// SPDX-License-Identifier: Apache-2.0
// What the NVM command set adds to Identify Namespace, CNS 05h. NVM Command Set Specification 1.0,
// section 4.1.5.3.

/// The extended protection formats of a namespace.
public struct IdentifyNVMNamespace: Page {
    /// LBSTM, storage tag mask.
    public var lbstm: UInt64 = 0
    /// PIC, protection information capabilities.
    public var pic: UInt8 = 0
    /// ELBAF0 to ELBAF63: bits 6:0 storage tag size, 8:7 protection format.
    public var elbaf = [UInt32](repeating: 0, count: LBAFormat.maximumCount)

    /// A page with every field zero.
    public init() {}

    /// Parses bytes that were copied from the device.
    public init(parsing bytes: [UInt8]) throws(PageError) {
        self = try Self.parsed(from: bytes)
    }

    /// The page as a controller returns it.
    public func encode() -> [UInt8] { encoded() }

    /// The name of the page in the specification.
    public static let pageName = "I/O Command Set Specific Identify Namespace"

    /// Bytes of the whole page.
    public static let pageByteCount = 4096
}

extension IdentifyNVMNamespace: LaidOutPage {
    mutating func visit(_ codec: inout PageCodec) {
        codec.field(&lbstm, at: 0, "LBSTM")
        codec.field(&pic, at: 8, "PIC")
        for index in 0..<LBAFormat.maximumCount {
            var raw = index < elbaf.count ? elbaf[index] : 0
            codec.field(&raw, at: 12 &+ index &* 4, "ELBAF\(index)")
            if index < elbaf.count { elbaf[index] = raw }
        }
    }
}
