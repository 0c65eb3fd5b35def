// SPDX-License-Identifier: Apache-2.0
// The manager's contract with its services: what is kept, who is killed, who starts again.

import CLinux
import Glibc
import Linux
import ServiceManager
import Systemd
import Testing

@Suite("Service manager", .timeLimit(.minutes(5)))
struct ServiceManagerTests {
    @Test("a connection starts the service, and the first request waits for it")
    func activation() async throws {
        let seen = try await withBench { bench in
            let path = try await bench.client.listen(bench.unit())
            let before = try await bench.status()
            let answer = try await Conversation(bench.loop, path).ask("names")
            let after = try await bench.status()
            return (before, answer, after)
        }
        #expect(seen.0.state == .inactive)
        #expect(seen.0.pid == 0)
        #expect(seen.1 == "listen")
        #expect(seen.2.state == .active)
        #expect(seen.2.isReady)
        #expect(seen.2.status == "serving")
    }

    @Test("stored descriptors survive SIGKILL, come back named, in order, with their content")
    func storeSurvives() async throws {
        let seen = try await withBench { bench in
            let first = try await bench.connect()
            let stored = [
                try await first.ask("store pool hello"), try await first.ask("store s-1 world"),
            ]
            let kept = try await bench.status().stored
            try first.send("crash")
            let event = try await bench.ended()
            let second = try await bench.connect()
            return (
                stored, kept, event,
                [
                    try await second.ask("names"), try await second.ask("read pool"),
                    try await second.ask("read s-1"),
                ], try await bench.status()
            )
        }
        #expect(seen.0 == ["ok", "ok"])
        #expect(seen.1 == 2)
        guard case .killed(_, _, let signal) = seen.2 else {
            Issue.record("not killed: \(seen.2)")
            return
        }
        #expect(signal == SIGKILL)
        #expect(seen.3 == ["listen,pool,s-1", "hello", "world"])
        #expect(seen.4.restarts == 1)
        #expect(seen.4.stored == 2)
    }

    @Test("what was stored in the last moment before death is there")
    func lastMoment() async throws {
        let names = try await withBench { bench in
            let first = try await bench.connect()
            for index in 0..<3 {
                let again = index == 0 ? first : try await bench.connect()
                try again.send("store-and-crash last-\(index)")
                _ = try await bench.ended()
            }
            return try await bench.connect().ask("names")
        }
        #expect(names == "listen,last-0,last-1,last-2")
    }

    @Test("a full store drops what is too much and keeps what it has")
    func fullStore() async throws {
        let seen = try await withBench({ $0.fdStoreMax = 3 }) { bench in
            let probe = try await bench.connect()
            let answer = try await probe.ask("overfill 10")
            let counted = [
                try await probe.ask("environment NVMED_FDSTORE_MAX"),
                try await probe.ask("store a 1"), try await probe.ask("store b 1"),
                try await probe.ask("store c 1"), try await probe.ask("store d 1"),
            ]
            return (answer, try await bench.status().stored, counted)
        }
        #expect(seen.0 == "ok")
        #expect(seen.1 == 3)
        #expect(Array(seen.2[0...3]) == ["3", "ok", "ok", "ok"])
        #expect(seen.2[4].hasPrefix("error fd store: d: 3 descriptors are stored already"))
    }

    @Test("the same open file is stored once")
    func duplicate() async throws {
        let counts = try await withBench { bench in
            let probe = try await bench.connect()
            _ = try await probe.ask("store pool x")
            let one = try await bench.status().stored
            let answer = try await probe.ask("duplicate pool")
            return ([one, try await bench.status().stored], answer)
        }
        #expect(counts.0 == [1, 1])
        #expect(counts.1 == "ok")
    }

    @Test("a polled descriptor is evicted when its peer is gone, an unpolled one stays")
    func eviction() async throws {
        let counts = try await withBench { bench in
            let probe = try await bench.connect()
            _ = try await probe.ask("store pool x")
            _ = try await probe.ask("polled s-1")
            let before = try await bench.status().stored
            _ = try await probe.ask("hangup s-1")
            // The hang-up and this request reach the manager's loop in one turn at the latest.
            _ = try await probe.ask("status after")
            return [before, try await bench.status().stored]
        }
        #expect(counts == [2, 1])
    }

    @Test("a polled descriptor whose peer goes while no process runs is evicted too")
    func evictionBetween() async throws {
        let names = try await withBench { bench in
            let probe = try await bench.connect()
            _ = try await probe.ask("store pool x")
            // The other end dies with the process that holds it.
            _ = try await probe.ask("polled s-1")
            try probe.send("crash")
            _ = try await bench.ended()
            let second = try await bench.connect()
            try second.send("crash")
            _ = try await bench.ended()
            return try await bench.connect().ask("names")
        }
        #expect(names == "listen,pool")
    }

    @Test("4 000 stored descriptors come back, to each process in turn, and can be removed")
    func manyStored() async throws {
        _ = nv_raise_nofile_limit(16_384)
        let seen = try await withBench { bench in
            let probe = try await bench.connect()
            let filled = try await probe.ask("fill 4000")
            var counts: [String] = []
            for _ in 0..<2 {
                try await bench.connect().send("crash")
                _ = try await bench.ended()
                counts.append(try await bench.connect().ask("count"))
            }
            let last = try await bench.connect()
            _ = try await last.ask("remove m-17")
            return (filled, counts, try await bench.status().stored)
        }
        #expect(seen.0 == "ok")
        #expect(seen.1 == ["4001", "4001"])
        #expect(seen.2 == 3999)
    }

    @Test("a removed name is closed")
    func removal() async throws {
        let counts = try await withBench { bench in
            let probe = try await bench.connect()
            _ = try await probe.ask("store a x")
            _ = try await probe.ask("store b x")
            _ = try await probe.ask("remove a")
            let left = try await bench.status().stored
            try probe.send("crash")
            _ = try await bench.ended()
            return (left, try await bench.connect().ask("names"))
        }
        #expect(counts.0 == 1)
        #expect(counts.1 == "listen,b")
    }

    @Test("a silent service is killed by its watchdog and starts again with its store")
    func watchdog() async throws {
        let seen = try await withBench({ $0.watchdogMilliseconds = 2000 }) { bench in
            let probe = try await bench.connect()
            let interval = try await probe.ask("environment WATCHDOG_USEC")
            _ = try await probe.ask("store pool x")
            try probe.send("hang")
            let event = try await bench.ended()
            return (interval, event, try await bench.connect().ask("names"))
        }
        #expect(seen.0 == "2000000")
        #expect(seen.2 == "listen,pool")
        guard case .killed(_, _, SIGKILL) = seen.1 else {
            Issue.record("not killed: \(seen.1)")
            return
        }
    }

    @Test("a pinging service outlives its watchdog many times over")
    func watchdogPings() async throws {
        let pids = try await withBench({ $0.watchdogMilliseconds = 1000 }) { bench in
            let probe = try await bench.connect()
            let first = try await probe.ask("pid")
            try await bench.loop.sleep(nanoseconds: 5_000_000_000)
            return [first, try await probe.ask("pid")]
        }
        #expect(pids[0] == pids[1])
    }

    @Test("WATCHDOG=trigger kills at once")
    func trigger() async throws {
        let event = try await withBench { bench in
            try await bench.connect().send("trigger")
            return try await bench.ended()
        }
        guard case .killed(_, _, SIGKILL) = event else {
            Issue.record("not killed: \(event)")
            return
        }
    }

    @Test("a service that is never ready is killed and started again")
    func startTimeout() async throws {
        let restarts = try await withBench({
            $0.arguments = ["signal-wait"]
            $0.startTimeoutMilliseconds = 50
        }) { bench in
            _ = try await bench.connect()
            _ = try await bench.ended()
            _ = try await bench.ended()
            return try await bench.status().restarts
        }
        #expect(restarts >= 1)
    }

    @Test("a service that fails at once is started again with growing pauses, for ever")
    func forkStorm() async throws {
        let seen = try await withBench({ $0.arguments = ["fail"] }) { bench in
            _ = try await bench.connect()
            let begin = MonotonicClock.nowNanoseconds
            for _ in 0..<8 { _ = try await bench.ended() }
            let took = MonotonicClock.nowNanoseconds - begin
            return (took, try await bench.status().state)
        }
        // Six at once, then after 200 ms and 400 ms.
        #expect(seen.0 >= 600_000_000)
        #expect(seen.1 == .failed)
    }

    @Test("stop discards the store, and a new connection starts afresh")
    func stop() async throws {
        let seen = try await withBench { bench in
            let probe = try await bench.connect()
            _ = try await probe.ask("store pool x")
            try await bench.client.stop(bench.unit())
            let status = try await bench.status()
            return (status, try await bench.connect().ask("names"))
        }
        #expect(seen.0.state == .inactive)
        #expect(seen.0.stored == 0)
        #expect(seen.1 == "listen")
    }

    @Test("restart keeps the store and changes the process")
    func restart() async throws {
        let seen = try await withBench { bench in
            let probe = try await bench.connect()
            _ = try await probe.ask("store pool x")
            let pid = try await probe.ask("pid")
            try await bench.client.restart(bench.unit())
            _ = try await bench.ended()
            let again = try await bench.connect()
            return ([pid, try await again.ask("pid")], try await again.ask("names"))
        }
        #expect(seen.0[0] != seen.0[1])
        #expect(seen.1 == "listen,pool")
    }

    @Test("a stop overtakes a restart that is under way")
    func stopDuringRestart() async throws {
        let seen = try await withBench { bench in
            let probe = try await bench.connect()
            _ = try await probe.ask("store pool x")
            let raw = Conversation(bench.loop, try bench.manager.connect())
            // Both wait in the socket when the manager gets to them: no exit comes between.
            try raw.send("restart w@1")
            try raw.send("stop w@1")
            try await bench.stopped()
            let status = try await bench.status()
            let started = bench.log.events.filter { event in
                if case .started = event { return true }
                return false
            }
            return (status, started.count)
        }
        #expect(seen.0.state == .inactive)
        #expect(seen.0.stored == 0)
        #expect(seen.1 == 1)
    }

    @Test("a program that is not there fails as a service, and the manager goes on")
    func noProgram() async throws {
        let seen = try await withBench({ $0.path = "/nonexistent/program" }) { bench in
            _ = try await bench.connect()
            return (try await bench.ended(), try await bench.client.list().count)
        }
        guard case .exited(_, _, let code) = seen.0 else {
            Issue.record("not exited: \(seen.0)")
            return
        }
        #expect(code == 127)
        #expect(seen.1 == 1)
    }

    @Test("a service that ignores SIGTERM is killed when its time is over")
    func stubborn() async throws {
        let event = try await withBench({ $0.stopTimeoutMilliseconds = 100 }) { bench in
            let probe = try await bench.connect()
            _ = try await probe.ask("stubborn")
            try await bench.client.stop(bench.unit())
            return try await bench.ended()
        }
        guard case .killed(_, _, SIGKILL) = event else {
            Issue.record("not killed: \(event)")
            return
        }
    }

    @Test("a stopped (SIGSTOP) service ends too")
    func frozen() async throws {
        let state = try await withBench { bench in
            let probe = try await bench.connect()
            _ = try await probe.ask("pid")
            try await bench.client.kill(bench.unit(), signal: SIGSTOP)
            try await bench.client.stop(bench.unit())
            return try await bench.status().state
        }
        #expect(state == .inactive)
    }

    @Test("a flood of notifications from one service does not keep another waiting")
    func flood() async throws {
        let answers = try await withBench { bench in
            let loud = try await bench.connect("loud")
            _ = try await loud.ask("pid")
            try loud.send("flood-forever")
            let quiet = try await bench.connect("quiet")
            var answers: [String] = []
            for index in 0..<20 { answers.append(try await quiet.ask("store s-\(index) x")) }
            try await bench.client.stop(bench.unit("loud"))
            return answers
        }
        #expect(answers == Array(repeating: "ok", count: 20))
    }

    @Test("messages of a process that is no service are dropped, and their descriptors closed")
    func stranger() async throws {
        let seen = try await withBench { bench in
            let before = descriptorCount(getpid())
            let child = Spawn(
                probePath(), ["service"],
                environment: [
                    "NOTIFY_SOCKET=\(bench.directory)/notify.sock", "SWIFT_BACKTRACE=enable=no",
                ])
            let process = try child.start()
            let ended = OneShot<ChildExit>()
            let source = try bench.loop.onChild(process.pidfd) { ended.succeed($0) }
            // It answers the manager's socket only: nothing may change here.
            _ = try await bench.connect().ask("pid")
            try process.signal(SIGKILL)
            _ = try await ended.value()
            source.cancel()
            _ = before
            return (try await bench.client.list().map(\.description), try await bench.status())
        }
        #expect(seen.0 == ["w@1"])
        #expect(seen.1.restarts == 0)
    }

    @Test("several instances live apart")
    func instances() async throws {
        let seen = try await withBench { bench in
            let a = try await bench.connect("0000:01:00.0")
            let b = try await bench.connect("0000:02:00.0")
            _ = try await a.ask("store pool a")
            let pid = try await b.ask("pid")
            try a.send("crash")
            _ = try await bench.ended()
            let names = try await bench.connect("0000:01:00.0").ask("names")
            return (names, pid, try await b.ask("pid"), try await b.ask("names"))
        }
        #expect(seen.0 == "listen,pool")
        #expect(seen.1 == seen.2)
        #expect(seen.3 == "listen")
    }

    @Test("a forgotten unit is gone with its socket")
    func forget() async throws {
        let seen = try await withBench { bench in
            let path = try await bench.client.listen(bench.unit())
            _ = try await Conversation(bench.loop, path).ask("pid")
            try await bench.client.forget(bench.unit())
            try await bench.stopped()
            return (unsafe access(path, F_OK), try await bench.client.list().count)
        }
        #expect(seen.0 == -1)
        #expect(seen.1 == 0)
    }

    @Test("a second manager in the same directory is refused by pid")
    func secondManager() async throws {
        let result = try await withBench { bench in
            let directory = bench.directory
            let child = try Spawn(
                probePath(), ["manager", directory], environment: ["NVMED_LOG=plain"]
            ).start()
            let ended = OneShot<ChildExit>()
            let source = try bench.loop.onChild(child.pidfd) { ended.succeed($0) }
            defer { source.cancel() }
            return try await ended.value()
        }
        #expect(result == .exited(code: 1))
    }
}
