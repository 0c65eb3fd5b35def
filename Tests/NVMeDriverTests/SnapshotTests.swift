// SPDX-License-Identifier: Apache-2.0
// A controller that goes on while everything of its driver is gone but the pool: what was written
// down of it is enough to go on with it.

import Linux
import NVMeSpec
import SavedState
import TestSupport
import Testing
import VFIO

@testable import NVMeDriver

extension AdoptionRig {
    /// What is written down of the controller now, as it comes out of its bytes again.
    func saved() throws -> SavedDevice {
        let controller = try self.controller.snapshot()
        let device = SavedDevice(
            name: "test", transport: .vfioUser, address: emulator.socket, configuration: [1, 2, 3],
            token: .random(), generation: 1,
            identity: SavedIdentity(
                vendorID: 1, deviceID: nil, serial: "s", model: "m", firmware: "f",
                controllerID: 0),
            controller: controller,
            pool: SavedPool(backing: .memfd, path: "", byteCount: controller.poolByteCount),
            sessions: self.controller.savedSessions(of: controller))
        let bytes = try SavedState.encode(device: device, version: "1.0")
        let back = try SavedState.decode(device: bytes, name: "test")
        #expect(back == device)
        return back
    }

    /// The driver is gone, its state area too; a successor goes on from what was written down.
    func restore(_ saved: SavedDevice) throws {
        try succeed(
            try StateArea.create(
                restoring: saved.controller, sessions: saved.sessions,
                configuration: saved.configuration, layout: stateLayout))
        try controller.adopt(inheritance())
    }

    func stopAndRestore() throws { try restore(try saved()) }

    /// What a full stop must not change: memory of clients is taken away.
    func untouched() throws -> [String] {
        try controlPlane().filter { !$0.hasPrefix("dmaUnmaps") && !$0.hasPrefix("dmaMaps") }
    }
}

@Suite("A controller that outlives all of its driver but the pool", .serialized)
struct SnapshotTests {
    @Test("is gone on with, and the controller is asked nothing", arguments: [1, 3])
    func idle(queues: Int) throws {
        // Given
        let rig = try AdoptionRig(queues: queues)
        rig.fill(at: 0, byteCount: 4096, seed: 1)
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        _ = try rig.complete(1)
        let before = try rig.untouched()
        let known = (rig.controller.identify.sn, rig.controller.namespaces, rig.controller.limits)
        // When
        try rig.stopAndRestore()
        try rig.registerAgain()
        for queue in 0..<queues {
            try rig.submit(
                IOOperation.read, lba: 0, offset: 8192 * (queue + 1), token: 2, queue: queue)
            #expect(try rig.complete(1, queue: queue) == [2: 0])
            #expect(rig.equal(0, 8192 * (queue + 1), byteCount: 4096))
        }
        // Then
        #expect(try rig.untouched() == before)
        #expect(rig.controller.wasAdopted)
        #expect(rig.controller.adoptedDoorbells.allSatisfy { $0 == .known })
        #expect(rig.controller.identify.sn == known.0)
        #expect(rig.controller.namespaces == known.1)
        #expect(rig.controller.limits.maxTransferByteCount == known.2.maxTransferByteCount)
        #expect(rig.controller.queueCount == queues)
        #expect(rig.controller.state.configuration() == [1, 2, 3])
        #expect(rig.controller.state.generation == 2)
    }

    @Test("goes on three times in a row, with I/O in between")
    func repeated() throws {
        // Given
        let rig = try AdoptionRig(queues: 2)
        let before = try rig.untouched()
        for round in 1...3 as ClosedRange<UInt64> {
            rig.fill(at: 0, byteCount: 65536, seed: round)
            for token in 1...16 as ClosedRange<UInt64> {
                try rig.submit(
                    IOOperation.write, lba: token * 8, offset: Int(token - 1) * 4096,
                    token: token, queue: Int(token % 2))
            }
            #expect(try rig.complete(8, queue: 0).values.allSatisfy { $0 == 0 })
            #expect(try rig.complete(8, queue: 1).values.allSatisfy { $0 == 0 })
            // When
            try rig.stopAndRestore()
            try rig.registerAgain()
            try rig.submit(IOOperation.read, lba: 8, byteCount: 65536, offset: 1 << 20, token: 99)
            // Then
            #expect(try rig.complete(1) == [99: 0])
            #expect(rig.equal(0, 1 << 20, byteCount: 65536))
        }
        #expect(try rig.untouched() == before)
        #expect(rig.controller.state.generation == 4)
    }

    @Test("what the device holds is answered later, each once")
    func held() throws {
        // Given: commands whose data is in the pool.
        let rig = try AdoptionRig(["--fault", "command:delay=300,queue=io"])
        let engine = unsafe rig.controller.engine(0)
        let free = unsafe engine.pointee.freePageCount
        for token in 1...12 as ClosedRange<UInt64> {
            try rig.submitInline(lba: token * 8, token: token)
        }
        let before = try rig.untouched()
        // When
        let saved = try rig.saved()
        try rig.restore(saved)
        // Then
        #expect(saved.controller.ioCommandCount == 12)
        #expect(saved.controller.sessionKeys == [AdoptionRig.session])
        #expect(rig.controller.sessionsWithCommands() == [AdoptionRig.session])
        #expect(unsafe rig.controller.engine(0).pointee.freePageCount == free - 12)
        let statuses = try rig.complete(12)
        #expect(statuses.values.allSatisfy { $0 == 0 })
        #expect(unsafe rig.controller.engine(0).pointee.isIdle)
        #expect(rig.controller.sessionsWithCommands().isEmpty)
        #expect(try rig.untouched() == before)
    }

    @Test("memory of clients is taken off the device, and its commands end all the same")
    func clientMemory() throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:delay=300,queue=io"])
        for token in 1...8 as ClosedRange<UInt64> {
            try rig.submit(
                IOOperation.read, lba: token * 8, offset: Int(token) * 4096, token: token)
        }
        let unmaps = try rig.counter("dmaUnmaps")
        // When
        let saved = try rig.saved()
        try rig.restore(saved)
        // Then
        #expect(saved.controller.regions.count == 1)
        #expect(try rig.complete(8).count == 8)
        #expect(try rig.counter("dmaUnmaps") == unmaps + 1)
        // What they named is given to nobody, until a successor finds nothing of theirs.
        let left = try requireValue(rig.controller.state.region(1))
        try rig.registerAgain()
        let now = try requireValue(rig.controller.state.region(rig.region))
        let end = left.iova + left.stretch.byteCount
        #expect(now.iova >= end || now.iova + now.stretch.byteCount <= left.iova)
        try rig.submit(IOOperation.read, lba: 0, token: 9)
        #expect(try rig.complete(1) == [9: 0])
        try rig.stopAndRestore()
        #expect(rig.controller.state.regionContent(1) == .free)
    }

    @Test("of a request of many commands no more are issued")
    func manyCommands() throws {
        // Given: 128 commands, of which 32 are issued.
        let rig = try AdoptionRig(["--mdts", "1", "--fault", "command:delay=300,queue=io"])
        try rig.submit(IOOperation.write, lba: 64, byteCount: 1 << 20, token: 1)
        let saved = try rig.saved()
        #expect(saved.controller.queues[1].requests.count == 1)
        let issued = saved.controller.ioCommandCount
        // When
        try rig.restore(saved)
        let statuses = try rig.complete(1)
        // Then
        #expect(issued == 32)
        #expect(statuses.count == 1)
        #expect(statuses.values.allSatisfy { $0 != 0 })
        #expect(unsafe rig.controller.engine(0).pointee.isIdle)
        try rig.registerAgain()
        try rig.submit(IOOperation.read, lba: 0, token: 9)
        #expect(try rig.complete(1) == [9: 0])
    }

    @Test("a stuck command keeps its id, and an Abort that names it holds it")
    func stuck() throws {
        // Given: a command and its Abort, neither of which is ever answered.
        let rig = try AdoptionRig([
            "--fault", "command:hang,opcode=2,times=1", "--fault", "command:hang,opcode=8,times=1",
        ])
        try rig.submit(IOOperation.read, lba: 0, token: 1)
        try rig.controller.abort(queue: 0, commandID: 0)
        // When: twice.
        try rig.stopAndRestore()
        try rig.stopAndRestore()
        try rig.registerAgain()
        // Then
        #expect(unsafe rig.controller.engine(0).pointee.hasAbortsUnderWay)
        #expect(unsafe rig.controller.engine(0).pointee.inFlight == 1)
        try rig.submit(IOOperation.read, lba: 8, offset: 4096, token: 2)
        #expect(try rig.complete(1) == [2: 0])
        #expect(rig.controller.sessionsWithCommands() == [AdoptionRig.session])
    }

    @Test("what happens to a namespace meanwhile is told by the event request that was out")
    func events() throws {
        // Given
        let rig = try AdoptionRig()
        let saved = try rig.saved()
        let requests = saved.controller.queues[0].commands.filter { $0.purpose == .eventRequest }
        #expect(requests.count == rig.controller.eventRequests)
        _ = try rig.emulator.command("namespace add memory=1M")
        // When
        try rig.restore(saved)
        let deadline = MonotonicClock.nowNanoseconds + 20_000_000_000
        while rig.controller.state.pendingEvents == 0, MonotonicClock.nowNanoseconds < deadline {
            #expect(try rig.controller.pollAdmin().isEmpty)
        }
        // And it is written down again, before anybody acted upon it.
        try rig.stopAndRestore()
        let events = try rig.controller.finishAdoption(comparing: false)
        // Then
        guard case .namespacesChanged = try requireValue(events.first) else {
            throw TestFailure("\(events)")
        }
        try rig.controller.refreshNamespaces()
        #expect(rig.controller.namespaces.count == 2)
    }

    @Test("sessions with commands come back as ended ones, the others not at all")
    func sessions() throws {
        // Given: session keys whose low bytes are their slots.
        let rig = try AdoptionRig(["--fault", "command:delay=300,queue=io"])
        for key in [UInt32(7), 9] {
            rig.controller.state.setSession(
                Int(key),
                SessionRecord(
                    state: .open, id: UInt64(key) + 100, key: key, number: 5, opening: [1, 2]))
        }
        try rig.submitInline(lba: 0, token: 1)
        // When
        try rig.stopAndRestore()
        // Then
        let record = try requireValue(rig.controller.state.session(7).record)
        #expect(record.state == .ended)
        #expect(record.id == 107)
        #expect(record.opening == [1, 2])
        #expect(rig.controller.state.session(9) == .free)
        #expect(try rig.complete(1).count == 1)
    }

    @Test("one that is not quiet is not written down")
    func busy() throws {
        // Given
        let rig = try AdoptionRig()
        try rig.submit(IOOperation.read, lba: 0, token: 1)
        _ = try rig.complete(1, retire: false)
        // When
        let reason = Self.reason { _ = try rig.controller.snapshot() }
        // Then
        #expect(reason?.contains("not quiet") == true)
        unsafe rig.controller.engine(0).pointee.retire()
        _ = try rig.controller.snapshot()
    }

    @Test("a controller that was reset meanwhile, or whose pool is gone, is not adopted")
    func refused() throws {
        // Given
        let rig = try AdoptionRig()
        let saved = try rig.saved()
        // When
        try rig.succeed(
            try StateArea.create(restoring: saved.controller, layout: rig.stateLayout))
        let withoutPool = Self.reason { try rig.controller.adopt(rig.inheritance(pool: false)) }
        try rig.forgetSuccessor()
        rig.controller.disable()
        try rig.succeed(
            try StateArea.create(restoring: saved.controller, layout: rig.stateLayout))
        let afterReset = Self.reason { try rig.controller.adopt(rig.inheritance()) }
        // Then: a new bring-up follows on the same object.
        #expect(withoutPool?.contains("pool") == true)
        #expect(afterReset != nil)
        try rig.controller.start()
        #expect(!rig.controller.wasAdopted)
    }

    /// Why something was refused; nil: it was not.
    static func reason(_ body: () throws -> Void) -> String? {
        do {
            try body()
            return nil
        } catch { return "\(error)" }
    }
}

extension AdoptionRig {
    /// A write whose data is in a page of the pool.
    func submitInline(lba: UInt64, token: UInt64) throws {
        let engine = unsafe controller.engine(0)
        let page = try requireValue(unsafe engine.pointee.takePages(byteCount: 4096))
        var request = try request(
            IOOperation.write, lba: lba, byteCount: 4096, offset: page * 4096, token: token)
        request.region = RegionTable.bounceRegion
        request.firstPage = UInt32(page)
        request.pageCount = 1
        guard unsafe engine.pointee.submit(request) == .accepted else {
            throw TestFailure("not accepted")
        }
        try ring()
    }
}
