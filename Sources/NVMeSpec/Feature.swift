// SPDX-License-Identifier: Apache-2.0
// Feature identifiers and the dwords of the features in use.
// NVM Express Base Specification 2.0, section 5.27.1.

/// FID, a feature identifier.
@frozen
public struct FeatureID: RawRepresentable, Hashable, Sendable {
    /// CDW10 bits 7:0 of Get Features and Set Features.
    public var rawValue: UInt8

    /// Any value, known or not.
    @inlinable
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Arbitration.
    @inlinable
    public static var arbitration: Self { Self(rawValue: 0x01) }
    /// Power Management.
    @inlinable
    public static var powerManagement: Self { Self(rawValue: 0x02) }
    /// Temperature Threshold.
    @inlinable
    public static var temperatureThreshold: Self { Self(rawValue: 0x04) }
    /// Error Recovery (NVM command set).
    @inlinable
    public static var errorRecovery: Self { Self(rawValue: 0x05) }
    /// Volatile Write Cache.
    @inlinable
    public static var volatileWriteCache: Self { Self(rawValue: 0x06) }
    /// Number of Queues.
    @inlinable
    public static var numberOfQueues: Self { Self(rawValue: 0x07) }
    /// Interrupt Coalescing.
    @inlinable
    public static var interruptCoalescing: Self { Self(rawValue: 0x08) }
    /// Interrupt Vector Configuration.
    @inlinable
    public static var interruptVectorConfiguration: Self { Self(rawValue: 0x09) }
    /// Write Atomicity Normal (NVM command set).
    @inlinable
    public static var writeAtomicityNormal: Self { Self(rawValue: 0x0A) }
    /// Asynchronous Event Configuration.
    @inlinable
    public static var asynchronousEventConfiguration: Self { Self(rawValue: 0x0B) }
    /// Autonomous Power State Transition.
    @inlinable
    public static var autonomousPowerStateTransition: Self { Self(rawValue: 0x0C) }
    /// Host Memory Buffer.
    @inlinable
    public static var hostMemoryBuffer: Self { Self(rawValue: 0x0D) }
    /// Timestamp.
    @inlinable
    public static var timestamp: Self { Self(rawValue: 0x0E) }
    /// Keep Alive Timer.
    @inlinable
    public static var keepAliveTimer: Self { Self(rawValue: 0x0F) }
    /// Host Controlled Thermal Management.
    @inlinable
    public static var hostControlledThermalManagement: Self { Self(rawValue: 0x10) }
    /// Non-Operational Power State Config.
    @inlinable
    public static var nonOperationalPowerState: Self { Self(rawValue: 0x11) }
    /// Read Recovery Level Config.
    @inlinable
    public static var readRecoveryLevel: Self { Self(rawValue: 0x12) }
    /// Host Behavior Support.
    @inlinable
    public static var hostBehaviorSupport: Self { Self(rawValue: 0x16) }
    /// Sanitize Config.
    @inlinable
    public static var sanitizeConfig: Self { Self(rawValue: 0x17) }
    /// I/O Command Set Profile.
    @inlinable
    public static var ioCommandSetProfile: Self { Self(rawValue: 0x19) }
    /// Software Progress Marker.
    @inlinable
    public static var softwareProgressMarker: Self { Self(rawValue: 0x80) }
    /// Host Identifier.
    @inlinable
    public static var hostIdentifier: Self { Self(rawValue: 0x81) }
    /// Reservation Notification Mask.
    @inlinable
    public static var reservationNotificationMask: Self { Self(rawValue: 0x82) }
    /// Reservation Persistence.
    @inlinable
    public static var reservationPersistence: Self { Self(rawValue: 0x83) }
    /// Namespace Write Protection Config.
    @inlinable
    public static var namespaceWriteProtection: Self { Self(rawValue: 0x84) }
}

/// SEL of Get Features: which of the values of a feature.
@frozen
public struct FeatureSelect: RawRepresentable, Hashable, Sendable {
    /// CDW10 bits 10:8 of Get Features.
    public var rawValue: UInt8

    /// Any value, known or not.
    @inlinable
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// The value in force.
    @inlinable
    public static var current: Self { Self(rawValue: 0x00) }
    /// The value of the maker.
    @inlinable
    public static var `default`: Self { Self(rawValue: 0x01) }
    /// The value kept over power cycles.
    @inlinable
    public static var saved: Self { Self(rawValue: 0x02) }
    /// Bit 0 saveable, bit 1 namespace specific, bit 2 changeable.
    @inlinable
    public static var supportedCapabilities: Self { Self(rawValue: 0x03) }
}

/// The dword of Number of Queues (07h): what is asked for and what is granted.
public struct QueueCounts: RawRepresentable, Equatable, Sendable {
    /// CDW11 of Set Features, DW0 of the completion.
    public var rawValue: UInt32

    /// A dword as read.
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Counts of I/O queues, 1 to 65535 (the admin queue is not among them).
    public init(submissionQueues: UInt32, completionQueues: UInt32) {
        rawValue = (submissionQueues &- 1) & 0xFFFF | ((completionQueues &- 1) & 0xFFFF) << 16
    }

    /// I/O submission queues: NSQR or NSQA plus one.
    public var submissionQueues: UInt32 { (rawValue & 0xFFFF) &+ 1 }

    /// I/O completion queues: NCQR or NCQA plus one.
    public var completionQueues: UInt32 { (rawValue >> 16) &+ 1 }

    /// True if a field is FFFFh, which the specification forbids.
    public var isInvalid: Bool { rawValue & 0xFFFF == 0xFFFF || rawValue >> 16 == 0xFFFF }
}

/// The dword of Asynchronous Event Configuration (0Bh).
public struct AsynchronousEventConfiguration: OptionSet, Sendable {
    /// CDW11 of Set Features, DW0 of Get Features.
    public var rawValue: UInt32

    /// A dword as read.
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Critical warning: the spare is below its threshold.
    public static let spare = Self(rawValue: 1 << 0)
    /// Critical warning: temperature.
    public static let temperature = Self(rawValue: 1 << 1)
    /// Critical warning: reliability is degraded.
    public static let reliability = Self(rawValue: 1 << 2)
    /// Critical warning: media is read only.
    public static let readOnly = Self(rawValue: 1 << 3)
    /// Critical warning: the backup of volatile memory failed.
    public static let volatileMemoryBackup = Self(rawValue: 1 << 4)
    /// Notice: a namespace was changed.
    public static let namespaceAttribute = Self(rawValue: 1 << 8)
    /// Notice: firmware activation starts.
    public static let firmwareActivation = Self(rawValue: 1 << 9)
    /// Every critical warning of the SMART log.
    public static let allSmart: Self = [
        .spare, .temperature, .reliability, .readOnly, .volatileMemoryBackup,
    ]
}

/// The dword of Volatile Write Cache (06h).
public struct VolatileWriteCacheFeature: RawRepresentable, Equatable, Sendable {
    /// CDW11 of Set Features, DW0 of Get Features.
    public var rawValue: UInt32

    /// A dword as read.
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Builds the dword.
    public init(enabled: Bool) { rawValue = enabled ? 1 : 0 }

    /// WCE: the volatile write cache is enabled.
    public var isEnabled: Bool { rawValue & 1 != 0 }
}
