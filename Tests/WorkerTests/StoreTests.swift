// SPDX-License-Identifier: Apache-2.0
// What a worker finds when it starts: much, damaged, or in somebody else's hands.

import CLinux
import CMemory
import Glibc
import Linux
import TestSupport
import Testing
import Wire

extension WorkerProcessTests {
    @Suite("What a worker process finds")
    struct Found {
        @Test("a predecessor that hangs is waited for: nothing is touched before it has ended")
        func overlap() throws {
            // Given: a process that SIGSTOP holds stands for one that the kernel holds.
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try client.write(0, pattern(512, seed: 1))
            let predecessor = try #require(rig.worker)
            try predecessor.signal(SIGSTOP)
            let read = try client.send(.read(lba: 0, blockCount: 1, location: .inline))
            // When
            try rig.startWorker()
            let tooEarly = Result { try rig.notify.wait(for: "READY=1", 500) }
            try predecessor.signal(SIGKILL)
            try predecessor.wait()
            try rig.notify.wait(for: "READY=1")
            // Then
            #expect(throws: RigError.self) { try tooEarly.get() }
            #expect(try client.answer(to: read).payload == pattern(512, seed: 1))
            #expect(try rig.connect().device().ready?.continuity?.resets == 0)
        }

        @Test("4 000 stored descriptors: the worker starts, goes on, and removes what is nobody's")
        func thousands() throws {
            // Given
            #expect(nv_raise_nofile_limit(16_384) == 0)
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try client.write(0, pattern(512, seed: 2))
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            try rig.notify.pump()
            let count = rig.notify.storedNames.count
            for number in 0..<(4_000 - count) {
                rig.notify.store("m-\(1_000_000 + number)", try EventFD().fd.duplicate())
            }
            // When
            try rig.startWorker()
            try rig.notify.wait(for: "READY=1")
            let data = try client.read(0, 1)
            try rig.notify.wait(untilStored: count)
            // Then
            #expect(data == pattern(512, seed: 2))
            #expect(client.isOpen)
        }

        /// Of the bytes of the state area that say anything, as many as time allows; all with
        /// NVMED_FLIP_ALL=1, and those of one part of several with NVMED_FLIP_ALL=part/parts.
        @Test(
            "any changed byte of the state area: what a client has goes on, or ends with a reason")
        func flips() throws {
            // Given
            let seed = seed()
            var random = SplitMix64(state: seed)
            let rig = try Rig()
            rig.workerEnvironment = ["NVMED_SESSION_STALL_MS=2000"]
            var supervisor = try rig.startLoaded()
            var (wentOn, ended, next) = (0, 0, 0)
            let part = FlippedPart(Program.environment("NVMED_FLIP_ALL"))
            while next < (part == nil ? 30 : .max) {
                // Shared: the last round's may not be over yet.
                let client = try supervisor.open(shared: true)
                try client.register(1, try SharedMemory(byteCount: 65536))
                try client.write(UInt64(next & 63), pattern(512, seed: UInt64(next)))
                try #require(rig.worker).signal(SIGKILL)
                try #require(rig.worker).wait()
                try rig.notify.pump()
                let state = try StateBytes(try rig.notify.duplicate("state"))
                guard let place = state.flip(next, part, &random) else { break }
                let words = "byte \(place), round \(next), seed \(seed)"
                // When
                var data: [UInt8]?
                do {
                    try rig.startWorker()
                    try rig.notify.wait(for: "READY=1")
                    supervisor = try rig.connect()
                    data = try client.readOrEnd(UInt64(next & 63))
                } catch { throw RigError("\(words): \(error)") }
                // Then
                #expect(data == nil || data == pattern(512, seed: UInt64(next)), "\(words)")
                if data == nil { ended += 1 } else { wentOn += 1 }
                client.channel.shutdown()
                _ = try supervisor.ask(.loadDriver(rig.config))
                next += 1
            }
            #expect(wentOn > 0)
            #expect(wentOn + ended == next)
            print("\(next) bytes changed: \(wentOn) went on, \(ended) ended")
        }
    }
}

/// Which of all bytes are changed in turn: `part` of `parts`, from 1 on.
private struct FlippedPart {
    private var part = 1
    private var parts = 1

    init?(_ text: String?) {
        guard let text else { return nil }
        let numbers = text.split(separator: "/").compactMap { Int($0) }
        guard numbers.count == 2, numbers[0] > 0, numbers[1] >= numbers[0] else { return }
        (part, parts) = (numbers[0], numbers[1])
    }

    func index(_ round: Int) -> Int { part - 1 + round * parts }
}

/// The state area of a worker that has died.
private struct StateBytes: ~Copyable {
    private let memory: Mapping

    init(_ fd: consuming OwnedFD) throws {
        memory = try Mapping(fd, byteCount: try MemFD.byteCount(of: fd))
    }

    /// Changes a bit of the `round`-th byte that says anything, or of any one; where that is. nil:
    /// there is none.
    func flip(_ round: Int, _ part: FlippedPart?, _ random: inout SplitMix64) -> Int? {
        var places: [Int] = []
        for word in stride(from: 0, to: memory.byteCount, by: 8)
        where unsafe nv_load64(memory.base + word) != 0 {
            for place in word..<(word + 8) where unsafe nv_load8(memory.base + place) != 0 {
                places.append(place)
            }
        }
        let index = part?.index(round) ?? Int(random.next() % UInt64(max(places.count, 1)))
        guard index < places.count else { return nil }
        let place = places[index]
        let mask = UInt8(1) << UInt8(random.next() % 8)
        unsafe nv_store8(memory.base + place, nv_load8(memory.base + place) ^ mask)
        return place
    }
}

extension NotifySocket {
    /// Waits until no more than so many descriptors are stored.
    fileprivate func wait(untilStored count: Int) throws {
        let deadline = patience()
        while storedNames.count > count {
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw RigError("\(storedNames.count) are stored, and not \(count)")
            }
            try pump()
            sched_yield()
        }
    }
}

extension Client {
    /// Whether nobody said that the session is over.
    fileprivate var isOpen: Bool {
        !events.contains { if case .ended = $0 { true } else { false } }
    }

    /// A block; nil when the session has ended with a reason.
    fileprivate func readOrEnd(_ lba: UInt64) throws -> [UInt8]? {
        let id: UInt64
        do { id = try send(.read(lba: lba, blockCount: 1, location: .inline)) } catch {
            // The socket is closed; the reason may still be on it.
            _ = try reason()
            return nil
        }
        while true {
            let message = try next()
            if case .event(.ended) = message.envelope.content { return nil }
            guard message.envelope.requestID == id else { continue }
            switch message.envelope.content {
            case .reply: return message.payload
            case .failure(let error): throw error
            case .request, .event: continue
            }
        }
    }
}
