// SPDX-License-Identifier: Apache-2.0
// The probe as a service: tells its manager it is ready, and does what messages on its socket say.

import Glibc
import Linux
import ServiceManager
import Systemd

/// A service that stores, crashes, hangs and floods on request.
@Control
final class ProbeService {
    private let loop: EventLoop
    private let notifier = Notifier()
    private let inheritedNames: [String]
    private let store: FDStore
    private var inherited: [NamedFDBox] = []
    private var isStubborn = false
    private var made: [String: NamedFDBox] = [:]
    private var sources: [Source] = []
    private var connections: [NamedFDBox] = []

    init(_ loop: EventLoop) throws {
        self.loop = loop
        var fds = try ListenFDs.receive()
        inheritedNames = fds.names
        store = FDStore(inherited: fds.names.filter { $0 != "listen" })
        while let next = fds.takeNext() { inherited.append(NamedFDBox(next)) }
        if let listener = inherited.first(where: { $0.name == "listen" }) {
            sources.append(
                try loop.watch(listener.fd, .readable) { [weak self] _ in
                    self?.accept(listener)
                })
        }
        sources.append(
            try loop.onSignal(SIGTERM) { [weak self] in
                if self?.isStubborn != true { loop.exit(0) }
            })
        if let timer = try loop.pingWatchdog(while: { true }) { sources.append(timer) }
        try notifier.ready(status: "serving")
    }

    private func accept(_ listener: NamedFDBox) {
        guard let fd = try? UnixSocket.accept(listener.fd) else { return }
        let connection = NamedFDBox(NamedFD(name: "connection", fd: fd))
        connections.append(connection)
        guard
            let source = try? loop.watch(
                connection.fd, .readable, { [weak self] _ in self?.serve(connection) })
        else { return }
        connection.source = source
    }

    private func serve(_ connection: NamedFDBox) {
        do {
            guard let text = try receiveText(connection.fd) else { return }
            guard !text.isEmpty else {
                connection.source?.cancel()
                connections.removeAll { $0 === connection }
                return
            }
            let words = text.split(separator: " ").map(String.init)
            var answer: String
            do {
                answer = try act(words)
            } catch {
                answer = "error \(error)"
            }
            try sendText(connection.fd, answer)
        } catch {
            print("ServiceProbe: \(error)")
        }
    }

    private func act(_ words: [String]) throws -> String {
        switch words[0] {
        case "pid": return "\(getpid())"
        case "names": return inheritedNames.joined(separator: ",")
        case "environment": return unsafe String(cString: getenv(words[1]) ?? strdup("(unset)"))
        case "store":
            let fd = try MemFD.create(name: words[1], byteCount: 64, seals: [])
            _ = unsafe pwrite(fd.raw, words[2], words[2].utf8.count, 0)
            try store.store(words[1], fd)
            made[words[1]] = NamedFDBox(NamedFD(name: words[1], fd: fd))
        case "overfill":
            // Past the count that FDStore keeps, as a service that does not count.
            for index in 0..<(Int(words[1]) ?? 0) {
                let pipe = try EventFD()
                try FDStore(limit: 1).store("x-\(index)", pipe.fd)
            }
        case "fill":
            for index in 0..<(Int(words[1]) ?? 0) {
                try store.store(
                    "m-\(index)", try MemFD.create(name: "m", byteCount: 64, seals: []))
            }
        case "count": return "\(inheritedNames.count)"
        case "duplicate":
            guard let box = made[words[1]] else { return "no \(words[1])" }
            try store.store(words[1], try box.fd.duplicate())
        case "polled":
            var pair = try UnixSocket.pair()
            try store.store(words[1], pair.first, poll: true)
            swap(&pair.first, &pair.second)
            made[words[1]] = NamedFDBox(
                NamedFD(name: words[1], fd: try pair.first.duplicate()))
        case "hangup": made[words[1]] = nil
        case "remove": try store.remove(words[1])
        case "read": return read(words[1])
        case "status": try notifier.status(words.dropFirst().joined(separator: " "))
        case "flood":
            for index in 0..<(Int(words[1]) ?? 0) { try notifier.status("flood \(index)") }
        case "flood-forever": while true { try notifier.status("flood") }
        case "crash": raise(SIGKILL)
        case "store-and-crash":
            let fd = try MemFD.create(name: words[1], byteCount: 64, seals: [])
            try store.store(words[1], fd)
            raise(SIGKILL)
        case "exit": exit(Int32(words[1]) ?? 1)
        case "trigger": try notifier.triggerWatchdog()
        case "hang": while true { pause() }
        case "stubborn": isStubborn = true
        default: return "unknown"
        }
        guard try notifier.barrier(timeoutMicroseconds: 10_000_000) else { return "no manager" }
        return "ok"
    }

    private func read(_ name: String) -> String {
        guard let box = inherited.first(where: { $0.name == name }) else { return "(none)" }
        var bytes = [UInt8](repeating: 0, count: 64)
        let count = unsafe pread(box.fd.raw, &bytes, bytes.count, 0)
        return String(decoding: bytes[0..<max(count, 0)].prefix { $0 != 0 }, as: UTF8.self)
    }
}

/// The probe as a supervisor: passes requests on to the manager's client.
@Control
final class ProbeSupervisor {
    private let client: ServiceManagerClient
    private let listener: NamedFDBox
    private let loop: EventLoop
    private var sources: [Source] = []

    init(_ loop: EventLoop) throws {
        self.loop = loop
        var fds = try ListenFDs.receive()
        guard let manager = fds.take(ServiceManagerClient.descriptorName),
            let listener = fds.take("listen")
        else { throw SystemCallError("no manager descriptor", errno: EBADF) }
        client = try ServiceManagerClient(manager)
        self.listener = NamedFDBox(NamedFD(name: "listen", fd: listener))
        client.onDisconnect = { loop.exit(9) }
        sources.append(try loop.onSignal(SIGTERM) { loop.exit(0) })
        sources.append(
            try loop.watch(self.listener.fd, .readable) { [weak self] _ in self?.accept() })
        try Notifier().ready()
    }

    private func accept() {
        guard let fd = try? UnixSocket.accept(listener.fd) else { return }
        let connection = NamedFDBox(NamedFD(name: "connection", fd: fd))
        loop.task { [self] in
            while true {
                do {
                    try await loop.readable(connection.fd)
                    guard let text = try receiveText(connection.fd) else { continue }
                    if text.isEmpty { return }
                    try sendText(connection.fd, try await act(text))
                } catch {
                    try? sendText(connection.fd, "error \(error)")
                }
            }
        }
    }

    private func act(_ text: String) async throws -> String {
        let words = text.split(separator: " ").map(String.init)
        if words[0] == "pid" { return "\(getpid())" }
        if words[0] == "crash" { raise(SIGKILL) }
        if words[0] == "exit" { exit(0) }
        guard words.count > 1, let unit = UnitName(words[1]) else { return "unknown" }
        switch words[0] {
        case "listen": return try await client.listen(unit)
        case "stop":
            try await client.stop(unit)
            return "ok"
        case "status": return "\(try await client.status(unit).pid)"
        default: return "unknown"
        }
    }
}

/// A named descriptor that several may refer to.
@Control
final class NamedFDBox {
    let name: String
    let fd: OwnedFD
    var source: Source?
    init(_ named: consuming NamedFD) {
        name = named.name
        fd = named.takeFD()
    }
}

/// The next message as text: empty at the end, nil when none waits.
func receiveText(_ fd: borrowing OwnedFD) throws -> String? {
    var buffer = [UInt8](repeating: 0, count: 4096)
    let raw = fd.raw
    let count = unsafe recv(raw, &buffer, buffer.count, Int32(MSG_DONTWAIT))
    if count < 0 { return errno == EAGAIN ? nil : "" }
    return String(decoding: buffer[0..<count], as: UTF8.self)
}

/// Sends a text as one message.
func sendText(_ fd: borrowing OwnedFD, _ text: String) throws {
    let bytes = Array(text.utf8)
    let sent = unsafe send(fd.raw, bytes, bytes.count, Int32(MSG_NOSIGNAL))
    if sent < 0 { throw SystemCallError("send", errno: errno) }
}
