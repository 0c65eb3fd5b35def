// SPDX-License-Identifier: Apache-2.0
// One emulator, one worker, and a test that is their service manager.

import Glibc
import Linux
import TestSupport
import Testing
import Wire

/// A device and its worker. Everything blocks, with bounds.
final class Rig {
    private let temporary: TemporaryDirectory
    var directory: String { temporary.path }
    let name = "dev0"
    var config: DeviceConfig
    let notify: NotifySocket
    private let emulatorNotify: NotifySocket
    private let listener: OwnedFD
    private(set) var emulator: Child?
    private(set) var worker: Child?
    private let emulatorArguments: [String]
    var workerEnvironment: [String] = []

    init(
        namespaces: [String] = ["memory=16M,block=512"], arguments: [String] = []
    ) throws {
        temporary = try TemporaryDirectory()
        let directory = temporary.path
        emulatorNotify = try NotifySocket("\(directory)/en")
        notify = try NotifySocket("\(directory)/wn")
        listener = try UnixSocket.listen("\(directory)/w", kind: .sequencedPacket, mode: 0o600)
        config = DeviceConfig(name: name, transport: .vfioUser(path: "\(directory)/e"))
        emulatorArguments =
            ["--socket", "\(directory)/e", "--control", "\(directory)/c"]
            + namespaces.flatMap { ["--namespace", $0] } + arguments
    }

    deinit {
        worker = nil
        emulator = nil
    }

    /// Ends the emulator: the device is gone, with its content.
    func stopEmulator() { emulator = nil }

    func startEmulator() throws { try startEmulator(emulatorArguments) }

    /// Another device in the place of the first, without its faults.
    func startEmulatorAfresh() throws {
        let end = emulatorArguments.firstIndex(of: "--fault") ?? emulatorArguments.endIndex
        try startEmulator(Array(emulatorArguments[..<end]))
    }

    /// Another device in the place of the first: other namespaces, or with other arguments.
    func startEmulator(namespaces: [String], _ arguments: [String] = []) throws {
        try startEmulator(
            ["--socket", "\(directory)/e", "--control", "\(directory)/c"]
                + namespaces.flatMap { ["--namespace", $0] } + arguments)
    }

    private func startEmulator(_ arguments: [String]) throws {
        emulator = nil
        emulatorNotify.forget()
        emulator = try Child(
            programPath("nvmed-emulator"), arguments,
            environment: ["NOTIFY_SOCKET=\(emulatorNotify.path)"])
        try emulatorNotify.wait(for: "READY=1")
    }

    /// Starts the worker as a service manager does, with what is in the store.
    func startWorker() throws {
        try notify.pump()
        notify.forget()
        let names = ["listen"] + notify.storedNames
        worker = try Child(
            programPath("nvmed-worker"), [name],
            environment: [
                "LISTEN_FDS=\(names.count)", "LISTEN_FDNAMES=\(names.joined(separator: ":"))",
                "LISTEN_PID=", "NOTIFY_SOCKET=\(notify.path)",
            ] + workerEnvironment, fds: [listener.raw] + notify.storedFDs)
    }

    /// Starts both and connects.
    func start() throws -> Supervisor {
        try startEmulator()
        try startWorker()
        try notify.wait(for: "READY=1")
        return try connect()
    }

    /// Starts both and loads the device.
    func startLoaded() throws -> Supervisor {
        let supervisor = try start()
        guard case .deviceReady = try supervisor.ask(.loadDriver(config)) else {
            throw RigError("the device is not ready")
        }
        return supervisor
    }

    func connect() throws -> Supervisor {
        Supervisor(try UnixSocket.connect("\(directory)/w", kind: .sequencedPacket), notify)
    }

    /// Says something to the emulator's control socket; its answer.
    @discardableResult
    func control(_ command: String) throws -> String {
        let fd = try UnixSocket.connect("\(directory)/c", kind: .sequencedPacket)
        var bytes = Array(command.utf8)
        _ = try unsafe bytes.withUnsafeBytes { try unsafe UnixSocket.send(fd, $0) }
        bytes = [UInt8](repeating: 0, count: 65536)
        guard try fd.waitReadable(timeoutMilliseconds: Int32(patienceMilliseconds)) else {
            throw RigError("the emulator does not answer '\(command)'")
        }
        let count = try unsafe bytes.withUnsafeMutableBytes {
            try unsafe UnixSocket.receive(fd, into: $0)?.byteCount ?? 0
        }
        return String(decoding: bytes[0..<count], as: UTF8.self)
    }
}

/// Memory that a client shares with the worker.
final class SharedMemory {
    let fd: OwnedFD
    let memory: Mapping

    init(byteCount: Int, seals: Seals = [.shrink, .grow], hugePages: Bool = false) throws {
        fd = try MemFD.create(
            name: "test", byteCount: byteCount, seals: seals, hugePages: hugePages)
        memory = try Mapping(fd, byteCount: byteCount)
    }

    private var bytes: UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(start: memory.base, count: memory.byteCount)
    }

    func fill(_ pattern: [UInt8], at offset: Int) {
        for (index, byte) in pattern.enumerated() { unsafe bytes[offset + index] = byte }
    }

    func contents(_ offset: Int, _ count: Int) -> [UInt8] {
        unsafe Array(bytes[offset..<(offset + count)])
    }
}

/// Bytes that differ from place to place and from seed to seed (xorshift64*).
func pattern(_ byteCount: Int, seed: UInt64) -> [UInt8] {
    var state = seed &* 2 | 1
    return (0..<byteCount).map { _ in
        state ^= state >> 12
        state ^= state << 25
        state ^= state >> 27
        return UInt8(truncatingIfNeeded: (state &* 0x2545_F491_4F6C_DD1D) >> 56)
    }
}
