// SPDX-License-Identifier: Apache-2.0
// The control protocol: names, requests, events, and a supervisor that misbehaves.

import Glibc
import Linux
import ServiceManager
import Systemd
import Testing

@Suite("Control protocol", .timeLimit(.minutes(5)))
struct ControlProtocolTests {
    @Test(
        "names that could leave the directory or break a line are refused",
        arguments: [
            "", "@", "w@", "@1", "w@a/b", "w@..\u{0}", "w@a b", "w@a\n", "w@ä", "w@1@2",
            "w@" + String(repeating: "x", count: 65), "../w@1", "w w@1",
        ])
    func badNames(_ name: String) {
        #expect(UnitName(name) == nil)
    }

    @Test(
        "good names are taken apart",
        arguments: ["nvmed", "nvmed-worker@0000:01:00.0", "w@A_b-c.d:e"])
    func goodNames(_ name: String) {
        #expect(UnitName(name)?.description == name)
    }

    @Test(
        "a bad request is answered with the reason, and the connection goes on",
        arguments: [
            ("", "nothing"), ("listen", "a request is a word and a unit"),
            ("listen w@a/b", "w@a/b is not a unit's name"),
            ("listen x@1", "x@1 is not an instance of a template that listens"),
            ("listen w", "w is not an instance of a template that listens"),
            ("stop w@9", "w@9 is not listened for"), ("dance w@1", "dance is not known"),
            ("kill w@1", "kill is not known in this form"),
            ("kill w@1 65", "a signal is a number from 1 to 64"),
            ("kill w@1 -9", "a signal is a number from 1 to 64"),
            ("stop w@1 now", "stop is not known in this form"),
            (String(repeating: "x", count: 513), "a request is at most 512 bytes of UTF-8"),
        ].dropFirst())
    func badRequests(_ request: String, _ reason: String) async throws {
        let answers = try await withBench { bench in
            let raw = Conversation(bench.loop, try bench.manager.connect())
            return [try await raw.ask(request), try await raw.ask("list")]
        }
        #expect(answers[0].hasPrefix("error \(reason)"))
        #expect(answers[1] == "ok ")
    }

    @Test("rubbish bytes get an error and hurt nobody")
    func rubbish() async throws {
        let answer = try await withBench { bench in
            let end = try bench.manager.connect()
            let bytes: [UInt8] = [0xff, 0xfe, 0x00, 0x80]  // Not UTF-8.
            _ = unsafe send(end.raw, bytes, bytes.count, 0)
            return try await Conversation(bench.loop, end).receive()
        }
        #expect(answer == "error a request is at most 512 bytes of UTF-8")
    }

    @Test("requests in a row are answered in order, events in between")
    func pipelining() async throws {
        let answers = try await withBench { bench in
            let raw = Conversation(bench.loop, try bench.manager.connect())
            for instance in 0..<50 { try raw.send("listen w@\(instance)") }
            var answers: [String] = []
            for _ in 0..<50 { answers.append(try await raw.receive()) }
            return (answers, bench.directory)
        }
        #expect(answers.0 == (0..<50).map { "ok \(answers.1)/w-\($0).sock" })
    }

    @Test("there is a bound on units")
    func unitsMax() async throws {
        let last = try await withBench { bench in
            for instance in 0..<ServiceManager.unitsMax {
                _ = try await bench.client.listen(bench.unit("\(instance)"))
            }
            let list = try await bench.client.list().count
            do {
                _ = try await bench.client.listen(bench.unit("more"))
                return "listens for \(list + 1)"
            } catch {
                return "\(error)"
            }
        }
        #expect(last == "service manager: listen w@more: there are 256 units")
    }

    @Test("a supervisor that asks and never reads loses its connection, others keep theirs")
    func deafSupervisor() async throws {
        let answer = try await withBench { bench in
            let deaf = try bench.manager.connect()
            let text = Array("list".utf8)
            var sent = 0
            // Ends when the manager has had enough: it ends the connection (EPIPE).
            while unsafe send(
                deaf.raw, text, text.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT)) >= 0
                || errno == EAGAIN
            {
                sent += 1
                await Task.yield()
            }
            return (sent, try await bench.client.list().count)
        }
        #expect(answer.0 > 0)
        #expect(answer.1 == 0)
    }

    @Test("the status text cannot forge fields")
    func statusText() async throws {
        let status = try await withBench { bench in
            let probe = try await bench.connect()
            _ = try await probe.ask("status all pid=1 stored=9 status=x")
            return try await bench.status()
        }
        #expect(status.status == "all pid=1 stored=9 status=x")
        #expect(status.stored == 0)
    }
}
