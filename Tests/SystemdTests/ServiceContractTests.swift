// SPDX-License-Identifier: Apache-2.0
// A service's side of the contract: notifications as datagrams, descriptors handed over, the store.

import CLinux
import Glibc
import Linux
import TestSupport
import Testing

@testable import Systemd

/// A notify socket that nobody but the test reads.
private final class NotifySocket {
    private let temporary: TemporaryDirectory
    var directory: String { temporary.path }
    let fd: OwnedFD
    var path: String { "\(directory)/n" }

    init() throws {
        temporary = try TemporaryDirectory()
        fd = try UnixSocket.bindDatagram("\(temporary.path)/n")
    }

    /// The next datagram's text; its descriptors are closed with it.
    func next() throws -> String {
        _ = try fd.waitReadable(timeoutMilliseconds: 60_000)
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 8)
        defer { unsafe memory.deallocate() }
        guard let message = try unsafe UnixSocket.receive(fd, into: memory, nonblocking: true)
        else { return "(nothing)" }
        let text = unsafe String(decoding: memory[0..<message.byteCount], as: UTF8.self)
        return "\(text) [\(message.fds.count)]"
    }
}

@Suite("Service contract", .timeLimit(.minutes(5)))
struct ServiceContractTests {
    @Test("without a manager every notification says so and does nothing")
    func noManager() throws {
        let notifier = Notifier()
        #expect(notifier.hasManager == false)
        #expect(try notifier.ready() == false)
        #expect(try notifier.status("x") == false)
        #expect(try notifier.barrier(timeoutMicroseconds: 1000) == false)
        #expect(notifier.watchdogInterval == nil)
    }

    @Test("notifications are the datagrams that systemd reads")
    func datagrams() throws {
        let socket = try NotifySocket()
        let child = try Child(["notify"], environment: ["NOTIFY_SOCKET=\(socket.path)"])
        var seen: [String] = []
        for _ in 0..<8 { seen.append(try socket.next()) }
        let result = child.finish()
        #expect(
            seen == [
                "READY=1\nSTATUS=one  line [0]", "WATCHDOG=1 [0]", "WATCHDOG=trigger [0]",
                "FDSTORE=1\nFDNAME=pool\nFDPOLL=0 [1]", "FDSTORE=1\nFDNAME=s-1 [1]",
                "FDSTOREREMOVE=1\nFDNAME=pool [0]", "STOPPING=1 [0]", "BARRIER=1 [1]",
            ])
        #expect(result.text == "barrier: true\n")
    }

    @Test("a barrier nobody answers ends with its timeout, in both forms")
    func barrierTimeout() throws {
        let socket = try NotifySocket()
        let child = try Child(["barrier"], environment: ["NOTIFY_SOCKET=\(socket.path)"])
        let result = child.finish()
        #expect(result.text == "Connection timed out\nConnection timed out\n")
    }

    @Test("descriptors come by name and in order, close-on-exec, and only once")
    func listenFDs() throws {
        let pair = try UnixSocket.pair()
        let event = try EventFD()
        let result = try Child(
            ["listen-fds"],
            environment: ["LISTEN_PID=", "LISTEN_FDS=3", "LISTEN_FDNAMES=listen:pool:s-1"],
            fds: [pair.first.raw, event.fd.raw, pair.second.raw]
        ).finish()
        #expect(
            result.text
                == "listen,pool,s-1\npool 4 cloexec\nlisten,s-1\nlisten 3 cloexec\nunset\n"
                + "again: 0\n"
        )
    }

    @Test("descriptors meant for another process are left alone")
    func otherPID() throws {
        let result = try Child(
            ["listen-fds-other"], environment: ["LISTEN_FDS=1", "LISTEN_FDNAMES=listen"]
        ).finish()
        #expect(result.text == "\n")
    }

    @Test(
        "a name that a manager would mangle is refused",
        arguments: ["", "a:b", "a b", "a\n", "ä", String(repeating: "x", count: 25)])
    func badNames(_ name: String) async throws {
        await #expect(throws: FDStoreError.badName(name)) {
            try await onLoop { _ in
                try FDStore(limit: 1).store(name, try EventFD().fd)
            }
        }
    }

    @Test("a store without a manager, and one that is full, refuse with the reason")
    func refusals() async throws {
        await #expect(throws: FDStoreError.noManager(name: "pool")) {
            try await onLoop { _ in try FDStore(limit: 1).store("pool", try EventFD().fd) }
        }
        await #expect(throws: FDStoreError.full(name: "pool", limit: 2)) {
            try await onLoop { _ in
                try FDStore(inherited: ["a", "b"], limit: 2).store("pool", try EventFD().fd)
            }
        }
    }

    @Test("removing a name makes room for all it held")
    func removal() async throws {
        let counts = try await onLoop { _ in
            let store = FDStore(inherited: ["a", "a", "b"], limit: 4)
            let before = store.storedCount
            try store.remove("a")
            try store.remove("unknown")
            return [before, store.storedCount]
        }
        #expect(counts == [3, 1])
    }
}
