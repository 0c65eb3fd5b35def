// SPDX-License-Identifier: Apache-2.0
// The model by which the soak and the crash matrix judge: what it allows, and what it must not.

import Glibc
import Linux
import TestSupport
import Testing

@testable import nvmed_bench

@Suite("The soak's model of a disk")
struct SoakModelTests {
    /// A model of four blocks of 512 bytes from block 100 on, and room for one block.
    @safe
    private final class Rig {
        let directory: TemporaryDirectory
        let path: String
        var model: SoakModel
        let room: UnsafeMutableRawPointer

        init() throws {
            directory = try TemporaryDirectory()
            path = directory.path + "/model"
            let file = try OwnedFD.open(path, flags: O_RDWR | O_CREAT)
            try checked("ftruncate", ftruncate(file.raw, 65536))
            model = try Self.open(path)
            unsafe room = .allocate(byteCount: 512, alignment: 8)
            unsafe room.initializeMemory(as: UInt8.self, repeating: 0, count: 512)
        }

        deinit { unsafe room.deallocate() }

        static func open(_ path: String) throws -> SoakModel {
            try SoakModel(path: path, firstBlock: 100, blockCount: 4, blockByteCount: 512)
        }

        /// A write of block 1 that was acknowledged.
        func write() -> UInt64 {
            let sequence = begin()
            model.end(1..<2, sequence: sequence, isUncertain: false)
            return sequence
        }

        func begin() -> UInt64 {
            let sequence = model.takeSequence()
            model.begin(1..<2, sequence: sequence, isZero: false)
            return sequence
        }

        /// A read of block 1 that begins now and returns a write; 0: zeroes.
        func read(_ sequence: UInt64, spoiled: Int? = nil) -> SoakVerdict {
            if sequence == 0 {
                unsafe room.initializeMemory(as: UInt8.self, repeating: 0, count: 512)
            } else {
                unsafe model.fill(1, sequence: sequence, at: room)
            }
            if let spoiled {
                unsafe room.storeBytes(of: 0x55, toByteOffset: spoiled, as: UInt8.self)
            }
            return unsafe model.check(1, at: room, begin: model.tick(), oldestRead: .max)
        }
    }

    private func isAllowed(_ verdict: SoakVerdict) -> Bool {
        if case .allowed = verdict { true } else { false }
    }

    private func isStale(_ verdict: SoakVerdict) -> Bool {
        if case .stale = verdict { true } else { false }
    }

    private func isCorrupt(_ verdict: SoakVerdict) -> Bool {
        if case .corrupt = verdict { true } else { false }
    }

    @Test("a new disk holds zeroes and nothing else")
    func newDisk() throws {
        let rig = try Rig()
        #expect(isAllowed(rig.read(0)))
        #expect(isStale(rig.read(77)))
    }

    @Test("an acknowledged write may not be lost")
    func lostWrite() throws {
        let rig = try Rig()
        let first = rig.write()
        let second = rig.write()
        #expect(isAllowed(rig.read(second)))
        #expect(isStale(rig.read(first)))
        #expect(isStale(rig.read(0)))
    }

    @Test("of two writes at one time either may win, and the loser may not come back")
    func overlappingWrites() throws {
        let rig = try Rig()
        let first = rig.begin()
        let second = rig.begin()
        #expect(isAllowed(rig.read(0)), "neither has happened yet")
        #expect(isAllowed(rig.read(second)))
        rig.model.end(1..<2, sequence: first, isUncertain: false)
        rig.model.end(1..<2, sequence: second, isUncertain: false)
        #expect(isStale(rig.read(0)))
        #expect(isAllowed(rig.read(first)))
        #expect(isStale(rig.read(second)), "it was overwritten, and nobody wrote it again")
    }

    @Test("a write of unknown outcome may show or not, but not after a later write")
    func uncertainWrite() throws {
        let rig = try Rig()
        let first = rig.write()
        let second = rig.begin()
        rig.model = try Rig.open(rig.path)
        rig.model.settle()
        #expect(isAllowed(rig.read(first)))
        #expect(isStale(rig.read(second)), "it had not happened, and nobody can do it any more")
        let third = rig.begin()
        rig.model.settle()
        #expect(isAllowed(rig.read(third)))
        #expect(isStale(rig.read(first)))
        let fourth = rig.write()
        #expect(isStale(rig.read(third)))
        #expect(isAllowed(rig.read(fourth)))
    }

    @Test("a request that was never taken may not show")
    func withdrawnWrite() throws {
        let rig = try Rig()
        let first = rig.begin()
        rig.model.withdraw(1..<2, sequence: first)
        #expect(isStale(rig.read(first)))
    }

    @Test("a changed byte is seen wherever it is", arguments: [0, 8, 16, 24, 255, 511])
    func changedByte(offset: Int) throws {
        let rig = try Rig()
        let sequence = rig.write()
        let verdict = rig.read(sequence, spoiled: offset)
        #expect(!isAllowed(verdict))
        #expect(isCorrupt(rig.read(0, spoiled: 500)))
    }

    @Test("another block's data is not this one's")
    func misdirected() throws {
        let rig = try Rig()
        let sequence = rig.write()
        unsafe rig.model.fill(2, sequence: sequence, at: rig.room)
        let verdict = unsafe rig.model.check(
            1, at: rig.room, begin: rig.model.tick(), oldestRead: .max)
        #expect(isCorrupt(verdict))
    }

    @Test("a read that began before a write ended may return what it replaced")
    func readDuringWrite() throws {
        let rig = try Rig()
        let first = rig.write()
        let begin = rig.model.tick()
        let second = rig.write()
        #expect(rig.model.hasRoom(1..<2, oldestRead: begin))
        unsafe rig.model.fill(1, sequence: first, at: rig.room)
        let verdict = unsafe rig.model.check(1, at: rig.room, begin: begin, oldestRead: begin)
        #expect(isAllowed(verdict))
        #expect(isStale(rig.read(first)))
        #expect(isAllowed(rig.read(second)))
    }

    @Test("a block remembers only so many writes, and room comes back when they are over")
    func bound() throws {
        let rig = try Rig()
        let writes = (1..<SoakModel.historyCount).map { _ in rig.begin() }
        #expect(!rig.model.hasRoom(1..<2, oldestRead: .max))
        for write in writes { rig.model.end(1..<2, sequence: write, isUncertain: false) }
        let last = rig.model.hasRoom(1..<2, oldestRead: .max)
        #expect(last, "zeroes are over")
    }
}
