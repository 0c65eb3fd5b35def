// SPDX-License-Identifier: Apache-2.0
// The structured log: what happened, to which device, queue and namespace.

/// How important a message is, as syslog and the journal have it.
public enum LogLevel: Int32, Sendable, CaseIterable, Comparable {
    /// The system is unusable.
    case emergency
    /// Something must be done at once.
    case alert
    /// A part has failed for good.
    case critical
    /// An operation failed.
    case error
    /// Something is wrong, and work continues.
    case warning
    /// Normal and worth knowing.
    case notice
    /// Normal.
    case info
    /// For developers.
    case debug

    /// Emergencies first.
    public static func < (first: LogLevel, second: LogLevel) -> Bool {
        first.rawValue < second.rawValue
    }

    /// Reads a number from 0 to 7, or a name (`err` and `warn` count too).
    public init?(text: String) {
        switch text.lowercased() {
        case "0", "emergency", "emerg": self = .emergency
        case "1", "alert": self = .alert
        case "2", "critical", "crit": self = .critical
        case "3", "error", "err": self = .error
        case "4", "warning", "warn": self = .warning
        case "5", "notice": self = .notice
        case "6", "info": self = .info
        case "7", "debug": self = .debug
        default: return nil
        }
    }
}

/// The 128-bit identity of a kind of message, by which operators search.
public struct MessageID: Sendable, Hashable {
    /// 32 lower-case hexadecimal digits.
    public let text: String

    init(unchecked text: String) { self.text = text }
}

/// A log with fields bound to it: `Log(device: "nvme0").error("timed out", queue: 3)`.
///
/// Programs log, libraries throw. The fields go to the journal as NVME_DEVICE, NVME_QUEUE,
/// NVME_NSID and whatever else is bound; on a terminal they are put before the message.
public struct Log: Sendable {
    /// The device the messages are about, by its configured name.
    public var device: String?
    /// Further fields of every message: journal names (`A-Z`, digits, `_`) and values.
    public var fields: [String: String]
    private let sink: LogSink

    /// Binds fields. `sink` is that of the process unless a test brings its own.
    public init(
        device: String? = nil, fields: [String: String] = [:], sink: LogSink = .standard
    ) {
        self.device = device
        self.fields = fields
        self.sink = sink
    }

    /// Whether messages of a level are written at all.
    public func isEnabled(_ level: LogLevel) -> Bool { level <= sink.levelMax }

    /// Writes a message, unless its level is off or its kind comes too often.
    public func write(
        _ level: LogLevel, _ message: @autoclosure () -> String, id: LogEvent? = nil,
        queue: UInt16? = nil, namespace: UInt32? = nil, fields extra: [String: String] = [:]
    ) {
        guard isEnabled(level) else { return }
        sink.write(
            LogRecord(
                level: level, message: message(), id: id, device: device, queue: queue,
                namespace: namespace, fields: fields.merging(extra) { _, new in new }))
    }

    /// An operation failed.
    public func error(
        _ message: @autoclosure () -> String, id: LogEvent? = nil, queue: UInt16? = nil,
        namespace: UInt32? = nil, fields: [String: String] = [:]
    ) {
        write(.error, message(), id: id, queue: queue, namespace: namespace, fields: fields)
    }

    /// Something is wrong, and work continues.
    public func warning(
        _ message: @autoclosure () -> String, id: LogEvent? = nil, queue: UInt16? = nil,
        namespace: UInt32? = nil, fields: [String: String] = [:]
    ) {
        write(.warning, message(), id: id, queue: queue, namespace: namespace, fields: fields)
    }

    /// Normal and worth knowing.
    public func notice(
        _ message: @autoclosure () -> String, id: LogEvent? = nil, queue: UInt16? = nil,
        namespace: UInt32? = nil, fields: [String: String] = [:]
    ) {
        write(.notice, message(), id: id, queue: queue, namespace: namespace, fields: fields)
    }

    /// Normal.
    public func info(
        _ message: @autoclosure () -> String, id: LogEvent? = nil, queue: UInt16? = nil,
        namespace: UInt32? = nil, fields: [String: String] = [:]
    ) {
        write(.info, message(), id: id, queue: queue, namespace: namespace, fields: fields)
    }

    /// For developers.
    public func debug(
        _ message: @autoclosure () -> String, id: LogEvent? = nil, queue: UInt16? = nil,
        namespace: UInt32? = nil, fields: [String: String] = [:]
    ) {
        write(.debug, message(), id: id, queue: queue, namespace: namespace, fields: fields)
    }
}
