// SPDX-License-Identifier: Apache-2.0
// Log page identifiers. NVM Express Base Specification 2.0, section 5.16.1.

/// LID, a log page identifier.
@frozen
public struct LogPageID: RawRepresentable, Hashable, Sendable {
    /// CDW10 bits 7:0 of Get Log Page.
    public var rawValue: UInt8

    /// Any value, known or not.
    @inlinable
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Supported Log Pages.
    @inlinable
    public static var supportedLogPages: Self { Self(rawValue: 0x00) }
    /// Error Information.
    @inlinable
    public static var errorInformation: Self { Self(rawValue: 0x01) }
    /// SMART / Health Information.
    @inlinable
    public static var smartHealth: Self { Self(rawValue: 0x02) }
    /// Firmware Slot Information.
    @inlinable
    public static var firmwareSlot: Self { Self(rawValue: 0x03) }
    /// Changed Namespace List.
    @inlinable
    public static var changedNamespaceList: Self { Self(rawValue: 0x04) }
    /// Commands Supported and Effects.
    @inlinable
    public static var commandsSupportedAndEffects: Self { Self(rawValue: 0x05) }
    /// Device Self-test.
    @inlinable
    public static var deviceSelfTest: Self { Self(rawValue: 0x06) }
    /// Telemetry Host-Initiated.
    @inlinable
    public static var telemetryHostInitiated: Self { Self(rawValue: 0x07) }
    /// Telemetry Controller-Initiated.
    @inlinable
    public static var telemetryControllerInitiated: Self { Self(rawValue: 0x08) }
    /// Asymmetric Namespace Access.
    @inlinable
    public static var asymmetricNamespaceAccess: Self { Self(rawValue: 0x0C) }
    /// Persistent Event Log.
    @inlinable
    public static var persistentEvent: Self { Self(rawValue: 0x0D) }
    /// Feature Identifiers Supported and Effects.
    @inlinable
    public static var featureIdentifiersSupported: Self { Self(rawValue: 0x12) }
    /// Reservation Notification.
    @inlinable
    public static var reservationNotification: Self { Self(rawValue: 0x80) }
    /// Sanitize Status.
    @inlinable
    public static var sanitizeStatus: Self { Self(rawValue: 0x81) }
}
