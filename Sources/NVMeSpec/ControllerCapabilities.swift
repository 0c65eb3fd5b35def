// SPDX-License-Identifier: Apache-2.0
// CAP and VS as values. NVM Express Base Specification 2.0, sections 3.1.3.1 and 3.1.3.2.

/// CAP, controller capabilities.
///
/// Properties with the mnemonic of the specification hold the raw field; the long names hold what
/// it means. A setter cuts what does not fit into its field.
public struct ControllerCapabilities: RawRepresentable, Equatable, Sendable {
    /// The register as read.
    public var rawValue: UInt64

    /// A register as read, or 0 to start building one.
    public init(rawValue: UInt64 = 0) { self.rawValue = rawValue }

    /// MQES, maximum queue entries supported, less one.
    public var mqes: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue) }
        set { rawValue.setBits(0, 16, to: newValue) }
    }

    /// CQR: queues have to be physically contiguous.
    public var cqr: Bool {
        get { rawValue.bit(16) }
        set { rawValue.setBit(16, to: newValue) }
    }

    /// AMS, arbitration mechanisms supported: bit 0 weighted round robin, bit 1 vendor specific.
    public var ams: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(17, 2)) }
        set { rawValue.setBits(17, 2, to: newValue) }
    }

    /// TO, the longest time for CSTS.RDY to follow CC.EN, in units of 500 ms.
    public var to: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(24, 8)) }
        set { rawValue.setBits(24, 8, to: newValue) }
    }

    /// DSTRD, doorbell stride: doorbells are `4 << dstrd` bytes apart.
    public var dstrd: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(32, 4)) }
        set { rawValue.setBits(32, 4, to: newValue) }
    }

    /// NSSRS: NVM subsystem reset is supported.
    public var nssrs: Bool {
        get { rawValue.bit(36) }
        set { rawValue.setBit(36, to: newValue) }
    }

    /// CSS, command sets supported; see `supportsNVMCommandSet` and its neighbours.
    public var css: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(37, 8)) }
        set { rawValue.setBits(37, 8, to: newValue) }
    }

    /// BPS: boot partitions are supported.
    public var bps: Bool {
        get { rawValue.bit(45) }
        set { rawValue.setBit(45, to: newValue) }
    }

    /// MPSMIN: the smallest host page is `2 ^ (12 + mpsmin)` bytes.
    public var mpsmin: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(48, 4)) }
        set { rawValue.setBits(48, 4, to: newValue) }
    }

    /// MPSMAX: the largest host page is `2 ^ (12 + mpsmax)` bytes.
    public var mpsmax: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(52, 4)) }
        set { rawValue.setBits(52, 4, to: newValue) }
    }

    /// PMRS: a persistent memory region is supported.
    public var pmrs: Bool {
        get { rawValue.bit(56) }
        set { rawValue.setBit(56, to: newValue) }
    }

    /// CMBS: a controller memory buffer is supported.
    public var cmbs: Bool {
        get { rawValue.bit(57) }
        set { rawValue.setBit(57, to: newValue) }
    }

    /// NSSS: NVM subsystem shutdown is supported.
    public var nsss: Bool {
        get { rawValue.bit(58) }
        set { rawValue.setBit(58, to: newValue) }
    }

    /// CRMS, controller ready modes supported: bit 0 with media, bit 1 independent of media.
    public var crms: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(59, 2)) }
        set { rawValue.setBits(59, 2, to: newValue) }
    }
}

extension ControllerCapabilities {
    /// Entries in the largest queue, from CAP.MQES.
    public var maximumQueueEntryCount: UInt32 { UInt32(mqes) &+ 1 }

    /// The longest wait for a change of CSTS.RDY from CAP.TO, in milliseconds (CRTO may say more).
    public var timeoutMilliseconds: UInt32 { UInt32(to) &* 500 }

    /// The smallest host memory page in bytes, from CAP.MPSMIN.
    public var minimumPageByteCount: UInt64 { 4096 << UInt64(mpsmin) }

    /// The largest host memory page in bytes, from CAP.MPSMAX.
    public var maximumPageByteCount: UInt64 { 4096 << UInt64(mpsmax) }

    /// CAP.CSS bit 0: the NVM command set can be chosen with CC.CSS 000b.
    public var supportsNVMCommandSet: Bool { css & 0x01 != 0 }

    /// CAP.CSS bit 6: more I/O command sets can be chosen with CC.CSS 110b.
    public var supportsMultipleCommandSets: Bool { css & 0x40 != 0 }

    /// CAP.CSS bit 7: the controller offers no I/O command set at all.
    public var supportsNoIOCommandSet: Bool { css & 0x80 != 0 }

    /// CAP.CRMS bit 0: CRTO.CRWMT says how long the controller may take, media included.
    public var supportsReadyWithMedia: Bool { crms & 0x1 != 0 }

    /// CAP.CRMS bit 1: the controller can be ready before its media is.
    public var supportsReadyIndependentOfMedia: Bool { crms & 0x2 != 0 }

    /// True if the register reads as all ones: the device no longer answers.
    public var isGone: Bool { rawValue == .max }
}

/// VS, the version of the base specification a controller follows.
public struct SpecificationVersion: RawRepresentable, Equatable, Comparable, Sendable,
    CustomStringConvertible
{
    /// The register as read.
    public var rawValue: UInt32

    /// A register as read.
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Builds VS from its parts, for example 2, 0, 0.
    public init(major: UInt16, minor: UInt8, tertiary: UInt8) {
        rawValue = UInt32(major) << 16 | UInt32(minor) << 8 | UInt32(tertiary)
    }

    /// NVMe 1.0, the oldest version there is.
    public static let v1_0 = SpecificationVersion(major: 1, minor: 0, tertiary: 0)
    /// NVMe 1.3: Doorbell Buffer Config, namespace identification descriptors.
    public static let v1_3 = SpecificationVersion(major: 1, minor: 3, tertiary: 0)
    /// NVMe 2.0, the version this module describes.
    public static let v2_0 = SpecificationVersion(major: 2, minor: 0, tertiary: 0)

    /// MJR, the major version.
    public var major: UInt16 { UInt16(truncatingIfNeeded: rawValue >> 16) }
    /// MNR, the minor version.
    public var minor: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 8) }
    /// TER, the tertiary version.
    public var tertiary: UInt8 { UInt8(truncatingIfNeeded: rawValue) }

    /// For example "2.0" or "1.2.1".
    public var description: String {
        tertiary == 0 ? "\(major).\(minor)" : "\(major).\(minor).\(tertiary)"
    }

    /// Older versions come first.
    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}
