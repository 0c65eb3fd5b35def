// SPDX-License-Identifier: Apache-2.0
// The memory of a ring, taken away or rewritten while it is used.

import CMemory
import Linux
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeDriver

@Suite("The memory of a ring")
struct RingMemoryTests {
    @Test("a punched header page ends the ring; what is under way is posted where it has to be")
    func punchedHeader() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open(8, 8)
        let other = try rig.open(8, 8)
        client.submit(.read(tag: 1), .read(tag: 2), .read(tag: 3))
        let commands = rig.commands()
        // When
        try MemFD.punchHole(client.fd, offset: 0, byteCount: 4096)
        rig.take()
        rig.answer(commands)
        other.submit(.read(tag: 4))
        rig.settle()
        // Then
        #expect(rig.fault(client) == .submissionTail)
        #expect(client.completionTail == 3)
        #expect(rig.inFlight(client) == 0)
        #expect(other.reap().map(\.tag) == [4])
    }

    @Test("punched entries read as zeroes, which are flushes; punched completions are written anew")
    func punchedEntries() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open(64, 64)
        for tag in 1...4 { client.write(.read(tag: UInt64(tag))) }
        // When
        try MemFD.punchHole(
            client.fd, offset: 4096, byteCount: Int64(client.shape.byteCount) - 4096)
        client.publish()
        let commands = rig.commands()
        rig.answer(commands)
        // Then
        #expect(commands.map(\.opcode) == [0, 0, 0, 0])
        #expect(client.reap().map(\.tag) == [0, 0, 0, 0])
        #expect(rig.fault(client) == .none)
    }

    @Test("the memory cannot be shrunk, grown, or sealed otherwise")
    func seals() throws {
        // Given
        let memory = try RingMemory(
            shape: try requireValue(RingShape(submissionEntries: 2, completionEntries: 2)),
            ringID: 1)
        // Then
        #expect(try MemFD.seals(of: memory.fd) == [.shrink, .grow, .seal])
    }

    @Test("entries rewritten while they are read never reach memory of others")
    func rewriting() throws {
        // Given: a thread that makes every entry good and bad, over and over
        let rig = try QueueRig(entries: 16)
        let seed = seed()
        var faults = 0
        var commands = 0
        var rounds = 0
        while faults < 20 || commands < 2000, rounds < 20_000 {
            let client = try rig.open(16, 16)
            let racer = try Racer(client, seed: seed &+ UInt64(rounds))
            // When
            while rig.fault(client) == .none, rounds < 20_000 {
                rounds += 1
                client.tail = client.submissionHead &+ 16
                client.publish()
                let found = rig.commands()
                // Then
                #expect(found.allSatisfy { RingPortTests.operations.contains($0.opcode) })
                commands += found.count
                rig.answer(found)
                _ = client.reap()
            }
            faults += rig.fault(client) == .none ? 0 : 1
            racer.stop()
            rig.settle()
            #expect(rig.inFlight(client) == 0)
            rig.close(client)
        }
        print("rewriting: \(rounds) rounds, \(commands) commands, \(faults) faults")
        #expect(commands >= 100)
        #expect(faults >= 1)
    }
}

/// A thread that rewrites the entries of a ring.
@safe
private final class Racer {
    private let client: RingClient
    private let thread: RacingThread

    init(_ client: RingClient, seed: UInt64) throws {
        self.client = client
        let base = unsafe UInt(bitPattern: client.place(0))
        thread = try RacingThread(seed: seed) { random in
            if let entries = unsafe UnsafeMutableRawPointer(bitPattern: base) {
                unsafe Self.rewrite(entries + Int(random.next() & 15) * 64, random.next())
            }
        }
    }

    /// Makes an entry good or bad, word by word.
    private static func rewrite(_ entry: UnsafeMutableRawPointer, _ bits: UInt64) {
        let regions: [UInt64] = [0, 0, 0, 0, 0, 0, 0, 1 << 31, 63]
        let offsets: [UInt64] = [0, 4096, 1, (16 << 20) - 512, (16 << 20) - 511, .max]
        let operation = RingPortTests.operations[Int(bits >> 8 & 0xFF) % 7]
        let blocks = operation == 0 ? 0 : 1 + bits >> 16 & 63
        unsafe nv_store64(entry, UInt64(operation) | blocks << 32)
        unsafe nv_store64(entry + 8, operation == 0 ? 0 : bits >> 36)
        let moves = Engine.movesData(operation)
        unsafe nv_store64(entry + 24, moves ? regions[Int(bits >> 24 & 0xFF) % 9] : 0)
        unsafe nv_store64(entry + 32, moves ? offsets[Int(bits >> 20 & 0xFF) % 6] : 0)
    }

    func stop() { thread.stop() }
}
