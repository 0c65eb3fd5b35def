// SPDX-License-Identifier: Apache-2.0
// Rings of a controller that is reset: what was with the device ends once, each in its place.

import CMemory
import CRing
import Linux
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeDriver

/// A ring that outlives the drivers which serve it, with its client.
@safe
private final class LastingRing {
    private let memory: RingMemory
    private let regions = SessionRegions()
    private let limiter = IOLimiter(requestsPerSecond: 0, bytesPerSecond: 0)
    private let clientWake: OwnedFD
    private let workerWake: OwnedFD
    private var taken: UInt32 = 0

    init(_ rig: AdoptionRig) throws {
        let shape = try requireValue(RingShape(submissionEntries: 16, completionEntries: 16))
        memory = try RingMemory(shape: shape, ringID: 0)
        let pair = try UnixSocket.pair(kind: .sequencedPacket, nonblocking: true)
        clientWake = try pair.first.duplicate()
        workerWake = try pair.second.duplicate()
        regions.set(3, driverRegion: rig.region, isReadOnly: false)
    }

    deinit { regions.deallocate() }

    private var base: UnsafeMutableRawPointer { unsafe memory.mapping.base }

    private func rules(_ rig: AdoptionRig) -> RingRules {
        RingRules(rig.controller.namespaces[1], isWritable: true, maxRequestByteCount: 1 << 20)
    }

    func open(_ rig: AdoptionRig, on queue: inout DataQueue) throws -> Bool {
        let log = rig.controller.state.ringPositions(queue: 1, index: 0)
        return unsafe queue.add(
            at: 0, base: base, shape: memory.shape, session: AdoptionRig.session,
            regions: regions, rules: rules(rig), wakeFD: workerWake.raw, gate: limiter.gate,
            log: try requireValue(log)) != nil
    }

    func adopt(_ rig: AdoptionRig, on queue: inout DataQueue) throws -> Bool {
        let known = rig.controller.state.knownPositions(queue: 1, index: 0)
        return unsafe queue.adopt(
            at: 0, base: base, shape: memory.shape, session: AdoptionRig.session,
            regions: regions, rules: rules(rig), wakeFD: workerWake.raw, gate: limiter.gate,
            log: rig.controller.state.ringPositions(queue: 1, index: 0),
            known: try requireValue(known))
    }

    /// Submits writes of one block each, with the tags 0, 1….
    func submitWrites(_ count: UInt32) {
        for tag in 0..<count {
            let entry = unsafe base + memory.shape.submissionOffset + Int(tag & 15) * 64
            let words: [UInt64] = [
                UInt64(IOOperation.write) | 1 << 32, UInt64(tag), UInt64(tag), 3,
                UInt64(tag) * 512, 0, 0, 0,
            ]
            for (index, word) in words.enumerated() { unsafe nv_store64(entry + index * 8, word) }
        }
        unsafe nv_store_release32(base + Int(NV_RING_OFFSET_SUBMISSION_TAIL), count)
    }

    /// Completions that were not seen before: tag and code.
    func completions() -> [(tag: UInt64, code: UInt16)] {
        var found: [(tag: UInt64, code: UInt16)] = []
        let tail = unsafe nv_load_acquire32(base + Int(NV_RING_OFFSET_COMPLETION_TAIL))
        while taken != tail, found.count <= 16 {
            let entry = unsafe base + memory.shape.completionOffset + Int(taken & 15) * 16
            let rest = unsafe nv_load64(entry + 8)
            found.append((unsafe nv_load64(entry), UInt16(truncatingIfNeeded: rest >> 16)))
            taken &+= 1
        }
        unsafe nv_store_release32(base + Int(NV_RING_OFFSET_COMPLETION_HEAD), taken)
        return found
    }
}

@Suite("Rings over a reset", .serialized)
struct ResetRingTests {
    /// Turns until the client has got so many completions in all.
    private func turn(
        _ queue: inout DataQueue, _ rig: AdoptionRig, _ ring: LastingRing,
        into found: inout [(tag: UInt64, code: UInt16)], until count: Int
    ) throws {
        let deadline = MonotonicClock.nowNanoseconds + 20_000_000_000
        while found.count < count {
            _ = queue.take()
            try rig.controller.writePendingDoorbells(0)
            _ = queue.reap()
            try rig.controller.writePendingDoorbells(0)
            found += ring.completions()
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw TestFailure("\(found.count) of \(count) completions")
            }
        }
    }

    @Test(
        "each request ends once: answered before, done again, or its outcome unknown",
        arguments: [(Replay.everything, UInt16(0)), (.harmless, 25), (.nothing, 25)])
    func reset(_ replay: Replay, _ code: UInt16) throws {
        // Given: of eight writes the device answers three.
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,skip=3,times=5"])
        let ring = try LastingRing(rig)
        var found: [(tag: UInt64, code: UInt16)] = []
        var first = unsafe DataQueue(
            engine: rig.controller.engine(0), timeoutMilliseconds: 1000)
        let isOpen = try ring.open(rig, on: &first)
        ring.submitWrites(8)
        try turn(&first, rig, ring, into: &found, until: 3)
        // When
        try rig.crash()
        try rig.controller.startOver(rig.inheritance(), replay: { _ in replay })
        var second = unsafe DataQueue(
            engine: rig.controller.engine(0), timeoutMilliseconds: 1000)
        let isAdopted = try ring.adopt(rig, on: &second)
        let addsUp = second.recover { _ in }
        try rig.controller.writePendingDoorbells(0)
        found += ring.completions()
        try turn(&second, rig, ring, into: &found, until: 8)
        // Then
        #expect(isOpen)
        #expect(isAdopted)
        #expect(addsUp)
        #expect(found.map(\.tag).sorted() == Array(0..<8))
        #expect(found.prefix(3).allSatisfy { $0.code == 0 })
        #expect(found.dropFirst(3).allSatisfy { $0.code == code })
        let isIdle = second.isIdle
        #expect(isIdle)
    }
}
