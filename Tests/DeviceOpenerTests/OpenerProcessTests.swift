// SPDX-License-Identifier: Apache-2.0
// The opener as a process, with peers that break the rules.

import Glibc
import Linux
import TestSupport
import Testing
import Wire

/// nvmed-opener with a socket and a configuration of its own.
private final class OpenerProcess {
    let directory: TemporaryDirectory
    let socket: String
    private let process: SpawnedProcess

    init(_ files: [String: String]) throws {
        directory = try TemporaryDirectory()
        socket = "\(directory.path)/o.sock"
        for (name, text) in files {
            let fd = try OwnedFD.open("\(directory.path)/\(name)", flags: O_WRONLY | O_CREAT)
            let bytes = Array(text.utf8)
            guard unsafe Glibc.write(fd.raw, bytes, bytes.count) == bytes.count else {
                throw SystemCallError("write", errno: errno)
            }
        }
        let listener = try UnixSocket.listen(socket, kind: .sequencedPacket, mode: 0o666)
        process = try Spawn(
            Self.program, ["--config", directory.path],
            environment: Programs.environment([
                "LISTEN_PID=", "LISTEN_FDS=1", "LISTEN_FDNAMES=listen",
            ])
        ).start(fds: [listener.raw])
    }

    deinit {
        kill(process.pid, SIGKILL)
        var status: CInt = 0
        _ = unsafe waitpid(process.pid, &status, 0)
    }

    private static var program: String {
        let own = Files.target(ofLink: "/proc/self/exe") ?? ""
        return own.split(separator: "/", omittingEmptySubsequences: false).dropLast()
            .joined(separator: "/") + "/nvmed-opener"
    }
}

@Suite("The opener process", .serialized)
struct OpenerProcessTests {
    /// How long an answer may take on a busy machine.
    private static let patience: UInt64 = 20_000_000_000

    private func channel(_ opener: OpenerProcess) throws -> Channel<OpenerProtocol> {
        Channel(
            try UnixSocket.connect(opener.socket, kind: .sequencedPacket), role: .client,
            buffer: MessageBuffer())
    }

    /// What comes next: the error's code and words, or "closed".
    private func next(_ channel: Channel<OpenerProtocol>) throws -> String {
        switch try channel.receive(
            deadlineNanoseconds: MonotonicClock.nowNanoseconds + Self.patience)
        {
        case .message(let message):
            if case .failure(let error) = message.envelope.content {
                return "\(error.code): \(error.message)"
            }
            return "\(message.envelope.content)"
        case .closed: return "closed"
        case .rejected(let rejection): return "rejected \(rejection)"
        case .nothing: return "nothing"
        }
    }

    private func answer(
        _ request: OpenerRequest, _ opener: OpenerProcess, fds: [CInt] = []
    ) throws -> String {
        let channel = try channel(opener)
        try channel.send(request: request, fds: fds)
        return try next(channel)
    }

    private static let files = [
        "gone.device": "[Device]\nTransport=pci\nAddress=ffff:ff:1f.7\n",
        "kernel.device": "[Device]\nTransport=pci\nAddress=ffff:ff:1e.0\nnvme_vfio=off\n",
    ]

    @Test("a device that is not there, unknown, or left to the kernel is refused in words")
    func refusals() throws {
        let opener = try OpenerProcess(Self.files)
        #expect(
            try answer(.openDevice(name: "gone", reset: false), opener).contains("no PCI device"))
        #expect(
            try answer(.openDevice(name: "nobody", reset: true), opener).hasPrefix("not-found"))
        #expect(
            try answer(.openDevice(name: "kernel", reset: false), opener)
                .contains("left to the kernel"))
    }

    @Test("physical addresses are for devices without an IOMMU only")
    func translation() throws {
        let opener = try OpenerProcess(Self.files)
        let file = try MemFD.create(name: "m", byteCount: 2 << 20)
        #expect(
            try answer(
                .translateMemory(name: "gone", byteCount: 2 << 20), opener, fds: [file.raw]
            ).contains("noiommu only"))
    }

    @Test("garbage ends its connection with a reason, and the next one is served")
    func garbage() throws {
        let opener = try OpenerProcess(Self.files)
        let raw = try UnixSocket.connect(opener.socket, kind: .sequencedPacket)
        let noise = [UInt8](repeating: 0xFF, count: 300)
        _ = try unsafe noise.withUnsafeBytes { try unsafe UnixSocket.send(raw, $0) }
        let channel = Channel<OpenerProtocol>(raw, role: .client, buffer: MessageBuffer())
        #expect(try next(channel).hasPrefix("malformed-message"))
        #expect(try next(channel) == "closed")
        #expect(
            try answer(.openDevice(name: "nobody", reset: true), opener).hasPrefix("not-found"))
    }

    @Test("an id that does not rise ends the connection")
    func oldID() throws {
        let opener = try OpenerProcess(Self.files)
        let channel = try channel(opener)
        let envelope = Envelope<OpenerProtocol>(
            requestID: 5, content: .request(.setInterruptAffinity(name: "nobody")))
        try channel.send(envelope)
        #expect(try next(channel).hasPrefix("not-found"))
        try channel.send(envelope)
        #expect(try next(channel).contains("is not above 5"))
        #expect(try next(channel) == "closed")
    }

    @Test("a descriptor that nobody asked for is refused")
    func surplusDescriptor() throws {
        let opener = try OpenerProcess(Self.files)
        let channel = try channel(opener)
        let file = try MemFD.create(name: "m", byteCount: 4096)
        try channel.send(request: .openDevice(name: "gone", reset: false), fds: [file.raw])
        #expect(try next(channel).hasPrefix("fd-mismatch"))
    }

    @Test("a request whose deadline has passed is not acted on")
    func late() throws {
        let opener = try OpenerProcess(Self.files)
        let channel = try channel(opener)
        try channel.send(request: .openDevice(name: "gone", reset: false), deadlineNanoseconds: 1)
        #expect(try next(channel).hasPrefix("deadline-exceeded"))
    }

    @Test("when all connections are taken the next one is told so, and places come free")
    func manyConnections() throws {
        let opener = try OpenerProcess(Self.files)
        var held: [Channel<OpenerProtocol>] = []
        for _ in 0..<256 {
            let channel = try channel(opener)
            try channel.send(request: .setInterruptAffinity(name: "nobody"))
            #expect(try next(channel).hasPrefix("not-found"))
            held.append(channel)
        }
        let refused = try channel(opener)
        #expect(try next(refused).hasPrefix("resource-exhausted"))
        held.removeAll()
        // Each end is noticed in a turn of the opener's loop before the next connection.
        var told = ""
        for _ in 0..<1000 where !told.hasPrefix("not-found") {
            told = (try? answer(.setInterruptAffinity(name: "nobody"), opener)) ?? ""
        }
        #expect(told.hasPrefix("not-found"))
    }
}
