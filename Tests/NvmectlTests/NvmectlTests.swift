// SPDX-License-Identifier: Apache-2.0
// The parts of the command line that need no service.

import ArgumentParser
import NVMeClient
import Testing
import Wire

@testable import nvmectl

@Suite("The command line")
struct NvmectlTests {
    @Test("JSON escapes what has to be, and keeps the order of keys")
    func json() {
        let value = JSON.object([
            ("z", 1), ("a", .string("\"\\\n\u{1}é")), ("n", .null), ("b", .bool(true)),
            ("s", .signed(-5)), ("d", .decimal(.nan)), ("l", .array([1, .decimal(0.5)])),
        ])
        #expect(
            value.text
                == #"{"z":1,"a":"\"\\\n\u0001é","n":null,"b":true,"s":-5,"d":null,"l":[1,0.5]}"#)
    }

    @Test("sizes are bytes, have a unit, or count blocks")
    func sizes() {
        #expect(Size(argument: "4096")?.byteCount(blockByteCount: 512) == 4096)
        #expect(Size(argument: "64K")?.byteCount(blockByteCount: 512) == 65536)
        #expect(Size(argument: "8b")?.byteCount(blockByteCount: 4096) == 32768)
        #expect(Size(argument: "18446744073709551615b")?.byteCount(blockByteCount: 2) == nil)
    }

    @Test(
        "what is no size is refused", arguments: ["", "K", "-1", "1X", "99999999T", "1.5K", "+1"])
    func noSizes(text: String) {
        #expect(Size(argument: text) == nil)
    }

    @Test("options of the program may stand before the command")
    func normalization() {
        #expect(
            normalized(["--socket", "/s", "--output=json", "disk", "list"])
                == ["disk", "list", "--socket", "/s", "--output=json"])
        #expect(
            normalized(["--socket", "/s", "io", "read", "--", "-x"])
                == ["io", "read", "--socket", "/s", "--", "-x"])
        #expect(normalized(["--help"]) == ["--help"])
        #expect(normalized([]) == [])
    }

    @Test(
        "an error of the service has its exit code",
        arguments: [
            (ErrorCode.notFound, ProgramStatus.notFound), (.permissionDenied, .permission),
            (.readOnly, .permission), (.deviceFailed, .deviceFailed), (.mediaError, .deviceFailed),
            (.compareFailed, .dataMismatch), (.busy, .retry), (.workerRestarted, .retry),
            (.deviceStarting, .retry), (.outOfRange, .usage), (.internalError, .failure),
            (.outcomeUnknown, .failure),
        ])
    func exitCodes(code: ErrorCode, status: ProgramStatus) {
        let failure = Failure(.failed(WireError(code, "why")), .disk("vol0"), .text)
        #expect(failure.exitCode == status)
        #expect(failure.message == "why")
    }

    @Test("the object is named once, also when the service names it too")
    func subject() {
        let failure = Failure(.failed(WireError(.notFound, "disk v: gone")), .disk("v"), .text)
        #expect(failure.subject.text + failure.message == "disk v: gone")
    }

    @Test("text from a device cannot steer a terminal")
    func printable() {
        #expect(Text.printable("a\u{1b}[31mb\n\u{9b}") == "a?[31mb??")
        #expect(!Text.table(["A"], [["x\u{7}"]]).contains("\u{7}"))
    }

    @Test("percentiles are right to a sixteenth")
    func percentiles() {
        var histogram = LatencyHistogram()
        for value in 1...10_000 { histogram.add(UInt64(value)) }
        let p50 = histogram.percentile(0.5)
        let p99 = histogram.percentile(0.99)
        #expect((4_600...5_000).contains(p50))
        #expect((9_200...9_900).contains(p99))
        #expect(histogram.maximum == 10_000)
        #expect(LatencyHistogram().percentile(0.5) == 0)
        histogram.add(.max)
        #expect(histogram.maximum == .max)
    }

    @Test("a dump shows place, bytes and text")
    func hexdump() {
        let text = Hexdump.text(Array("nvmed\u{0}".utf8), at: 0x1000)
        #expect(
            text == "000000001000  6e 76 6d 65 64 00"
                + String(repeating: "   ", count: 10) + "  nvmed.\n")
    }

    @Test("sizes read like sizes")
    func readableSizes() {
        #expect(Text.size(0) == "0 B")
        #expect(Text.size(1536) == "1.5 KiB")
        #expect(Text.size(64 << 20) == "64 MiB")
        #expect(Text.size(.max) == "16384 PiB")
    }

    @Test("writing benchmarks want a word of consent, and depths a bound")
    func benchValidation() {
        #expect(throws: (any Error).self) {
            try Nvmectl.parseAsRoot(["bench", "v", "--operation", "write"])
        }
        #expect(throws: (any Error).self) {
            try Nvmectl.parseAsRoot(["bench", "v", "--queue-depth", "100000"])
        }
        #expect(throws: Never.self) { try Nvmectl.parseAsRoot(["bench", "v"]) }
    }

    @Test(
        "what cannot be meant is refused in words that say what is allowed",
        arguments: [
            (["io", "zero", "v"], "--all"), (["io", "unmap", "v", "--offset", "4K"], "--all"),
            (["io", "write", "v", "--pattern", "random"], "--all"),
            (["io", "zero", "v", "--length", "4K", "--all"], "not both"),
            (["io", "verify", "v", "--device", "--repeat", "0"], "--repeat is 1 or more"),
            (["io", "verify", "v", "--device", "--repeat", "-1"], "--repeat is 1 or more"),
            (["io", "verify", "v", "--repeat", "2"], "compared only once"),
            (["bench", "v", "--seconds", "-5"], "--seconds is from 1 to 86400"),
            (["bench", "v", "--seconds", "0"], "--seconds is from 1 to 86400"),
            (["bench", "v", "--queue-depth", "-1"], "--queue-depth is from 1"),
            (["disk", "list", "--timeout", "-1"], "--timeout is from 0"),
        ])
    func refusals(arguments: [String], words: String) {
        var message = "accepted"
        do {
            _ = try Nvmectl.parseAsRoot(arguments)
        } catch { message = Nvmectl.message(for: error) }
        #expect(message.contains(words), "\(message)")
    }

    @Test(
        "what destroys data runs when it is said how much",
        arguments: [
            ["io", "zero", "v", "--all"], ["io", "unmap", "v", "--length", "8b"],
            ["io", "write", "v", "--pattern", "zero", "--all"], ["io", "write", "v"],
        ])
    func consents(arguments: [String]) {
        #expect(throws: Never.self) { try Nvmectl.parseAsRoot(arguments) }
    }

    @Test("a script that asks for JSON is recognised also in arguments that are refused")
    func jsonWanted() {
        #expect(asksForJSON(["bench", "v", "--seconds", "-5", "--output", "json"]))
        #expect(asksForJSON(["nonsense", "--output=json"]))
        #expect(!asksForJSON(["bench", "v", "--output", "text"]))
        #expect(!asksForJSON(["io", "read", "--", "--output", "json"]))
    }
}
