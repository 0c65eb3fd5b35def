// SPDX-License-Identifier: Apache-2.0
// The event loop: sources, tasks, deadlines, and that all of it stays in one thread.

import Glibc
import Linux
import Systemd
import Testing

@Suite("Event loop", .timeLimit(.minutes(5)))
struct EventLoopTests {
    @Test("actors, tasks, timers and deadlines need one thread")
    func oneThread() throws {
        let result = try Child(["threads"]).finish()
        #expect(result.text == "Threads: 1\n")
        #expect(result.code == 7)
    }

    @Test("a signal reaches its handler and decides the exit code")
    func signal() throws {
        let result = try Child(["signal"]).finish()
        #expect(result.code == 5)
    }

    @Test("a timer never fires before its time, and can be armed again and disarmed")
    func timers() async throws {
        let early = try await onLoop { loop in
            let firings = Firings()
            let never = try loop.after(nanoseconds: 0) { firings.times.append(0) }
            never.disarm()
            let timer = try loop.timer {
                firings.times.append(MonotonicClock.nowNanoseconds)
                firings.next?.succeed(())
            }
            var early: [Bool] = []
            for _ in 0..<3 {
                let due = MonotonicClock.nowNanoseconds + 1_500_001
                let next = OneShot<Void>()
                firings.next = next
                timer.arm(at: due)
                try await next.value()
                early.append(firings.times.contains { $0 < due })
                firings.times = []
            }
            timer.cancel()
            return early
        }
        #expect(early == [false, false, false])
    }

    @Test("a source that was let go of is never called")
    func releasedSource() async throws {
        let calls = try await onLoop { loop in
            var calls = 0
            let event = try EventFD()
            var source: DescriptorSource? = try loop.watch(event.fd, .readable) { _ in calls += 1 }
            _ = source
            source = nil
            try event.signal()
            try await loop.sleep(nanoseconds: 2_000_000)
            return calls
        }
        #expect(calls == 0)
    }

    @Test("edge triggering reports one signal once, level triggering reports it until drained")
    func edges() async throws {
        let calls = try await onLoop { loop in
            var edge = 0
            var level = 0
            let event = try EventFD()
            let other = try EventFD()
            let first = try loop.watch(event.fd, [.readable, .edgeTriggered]) { _ in edge += 1 }
            let done = OneShot<Void>()
            let second = try loop.watch(other.fd, .readable) { _ in
                level += 1
                if level == 3 { done.succeed(()) }
            }
            try event.signal()
            try other.signal()
            try await done.value()
            first.cancel()
            second.cancel()
            return [edge, level]
        }
        #expect(calls[0] == 1)
        #expect(calls[1] >= 3)
    }

    @Test("sources that are ready together are served by priority")
    func priorities() async throws {
        let order = try await onLoop { loop in
            var order: [String] = []
            let done = OneShot<Void>()
            let low = try loop.defer(priority: .low) {
                order.append("low")
                done.succeed(())
            }
            let normal = try loop.defer { order.append("normal") }
            let high = try loop.defer(priority: .high) { order.append("high") }
            try await done.value()
            withExtendedLifetime((low, normal, high)) {}
            return order
        }
        #expect(order == ["high", "normal", "low"])
    }

    @Test("a child's exit code and its signal are told apart")
    func children() async throws {
        let exits = try await onLoop { loop in
            var exits: [ChildExit] = []
            for (mode, signal) in [("nonsense", 0), ("signal-wait", SIGKILL)] {
                let child = try Child([mode])
                let ended = OneShot<ChildExit>()
                let source = try loop.onChild(child.process.pidfd) { ended.succeed($0) }
                if signal != 0 { kill(child.pid, signal) }
                exits.append(try await ended.value())
                source.cancel()
            }
            return exits
        }
        #expect(exits == [.exited(code: 64), .signalled(SIGKILL)])
    }

    @Test("a deadline passes even when the operation ignores its cancellation")
    func deadline() async throws {
        await #expect(throws: DeadlineExceeded("a reply")) {
            try await onLoop { loop in
                try await loop.withTimeout(nanoseconds: 1_000_000, "a reply") {
                    await forever()
                }
            }
        }
    }

    @Test("an operation within its deadline gives its value, and its error")
    func withinDeadline() async throws {
        let value = try await onLoop { loop in
            try await loop.withTimeout(nanoseconds: 60_000_000_000, "a value") { 42 }
        }
        #expect(value == 42)
        await #expect(throws: SystemCallError("test", errno: EIO)) {
            try await onLoop { loop in
                try await loop.withTimeout(nanoseconds: 60_000_000_000, "an error") {
                    throw SystemCallError("test", errno: EIO)
                }
            }
        }
    }

    @Test("cancelling a task ends its wait")
    func cancellation() async throws {
        await #expect(throws: CancellationError.self) {
            try await onLoop { loop in
                let task = Task { @Control in
                    try await loop.sleep(nanoseconds: 3_600_000_000_000)
                }
                await Task.yield()
                task.cancel()
                try await task.value
            }
        }
    }

    @Test("a hang-up wakes a reader")
    func hangup() async throws {
        let events = try await onLoop { loop in
            var pair: SocketPair? = try UnixSocket.pair()
            let end = try pair?.first.duplicate()
            pair = nil
            guard let end else { return Events() }
            return try await loop.ready(end, for: .readable)
        }
        #expect(events.contains(.hangup))
    }

    @Test("tasks from many threads all run, on the loop's thread")
    func manyThreads() async throws {
        EventLoop.startOnOwnThread()
        let loop = EventLoop.current
        let sum = await withTaskGroup(of: Int.self) { group in
            for _ in 0..<1000 {
                group.addTask { await loop.task { loop.isCurrentThread ? 1 : 0 }.value }
            }
            return await group.reduce(0, +)
        }
        #expect(sum == 1000)
    }
}

/// When a timer fired, and who waits for it.
@Control
private final class Firings {
    var times: [UInt64] = []
    var next: OneShot<Void>?
}
