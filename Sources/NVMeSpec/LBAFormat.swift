// SPDX-License-Identifier: Apache-2.0
// A block format of a namespace, and what Identify Namespace means. NVM Command Set Specification
// 1.0, section 4.1.5.1.

/// LBAF, a block format.
public struct LBAFormat: RawRepresentable, Equatable, Sendable {
    /// The dword as in the page.
    public var rawValue: UInt32

    /// A dword as in the page, or 0 for a format that is not available.
    public init(rawValue: UInt32 = 0) { self.rawValue = rawValue }

    /// A format of `2 ^ lbads` bytes a block and `ms` bytes of metadata.
    public init(lbads: UInt8, ms: UInt16 = 0, rp: UInt8 = 0) {
        rawValue = UInt32(ms) | UInt32(lbads) << 16 | UInt32(rp & 3) << 24
    }

    /// Formats in a page.
    public static let maximumCount = 64

    /// MS, bytes of metadata with each block.
    public var ms: UInt16 { UInt16(truncatingIfNeeded: rawValue) }

    /// LBADS: a block is `2 ^ lbads` bytes; 0 means that the format is not available.
    public var lbads: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 16) }

    /// RP, relative performance: 0 best to 3 degraded.
    public var rp: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 24) & 3 }

    /// Bytes of data in a block: 512 to 2^30; nil if the format is not available or forbidden.
    public var blockByteCount: UInt32? {
        (9...30).contains(lbads) ? 1 << UInt32(lbads) : nil
    }
}

/// What blocks read as after they were deallocated (DLFEAT bits 2:0).
public enum DeallocatedReadBehavior: UInt8, Sendable {
    /// Not reported.
    case unknown = 0
    /// Zeroes.
    case zeroes = 1
    /// FFh.
    case ones = 2
}

extension IdentifyNamespace {
    /// The index of the block format in use, from FLBAS.
    public var formatIndex: Int {
        // With at most 16 formats the upper bits of the index are reserved.
        let upper = nlbaf > 15 ? Int(flbas >> 5 & 3) << 4 : 0
        return Int(flbas & 0xF) | upper
    }

    /// The block format in use; nil if FLBAS names one that does not exist.
    public var format: LBAFormat? {
        guard formatIndex <= Int(nlbaf), formatIndex < lbaf.count else { return nil }
        return lbaf[formatIndex]
    }

    /// Bytes of data in a block; nil if the format in use does not exist or is forbidden.
    public var blockByteCount: UInt32? { format?.blockByteCount }

    /// True if each block carries metadata.
    public var hasMetadata: Bool { (format?.ms ?? 0) > 0 }

    /// True if the metadata lies at the end of each block (FLBAS bit 4).
    public var hasExtendedBlocks: Bool { flbas & 0x10 != 0 }

    /// DPS bits 2:0, the protection type; 0 if there is none.
    public var protectionType: UInt8 { dps & 7 }

    /// NSFEAT bit 0: NCAP may be less than NSZE.
    public var isThin: Bool { nsfeat & 0x01 != 0 }

    /// NSFEAT bit 1: NAWUN, NAWUPF and NACWU count instead of the controller's fields.
    public var hasAtomicUnits: Bool { nsfeat & 0x02 != 0 }

    /// NSFEAT bit 4: NPWG, NPWA, NPDG, NPDA and NOWS are reported.
    public var hasOptimalSizes: Bool { nsfeat & 0x10 != 0 }

    /// NMIC bit 0: other controllers may have the namespace attached too.
    public var isShared: Bool { nmic & 0x01 != 0 }

    /// NSATTR bit 0: writes fail.
    public var isWriteProtected: Bool { nsattr & 0x01 != 0 }

    /// DLFEAT bits 2:0; values the specification reserves count as unknown.
    public var deallocatedReadBehavior: DeallocatedReadBehavior {
        DeallocatedReadBehavior(rawValue: dlfeat & 7) ?? .unknown
    }

    /// DLFEAT bit 3: Write Zeroes with DEAC deallocates.
    public var writeZeroesDeallocates: Bool { dlfeat & 0x08 != 0 }
}
