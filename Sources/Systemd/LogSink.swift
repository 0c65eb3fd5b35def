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
    var id: LogEvent?
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

    /// Messages of one event and device per interval, unless the event says otherwise; then they
    /// are only counted. Ten tell the story; a device that fails thousands of times a second must
    /// not fill the journal, nor slow down the worker that logs it.
    public static let burst = 10
    /// Messages without an event share this many per device and interval.
    public static let anonymousBurst = 300
    /// The interval, in nanoseconds.
    public static let intervalNanoseconds: UInt64 = 30_000_000_000
    /// The most bytes of a message; the rest is cut off.
    public static let messageByteCountMax = 4096

    /// The least important level that is written.
    public let levelMax: LogLevel
    /// The form of the messages.
    public let format: Format
    private let limiter = Mutex(RateLimiter())
    private let now: @Sendable () -> UInt64
    private let output: (@Sendable (String) -> Void)?
    private let journal: @Sendable (_ fields: [[UInt8]]) -> Bool

    /// The sink of this process, as its environment says.
    ///
    /// NVMED_LOG_LEVEL is a level (`info` without it). The form is the journal's when standard
    /// error is connected to it (JOURNAL_STREAM), plain on a terminal, prefixed otherwise;
    /// NVMED_LOG=`plain`, `prefixed` or `journal` decides instead.
    public static let standard = LogSink(
        levelMax: Environment.value("NVMED_LOG_LEVEL").flatMap { LogLevel(text: $0) } ?? .info,
        format: standardFormat())

    /// A sink; `output` takes the lines instead of standard error, `now` is its clock, and
    /// `journal` takes the fields, `NAME=value` each, and says whether it did.
    public init(
        levelMax: LogLevel, format: Format,
        now: @escaping @Sendable () -> UInt64 = { MonotonicClock.nowNanoseconds },
        output: (@Sendable (String) -> Void)? = nil,
        journal: @escaping @Sendable (_ fields: [[UInt8]]) -> Bool = LogSink.sendToJournal
    ) {
        self.levelMax = levelMax
        self.format = format
        self.now = now
        self.output = output
        self.journal = journal
    }

    func write(_ record: LogRecord) {
        let verdict = limiter.withLock { limiter in
            (
                over: limiter.takeOver(at: now()),
                admitted: limiter.admit(RateLimiter.Key(record.id, record.device), at: now())
            )
        }
        for (key, count) in verdict.over {
            emit(
                LogRecord(
                    level: .notice, message: "suppressed \(count) messages of this kind",
                    id: key.event, device: key.device, fields: [:]))
        }
        if verdict.admitted { emit(record) }
    }

    private func emit(_ record: LogRecord) {
        var record = record
        record.message = Self.clean(record.message)
        if format == .journal, journal(Self.journalFields(record).map { Array($0.utf8) }) { return }
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

    /// One line of bounded length without anything that steers a terminal: a message may quote what
    /// a client or a device sent. C0, DEL and C1 become blanks.
    static func clean(_ text: String) -> String {
        var clean = String.UnicodeScalarView()
        var byteCount = 0
        for scalar in text.unicodeScalars {
            let isControl = scalar.value < 0x20 || (0x7f...0x9f).contains(scalar.value)
            let kept: Unicode.Scalar = isControl ? " " : scalar
            byteCount += UTF8.width(kept)
            guard byteCount <= messageByteCountMax else { break }
            clean.append(kept)
        }
        return String(clean)
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
        if let id = record.id { fields.append("MESSAGE_ID=\(id.id.text)") }
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

    /// Hands the fields to journald; false when it did not take them.
    ///
    /// libsystemd sends what contains a line break with its length, so that no value can add a
    /// field, whatever it contains.
    public static func sendToJournal(_ fields: [[UInt8]]) -> Bool {
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
