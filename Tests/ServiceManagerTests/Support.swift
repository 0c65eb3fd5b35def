// SPDX-License-Identifier: Apache-2.0
// A manager in this process, its client, and conversations with the probe services it starts.

import CLinux
import Glibc
import Linux
import ServiceManager
import Systemd
import TestSupport

/// A failure of a test's conversation.
struct ConversationError: Error, CustomStringConvertible {
    let description: String
}

/// The events a client saw, in order, and who waits for the next.
@Control
final class EventLog {
    private(set) var events: [UnitEvent] = []
    private var waiters: [(matches: (UnitEvent) -> Bool, done: OneShot<UnitEvent>)] = []
    private var taken = 0

    func add(_ event: UnitEvent) {
        events.append(event)
        if let index = waiters.firstIndex(where: { $0.matches(event) }) {
            taken = events.count
            waiters.remove(at: index).done.succeed(event)
        }
    }

    /// The first event after the one that was last waited for that matches.
    func next(_ matches: @escaping (UnitEvent) -> Bool) async throws -> UnitEvent {
        if let index = events[taken...].firstIndex(where: matches) {
            taken = index + 1
            return events[index]
        }
        let done = OneShot<UnitEvent>()
        waiters.append((matches, done))
        return try await done.value()
    }
}

/// A manager in this process with one template, `w`, whose instances are probes.
@Control
final class Bench {
    let loop: EventLoop
    private let temporary: TemporaryDirectory
    var directory: String { temporary.path }
    let manager: ServiceManager
    let client: ServiceManagerClient
    let log = EventLog()

    init(_ loop: EventLoop, _ change: (inout ServiceTemplate) -> Void = { _ in }) throws {
        self.loop = loop
        temporary = try TemporaryDirectory()
        let directory = temporary.path
        var template = ServiceTemplate(
            name: "w", path: probePath(), arguments: ["service", "%i"], socket: "w-%i.sock")
        // Probes that hang or flood do not hear SIGTERM.
        template.stopTimeoutMilliseconds = 1000
        change(&template)
        manager = try ServiceManager(runtimeDirectory: directory, templates: [template])
        client = try ServiceManagerClient(try manager.connect())
        let log = log
        client.onEvent = { log.add($0) }
    }

    /// Stops everything and removes the directory, whose emptiness is part of the contract.
    func end() async throws {
        await manager.shutDown()
        try checked("rmdir \(directory)", unsafe rmdir(directory) * ENOTEMPTY)
    }

    /// Listens for an instance and connects to it, which starts it.
    func connect(_ instance: String = "1") async throws -> Conversation {
        let path = try await client.listen(unit(instance))
        return try Conversation(loop, path)
    }

    func unit(_ instance: String = "1") throws -> UnitName {
        guard let name = UnitName(template: "w", instance: instance)
        else { throw ConversationError(description: "bad instance") }
        return name
    }

    func status(_ instance: String = "1") async throws -> UnitStatus {
        try await client.status(unit(instance))
    }

    func ended() async throws -> UnitEvent {
        try await log.next { event in
            switch event {
            case .exited, .killed: true
            default: false
            }
        }
    }

    func ready() async throws -> UnitEvent {
        try await log.next { event in
            if case .ready = event { return true }
            return false
        }
    }

    func stopped() async throws {
        _ = try await log.next { event in
            if case .stopped = event { return true }
            return false
        }
    }
}

/// Runs a test's body with a manager, and ends that in any case.
func withBench<Value: Sendable>(
    _ change: @escaping @Sendable (inout ServiceTemplate) -> Void = { _ in },
    _ body: @escaping @Control (Bench) async throws -> Value
) async throws -> Value {
    EventLoop.startOnOwnThread()
    let loop = EventLoop.current
    return try await LoopTurn.run {
        try await loop.task {
            let bench = try Bench(loop, change)
            do {
                let value = try await loop.withTimeout(nanoseconds: 100_000_000_000, "the test") {
                    try await body(bench)
                }
                try await bench.end()
                return value
            } catch {
                try? await bench.end()
                throw error
            }
        }.value
    }
}

/// Requests to a probe, one at a time.
@Control
final class Conversation {
    private let loop: EventLoop
    private let fd: OwnedFD

    init(_ loop: EventLoop, _ path: String) throws {
        self.loop = loop
        fd = try UnixSocket.connect(path, kind: .sequencedPacket)
    }

    init(_ loop: EventLoop, _ fd: consuming OwnedFD) {
        self.loop = loop
        self.fd = fd
    }

    func send(_ text: String) throws {
        let bytes = Array(text.utf8)
        let sent = unsafe Glibc.send(fd.raw, bytes, bytes.count, Int32(MSG_NOSIGNAL))
        if sent < 0 { throw SystemCallError("send", errno: errno) }
    }

    /// The next message; throws when the peer is gone.
    func receive() async throws -> String {
        try await loop.readable(fd)
        var buffer = [UInt8](repeating: 0, count: 65536)
        let count = unsafe recv(fd.raw, &buffer, buffer.count, Int32(MSG_DONTWAIT))
        guard count > 0 else { throw ConversationError(description: "the peer is gone") }
        return String(decoding: buffer[0..<count], as: UTF8.self)
    }

    func ask(_ text: String) async throws -> String {
        try send(text)
        return try await receive()
    }
}

/// The probe, which SwiftPM puts beside the test binary.
func probePath() -> String {
    let path = linkTarget("/proc/self/exe")
    let parts = path.split(separator: "/", omittingEmptySubsequences: false).dropLast()
    return parts.joined(separator: "/") + "/ServiceProbe"
}

private func linkTarget(_ path: String) -> String {
    var buffer = [UInt8](repeating: 0, count: 4096)
    let count = unsafe buffer.withUnsafeMutableBytes { bytes in
        guard let base = bytes.baseAddress else { return 0 }
        return unsafe readlink(path, base.assumingMemoryBound(to: CChar.self), bytes.count)
    }
    return String(decoding: buffer[0..<max(count, 0)], as: UTF8.self)
}

/// How many descriptors a process has open.
func descriptorCount(_ pid: Int32) -> Int {
    guard let directory = unsafe opendir("/proc/\(pid)/fd") else { return -1 }
    defer { unsafe closedir(directory) }
    var count = 0
    while unsafe readdir(directory) != nil { count += 1 }
    return count
}

/// Whether a process exists and is no zombie.
func isAlive(_ pid: Int32) -> Bool {
    guard let fd = try? OwnedFD.open("/proc/\(pid)/stat", flags: O_RDONLY) else { return false }
    var buffer = [UInt8](repeating: 0, count: 512)
    let count = unsafe read(fd.raw, &buffer, buffer.count)
    let text = String(decoding: buffer[0..<max(count, 0)], as: UTF8.self)
    guard let end = text.lastIndex(of: ")") else { return false }
    return !text[end...].hasPrefix(") Z") && !text[end...].hasPrefix(") X")
}
