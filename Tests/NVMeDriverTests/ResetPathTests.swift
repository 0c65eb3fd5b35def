// SPDX-License-Identifier: Apache-2.0
// Controllers that cannot be gone on with: they are reset, and what was with them is given out
// again in order, or ends, once.

import CMemory
import Linux
import NVMeSpec
import TestSupport
import Testing
import VFIO

@testable import NVMeDriver

@Suite("The reset path", .serialized)
struct ResetPathTests {
    private static let unknown = Status.abortedQueueDeletion.rawValue

    private func startOver(
        _ rig: AdoptionRig, _ replay: Replay = .everything, pool: Bool = true
    ) throws {
        try rig.controller.startOver(rig.inheritance(pool: pool), replay: { _ in replay })
    }

    @Test("commands that the device held are given out again, in order", arguments: [1, 8, 40])
    func replayed(count: Int) throws {
        // Given: writes of one place that the device never answers.
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,times=\(count)"])
        rig.fill(at: 0, byteCount: 1 << 20, seed: 1)
        for token in 1...UInt64(count) {
            try rig.submit(IOOperation.write, lba: 0, offset: Int(token) * 4096, token: token)
        }
        _ = try rig.counter("faultsInjected")
        // When
        try rig.crash()
        try startOver(rig)
        // Then
        #expect(try rig.complete(count).values.allSatisfy { $0 == 0 })
        try rig.submit(IOOperation.read, lba: 0, offset: 2 << 20, token: 99)
        #expect(try rig.complete(1) == [99: 0])
        #expect(rig.equal(count * 4096, 2 << 20, byteCount: 4096))
        #expect(rig.controller.state.salvageEpoch == 0)
        // And the result can be adopted.
        try rig.crashAndAdopt()
        #expect(try rig.counter("enables") == 2)
    }

    @Test("what must not be done twice ends, and what changes nothing is done again")
    func harmless() throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,times=5"])
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        try rig.submit(IOOperation.read, lba: 8, offset: 4096, token: 2)
        try rig.submit(IOOperation.writeZeroes, lba: 16, token: 3)
        try rig.submit(IOOperation.flush, lba: 0, byteCount: 0, token: 4)
        try rig.submit(IOOperation.deallocate, lba: 0, token: 5)
        // When
        try rig.crash()
        try startOver(rig, .harmless)
        // Then
        let expected: [UInt64: UInt16] = [
            1: Self.unknown, 2: 0, 3: Self.unknown, 4: 0, 5: Self.unknown,
        ]
        #expect(try rig.complete(5) == expected)
        #expect(unsafe rig.controller.engine(0).pointee.isIdle)
    }

    @Test("a session that is over gets nothing done")
    func nothing() throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,times=2"])
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        try rig.submit(IOOperation.read, lba: 0, offset: 4096, token: 2)
        // When
        try rig.crash()
        try startOver(rig, .nothing)
        // Then
        #expect(try rig.complete(2) == [1: Self.unknown, 2: Self.unknown])
    }

    @Test("what the device had answered is delivered, and not done again")
    func answered() throws {
        // Given
        let rig = try AdoptionRig()
        for token in 1...20 as ClosedRange<UInt64> {
            try rig.submit(IOOperation.write, lba: token * 8, token: token)
        }
        let written = try wait(rig, "bytesWritten", 20 * 4096)
        // When
        try rig.crash()
        try startOver(rig)
        // Then
        #expect(try rig.complete(20).values.allSatisfy { $0 == 0 })
        #expect(try rig.counter("bytesWritten") == written)
    }

    private func wait(_ rig: AdoptionRig, _ counter: String, _ byteCount: Int) throws -> Int {
        let deadline = MonotonicClock.nowNanoseconds + 20_000_000_000
        while try rig.counter(counter) < byteCount, MonotonicClock.nowNanoseconds < deadline {}
        return try rig.counter(counter)
    }

    @Test("a read that the device answered into pages of the pool comes to its client")
    func answeredReadOfPages() throws {
        // Given: a read to a place that the device cannot be told, so that it is copied.
        let rig = try AdoptionRig()
        rig.fill(at: 0, byteCount: 4096, seed: 10)
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        _ = try rig.complete(1)
        let before = try rig.counter("bytesRead")
        try rig.submit(IOOperation.read, lba: 0, offset: 65537, token: 2)
        _ = try wait(rig, "bytesRead", before + 4096)
        // When
        try rig.crash()
        try startOver(rig)
        // Then
        #expect(try rig.complete(1) == [2: 0])
        #expect(rig.equal(0, 65537, byteCount: 4096))
    }

    @Test("a request of many commands begins again")
    func manyCommands() throws {
        // Given
        let rig = try AdoptionRig([
            "--mdts", "1", "--fault", "command:hang,opcode=1,skip=10,times=1",
        ])
        rig.fill(at: 0, byteCount: 1 << 20, seed: 6)
        try rig.submit(IOOperation.write, lba: 64, byteCount: 1 << 20, token: 1)
        // When
        try rig.crash()
        try startOver(rig)
        // Then
        #expect(try rig.complete(1) == [1: 0])
        #expect(unsafe rig.controller.engine(0).pointee.isIdle)
    }

    /// Commands of 8 KiB: one, some, as many as a request may have with the device, and more.
    @Test(
        "a write of many commands that must not be done twice ends, whatever was answered",
        arguments: [2, 11, 32, 128], [Replay.harmless, .nothing])
    func manyCommandsOnce(count: Int, replay: Replay) throws {
        // Given: of those that the device has, all but the last were answered.
        let last = min(count, Int(Engine.maxChildrenInFlight)) - 1
        let rig = try AdoptionRig([
            "--mdts", "1", "--fault", "command:hang,opcode=1,queue=io,skip=\(last),times=1",
        ])
        rig.fill(at: 0, byteCount: count * 8192, seed: 6)
        try rig.submit(IOOperation.write, lba: 64, byteCount: count * 8192, token: 1)
        let written = try wait(rig, "bytesWritten", last * 8192)
        // When
        try rig.crash()
        try startOver(rig, replay)
        // Then
        #expect(try rig.complete(1) == [1: Self.unknown])
        try rig.submit(IOOperation.flush, lba: 0, byteCount: 0, token: 2)
        #expect(try rig.complete(1) == [2: 0])
        #expect(written == last * 8192)
        #expect(try rig.counter("bytesWritten") == written)
        #expect(unsafe rig.controller.engine(0).pointee.isIdle)
    }

    @Test(
        "a write of many commands that were all answered is done, and not done again",
        arguments: [Replay.everything, .harmless])
    func manyCommandsAnswered(replay: Replay) throws {
        // Given
        let rig = try AdoptionRig(["--mdts", "1"])
        try rig.submit(IOOperation.write, lba: 64, byteCount: 16 * 8192, token: 1)
        let written = try wait(rig, "bytesWritten", 16 * 8192)
        // When
        try rig.crash()
        try startOver(rig, replay)
        // Then
        #expect(try rig.complete(1) == [1: 0])
        #expect(try rig.counter("bytesWritten") == written)
    }

    @Test("regions are where they were")
    func regions() throws {
        // Given
        let rig = try AdoptionRig()
        let before = try requireValue(rig.controller.state.region(rig.region))
        rig.fill(at: 0, byteCount: 4096, seed: 7)
        // When
        try rig.crash()
        try startOver(rig)
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        try rig.submit(IOOperation.read, lba: 0, offset: 8192, token: 2)
        // Then
        #expect(try rig.complete(2).values.allSatisfy { $0 == 0 })
        #expect(rig.equal(0, 8192, byteCount: 4096))
        #expect(rig.controller.state.region(rig.region) == before)
    }

    @Test("after a refusal to adopt, the same object starts over")
    func afterRefusal() throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,times=3"])
        for token in 1...3 as ClosedRange<UInt64> {
            try rig.submit(IOOperation.write, lba: token * 8, token: token)
        }
        try rig.crash()
        #expect(throws: DriverError.self) {
            try rig.controller.adopt(rig.inheritance(interrupts: false))
        }
        // When
        try startOver(rig)
        // Then
        #expect(try rig.complete(3).values.allSatisfy { $0 == 0 })
    }

    @Test("without its pool, what did not lie there is done again")
    func withoutPool() throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,times=2"])
        rig.fill(at: 0, byteCount: 4096, seed: 8)
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        try rig.submit(IOOperation.flush, lba: 0, byteCount: 0, token: 2)
        try rig.crash()
        // When
        try startOver(rig, pool: false)
        // Then
        #expect(try rig.complete(2) == [1: 0, 2: 0])
    }

    /// A bring-up that fails at a command of its own, by opcode: Identify, Set Features, Create I/O
    /// Completion Queue, Create I/O Submission Queue.
    @Test("a reset that does not come to its end loses nothing", arguments: [6, 9, 5, 1])
    func secondAttempt(opcode: Int) throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,times=4"])
        rig.fill(at: 0, byteCount: 65536, seed: 9)
        for token in 1...4 as ClosedRange<UInt64> {
            try rig.submit(IOOperation.write, lba: 0, offset: Int(token) * 4096, token: token)
        }
        try rig.crash()
        _ = try rig.emulator.command(
            "fault command:status=0/6,queue=admin,opcode=\(opcode),times=1")
        #expect(throws: DriverError.self) { try startOver(rig) }
        #expect(rig.controller.state.salvageEpoch == 1)
        // When: another process tries.
        try rig.crash()
        #expect(throws: DriverError.self) { try rig.controller.adopt(rig.inheritance()) }
        try startOver(rig)
        // Then
        #expect(try rig.complete(4).values.allSatisfy { $0 == 0 })
        try rig.submit(IOOperation.read, lba: 0, offset: 1 << 20, token: 9)
        _ = try rig.complete(1)
        #expect(rig.equal(4 * 4096, 1 << 20, byteCount: 4096))
    }

    @Test("a damaged slot leaves nothing to be kept")
    func damaged() throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,times=1"])
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        let offset = rig.controller.state.layout.slotsOffset(1, epoch: 1)
        try rig.crash(Flip(offset: offset + 3, mask: 0x10))
        // When, then
        #expect(throws: DriverError.self) { try rig.controller.adopt(rig.inheritance()) }
        #expect(throws: DriverError.self) { try startOver(rig) }
        try rig.controller.start()
        #expect(rig.controller.state.salvageEpoch == 0)
    }

    @Test(
        "another controller in the place of the first gets nothing, at the second attempt neither")
    func anotherController() throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,times=2"])
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        try rig.submit(IOOperation.read, lba: 8, offset: 4096, token: 2)
        _ = try rig.counter("faultsInjected")
        let page = rig.controller.state.controllerPage(0)
        // When
        _ = try rig.emulator.command("serial OTHER")
        try rig.crash()
        let refusals = (0..<2).map { _ in
            #expect(throws: DriverError.self) { try startOver(rig) }.map { "\($0)" } ?? ""
        }
        // Then
        #expect(refusals.allSatisfy { $0.contains("NVMED0001") && $0.contains("OTHER") })
        #expect(rig.controller.state.controllerPage(0) == page)
        #expect(try rig.counter("bytesWritten") == 0)
        #expect(try rig.emulator.command("stats").contains("\"enabled\":false"))
        // And what was with the first is over when the other is brought up.
        try rig.controller.start()
        #expect(unsafe rig.controller.engine(0).pointee.isIdle)
    }

    @Test("what is known of the controller being damaged, nothing is given out again")
    func unknownController() throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,times=1"])
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        let offset = rig.controller.state.layout.controllerPageOffset(0)
        // When, then
        try rig.crash(Flip(offset: offset + 68, mask: 1))
        #expect(throws: DriverError.self) { try startOver(rig) }
        #expect(try rig.counter("bytesWritten") == 0)
    }

    @Test("of another disk under the same id no command is given out again")
    func anotherNamespace() throws {
        // Given: two writes and a read that the device holds, one of a second namespace.
        let rig = try AdoptionRig([
            "--namespace", "memory=16M", "--fault", "command:hang,queue=io,times=3",
        ])
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        try rig.submit(IOOperation.read, lba: 8, offset: 4096, token: 2)
        try rig.submit(IOOperation.write, lba: 16, token: 3, namespaceID: 2)
        _ = try rig.counter("faultsInjected")
        // When
        try rig.crash()
        _ = try rig.emulator.command("namespace remove 1")
        _ = try rig.emulator.command(
            "namespace add memory=16M,nsid=1,nguid=00112233445566778899aabbccddeeff")
        var compared: [[UInt32]] = []
        try rig.controller.startOver(
            rig.inheritance(),
            compare: { known, found in
                compared = [known.keys.sorted(), found.keys.sorted()]
                return NamespaceInfo.sameDisks(known, found)
            }, replay: { _ in .everything })
        // Then
        #expect(try rig.complete(3) == [1: Self.unknown, 2: Self.unknown, 3: 0])
        #expect(compared == [[1, 2], [1, 2]])
        #expect(try rig.counter("bytesWritten") == 4096)
        // And the new one is what a successor finds on record.
        let found = rig.controller.namespaces[1]
        try rig.crashAndAdopt()
        #expect(rig.controller.namespaces[1] == found)
    }

    @Test("of a namespace that others may have written to no write is given out again")
    func sharedNamespace() throws {
        // Given
        let rig = try AdoptionRig([
            "--namespace", "memory=16M,shared", "--fault", "command:hang,queue=io,times=3",
        ])
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        try rig.submit(IOOperation.write, lba: 0, token: 2, namespaceID: 2)
        try rig.submit(IOOperation.read, lba: 8, offset: 4096, token: 3, namespaceID: 2)
        _ = try rig.counter("faultsInjected")
        // When
        try rig.crash()
        try startOver(rig)
        // Then
        #expect(try rig.complete(3) == [1: 0, 2: Self.unknown, 3: 0])
    }

    @Test("the old namespaces are on record until they have been compared")
    func comparedAgain() throws {
        // Given
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,times=1"])
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        _ = try rig.counter("faultsInjected")
        let before = rig.controller.namespaces[1]
        try rig.crash()
        _ = try rig.emulator.command("namespace remove 1")
        _ = try rig.emulator.command("namespace add memory=16M,nsid=1,uuid=\(Self.uuid)")
        // When: the first attempt ends before it can ask for the namespaces.
        _ = try rig.emulator.command(
            "fault command:status=0/6,queue=admin,opcode=9,times=1")
        #expect(throws: DriverError.self) { try startOver(rig) }
        try rig.crash()
        var known: NamespaceInfo?
        try rig.controller.startOver(
            rig.inheritance(),
            compare: {
                known = $0[1]
                return NamespaceInfo.sameDisks($0, $1)
            }, replay: { _ in .everything })
        // Then
        #expect(known == before)
        #expect(try rig.complete(1) == [1: Self.unknown])
        #expect(try rig.counter("bytesWritten") == 0)
    }

    private static let uuid = "00112233-4455-6677-8899-aabbccddeeff"
}
