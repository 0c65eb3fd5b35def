// SPDX-License-Identifier: Apache-2.0
// Drivers that die at any point, and successors that go on with their controllers (DESIGN, section
// 5): nothing is lost, nothing is done twice, and the controller does not notice.

import CMemory
import Linux
import NVMeSpec
import TestSupport
import Testing
import VFIO

@testable import NVMeDriver

@Suite("A controller that outlives its driver", .serialized)
struct AdoptionTests {
    @Test("is gone on with, and the controller is asked nothing", arguments: [1, 3])
    func idle(queues: Int) throws {
        // Given
        let rig = try AdoptionRig(queues: queues)
        rig.fill(at: 0, byteCount: 4096, seed: 1)
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        _ = try rig.complete(1)
        let before = try rig.controlPlane()
        let known = (rig.controller.identify.sn, rig.controller.namespaces)
        // When
        try rig.crashAndAdopt()
        for queue in 0..<queues {
            try rig.submit(
                IOOperation.read, lba: 0, offset: 8192 * (queue + 1), token: 2, queue: queue)
            #expect(try rig.complete(1, queue: queue) == [2: 0])
            #expect(rig.equal(0, 8192 * (queue + 1), byteCount: 4096))
        }
        // Then
        #expect(try rig.controlPlane() == before)
        #expect(rig.controller.wasAdopted)
        #expect(rig.controller.adoptionNanoseconds > 0)
        #expect(rig.controller.identify.sn == known.0)
        #expect(rig.controller.namespaces == known.1)
        #expect(rig.controller.queueCount == queues)
    }

    @Test("answers that nobody read are delivered", arguments: [1, 17, 60])
    func answered(count: Int) throws {
        // Given
        let rig = try AdoptionRig()
        rig.fill(at: 0, byteCount: 1 << 20, seed: 2)
        for token in 1...UInt64(count) {
            try rig.submit(
                IOOperation.write, lba: token * 8, offset: Int(token) * 4096, token: token)
        }
        // When
        try rig.crashAndAdopt()
        // Then
        let statuses = try rig.complete(count)
        #expect(statuses.count == count)
        #expect(statuses.values.allSatisfy { $0 == 0 })
        #expect(unsafe rig.controller.engine(0).pointee.isIdle)
    }

    @Test("commands that the device holds are answered later")
    func held() throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:delay=300,queue=io"])
        rig.fill(at: 0, byteCount: 65536, seed: 3)
        for token in 1...16 as ClosedRange<UInt64> {
            try rig.submit(
                IOOperation.write, lba: token * 8, offset: Int(token) * 4096, token: token)
        }
        let before = try rig.controlPlane()
        // When
        try rig.crashAndAdopt()
        // Then
        #expect(try rig.complete(16).values.allSatisfy { $0 == 0 })
        #expect(try rig.controlPlane() == before)
    }

    @Test("commands that the device never saw are submitted in their order")
    func unseen() throws {
        // Given
        let rig = try AdoptionRig()
        rig.fill(at: 0, byteCount: 65536, seed: 4)
        for token in 1...8 as ClosedRange<UInt64> {
            try rig.submit(
                IOOperation.write, lba: 0, offset: Int(token) * 4096, token: token, ring: false)
        }
        // When
        try rig.crashAndAdopt()
        // Then
        #expect(rig.controller.adoptedDoorbells == [.resubmitted(8)])
        #expect(try rig.complete(8).count == 8)
        try rig.submit(IOOperation.read, lba: 0, offset: 1 << 20, token: 9)
        _ = try rig.complete(1)
        // The last one written is what is there.
        #expect(rig.equal(8 * 4096, 1 << 20, byteCount: 4096))
    }

    @Test("a request of many commands goes on where it was", arguments: [true, false])
    func manyCommands(isRung: Bool) throws {
        // Given
        let rig = try AdoptionRig(["--mdts", "1"])
        rig.fill(at: 0, byteCount: 1 << 20, seed: 5)
        try rig.submit(
            IOOperation.write, lba: 64, byteCount: 1 << 20, token: 1, ring: isRung)
        // When: 128 commands, of which at most 32 were issued; and once more in between.
        try rig.crashAndAdopt()
        #expect(try rig.complete(1) == [1: 0])
        try rig.submit(
            IOOperation.read, lba: 64, byteCount: 1 << 20, offset: 2 << 20, token: 2)
        try rig.crashAndAdopt()
        // Then
        #expect(try rig.complete(1) == [2: 0])
        #expect(rig.equal(0, 2 << 20, byteCount: 1 << 20))
    }

    @Test("drivers that die in a row lose nothing")
    func manyDeaths() throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        let rig = try AdoptionRig(queues: 2)
        let before = try rig.controlPlane()
        for round in 0..<25 as Range<UInt64> {
            // When
            let queue = Int(random.next() % 2)
            let count = 1 + random.next() % 40
            rig.fill(at: 0, byteCount: 4096, seed: random.next())
            for token in 1...count {
                try rig.submit(
                    IOOperation.write, lba: round * 8, token: token, queue: queue,
                    ring: random.next() % 4 != 0)
            }
            if random.next() % 2 == 0 { try rig.ring(queue) }
            try rig.crashAndAdopt()
            // Then
            #expect(try rig.complete(Int(count), queue: queue).count == Int(count), "seed \(seed)")
            try rig.submit(
                IOOperation.read, lba: round * 8, offset: 8192, token: 99, queue: queue)
            #expect(try rig.complete(1, queue: queue) == [99: 0], "seed \(seed)")
            #expect(rig.equal(0, 8192, byteCount: 4096), "seed \(seed)")
        }
        #expect(try rig.controlPlane() == before, "seed \(seed)")
        #expect(rig.controller.state.generation == 26)
    }

    @Test("memory stays registered; what was half registered is taken away")
    func regions() throws {
        // Given
        let rig = try AdoptionRig()
        var stretch = ClientMemoryStretch(byteCount: 65536)
        stretch.offset = 1 << 20
        let other = try rig.controller.registerMemory(
            rig.client, stretch, session: 9, clientID: 4, number: 1)
        var record = try requireValue(rig.controller.state.region(other))
        record.state = .mapping
        rig.controller.state.setRegion(other, record)
        // When
        try rig.crashAndAdopt()
        // Then
        #expect(rig.controller.state.region(other) == nil)
        #expect(rig.controller.state.region(rig.region)?.clientID == 3)
        let again = try rig.controller.registerMemory(
            rig.client, stretch, session: 9, clientID: 4, number: 1)
        #expect(again == other)
        #expect(rig.controller.state.region(again)?.iova == record.iova)
    }

    @Test("an UnregisterMemory that was not answered stays on record until it is")
    func unregistering() throws {
        // Given
        let rig = try AdoptionRig()
        rig.controller.willUnregister(rig.region, requestID: 77)
        try rig.controller.unregisterMemory(rig.region, keepsRecord: true)
        // When
        try rig.crashAndAdopt()
        // Then
        let record = try requireValue(rig.controller.state.region(rig.region))
        #expect(record.state == .unmapping)
        #expect(record.unregisterRequestID == 77)
        rig.controller.forgetRegion(rig.region)
        #expect(rig.controller.state.regionContent(rig.region) == .free)
    }

    @Test("an event that was told and not acted upon is told again")
    func events() throws {
        // Given
        let rig = try AdoptionRig()
        _ = try rig.emulator.command("namespace add memory=1M")
        // When: the first successor takes the answer off the queue while it may send nothing.
        try rig.crashAndAdopt()
        let deadline = MonotonicClock.nowNanoseconds + 20_000_000_000
        while rig.controller.state.pendingEvents == 0, MonotonicClock.nowNanoseconds < deadline {
            #expect(try rig.controller.pollAdmin().isEmpty)
        }
        try rig.crashAndAdopt()
        let before = try rig.controlPlane()
        #expect(try rig.controller.pollAdmin().isEmpty)
        #expect(try rig.controlPlane() == before)
        let events = try rig.controller.finishAdoption(comparing: false)
        // Then
        #expect(events.count == 1)
        guard case .namespacesChanged = try requireValue(events.first) else {
            throw TestFailure("\(events)")
        }
        try rig.controller.refreshNamespaces()
        #expect(rig.controller.namespaces.count == 2)
        _ = try rig.controller.pollAdmin()
        #expect(rig.controller.state.pendingEvents == 0)
        #expect(rig.controller.eventRequests > 0)
        // And the successor knows both without asking.
        try rig.crashAndAdopt()
        #expect(rig.controller.namespaces.count == 2)
    }

    @Test("the comparison afterwards finds what changed")
    func comparison() throws {
        // Given
        let rig = try AdoptionRig()
        try rig.crashAndAdopt()
        // When
        let events = try rig.controller.finishAdoption(comparing: true)
        // Then
        guard case .namespacesChanged = try requireValue(events.last) else {
            throw TestFailure("\(events)")
        }
        #expect(!rig.controller.isQuiet)
        #expect(try rig.controller.finishAdoption(comparing: true).isEmpty)
    }

    @Test("an id that an Abort names is not used again by a successor")
    func abort() throws {
        // Given: a command and its Abort, neither of which is ever answered.
        let rig = try AdoptionRig([
            "--fault", "command:hang,opcode=2,times=1", "--fault", "command:hang,opcode=8,times=1",
        ])
        try rig.submit(IOOperation.read, lba: 0, token: 1)
        try rig.controller.abort(queue: 0, commandID: 0)
        // When
        try rig.crashAndAdopt()
        // Then
        #expect(unsafe rig.controller.engine(0).pointee.hasAbortsUnderWay)
        try rig.submit(IOOperation.read, lba: 8, offset: 4096, token: 2)
        #expect(try rig.complete(1) == [2: 0])
    }

    // MARK: Not adoptable

    static let changes: [(String, @Sendable (AdoptionRig) throws -> Inheritance)] = [
        ("pool", { $0.inheritance(pool: false) }),
        ("interrupt", { $0.inheritance(interrupts: false) }),
        ("memory of region", { $0.inheritance(memory: false) }),
    ]

    @Test("what is missing makes it one that cannot be adopted", arguments: 0..<3)
    func missing(index: Int) throws {
        // Given
        let rig = try AdoptionRig()
        try rig.crash()
        let (words, inheritance) = Self.changes[index]
        let before = try rig.controlPlane()
        // When
        let reason = try refusal(rig, try inheritance(rig))
        // Then
        #expect(reason.contains(words), "\(reason)")
        #expect(try rig.controlPlane() == before)
    }

    private func refusal(_ rig: AdoptionRig, _ inheritance: Inheritance) throws -> String {
        do throws(DriverError) {
            try rig.controller.adopt(inheritance)
        } catch {
            guard case .notAdoptable(let reason) = error else { throw error }
            return reason
        }
        return "adopted"
    }

    @Test("a controller that was reset meanwhile is not adopted")
    func reset() throws {
        // Given
        let rig = try AdoptionRig()
        rig.controller.disable()
        try rig.crash()
        // When
        let reason = try refusal(rig, rig.inheritance())
        // Then
        #expect(reason.contains("CSTS") || reason.contains("CC"), "\(reason)")
    }

    @Test("a queue that was being replaced makes a controller that is not adopted")
    func replacing() throws {
        // Given
        let rig = try AdoptionRig()
        try rig.controller.deleteSubmissionQueue(0)
        try rig.crash()
        // When
        let reason = try refusal(rig, rig.inheritance())
        // Then
        #expect(reason.contains("replaced"), "\(reason)")
    }

    @Test("a new bring-up follows a refusal on the same object")
    func startAfterRefusal() throws {
        // Given
        let rig = try AdoptionRig()
        try rig.crash()
        _ = try refusal(rig, rig.inheritance(memory: false))
        // When
        try rig.controller.start()
        // Then
        #expect(rig.controller.state.regionContent(rig.region) == .free)
        #expect(rig.controller.namespaces.count == 1)
        #expect(!rig.controller.wasAdopted)
    }
}
