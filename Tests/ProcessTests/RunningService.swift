// SPDX-License-Identifier: Apache-2.0
// The whole service as real processes: two emulators, the manager, the supervisor, the workers.

import Glibc
import Linux
import NVMeClient
import Synchronization
import TestSupport
import Wire

/// What a test could not set up.
struct SetUpError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// `nvmed --standalone` over two emulated controllers: `a` with blocks of 512 bytes, `b` with 4096.
///
/// Disks: `disk-a` and `disk-b`, and whatever the test adds. Ended and removed with its owner.
final class RunningService: Sendable {
    /// The bytes of each disk.
    static let diskByteCount: UInt64 = 32 << 20

    let directory: TemporaryDirectory
    let emulators: [String: EmulatorProcess]
    let manager: SpawnedProcess
    let output: OwnedFD
    var socket: String { directory.path + "/run/nvmed.sock" }
    var configuration: String { directory.path + "/etc" }

    /// Starts everything; `files` are further configuration files, `keys` further lines of the
    /// devices'.
    init(files: [String: String] = [:], keys: String = "") throws {
        let directory = try TemporaryDirectory()
        var emulators: [String: EmulatorProcess] = [:]
        for (name, block) in [("a", 512), ("b", 4096)] {
            let emulator = try EmulatorProcess([
                "--serial", "SERIAL-\(name)", "--namespace",
                "memory=\(Self.diskByteCount),block=\(block)",
            ])
            emulators[name] = emulator
            try TestFiles.write(
                "[Device]\nTransport=vfio-user\nSocket=\(emulator.socket)\nPool=32M\n"
                    + keys,
                to: "\(directory.path)/etc/\(name).device")
            try TestFiles.write(
                "[Disk]\nDevice=\(name)\nNamespace=1\n",
                to: "\(directory.path)/etc/disk-\(name).disk")
        }
        for (name, text) in files { try TestFiles.write(text, to: "\(directory.path)/etc/\(name)") }
        var ends: [CInt] = [-1, -1]
        try checked("pipe", unsafe pipe(&ends))
        output = OwnedFD(adopting: ends[0])
        var log: OwnedFD? = OwnedFD(adopting: ends[1])
        // Nobody empties the pipe: what does not fit is lost, and nothing blocks.
        try log?.setNonblocking(true)
        try output.setNonblocking(true)
        var program = Spawn(
            Programs.path("nvmed"),
            [
                "--standalone", "--config", directory.path + "/etc", "--runtime",
                directory.path + "/run",
            ], environment: Programs.environment(["NVMED_LOG=plain"]))
        program.output = ends[1]
        program.diesWithParent = false
        manager = try program.start()
        // Only nvmed holds the pipe now, so that its end shows.
        _ = log.take()
        self.directory = directory
        self.emulators = emulators
        try waitUntilReady()
    }

    deinit {
        try? manager.signal(SIGKILL)
        var status: CInt = 0
        _ = unsafe waitpid(manager.pid, &status, 0)
    }

    /// Writes or replaces a configuration file.
    func configure(_ name: String, _ text: String) throws {
        try TestFiles.write(text, to: "\(configuration)/\(name)")
    }

    private func waitUntilReady() throws {
        var text = ""
        while !text.contains("is ready") {
            guard try output.waitReadable(timeoutMilliseconds: 60_000) else {
                throw SetUpError("nvmed was not ready within 60 s: \(text)")
            }
            let more = log()
            guard !more.isEmpty else { throw SetUpError("nvmed ended: \(text)") }
            text += more
        }
    }

    /// What was logged since the last call.
    func log() -> String {
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = unsafe read(output.raw, &chunk, chunk.count)
            guard count > 0 else { break }
            bytes += chunk[0..<count]
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// A connection of its own.
    func connect() throws -> NVMeBackend { try NVMeBackend.connect(socket) }

    /// The worker of a device.
    func workerPID(_ device: String) throws -> Int32 {
        guard let pid = try connect().device(device).workerPID else {
            throw SetUpError("device \(device) has no worker")
        }
        return pid
    }

    /// The worker that replaced another one, once the supervisor knows it.
    func successor(of victim: Int32, _ device: String) throws -> Int32 {
        let deadline = Deadline.after(milliseconds: 30_000)
        while MonotonicClock.nowNanoseconds < deadline {
            let info = try connect().device(device)
            if info.state == .ready, let pid = info.workerPID, pid != victim { return pid }
            sched_yield()
        }
        throw SetUpError("nobody replaced worker \(victim) of device \(device) within 30 s")
    }

    /// The supervisor: the child of the manager that runs nvmed.
    func supervisorPID() throws -> Int32 {
        for pid in Processes.children(of: manager.pid)
        where Processes.arguments(of: pid).first?.hasSuffix("/nvmed") == true { return pid }
        throw SetUpError("the manager has no supervisor")
    }

    /// Waits for the manager's end; its exit code, or nil after the time.
    func waitForEnd(timeoutMilliseconds: Int32) throws -> Int32? {
        guard try manager.pidfd.waitReadable(timeoutMilliseconds: timeoutMilliseconds) else {
            return nil
        }
        var info = unsafe siginfo_t()
        // WNOWAIT: it is reaped by the owner's end.
        _ = unsafe waitid(P_PID, id_t(manager.pid), &info, WEXITED | WNOWAIT)
        return unsafe info._sifields._sigchld.si_status
    }
}

/// Other processes, as /proc tells.
enum Processes {
    static func children(of pid: Int32) -> [Int32] {
        text("/proc/\(pid)/task/\(pid)/children").split(separator: " ").compactMap { Int32($0) }
    }

    static func arguments(of pid: Int32) -> [String] {
        text("/proc/\(pid)/cmdline").split(separator: "\0").map(String.init)
    }

    static func descriptorCount(of pid: Int32) -> Int {
        ((try? Files.list("/proc/\(pid)/fd", limit: 100_000)) ?? []).count
    }

    static func exists(_ pid: Int32) -> Bool { kill(pid, 0) == 0 }

    private static func text(_ path: String) -> String {
        String(decoding: (try? Files.read(path, limit: 1 << 16)) ?? [], as: UTF8.self)
    }
}

/// A body for a thread.
private final class Job: Sendable {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }

    func start() throws -> pthread_t {
        var thread = pthread_t()
        let argument = unsafe Unmanaged.passRetained(self).toOpaque()
        let status = unsafe pthread_create(
            &thread, nil,
            { argument in
                guard let argument = unsafe argument else { return nil }
                unsafe Unmanaged<Job>.fromOpaque(argument).takeRetainedValue().body()
                return nil
            }, argument)
        guard status == 0 else { throw SetUpError("pthread_create: \(status)") }
        return thread
    }
}

/// Work on a thread of its own: the client library blocks.
final class Background<Value: Sendable>: Sendable {
    private let result = Mutex<Result<Value, any Error>?>(nil)

    /// Starts the work.
    static func start(
        _ body: @escaping @Sendable () throws -> Value
    ) throws -> @Sendable () throws -> Value {
        let background = Background()
        let thread = try Job { background.finish(Result { try body() }) }.start()
        return {
            _ = pthread_join(thread, nil)
            return try background.take()
        }
    }

    private func finish(_ result: Result<Value, any Error>) {
        self.result.withLock { $0 = result }
    }

    private func take() throws -> Value {
        guard let result = result.withLock({ $0 }) else {
            throw SetUpError("the thread has no result")
        }
        return try result.get()
    }
}
