// SPDX-License-Identifier: Apache-2.0
// DW0 of the completion of an Asynchronous Event Request. NVM Express Base Specification 2.0,
// section 5.2.1.

/// An asynchronous event: what happened, and the log page whose reading clears it.
public struct AsynchronousEvent: RawRepresentable, Hashable, Sendable {
    /// DW0 of the completion.
    public var rawValue: UInt32

    /// DW0 as read.
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// An event as a controller reports it.
    public init(type: AsynchronousEventType, information: UInt8, logPage: LogPageID) {
        rawValue =
            UInt32(type.rawValue & 7) | UInt32(information) << 8 | UInt32(logPage.rawValue) << 16
    }

    /// Bits 2:0, the kind of event.
    public var type: AsynchronousEventType {
        AsynchronousEventType(rawValue: UInt8(truncatingIfNeeded: rawValue) & 7)
    }

    /// Bits 15:8, what happened; the meaning depends on the type.
    public var information: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 8) }

    /// Bits 23:16, the log page whose reading clears the event.
    public var logPage: LogPageID { LogPageID(rawValue: UInt8(truncatingIfNeeded: rawValue >> 16)) }

    /// Error: a doorbell of a queue that does not exist was written.
    public static let invalidDoorbellRegister = Self(
        type: .error, information: 0, logPage: .errorInformation)
    /// Error: a doorbell was written with a value out of range or with the previous one.
    public static let invalidDoorbellValue = Self(
        type: .error, information: 1, logPage: .errorInformation)
    /// Error: a failure inside the controller that lasts.
    public static let persistentInternalError = Self(
        type: .error, information: 3, logPage: .errorInformation)
    /// SMART: the reliability of the subsystem is degraded.
    public static let reliability = Self(type: .smart, information: 0, logPage: .smartHealth)
    /// SMART: a temperature crossed its threshold.
    public static let temperature = Self(type: .smart, information: 1, logPage: .smartHealth)
    /// SMART: the spare fell below its threshold.
    public static let spare = Self(type: .smart, information: 2, logPage: .smartHealth)
    /// Notice: namespaces were attached, detached or changed.
    public static let namespaceAttributeChanged = Self(
        type: .notice, information: 0, logPage: .changedNamespaceList)
    /// Notice: firmware activation pauses command processing.
    public static let firmwareActivationStarting = Self(
        type: .notice, information: 1, logPage: .firmwareSlot)
}

extension AsynchronousEvent: CustomStringConvertible {
    /// For example "namespace attribute changed (type 2h, information 00h, log page 04h)".
    public var description: String {
        let numbers =
            "type \(hex(type.rawValue, digits: 1)), information \(hex(information)), "
            + "log page \(hex(logPage.rawValue))"
        let known: String? =
            switch self {
            case .invalidDoorbellRegister: "write to an invalid doorbell"
            case .invalidDoorbellValue: "invalid doorbell value"
            case .persistentInternalError: "persistent internal error"
            case .reliability: "reliability degraded"
            case .temperature: "temperature threshold"
            case .spare: "spare below threshold"
            case .namespaceAttributeChanged: "namespace attribute changed"
            case .firmwareActivationStarting: "firmware activation starting"
            default: nil
            }
        return known.map { "\($0) (\(numbers))" } ?? "event of \(numbers)"
    }
}

/// The kind of an asynchronous event.
public struct AsynchronousEventType: RawRepresentable, Hashable, Sendable {
    /// Three bits.
    public var rawValue: UInt8
    /// Any type, known or not.
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// Error status.
    public static let error = Self(rawValue: 0)
    /// SMART / health status.
    public static let smart = Self(rawValue: 1)
    /// Notice.
    public static let notice = Self(rawValue: 2)
    /// I/O command set specific.
    public static let commandSetSpecific = Self(rawValue: 6)
    /// Vendor specific.
    public static let vendorSpecific = Self(rawValue: 7)
}
