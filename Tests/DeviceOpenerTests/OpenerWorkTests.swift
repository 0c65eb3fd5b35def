// SPDX-License-Identifier: Apache-2.0
// Requests in threads: a device that takes its time keeps nobody else waiting.

import Linux
import Systemd
import TestSupport
import Testing
import Wire

@testable import DeviceOpener

/// A body that ends when the test says so.
private final class Gate: Sendable {
    private let fd: EventFD
    init() throws { fd = try EventFD() }

    /// Lets the body end.
    func open() { try? fd.signal() }

    /// Waits in a thread, bounded.
    func pass() -> Bool { (try? fd.fd.waitReadable(timeoutMilliseconds: 60_000)) ?? false }
}

@Suite("The opener's threads")
struct OpenerWorkTests {
    @Test("a device that is being reset keeps no other waiting, and its own next request waits")
    func together() async throws {
        EventLoop.startOnOwnThread()
        let gate = try Gate()
        let order = try await EventLoop.current.task { @Control in
            let work = OpenerWork(threads: 2)
            var order: [String] = []
            let slow = EventLoop.current.task { @Control in
                let passed = try await work.run("a") { gate.pass() }
                order.append("slow \(passed)")
            }
            let next = EventLoop.current.task { @Control in
                try await work.run("a") {}
                order.append("next")
            }
            try await work.run("b") {}
            order.append("other")
            gate.open()
            try await slow.value
            try await next.value
            return order
        }.value
        #expect(order == ["other", "slow true", "next"])
    }

    @Test("no more than so many threads run, and who waited is served when one is done")
    func bounded() async throws {
        EventLoop.startOnOwnThread()
        let gate = try Gate()
        let order = try await EventLoop.current.task { @Control in
            let work = OpenerWork(threads: 1)
            var order: [String] = []
            let first = EventLoop.current.task { @Control in
                _ = try await work.run("a") { gate.pass() }
                order.append("first")
            }
            let second = EventLoop.current.task { @Control in
                try await work.run("b") {}
                order.append("second")
            }
            EventLoop.current.task { gate.open() }
            try await first.value
            try await second.value
            return order
        }.value
        #expect(order == ["first", "second"])
    }

    @Test("what nobody waits for any more is not begun")
    func abandoned() async throws {
        EventLoop.startOnOwnThread()
        let gate = try Gate()
        let begun = try EventFD()
        let told = try await EventLoop.current.task { @Control in
            let work = OpenerWork(threads: 1)
            let first = EventLoop.current.task { @Control in
                _ = try await work.run("a") { gate.pass() }
            }
            let second = EventLoop.current.task { @Control in
                do throws(WireError) {
                    try await work.run("b") { try? begun.signal() }
                    return "done"
                } catch { return "\(error.code)" }
            }
            // Both have asked by the time a third has its turn.
            let turn = EventLoop.current.task {}
            await turn.value
            second.cancel()
            let told = await second.value
            gate.open()
            try await first.value
            try await work.run("c") {}
            return told
        }.value
        #expect(told == "cancelled")
        #expect(try begun.drain() == 0)
    }
}
