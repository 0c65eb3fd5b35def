// SPDX-License-Identifier: Apache-2.0
// A service that is stopped and started again over devices that go on, and clients that stay.

import Glibc
import Linux
import NVMeClient
import Synchronization
import TestSupport
import Wire

/// The process above all others, with what they write.
private final class Manager {
    private let process: SpawnedProcess
    private let output: OwnedFD
    private var isReaped = false

    init(_ process: consuming SpawnedProcess, _ output: consuming OwnedFD) {
        self.process = process
        self.output = output
    }

    deinit {
        guard !isReaped else { return }
        try? process.signal(SIGKILL)
        reap()
    }

    private func reap() {
        isReaped = true
        var status: CInt = 0
        while unsafe waitpid(process.pid, &status, 0) < 0 && errno == EINTR {}
    }

    func waitUntilReady() throws {
        var text = ""
        while !text.contains("is ready") {
            guard try output.waitReadable(timeoutMilliseconds: 60_000) else {
                throw SetUpError("nvmed was not ready within 60 s: \(text)")
            }
            var chunk = [UInt8](repeating: 0, count: 65536)
            let count = unsafe read(output.raw, &chunk, chunk.count)
            guard count > 0 else { throw SetUpError("nvmed ended: \(text)") }
            text += String(decoding: chunk[0..<count], as: UTF8.self)
        }
    }

    /// Asks it to end, and waits for that.
    func end() throws {
        try process.signal(SIGTERM)
        guard try process.pidfd.waitReadable(timeoutMilliseconds: 60_000) else {
            throw SetUpError("nvmed did not end within 60 s")
        }
        reap()
    }
}

/// `nvmed --standalone` over emulators that go on when their clients have gone.
///
/// Device `x` has the disk `x` for its first namespace and `xs` for its second. Ended and removed
/// with its owner.
final class KeptService {
    /// The bytes of each disk.
    static let diskByteCount: UInt64 = 8 << 20

    let directory: TemporaryDirectory
    /// Of a tmpfs: pools outlive the processes.
    let memory: TemporaryDirectory
    let emulators: [String: EmulatorProcess]
    private var manager: Manager?
    var socket: String { directory.path + "/run/nvmed.sock" }
    var state: String { directory.path + "/run/servicing.state" }

    init(_ names: [String]) throws {
        let (directory, memory) = try (TemporaryDirectory(), TemporaryDirectory(in: "/dev/shm"))
        unsafe mkdir(directory.path + "/etc", 0o700)
        var emulators: [String: EmulatorProcess] = [:]
        for name in names {
            let size = "memory=\(Self.diskByteCount),block=4096"
            let emulator = try EmulatorProcess([
                "--keep", "--serial", "KEPT-\(name)", "--namespace", size, "--namespace", size,
            ])
            emulators[name] = emulator
            let text =
                "[Device]\nTransport=vfio-user\nSocket=\(emulator.socket)\nNVMeKeepAlive=yes\n"
                + "Pool=file\nPoolPath=\(memory.path)/\(name)\n"
            try TestFiles.write(text, to: "\(directory.path)/etc/\(name).device")
            for (disk, number) in [(name, 1), (name + "s", 2)] {
                try TestFiles.write(
                    "[Disk]\nDevice=\(name)\nNamespace=\(number)\n",
                    to: "\(directory.path)/etc/\(disk).disk")
            }
        }
        self.directory = directory
        self.memory = memory
        self.emulators = emulators
        try start()
    }

    /// Starts the manager, and everything with it.
    func start() throws {
        var ends: [CInt] = [-1, -1]
        try checked("pipe", unsafe pipe(&ends))
        let output = OwnedFD(adopting: ends[0])
        var input: OwnedFD? = OwnedFD(adopting: ends[1])
        try input?.setNonblocking(true)
        try output.setNonblocking(true)
        var program = Spawn(
            Programs.path("nvmed"),
            [
                "--standalone", "--config", directory.path + "/etc", "--runtime",
                directory.path + "/run",
            ], environment: Programs.environment(["NVMED_LOG=plain"]))
        program.output = ends[1]
        program.diesWithParent = false
        let manager = Manager(try program.start(), output)
        self.manager = manager
        _ = input.take()
        try manager.waitUntilReady()
    }

    /// Ends everything but the devices, in order.
    func stop() throws {
        try manager?.end()
        manager = nil
    }

    // MARK: Words

    /// nvmectl with these words; its status and what it printed, without spaces.
    func ask(_ words: [String]) throws -> (status: CInt, text: String) {
        let (status, output) = try Programs.run(
            Programs.path("nvmectl"), ["--socket", socket] + words)
        return (status, output.filter { !$0.isWhitespace })
    }

    /// Saves; the exit status.
    func save(_ words: String...) throws -> CInt { try ask(["service", "save"] + words).status }

    /// Where the service is, and each device.
    func servicing() throws -> (phase: String, steps: [String: String]) {
        let text = try ask(["service", "status", "--output", "json"]).text
        var steps: [String: String] = [:]
        for part in text.split(separator: "{") {
            if let name = Self.member("name", part) { steps[name] = Self.member("step", part) }
        }
        return (Self.member("phase", text[...]) ?? "", steps)
    }

    /// The text of a member of a JSON object.
    private static func member(_ name: String, _ text: Substring) -> String? {
        guard let begin = text.ranges(of: "\"\(name)\":\"").first?.upperBound else { return nil }
        return String(text[begin...].prefix { $0 != "\"" })
    }

    /// Waits until the service says so.
    func waitFor(phase: String) throws {
        try eventually("servicing is \(phase)") { try servicing().phase == phase }
    }

    /// Looks again and again, for at most a minute.
    func eventually(_ what: String, _ condition: () throws -> Bool) throws {
        let deadline = Deadline.after(milliseconds: 60_000)
        while (try? condition()) != true {
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw SetUpError("\(what): not within 60 s")
            }
            sched_yield()
        }
    }

    func connect() throws -> NVMeBackend { try NVMeBackend.connect(socket) }

    // MARK: Devices

    func tell(_ device: String, _ words: String) throws -> String {
        guard let emulator = emulators[device] else { throw SetUpError("no device \(device)") }
        return try emulator.command(words)
    }

    /// What a device has counted of resets, bring-ups and queues.
    func untouched(_ device: String) throws -> [String] {
        let counts = try tell(device, "stats").split(separator: ",").map(String.init).filter {
            member in
            ["Resets", "enables", "QueuesCreated", "QueuesDeleted"].contains { member.contains($0) }
        }
        return try counts + earlyCommands(device)
    }

    /// Admin commands before the first completion of each client, but for the probe and for who
    /// the device is: no client waits when everything was stopped.
    private func earlyCommands(_ device: String) throws -> [String] {
        let text = try tell(device, "stats")
        guard let begin = text.ranges(of: "\"earlyAdminCommands\":{").first?.upperBound else {
            throw SetUpError("the emulator does not count early commands")
        }
        return text[begin...].prefix { $0 != "}" }.split(separator: ",").map(String.init).filter {
            part in
            !["Event", "Get Features", "Get Log Page", "Identify"].contains { part.contains($0) }
        }
    }
}

/// What a lasting client found.
struct LastingResult: Sendable {
    var operations = 0
    /// Places that held something else than was written there last.
    var differences: [Int] = []
    /// Sessions that ended.
    var sessions = 0
    /// Reads of everything at the end.
    var verified = 0
}

/// Clients that outlive the service: they open their disks again and do again what had no answer.
final class LastingLoad: Sendable {
    private static let placeCount = 256
    private static let placeByteCount = 16384
    private let isOver = Atomic<Bool>(false)
    /// What each client has done.
    private let done = Mutex<[Int]>([])

    func stop() { isOver.store(true, ordering: .releasing) }

    /// Waits until each client that was started has done so many operations more.
    func waitForOperations(_ count: Int) throws {
        let begin = done.withLock { $0 }
        let deadline = Deadline.after(milliseconds: 60_000)
        while done.withLock({ zip($0, begin).contains { now, then in now < then + count } }) {
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw SetUpError("the load has not gone on within 60 s")
            }
            sched_yield()
        }
    }

    /// Starts a client of a disk; the function that waits for its end.
    func start(
        _ socket: String, _ disk: String, seed: UInt64
    ) throws -> @Sendable () throws -> LastingResult {
        let index = done.withLock {
            $0.append(0)
            return $0.count - 1
        }
        return try Background.start {
            let disk = try NVMeBackend.connect(socket).openDisk(disk)
            let buffer = try IOBuffer(byteCount: Self.placeByteCount)
            try disk.registerMemory(buffer)
            var result = LastingResult()
            var random = SplitMix64(state: seed)
            var seeds = [UInt64](repeating: 0, count: Self.placeCount)
            while !self.isOver.load(ordering: .acquiring) {
                let place = Int(random.next() % UInt64(Self.placeCount))
                seeds[place] = random.next() | 1
                try Self.write(disk, buffer, place, seeds[place], &result)
                try Self.check(
                    disk, buffer, Int(random.next() % UInt64(Self.placeCount)), seeds, &result)
                self.done.withLock { $0[index] += 1 }
            }
            for place in seeds.indices where seeds[place] != 0 {
                try Self.check(disk, buffer, place, seeds, &result)
                result.verified += 1
            }
            disk.close()
            return result
        }
    }

    private static func write(
        _ disk: Disk, _ buffer: IOBuffer, _ place: Int, _ seed: UInt64,
        _ result: inout LastingResult
    ) throws(ClientError) {
        let offset = UInt64(place * placeByteCount)
        try lasting(disk, &result) { () throws(ClientError) in
            DataPattern(seed: seed).fill(
                buffer, offset: 0, count: placeByteCount, diskByteOffset: offset)
            try disk.write(from: buffer, byteOffset: offset, byteCount: placeByteCount)
        }
        result.operations += 1
    }

    private static func check(
        _ disk: Disk, _ buffer: IOBuffer, _ place: Int, _ seeds: [UInt64],
        _ result: inout LastingResult
    ) throws(ClientError) {
        guard seeds[place] != 0 else { return }
        let offset = UInt64(place * placeByteCount)
        try lasting(disk, &result) { () throws(ClientError) in
            try disk.read(into: buffer, byteOffset: offset, byteCount: placeByteCount)
        }
        let mismatch = DataPattern(seed: seeds[place]).firstMismatch(
            buffer, offset: 0, count: placeByteCount, diskByteOffset: offset)
        if mismatch != nil { result.differences.append(place) }
    }

    /// Does something until it has an answer; when the session ends, the disk is opened again.
    private static func lasting(
        _ disk: Disk, _ result: inout LastingResult, _ body: () throws(ClientError) -> Void
    ) throws(ClientError) {
        for _ in 0..<100 {
            do throws(ClientError) {
                return try body()
            } catch {
                guard disk.ended != nil || error.isRetriable else { throw error }
                result.sessions += 1
                try disk.reopen(deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
            }
        }
        throw .timedOut
    }
}
