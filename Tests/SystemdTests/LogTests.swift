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

    @Test("an event that comes too often is counted, and told once when its interval is over")
    func rateLimit() {
        let log = Log(device: "a", sink: recorder.sink())
        for _ in 0..<(LogSink.burst + 100) { log.error("often", id: .mediaError) }
        log.error("other", id: .deviceFailed)
        recorder.pass(LogSink.intervalNanoseconds)
        log.error("later", id: .mediaError)
        let written = recorder.written
        #expect(written.count == LogSink.burst + 3)
        #expect(
            Array(written[LogSink.burst...]) == [
                "a: other", "a: suppressed 100 messages of this kind", "a: later",
            ])
    }

    @Test("one device's messages do not silence another's")
    func rateLimitPerDevice() {
        for device in ["a", "b"] {
            let log = Log(device: device, sink: recorder.sink())
            for _ in 0..<(LogSink.burst + 1) { log.error("x", id: .mediaError) }
        }
        #expect(recorder.written.count == 2 * LogSink.burst)
    }

    @Test("what is suppressed is told by the next message of any kind, once")
    func suppressionTold() {
        let log = Log(device: "a", sink: recorder.sink(.debug, .prefixed))
        for _ in 0..<(LogSink.burst + 1) { log.error("x", id: .mediaError) }
        recorder.pass(LogSink.intervalNanoseconds)
        log.info("y")
        log.info("z")
        #expect(
            Array(recorder.written[LogSink.burst...]) == [
                "<5>a: suppressed 1 messages of this kind", "<6>a: y", "<6>a: z",
            ])
    }

    @Test("kinds beyond the bound share one count, until others are over")
    func kindsMax() {
        var limiter = RateLimiter()
        func admitted(_ devices: Range<Int>, at now: UInt64) -> Int {
            devices.count { limiter.admit(.init(.mediaError, "\($0)"), at: now) }
        }
        let many = RateLimiter.kindsMax + 5000
        #expect(admitted(0..<many, at: 0) == RateLimiter.kindsMax + LogSink.anonymousBurst)
        #expect(limiter.takeOver(at: LogSink.intervalNanoseconds).map(\.1) == [4700])
        #expect(admitted(many..<(many + 10), at: LogSink.intervalNanoseconds) == 10)
    }

    @Test("the journal gets fields, and only names it takes")
    func journalFields() {
        let fields = LogSink.journalFields(
            LogRecord(
                level: .warning, message: "m", id: .deviceFailed, device: "nvme0", queue: 3,
                namespace: 1,
                fields: ["GOOD_1": "x\ny", "_PID": "1", "bad": "1", "1A": "1", "": "1"]))
        #expect(
            fields == [
                "MESSAGE=m", "PRIORITY=4", "MESSAGE_ID=\(LogEvent.deviceFailed.rawValue)",
                "NVME_DEVICE=nvme0", "NVME_QUEUE=3", "NVME_NSID=1", "GOOD_1=x y",
            ])
    }

    @Test("what a device says can neither forge a field nor steer a terminal")
    func forgery() {
        let sent = Mutex<[[[UInt8]]]>([])
        let sink = LogSink(
            levelMax: .debug, format: .journal,
            journal: { fields in
                sent.withLock { $0.append(fields) }
                return true
            })
        let hostile = String(
            decoding: Array("S1\nPRIORITY=0\n\u{9b}2J\u{1b}[".utf8) + [0, 0xff, 0xfe], as: UTF8.self
        )
        Log(device: hostile, sink: sink).error(
            "serial \(hostile)", id: .controllerReady, fields: ["NVME_SERIAL": hostile])
        let record = sent.withLock { $0 }.first ?? []
        let clean = "S1 PRIORITY=0  2J [ \u{fffd}\u{fffd}"
        #expect(
            record.map { String(decoding: $0, as: UTF8.self) } == [
                "MESSAGE=serial \(clean)", "PRIORITY=3",
                "MESSAGE_ID=\(LogEvent.controllerReady.rawValue)", "NVME_DEVICE=\(clean)",
                "NVME_SERIAL=\(clean)",
            ])
    }

    @Test("what the journal does not take goes to standard error")
    func noJournal() {
        let sink = LogSink(
            levelMax: .debug, format: .journal,
            output: { line in recorder.lines.withLock { $0.append(line) } }, journal: { _ in false }
        )
        Log(sink: sink).error("x")
        #expect(recorder.written == ["<3>x"])
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
