// SPDX-License-Identifier: Apache-2.0
// What the NVM command set adds to Identify Controller, CNS 06h. NVM Command Set Specification 1.0,
// section 4.1.5.4.

/// The limits of the NVM command set on a controller.
public struct IdentifyNVMController: Page {
    /// VSL: a Verify covers at most 2 ^ n pages of CAP.MPSMIN; 0 means no limit.
    public var vsl: UInt8 = 0
    /// WZSL: a Write Zeroes covers at most 2 ^ n pages of CAP.MPSMIN; 0 means no limit.
    public var wzsl: UInt8 = 0
    /// WUSL: the same for Write Uncorrectable.
    public var wusl: UInt8 = 0
    /// DMRL, ranges of one Dataset Management; 0 means no limit.
    public var dmrl: UInt8 = 0
    /// DMRSL, blocks of one range of Dataset Management; 0 means no limit.
    public var dmrsl: UInt32 = 0
    /// DMSL, blocks of one Dataset Management; 0 means no limit.
    public var dmsl: UInt64 = 0

    /// A page with every field zero.
    public init() {}

    /// Parses bytes that were copied from the device.
    public init(parsing bytes: [UInt8]) throws(PageError) {
        self = try Self.parsed(from: bytes)
    }

    /// The page as a controller returns it.
    public func encode() -> [UInt8] { encoded() }

    /// The name of the page in the specification.
    public static let pageName = "I/O Command Set Specific Identify Controller"

    /// Bytes of the whole page.
    public static let pageByteCount = 4096
}

extension IdentifyNVMController: LaidOutPage {
    mutating func visit(_ codec: inout PageCodec) {
        codec.field(&vsl, at: 0, "VSL")
        codec.field(&wzsl, at: 1, "WZSL")
        codec.field(&wusl, at: 2, "WUSL")
        codec.field(&dmrl, at: 3, "DMRL")
        codec.field(&dmrsl, at: 4, "DMRSL")
        codec.field(&dmsl, at: 8, "DMSL")
    }
}
