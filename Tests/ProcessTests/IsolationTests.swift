// SPDX-License-Identifier: Apache-2.0
// Deaths of processes under load: who notices, and for how long.

import Glibc
import Linux
import NVMeClient
import Synchronization
import TestSupport
import Testing
import Wire

/// What a client under load saw.
struct LoadResult: Sendable {
    var operations = 0
    var differences = 0
    var errors: [String] = []
    var longestNanoseconds: UInt64 = 0
    /// For how long the client and those who serve it waited for a processor in all.
    var waitedNanoseconds: UInt64 = 0
    /// When I/O was possible again after the first error, and that error.
    var recoveredNanoseconds: UInt64?
    var firstError: ClientError?

    var longestMilliseconds: Double { Double(longestNanoseconds) / 1e6 }
    var waitedMilliseconds: Double { Double(waitedNanoseconds) / 1e6 }
}

/// Clients that write, read and compare until they are told to stop.
final class Load: Sendable {
    private let isOver = Atomic<Bool>(false)
    private let done = Atomic<Int>(0)
    /// Clients that have opened their disks, or failed.
    private let begun = Atomic<Int>(0)

    func stop() { isOver.store(true, ordering: .releasing) }

    /// Waits until a client of this load has done so many operations more.
    func waitForOperations(_ count: Int) {
        let goal = done.load(ordering: .acquiring) + count
        while done.load(ordering: .acquiring) < goal { sched_yield() }
    }

    /// Starts a client and returns when its disk is open; after an error it reopens the disk and
    /// goes on.
    func start(
        _ service: RunningService, _ disk: String, reopens: Bool = false
    ) throws -> @Sendable () throws -> LoadResult {
        let socket = service.socket
        let emulator = service.emulators[String(disk.suffix(1))]?.pid ?? 0
        let before = begun.load(ordering: .acquiring)
        let client: @Sendable () throws -> LoadResult = try Background.start {
            let opened = Result {
                let disk = try NVMeBackend.connect(socket).openDisk(disk)
                return (disk, try service.workerPID(disk.info.device))
            }
            self.begun.add(1, ordering: .releasing)
            let (disk, worker) = try opened.get()
            let waited = ProcessorWait.ofThisThread + ProcessorWait.of([emulator, worker])
            let buffer = try IOBuffer(byteCount: 65536)
            var result = LoadResult()
            var random = SplitMix64(state: 1)
            while !self.isOver.load(ordering: .acquiring) {
                let begin = MonotonicClock.nowNanoseconds
                do throws(ClientError) {
                    let same = try Self.step(disk, buffer, &random)
                    if !same { result.differences += 1 }
                    result.operations += 1
                    if result.firstError != nil, result.recoveredNanoseconds == nil {
                        result.recoveredNanoseconds = MonotonicClock.nowNanoseconds
                    }
                } catch {
                    if result.firstError == nil { result.firstError = error }
                    result.errors.append("\(error)")
                    guard reopens else { return result }
                    try disk.reopen(deadlineNanoseconds: Deadline.after(milliseconds: 10_000))
                }
                result.longestNanoseconds = max(
                    result.longestNanoseconds, MonotonicClock.nowNanoseconds - begin)
                self.done.add(1, ordering: .releasing)
            }
            let after = ProcessorWait.ofThisThread + ProcessorWait.of([emulator, worker])
            // The threads of a worker that was killed count no more.
            result.waitedNanoseconds = after > waited ? after - waited : 0
            return result
        }
        while begun.load(ordering: .acquiring) == before { sched_yield() }
        return client
    }

    private static func step(
        _ disk: Disk, _ buffer: IOBuffer, _ random: inout SplitMix64
    ) throws(ClientError) -> Bool {
        let offset = random.next() % (disk.byteCount / 65536) * 65536
        let pattern = DataPattern(seed: random.next())
        pattern.fill(buffer, offset: 0, count: 16384, diskByteOffset: offset)
        try disk.write(from: buffer, byteOffset: offset, byteCount: 16384)
        try disk.read(into: buffer, bufferOffset: 32768, byteOffset: offset, byteCount: 16384)
        return pattern.firstMismatch(
            buffer, offset: 32768, count: 16384, diskByteOffset: offset) == nil
    }
}

extension ProcessTests {
    @Suite("Isolation", .timeLimit(.minutes(5)))
    struct IsolationTests {
        /// The promise is 100 ms; this allows for a machine that is shared with builds. What a
        /// loaded machine made client, worker and emulator wait comes on top.
        static let pauseMillisecondsMax = 250.0

        @Test("SIGKILL of one worker under load: its client waits, the other device sees nothing")
        func killsWorker() throws {
            let service = try RunningService()
            let load = Load()
            let a = try load.start(service, "disk-a")
            let b = try load.start(service, "disk-b")
            load.waitForOperations(50)
            let victim = try service.workerPID("a")

            kill(victim, SIGKILL)
            load.waitForOperations(400)
            load.stop()
            let (resultA, resultB) = (try a(), try b())
            let successor = try service.successor(of: victim, "a")

            print(
                "the other device: \(resultB.operations) operations, longest "
                    + "\(resultB.longestMilliseconds) ms; the killed one: longest "
                    + "\(resultA.longestMilliseconds) ms")
            #expect(resultB.errors.isEmpty)
            #expect(resultB.differences == 0)
            #expect(
                resultB.longestMilliseconds
                    < Self.pauseMillisecondsMax + resultB.waitedMilliseconds)
            #expect(resultA.differences == 0)
            #expect(resultA.errors.isEmpty)
            #expect(successor != victim)
        }

        @Test("SIGKILL of the supervisor: sessions go on, and it knows them again")
        func killsSupervisor() throws {
            let service = try RunningService()
            let load = Load()
            let a = try load.start(service, "disk-a")
            let b = try load.start(service, "disk-b")
            load.waitForOperations(20)
            let before = try service.connect().listSessions()
            let victim = try service.supervisorPID()

            kill(victim, SIGKILL)
            load.waitForOperations(200)
            let backend = try service.connect()
            let after = try backend.listSessions()
            let second = clientFailure { _ = try backend.openDisk("disk-a") }
            let reader = try backend.openDisk("disk-a", access: .readOnly)
            load.stop()
            let results = [try a(), try b()]

            #expect(before.map(\.sessionID) == after.map(\.sessionID))
            #expect(before.count == 2)
            #expect(second?.wireError?.code == .busy)
            #expect(reader.info.readOnly)
            #expect(results.allSatisfy { $0.errors.isEmpty && $0.differences == 0 })
            print(
                "longest: \(results.map(\.longestMilliseconds)) ms; waited for a processor: "
                    + "\(results.map(\.waitedMilliseconds)) ms")
            for result in results {
                #expect(
                    result.longestMilliseconds
                        < Self.pauseMillisecondsMax + result.waitedMilliseconds)
            }
            #expect(try service.supervisorPID() != victim)
        }

        @Test("a worker that is killed again and again serves again each time")
        func killsRepeatedly() throws {
            let service = try RunningService()
            let disk = try service.connect().openDisk("disk-a")
            let buffer = try IOBuffer(byteCount: 4096)
            var victim = try service.workerPID("a")
            for _ in 0..<5 {
                kill(victim, SIGKILL)
                for _ in 0..<100 {
                    try disk.read(
                        into: buffer, byteOffset: 0, byteCount: 4096,
                        deadlineNanoseconds: Deadline.after(milliseconds: 30_000))
                }
                victim = try service.successor(of: victim, "a")
            }
            #expect(disk.ended == nil)
            #expect(try service.connect().device("a").restarts == 5)
        }
    }
}

/// The error that an operation of the client library ended with; nil when it succeeded.
func clientFailure(_ body: () throws -> Void) -> ClientError? {
    do {
        try body()
        return nil
    } catch let error as ClientError {
        return error
    } catch {
        return .protocolViolation("\(error)")
    }
}
