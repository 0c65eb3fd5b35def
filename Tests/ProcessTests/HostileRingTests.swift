// SPDX-License-Identifier: Apache-2.0
// Hostile clients of rings, against real processes: they lose their sessions, and nobody else
// notices.

import CRing
import Glibc
import Linux
import NVMeClient
import Synchronization
import TestSupport
import Testing
import Wire

/// A client that reads known data through a ring of its own, over and over.
private final class Bystander: Sendable {
    struct Result: Sendable {
        var reads = 0
        var differences = 0
    }
    static let byteOffset = 16 << 20
    static let byteCount = 256 << 10

    private let isOver = Atomic<Bool>(false)
    private let reads = Atomic<Int>(0)
    private let result: Mutex<(@Sendable () throws -> Result)?> = Mutex(nil)

    /// Writes the data, then starts the client, which only reads, as its own session.
    init(_ service: RunningService, _ disk: String = "disk-a") throws {
        let pattern = DataPattern(seed: 99)
        let buffer = try IOBuffer(byteCount: Self.byteCount)
        pattern.fill(
            buffer, offset: 0, count: Self.byteCount, diskByteOffset: UInt64(Self.byteOffset))
        do {
            let writer = try service.connect().openDisk(disk, access: .readWrite)
            try writer.write(
                from: buffer, byteOffset: UInt64(Self.byteOffset), byteCount: Self.byteCount)
            writer.close()
        }
        let socket = service.socket
        let join = try Background<Result>.start { try self.run(socket, disk, pattern) }
        result.withLock { $0 = join }
        try waitForReads(1)
    }

    private func run(_ socket: String, _ disk: String, _ pattern: DataPattern) throws -> Result {
        let disk = try NVMeBackend.connect(socket).openDisk(disk, access: .readOnly)
        let buffer = try IOBuffer(byteCount: Self.byteCount)
        let region = try disk.registerMemory(buffer)
        let ring = try disk.openRing(entries: 16)
        let piece = Self.byteCount / 16
        let blocks = UInt32(piece / disk.blockByteCount)
        let first = UInt64(Self.byteOffset / disk.blockByteCount)
        var result = Result()
        var room = [RingCompletion](repeating: RingCompletion(), count: 16)
        while !isOver.load(ordering: .acquiring) {
            buffer.copyIn([UInt8](repeating: 0, count: Self.byteCount))
            for index in 0..<16 {
                _ = ring.prepareRead(
                    lba: first + UInt64(index) * UInt64(blocks), blockCount: blocks,
                    data: .region(region, offset: UInt64(index * piece)), tag: UInt64(index))
            }
            ring.submit()
            var tags: Set<UInt64> = []
            while tags.count < 16 {
                let wait = try ring.wait(
                    deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
                guard wait != .timedOut else { throw SetUpError("a read took 60 s") }
                let count = unsafe room.withUnsafeMutableBufferPointer {
                    unsafe ring.reap(into: $0)
                }
                for completion in room[..<count] {
                    guard completion.isDone, tags.insert(completion.tag).inserted else {
                        throw SetUpError("\(completion)")
                    }
                }
            }
            let isSame =
                pattern.firstMismatch(
                    buffer, offset: 0, count: Self.byteCount,
                    diskByteOffset: UInt64(Self.byteOffset)) == nil
            result.differences += isSame ? 0 : 1
            result.reads += 1
            reads.add(1, ordering: .releasing)
        }
        return result
    }

    /// Waits until it has read all of its data so many times more; throws when it ended.
    func waitForReads(_ count: Int) throws {
        let goal = reads.load(ordering: .acquiring) + count
        let deadline = Deadline.after(milliseconds: 60_000)
        while reads.load(ordering: .acquiring) < goal {
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw SetUpError("the other client stands still")
            }
            sched_yield()
        }
    }

    /// Ends it; what it saw.
    func finish() throws -> Result {
        isOver.store(true, ordering: .releasing)
        guard let join = result.withLock({ $0 }) else { return Result() }
        return try join()
    }
}

/// What a hostile client does to its ring, and what the reason of the end has to say.
struct Attack: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let reason: String
    let run: @Sendable (RawRing) throws -> Void

    init(_ name: String, _ reason: String, _ run: @escaping @Sendable (RawRing) throws -> Void) {
        testDescription = name
        self.reason = reason
        self.run = run
    }

    static let all: [Attack] = [
        Attack("an opcode of the admin set", "opcode") { $0.write(0x86) },
        Attack("a vendor's opcode", "opcode") { $0.write(0xFF) },
        Attack("a flag", "flag") { $0.write(2 | 0x80 << 8 | 8 << 32) },
        Attack("a reserved byte", "reserved") { $0.write(2 | 8 << 32, reserved: 1 << 63) },
        Attack("an unknown region", "region") { $0.write(2 | 8 << 32, place: 1) },
        Attack("region 2^32-1", "region") { $0.write(2 | 8 << 32, place: 0xFFFF_FFFF) },
        Attack("bytes past a region", "within its region") {
            $0.write(2 | 8 << 32, offset: UInt64(RawRing.regionByteCount) - 4095)
        },
        Attack("bytes that wrap", "within its region") { $0.write(1 | 8 << 32, offset: .max) },
        Attack("a segment list of 0", "segment list") { $0.write(2 | 4 << 8 | 8 << 32) },
        Attack("a tail that is too far", "submission_tail") { $0.tail &+= $0.entries + 1 },
        Attack("a tail that runs back", "submission_tail") { $0.tail &-= 1 },
        Attack("a tail 2^31 ahead", "submission_tail") { $0.tail &+= 1 << 31 },
        Attack("a head past the tail", "completion_head") { ring in
            ring.set(NV_RING_OFFSET_COMPLETION_HEAD, ring.word(NV_RING_OFFSET_COMPLETION_TAIL) + 1)
            for tag in 0..<UInt64(ring.entries) { ring.writeRead(tag) }
        },
        Attack("a head that runs back", "completion_head") { ring in
            ring.set(NV_RING_OFFSET_COMPLETION_HEAD, 0xFFFF_FFFF)
            for tag in 0..<UInt64(ring.entries) { ring.writeRead(tag) }
        },
        Attack("a punched header", "submission_tail") { ring in
            try MemFD.punchHole(ring.memory, offset: 0, byteCount: 4096)
            ring.tail = 0
        },
    ]
}

extension ProcessTests {
    @Suite("Hostile rings", .timeLimit(.minutes(10)))
    struct HostileRingTests {
        @Test("what no correct client does ends the session with its reason; nobody else notices")
        func attacks() throws {
            // Given
            let service = try RunningService()
            let other = try Bystander(service)
            let pid = try service.workerPID("a")
            let before = try Holdings(service)
            for attack in Attack.all {
                let ring = try RawRing(service)
                // Eight that are right, so that there is something to lose.
                for tag in 0..<8 as Range<UInt64> { ring.writeRead(tag) }
                ring.publish()
                try ring.waitForCompletions(8)
                // When
                try attack.run(ring)
                ring.publish()
                let reason = try ring.connection.waitForEnd()
                // Then
                #expect(reason?.code == .invalidArgument, "\(attack.testDescription)")
                #expect(reason?.field == "ring")
                #expect(
                    reason?.message.contains(attack.reason) == true,
                    "\(attack.testDescription): \(String(describing: reason))")
                try other.waitForReads(1)
            }
            let after = try Holdings.settled(service, before)
            let seen = try other.finish()
            #expect(after == before)
            #expect(seen.differences == 0)
            #expect(seen.reads > Attack.all.count)
            #expect(try service.workerPID("a") == pid)
        }

        @Test("descriptors that are misused stop neither the worker nor others")
        func descriptors() throws {
            // Given
            let service = try RunningService()
            let other = try Bystander(service)
            let ring = try RawRing(service)
            // When: a counter at its most, in a file that blocks
            let flags = fcntl(ring.kick.raw, F_GETFL)
            #expect(fcntl(ring.kick.raw, F_SETFL, flags & ~O_NONBLOCK) == 0)
            var most: UInt64 = .max - 1
            #expect(unsafe write(ring.kick.raw, &most, 8) == 8)
            try other.waitForReads(5)
            // Then: whoever empties it can kick again
            #expect(unsafe read(ring.kick.raw, &most, 8) == 8)
            for tag in 0..<4 as Range<UInt64> { ring.writeRead(tag) }
            ring.publish()
            try ring.waitForCompletions(4)
            #expect(ring.reap() == [0, 1, 2, 3])
            // When: thousands of wake-ups that nobody reads
            for tag in 0..<3000 as Range<UInt64> {
                ring.set(NV_RING_OFFSET_COMPLETION_NEED_WAKE, 1)
                ring.writeRead(tag)
                ring.publish()
                try ring.waitForCompletions(1)
                #expect(ring.reap() == [tag])
            }
            try other.waitForReads(2)
            // When: seals, sizes, and kicks without end
            // F_ADD_SEALS, F_SEAL_WRITE
            #expect(fcntl(ring.memory.raw, 1033, 8) < 0)
            #expect(ftruncate(ring.memory.raw, 0) < 0)
            #expect(ftruncate(ring.memory.raw, 1 << 24) < 0)
            #expect(ftruncate(ring.region.raw, 0) < 0)
            for _ in 0..<20_000 { ring.signal() }
            #expect(shutdown(ring.wake.raw, CInt(SHUT_RDWR)) == 0)
            ring.set(NV_RING_OFFSET_COMPLETION_NEED_WAKE, 1)
            ring.writeRead(1)
            ring.publish()
            try ring.waitForCompletions(1)
            let seen = try other.finish()
            #expect(seen.differences == 0)
        }

        @Test("memory punched away below reads and writes harms only its client")
        func punched() throws {
            // Given
            let service = try RunningService()
            let other = try Bystander(service)
            let ring = try RawRing(service)
            let pid = try service.workerPID("a")
            for round in 0..<200 {
                // When
                for tag in 0..<16 as Range<UInt64> { ring.writeRead(tag) }
                ring.publish()
                try MemFD.punchHole(
                    ring.region, offset: 0, byteCount: Int64(RawRing.regionByteCount))
                if round % 10 == 9 {
                    try MemFD.punchHole(ring.memory, offset: 4096, byteCount: 8192)
                }
                try ring.waitForCompletions(16)
                #expect(ring.reap().count == 16)
            }
            // Then
            let seen = try other.finish()
            #expect(seen.differences == 0)
            #expect(try service.workerPID("a") == pid)
        }

        @Test(
            "a client killed at any step leaves nothing behind, and the next one opens the disk",
            .timeLimit(.minutes(5)))
        func killed() throws {
            // Given
            let service = try RunningService()
            let other = try Bystander(service)
            let before = try Holdings(service)
            let steps = [
                "opened", "registered", "asked", "received", "mapped", "published", "kicked",
                "completions", "closing",
            ]
            for step in steps {
                // When
                try Victim.kill(at: step, in: service)
                // Then: the next one is not refused for long, and its ring works
                let disk = try service.connect().reopenable("disk-a")
                let buffer = try IOBuffer(byteCount: 65536)
                let region = try disk.registerMemory(buffer)
                let ring = try disk.openRing(entries: 2)
                #expect(
                    ring.prepareRead(
                        lba: 0, blockCount: 8, data: .region(region, offset: 0), tag: 1))
                ring.submit()
                let wait = try ring.wait(deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
                #expect(wait == .completions, "after \(step)")
                disk.close()
            }
            let after = try Holdings.settled(service, before)
            let seen = try other.finish()
            #expect(after == before)
            #expect(seen.differences == 0)
        }

        @Test("a ring is closed, and memory unregistered, when its requests have ended")
        func closing() throws {
            // Given
            let service = try RunningService()
            let reader = try service.connect().openDisk("disk-a", access: .readOnly)
            let before = try Holdings(service)
            do {
                let ring = try RawRing(service)
                for round in 0..<50 as Range<UInt64> {
                    // When: memory goes while it is read into, then the ring while it is used
                    for tag in 0..<32 as Range<UInt64> { ring.writeRead(round * 32 + tag) }
                    ring.publish()
                    try ring.waitForCompletions(1)
                    try ring.connection.channel.send(request: .closeRing(ringID: 0))
                    #expect(ring.connection.answer() == .answered)
                    // Then: no completion comes any more, and the id is free
                    let count = ring.word(NV_RING_OFFSET_COMPLETION_TAIL)
                    #expect(ring.word(NV_RING_OFFSET_STATE) == UInt32(NV_RING_STATE_ENDED))
                    try ring.connection.channel.send(request: .unregisterMemory(regionID: 0))
                    #expect(ring.connection.answer() == .answered)
                    #expect(ring.word(NV_RING_OFFSET_COMPLETION_TAIL) == count)
                    try ring.reopen()
                }
            }
            #expect(try Holdings.settled(service, before) == before)
            reader.close()
        }

        @Test("memory that a ring's requests use is unregistered after them, and then is gone")
        func unregister() throws {
            // Given
            let service = try RunningService()
            let ring = try RawRing(service)
            for tag in 0..<64 as Range<UInt64> { ring.writeRead(tag) }
            ring.publish()
            try ring.waitForCompletions(64)
            #expect(ring.reap().count == 64)
            // When
            for tag in 0..<32 as Range<UInt64> { ring.writeRead(tag) }
            ring.set(NV_RING_OFFSET_SUBMISSION_TAIL, ring.tail)
            try ring.connection.channel.send(request: .unregisterMemory(regionID: 0))
            ring.signal()
            // Then: either an entry was too late and named what is gone, or the next one is
            let early = try ring.connection.waitForEnd(orReply: true)
            ring.writeRead(0)
            ring.publish()
            let reason = try early ?? ring.connection.waitForEnd()
            #expect(
                reason?.message.contains("region") == true, "\(String(describing: reason))")
        }

        @Test("a session has sixteen rings, each with its data, and not one more")
        func many() throws {
            // Given
            let service = try RunningService()
            let reader = try service.connect().openDisk("disk-a", access: .readOnly)
            let before = try Holdings(service)
            do {
                let first = try RawRing(service)
                for id in 1..<16 as Range<UInt32> {
                    let fds = try first.connection.openRing(id, 2)
                    #expect(fds.count == 3)
                }
                // When
                let again = #expect(throws: WireError.self) {
                    _ = try first.connection.openRing(3, 2)
                }
                let more = #expect(throws: WireError.self) {
                    _ = try first.connection.openRing(16, 2)
                }
                // Then
                #expect(again?.code == .alreadyExists)
                #expect(more?.code == .resourceExhausted)
                try first.connection.channel.send(request: .closeRing(ringID: 7))
                #expect(first.connection.answer() == .answered)
                #expect(try first.connection.openRing(7, 4096).count == 3)
                for count in [0, 1, 3, 8192, .max] as [UInt32] {
                    let bad = #expect(throws: WireError.self) {
                        _ = try first.connection.openRing(20, count)
                    }
                    #expect(bad?.code != nil)
                }
            }
            #expect(try Holdings.settled(service, before) == before)
            reader.close()
        }

        @Test("a session that ends with a thousand requests in flight leaves nothing behind")
        func thousand() throws {
            // Given
            let service = try RunningService()
            let other = try Bystander(service)
            let before = try Holdings(service)
            for _ in 0..<10 {
                let ring = try RawRing(service, entries: 1024)
                for tag in 0..<1000 as Range<UInt64> { ring.writeRead(tag) }
                // When
                ring.publish()
                _ = consume ring
            }
            // Then
            let after = try Holdings.settled(service, before)
            try other.waitForReads(1)
            let seen = try other.finish()
            #expect(after == before)
            #expect(seen.differences == 0)
        }
    }
}

extension RawRing {
    /// Registers region 0 and opens another ring 0, which this one does not use: its own is gone.
    fileprivate func reopen() throws {
        try connection.channel.send(
            request: .registerMemory(
                regionID: 0, byteCount: UInt64(Self.regionByteCount), readOnly: false),
            fds: [region.raw])
        guard connection.answer() == .answered else { throw SetUpError("no region") }
        var fds = try connection.openRing(0, entries)
        guard let memory = fds.take(0), let kick = fds.take(1), let wake = fds.take(2) else {
            throw SetUpError("a ring has three descriptors")
        }
        try adopt(memory: memory, kick: kick, wake: wake)
    }
}

extension NVMeBackend {
    /// Opens a disk for writing; waits for the end of a session that is just dying.
    func reopenable(_ name: String) throws -> Disk {
        let deadline = Deadline.after(milliseconds: 60_000)
        while true {
            do throws(ClientError) {
                return try openDisk(name, access: .readWrite)
            } catch {
                guard error.wireError?.code == .busy, MonotonicClock.nowNanoseconds < deadline
                else { throw error }
                sched_yield()
            }
        }
    }
}

/// A client in a process of its own, which is killed.
enum Victim {
    /// Runs it until it says that it is there, kills it and waits for its end.
    static func kill(at step: String, in service: RunningService) throws {
        var ends: [CInt] = [-1, -1]
        try checked("pipe", unsafe pipe(&ends))
        let output = OwnedFD(adopting: ends[0])
        var writing: OwnedFD? = OwnedFD(adopting: ends[1])
        var program = Spawn(
            "/usr/bin/python3",
            [
                Programs.root + "/Tests/Support/ring_victim.py", Programs.root + "/Proto",
                service.socket, "disk-a", step,
            ], environment: Programs.environment(["PYTHONDONTWRITEBYTECODE=1"]))
        program.output = ends[1]
        let process = try program.start()
        _ = writing.take()
        var text = ""
        var chunk = [UInt8](repeating: 0, count: 4096)
        while !text.contains("at \(step)\n") {
            let count = unsafe read(output.raw, &chunk, chunk.count)
            guard count > 0 else { throw SetUpError("the victim ended: \(text)") }
            text += String(decoding: chunk[0..<count], as: UTF8.self)
        }
        try process.signal(SIGKILL)
        var status: CInt = 0
        _ = unsafe waitpid(process.pid, &status, 0)
    }
}
