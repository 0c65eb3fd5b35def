// SPDX-License-Identifier: Apache-2.0
// Where log messages go: the journal, or standard error; and how many of one kind.

internal import CSystemd
internal import Glibc
public import Linux
internal import Synchronization

/// A message with its fields.
struct LogRecord {
    var level: LogLevel
    var message: String
    var id: MessageID?
    var device: String?
    var queue: UInt16?
    var namespace: UInt32?
    var fields: [String: String]
}

/// Where log messages go.
public final class LogSink: Sendable {
    /// The form of the messages.
    public enum Format: Sendable {
        /// Structured, to journald.
        case journal
        /// Lines that begin with `<N>`, N being the level; for whoever collects standard error.
        case prefixed
        /// Plain lines, for people.
        case plain
    }

    /// Messages of one kind (one message id) per interval; then they are only counted.
    public static let burst = 50
    /// Messages without an id share this many per interval.
    public static let anonymousBurst = 1000
    /// The interval, in nanoseconds.
    public static let intervalNanoseconds: UInt64 = 5_000_000_000
    /// The most bytes of a message; the rest is cut off.
    public static let messageByteCountMax = 4096

    /// The least important level that is written.
    public let levelMax: LogLevel
    /// The form of the messages.
    public let format: Format
    private let limiter = Mutex(RateLimiter())
    private let now: @Sendable () -> UInt64
    private let output: (@Sendable (String) -> Void)?

    /// The sink of this process, as its environment says.
    ///
    /// NVMED_LOG_LEVEL is a level (`info` without it). The form is the journal's when standard
    /// error is connected to it (JOURNAL_STREAM), plain on a terminal, prefixed otherwise;
    /// NVMED_LOG=`plain`, `prefixed` or `journal` decides instead.
    public static let standard = LogSink(
        levelMax: Environment.value("NVMED_LOG_LEVEL").flatMap { LogLevel(text: $0) } ?? .info,
        format: standardFormat())

    /// A sink; `output` takes the lines instead of standard error, `now` is its clock.
    public init(
        levelMax: LogLevel, format: Format,
        now: @escaping @Sendable () -> UInt64 = { MonotonicClock.nowNanoseconds },
        output: (@Sendable (String) -> Void)? = nil
    ) {
        self.levelMax = levelMax
        self.format = format
        self.now = now
        self.output = output
    }

    func write(_ record: LogRecord) {
        let verdict = limiter.withLock { $0.admit(record.id, at: now()) }
        if verdict.suppressed > 0 {
            var notice = record
            notice.message = "suppressed \(verdict.suppressed) messages of this kind"
            emit(notice)
        }
        if verdict.admitted { emit(record) }
    }

    private func emit(_ record: LogRecord) {
        var record = record
        record.message = Self.clean(record.message)
        if format == .journal, output == nil, Self.journal(record) { return }
        let line = (format == .plain ? "" : "<\(record.level.rawValue)>") + Self.line(record)
        if let output { return output(line) }
        let bytes = Array((line + "\n").utf8)
        // Nothing can be done about a standard error that is gone.
        _ = unsafe Glibc.write(STDERR_FILENO, bytes, bytes.count)
    }

    /// `nvme0: queue 3: namespace 1: message`.
    static func line(_ record: LogRecord) -> String {
        var line = ""
        if let device = record.device { line += "\(clean(device)): " }
        if let queue = record.queue { line += "queue \(queue): " }
        if let namespace = record.namespace { line += "namespace \(namespace): " }
        line += record.message
        for (name, value) in record.fields.sorted(by: { $0.key < $1.key }) {
            line += " \(name)=\(clean(value))"
        }
        return line
    }

    /// One line of bounded length: a message may quote what a client or a device sent.
    static func clean(_ text: String) -> String {
        let bytes = text.utf8.prefix(messageByteCountMax)
        return String(
            decoding: bytes.map { $0 < 0x20 || $0 == 0x7f ? 0x20 : $0 }, as: UTF8.self)
    }
}

// MARK: - The journal

extension LogSink {
    private static func standardFormat() -> Format {
        switch Environment.value("NVMED_LOG") {
        case "plain": return .plain
        case "prefixed": return .prefixed
        case "journal": return .journal
        default: break
        }
        if stderrIsJournal() { return .journal }
        return isatty(STDERR_FILENO) == 1 ? .plain : .prefixed
    }

    /// JOURNAL_STREAM is `device:inode` of the stream the journal connected.
    private static func stderrIsJournal() -> Bool {
        guard let stream = Environment.value("JOURNAL_STREAM") else { return false }
        var status = stat()
        guard unsafe fstat(STDERR_FILENO, &status) == 0 else { return false }
        return stream == "\(status.st_dev):\(status.st_ino)"
    }

    /// The fields as the journal wants them, `NAME=value`.
    static func journalFields(_ record: LogRecord) -> [String] {
        var fields = ["MESSAGE=\(record.message)", "PRIORITY=\(record.level.rawValue)"]
        if let id = record.id { fields.append("MESSAGE_ID=\(id.text)") }
        if let device = record.device { fields.append("NVME_DEVICE=\(clean(device))") }
        if let queue = record.queue { fields.append("NVME_QUEUE=\(queue)") }
        if let namespace = record.namespace { fields.append("NVME_NSID=\(namespace)") }
        for (name, value) in record.fields.sorted(by: { $0.key < $1.key })
        where isFieldName(name) {
            fields.append("\(name)=\(clean(value))")
        }
        return fields
    }

    /// The journal takes `A-Z`, digits and `_`, not first a digit; a leading `_` is its own.
    private static func isFieldName(_ name: String) -> Bool {
        guard let first = name.utf8.first, (0x41...0x5a).contains(first), name.utf8.count <= 64
        else { return false }
        return name.utf8.allSatisfy {
            (0x41...0x5a).contains($0) || (0x30...0x39).contains($0) || $0 == 0x5f
        }
    }

    /// False when the journal did not take it.
    private static func journal(_ record: LogRecord) -> Bool {
        let fields = journalFields(record).map { Array($0.utf8) }
        var bytes = fields.flatMap { $0 }
        return unsafe bytes.withUnsafeMutableBytes { bytes in
            var vector: [iovec] = unsafe []
            var offset = 0
            for field in fields {
                let start = unsafe bytes.baseAddress?.advanced(by: offset)
                unsafe vector.append(iovec(iov_base: start, iov_len: field.count))
                offset += field.count
            }
            return unsafe sd_journal_sendv(vector, CInt(clamping: vector.count)) >= 0
        }
    }
}

/// Counts messages by kind.
struct RateLimiter {
    /// Kinds that are counted apart; further ones share the count of messages without an id.
    static let kindsMax = 256

    private struct Bucket {
        var begin: UInt64
        var count = 0
        var suppressed = 0
    }

    private var buckets: [MessageID?: Bucket] = [:]

    /// Whether to write the message, and how many were suppressed in the interval that ended.
    mutating func admit(_ id: MessageID?, at now: UInt64) -> (admitted: Bool, suppressed: Int) {
        let known = buckets[id] != nil || buckets.count < Self.kindsMax
        let key = known ? id : nil
        var bucket = buckets[key] ?? Bucket(begin: now)
        var suppressed = 0
        if now &- bucket.begin >= LogSink.intervalNanoseconds {
            suppressed = bucket.suppressed
            bucket = Bucket(begin: now)
        }
        let burst = key == nil ? LogSink.anonymousBurst : LogSink.burst
        let admitted = bucket.count < burst
        if admitted { bucket.count += 1 } else { bucket.suppressed += 1 }
        buckets[key] = bucket
        return (admitted, suppressed)
    }
}
