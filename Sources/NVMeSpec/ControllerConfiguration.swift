// SPDX-License-Identifier: Apache-2.0
// CC, CSTS, AQA and CRTO as values. NVM Express Base Specification 2.0, sections 3.1.3.5 to 3.1.3.8
// and 3.1.3.21.

/// CC, controller configuration.
public struct ControllerConfiguration: RawRepresentable, Equatable, Sendable {
    /// The register as read or as to be written.
    public var rawValue: UInt32

    /// A register as read, or 0 to start building one.
    public init(rawValue: UInt32 = 0) { self.rawValue = rawValue }

    /// Builds a configuration for the NVM command set with round robin arbitration.
    ///
    /// - Parameters:
    ///   - enabled: CC.EN.
    ///   - mps: the host page is `2 ^ (12 + mps)` bytes.
    ///   - iosqes: I/O submission entries are `2 ^ iosqes` bytes.
    ///   - iocqes: I/O completion entries are `2 ^ iocqes` bytes.
    public init(enabled: Bool, mps: UInt8, iosqes: UInt8 = 6, iocqes: UInt8 = 4) {
        self.init()
        en = enabled
        self.mps = mps
        self.iosqes = iosqes
        self.iocqes = iocqes
    }

    /// EN: one starts the controller, zero resets it.
    public var en: Bool {
        get { rawValue.bit(0) }
        set { rawValue.setBit(0, to: newValue) }
    }

    /// CSS, the I/O command set: 0 NVM, 6 all supported ones, 7 admin only.
    public var css: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(4, 3)) }
        set { rawValue.setBits(4, 3, to: newValue) }
    }

    /// MPS: the host memory page is `2 ^ (12 + mps)` bytes.
    public var mps: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(7, 4)) }
        set { rawValue.setBits(7, 4, to: newValue) }
    }

    /// AMS, the arbitration mechanism: 0 round robin.
    public var ams: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(11, 3)) }
        set { rawValue.setBits(11, 3, to: newValue) }
    }

    /// SHN, shutdown notification.
    public var shn: ShutdownNotification {
        get { ShutdownNotification(rawValue: UInt8(truncatingIfNeeded: rawValue.bits(14, 2))) }
        set { rawValue.setBits(14, 2, to: newValue.rawValue) }
    }

    /// IOSQES: I/O submission queue entries are `2 ^ iosqes` bytes.
    public var iosqes: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(16, 4)) }
        set { rawValue.setBits(16, 4, to: newValue) }
    }

    /// IOCQES: I/O completion queue entries are `2 ^ iocqes` bytes.
    public var iocqes: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue.bits(20, 4)) }
        set { rawValue.setBits(20, 4, to: newValue) }
    }

    /// CRIME: ready independent of media is enabled.
    public var crime: Bool {
        get { rawValue.bit(24) }
        set { rawValue.setBit(24, to: newValue) }
    }

    /// The host memory page in bytes, from CC.MPS.
    public var pageByteCount: UInt64 { 4096 << UInt64(mps) }

    /// Bits of a 2.0 controller configuration that are reserved and have to be zero.
    public var reservedBits: UInt32 { rawValue & 0xFE00_000E }
}

/// CC.SHN, what the host announces.
public struct ShutdownNotification: RawRepresentable, Equatable, Sendable {
    /// Two bits.
    public var rawValue: UInt8
    /// A field as read.
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// No notification.
    public static let none = ShutdownNotification(rawValue: 0)
    /// A normal shutdown: caches are written to media.
    public static let normal = ShutdownNotification(rawValue: 1)
    /// An abrupt shutdown: power goes at once.
    public static let abrupt = ShutdownNotification(rawValue: 2)
}

/// CSTS, controller status.
public struct ControllerStatus: RawRepresentable, Equatable, Sendable {
    /// The register as read.
    public var rawValue: UInt32

    /// A register as read, or 0 to start building one.
    public init(rawValue: UInt32 = 0) { self.rawValue = rawValue }

    /// RDY: the controller takes commands.
    public var rdy: Bool {
        get { rawValue.bit(0) }
        set { rawValue.setBit(0, to: newValue) }
    }

    /// CFS: a fatal error; only a reset helps.
    public var cfs: Bool {
        get { rawValue.bit(1) }
        set { rawValue.setBit(1, to: newValue) }
    }

    /// SHST, shutdown status.
    public var shst: ShutdownStatus {
        get { ShutdownStatus(rawValue: UInt8(truncatingIfNeeded: rawValue.bits(2, 2))) }
        set { rawValue.setBits(2, 2, to: newValue.rawValue) }
    }

    /// NSSRO: an NVM subsystem reset occurred; written as one to clear.
    public var nssro: Bool {
        get { rawValue.bit(4) }
        set { rawValue.setBit(4, to: newValue) }
    }

    /// PP: command processing is paused.
    public var pp: Bool {
        get { rawValue.bit(5) }
        set { rawValue.setBit(5, to: newValue) }
    }

    /// ST: the shutdown reported by SHST is one of the whole NVM subsystem.
    public var st: Bool {
        get { rawValue.bit(6) }
        set { rawValue.setBit(6, to: newValue) }
    }

    /// True if the register reads as all ones: the device no longer answers.
    public var isGone: Bool { rawValue == goneDevicePattern }
}

/// CSTS.SHST, how far a shutdown has come.
public struct ShutdownStatus: RawRepresentable, Equatable, Sendable {
    /// Two bits.
    public var rawValue: UInt8
    /// A field as read.
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// Normal operation.
    public static let normal = ShutdownStatus(rawValue: 0)
    /// Shutdown processing is going on.
    public static let occurring = ShutdownStatus(rawValue: 1)
    /// Shutdown processing is complete.
    public static let complete = ShutdownStatus(rawValue: 2)
}

/// AQA, admin queue attributes.
public struct AdminQueueAttributes: RawRepresentable, Equatable, Sendable {
    /// The register as read or as to be written.
    public var rawValue: UInt32

    /// A register as read, or 0 to start building one.
    public init(rawValue: UInt32 = 0) { self.rawValue = rawValue }

    /// Builds AQA from entry counts (1-based, at most 4096).
    public init(submissionEntryCount: UInt16, completionEntryCount: UInt16) {
        self.init()
        asqs = submissionEntryCount &- 1
        acqs = completionEntryCount &- 1
    }

    /// ASQS, admin submission queue entries less one.
    public var asqs: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue.bits(0, 12)) }
        set { rawValue.setBits(0, 12, to: newValue) }
    }

    /// ACQS, admin completion queue entries less one.
    public var acqs: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue.bits(16, 12)) }
        set { rawValue.setBits(16, 12, to: newValue) }
    }

    /// Entries of the admin submission queue (1-based).
    public var submissionEntryCount: UInt16 { asqs &+ 1 }

    /// Entries of the admin completion queue (1-based).
    public var completionEntryCount: UInt16 { acqs &+ 1 }
}

/// CRTO, controller ready timeouts; valid if CAP.CRMS is not zero.
public struct ControllerReadyTimeouts: RawRepresentable, Equatable, Sendable {
    /// The register as read.
    public var rawValue: UInt32

    /// A register as read, or 0 to start building one.
    public init(rawValue: UInt32 = 0) { self.rawValue = rawValue }

    /// CRWMT: the longest time to be ready with media, in units of 500 ms.
    public var crwmt: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue) }
        set { rawValue.setBits(0, 16, to: newValue) }
    }

    /// CRIMT: the longest time to be ready independent of media, in units of 500 ms.
    public var crimt: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue >> 16) }
        set { rawValue.setBits(16, 16, to: newValue) }
    }

    /// CRTO.CRWMT in milliseconds.
    public var readyWithMediaMilliseconds: UInt32 { UInt32(crwmt) &* 500 }

    /// CRTO.CRIMT in milliseconds.
    public var readyIndependentOfMediaMilliseconds: UInt32 { UInt32(crimt) &* 500 }
}
