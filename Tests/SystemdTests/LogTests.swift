// SPDX-License-Identifier: Apache-2.0
// The log: levels, forms, what hostile text may do, and how often one kind is written.

import Linux
import Synchronization
import Testing

@testable import Systemd

/// Lines that were written, and a clock that is set by hand.
private final class Recorder: Sendable {
    let lines = Mutex<[String]>([])
    let now = Mutex<UInt64>(0)

    func sink(_ level: LogLevel = .debug, _ format: LogSink.Format = .plain) -> LogSink {
        LogSink(
            levelMax: level, format: format, now: { self.now.withLock { $0 } },
            output: { line in self.lines.withLock { $0.append(line) } })
    }

    var written: [String] { lines.withLock { $0 } }
    func pass(_ nanoseconds: UInt64) { now.withLock { $0 += nanoseconds } }
}

@Suite("Log")
struct LogTests {
    private let recorder = Recorder()

    @Test("device, queue and namespace come before the message, other fields after it")
    func plain() {
        let log = Log(device: "nvme0", fields: ["UNIT": "w@1"], sink: recorder.sink())
        log.error("timed out", queue: 3, namespace: 1, fields: ["CID": "7"])
        #expect(recorder.written == ["nvme0: queue 3: namespace 1: timed out CID=7 UNIT=w@1"])
    }

    @Test("the prefixed form begins with the level")
    func prefixed() {
        let log = Log(device: "nvme0", sink: recorder.sink(.debug, .prefixed))
        log.error("a")
        log.debug("b")
        #expect(recorder.written == ["<3>nvme0: a", "<7>nvme0: b"])
    }

    @Test("less important messages are not even composed")
    func levels() {
        let log = Log(sink: recorder.sink(.warning))
        var composed = 0
        func text() -> String {
            composed += 1
            return "x"
        }
        log.info(text())
        log.notice(text())
        log.warning(text())
        #expect(recorder.written == ["x"])
        #expect(composed == 1)
    }

    @Test("text of a client cannot begin a line of its own, nor be without end")
    func hostileText() {
        let log = Log(device: "a\nb", sink: recorder.sink(.debug, .prefixed))
        log.error("x\n<0>forged\u{7f}")
        log.error(String(repeating: "y", count: 100_000))
        #expect(recorder.written[0] == "<3>a b: x <0>forged ")
        #expect(recorder.written[1].utf8.count == LogSink.messageByteCountMax + 8)
    }

    @Test("a kind of message that comes too often is counted and told once")
    func rateLimit() {
        let log = Log(sink: recorder.sink())
        let id = MessageID("0123456789abcdef0123456789abcdef")
        for _ in 0..<(LogSink.burst + 100) { log.error("often", id: id) }
        log.error("other")
        recorder.pass(LogSink.intervalNanoseconds)
        log.error("later", id: id)
        let written = recorder.written
        #expect(written.count == LogSink.burst + 3)
        #expect(
            Array(written[LogSink.burst...]) == [
                "other", "suppressed 100 messages of this kind", "later",
            ])
    }

    @Test("kinds beyond the bound share one count")
    func kindsMax() {
        var limiter = RateLimiter()
        var admitted = 0
        for index in 0..<(RateLimiter.kindsMax + 5000) {
            let hex = String(index, radix: 16)
            let text = String(repeating: "0", count: 32 - hex.count) + hex
            if limiter.admit(MessageID(unchecked: text), at: 0).admitted { admitted += 1 }
        }
        #expect(admitted == RateLimiter.kindsMax + LogSink.anonymousBurst)
    }

    @Test("the journal gets fields, and only names it takes")
    func journalFields() {
        let fields = LogSink.journalFields(
            LogRecord(
                level: .warning, message: "m", id: MessageID("0123456789abcdef0123456789abcdef"),
                device: "nvme0", queue: 3, namespace: 1,
                fields: ["GOOD_1": "x\ny", "_PID": "1", "bad": "1", "1A": "1", "": "1"]))
        #expect(
            fields == [
                "MESSAGE=m", "PRIORITY=4", "MESSAGE_ID=0123456789abcdef0123456789abcdef",
                "NVME_DEVICE=nvme0", "NVME_QUEUE=3", "NVME_NSID=1", "GOOD_1=x y",
            ])
    }

    @Test(
        "levels are read from numbers and names",
        arguments: [
            ("0", LogLevel.emergency), ("err", .error), ("WARN", .warning), ("7", .debug),
        ])
    func levelNames(_ text: String, _ level: LogLevel) {
        #expect(LogLevel(text: text) == level)
    }

    @Test("nonsense is no level", arguments: ["", "8", "-1", "verbose"])
    func badLevel(_ text: String) {
        #expect(LogLevel(text: text) == nil)
    }
}
