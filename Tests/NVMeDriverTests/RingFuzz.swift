// SPDX-License-Identifier: Apache-2.0
// Ring memory that was valid once, damaged in every word and at every moment: part of `make fuzz`.

import CMemory
import CRing
import Linux
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeDriver

/// One run: a hostile ring beside an honest one, both over one queue pair whose device is honest.
private final class FuzzRun {
    private static let words: [UInt64] = [
        0, 1, 2, 7, 8, 63, 64, 255, 256, 511, 512, 513, 4095, 4096, 65535, 65536, 1 << 20,
        (16 << 20) - 512, (16 << 20) - 4096, 16 << 20, 1 << 30, (1 << 31) - 1, 1 << 31,
        (1 << 32) - 1, 1 << 32, 1 << 63, .max - 511, .max - 1, .max,
    ]
    private let rig: QueueRig
    private let honest: RingClient
    private var hostile: RingClient
    private var random: SplitMix64
    private var nextTag: UInt64 = 0
    private var expected: Set<UInt64> = []
    private var pending: [SubmissionEntry] = []
    private(set) var faults = 0
    private(set) var commands = 0

    init(seed: UInt64) throws {
        random = SplitMix64(state: seed)
        rig = try QueueRig(entries: 16)
        honest = try rig.openStranger(0, 8, 8)
        hostile = try rig.open(8, 8)
    }

    private func number(_ below: UInt64) -> UInt64 { random.next() % below }
    private func word() -> UInt64 {
        let word = Self.words[Int(number(UInt64(Self.words.count)))]
        return number(4) == 0 ? random.next() : number(3) == 0 ? word &+ number(9) &- 4 : word
    }

    /// An entry that is mostly right.
    private func entry() -> RawEntry {
        let operation = RingPortTests.operations[Int(number(7))]
        var entry = RawEntry.good(operation, tag: random.next())
        if operation != 0 {
            entry.words.0 |= UInt64(1 + number(600)) << 32
            entry.words.1 = number(1 << 20)
        }
        if Engine.movesData(operation) {
            entry.words.4 = number(16 << 20) & ~number(4096)
            if number(4) == 0 { writeList(&entry) }
        }
        if number(4) == 0 { damage(&entry) }
        return entry
    }

    /// Makes an entry indirect, with a list that is mostly right.
    private func writeList(_ entry: inout RawEntry) {
        let place = 8192 + Int(number(64)) * 8
        let count = 1 + number(6)
        var left = (entry.words.0 >> 32) * 512
        for index in 0..<Int(count) {
            let isLast = index + 1 == Int(count)
            let piece = isLast ? left : left == 0 ? 0 : min(left, 1 + number(left))
            left -= piece
            let at = unsafe rig.device.clientMemory + place + index * 16
            let isDamaged = number(16) == 0
            unsafe nv_store64(at, isDamaged ? word() : number(15 << 20) & ~number(8))
            unsafe nv_store64(at + 8, (isDamaged ? word() : piece << 32))
        }
        entry.words.0 |= 4 << 8
        entry.words.3 = count << 32
        entry.words.4 = UInt64(place)
    }

    private func damage(_ entry: inout RawEntry) {
        var bytes = entry.bytes
        let at = Int(number(64))
        if number(2) == 0 {
            bytes[at] = UInt8(truncatingIfNeeded: random.next())
        } else {
            let value = word()
            for index in 0..<8 {
                bytes[at & ~7 + index] = UInt8(value >> (8 * UInt64(index)) & 255)
            }
        }
        entry.bytes = bytes
    }

    private func attack() throws {
        for _ in 0..<number(10) { hostile.write(entry()) }
        if number(8) > 0 { hostile.tail = hostile.submissionHead &+ UInt32(number(9)) }
        if number(64) == 0 { hostile.tail = UInt32(truncatingIfNeeded: word()) }
        if number(4) > 0 { hostile.publish() }
        if number(3) == 0 { _ = hostile.reap() }
        if number(64) == 0 {
            hostile.set(NV_RING_OFFSET_COMPLETION_HEAD, UInt32(truncatingIfNeeded: word()))
        }
        if number(32) == 0 {
            // Any word of the header, those of the worker too.
            hostile.set(Int(number(1024)) * 4, UInt32(truncatingIfNeeded: word()))
        }
        if number(256) == 0 {
            try MemFD.punchHole(
                hostile.fd, offset: Int64(number(2)) * 4096, byteCount: 4096)
        }
        if number(64) == 0 { rig.hold(hostile, number(2) == 0) }
    }

    private func submitHonestly() {
        for _ in 0..<min(number(9), UInt64(honest.room)) {
            honest.write(.read(lba: nextTag, blocks: 1, tag: nextTag, offset: nextTag % 128 * 512))
            expected.insert(nextTag)
            nextTag += 1
        }
        honest.publish()
    }

    /// What the honest client gets: each tag once, without an error.
    private func takeHonestly(_ note: String) {
        for completion in honest.reap() {
            #expect(expected.remove(completion.tag) != nil, "\(note)")
            #expect(completion.status == 0 && completion.code == 0, "\(note)")
        }
    }

    /// Some rounds of both, then everything to its end.
    func run(rounds: Int, note: String) throws {
        for _ in 0..<rounds {
            try attack()
            submitHonestly()
            let new = rig.commands()
            #expect(new.allSatisfy { RingPortTests.operations.contains($0.opcode) }, "\(note)")
            commands += new.count
            pending += new
            let count = min(Int(number(17)), pending.count)
            rig.answer(Array(pending.prefix(count)))
            pending.removeFirst(count)
            takeHonestly(note)
            if number(16) == 0 { _ = rig.prepareToSleep() }
            if rig.fault(hostile) != .none { try replace(note) }
        }
        try finish(note)
    }

    /// As the control thread does: waits for what is under way, and closes the ring.
    private func replace(_ note: String) throws {
        faults += 1
        try finish(note)
        rig.close(hostile)
        hostile = try rig.open(8, 8)
    }

    private func finish(_ note: String) throws {
        rig.hold(hostile, true)
        for _ in 0..<10_000
        where !(pending.isEmpty && rig.device.isIdle && expected.isEmpty) {
            rig.answer(pending)
            pending = rig.commands()
            takeHonestly(note)
        }
        #expect(rig.inFlight(hostile) == 0, "\(note)")
        #expect(rig.device.isIdle, "\(note)")
        #expect(rig.device.freePageCount == 256, "\(note)")
        #expect(rig.fault(honest) == .none, "\(note)")
        #expect(expected.isEmpty, "\(note)")
        rig.hold(hostile, false)
    }
}

@Suite("RingFuzz", .enabled(if: environmentNumber("NVMED_FUZZ_SECONDS") != nil))
struct RingFuzz {
    @Test("no ring memory makes a command of foreign pages or disturbs another ring")
    func rings() throws {
        let seconds = environmentNumber("NVMED_FUZZ_SECONDS") ?? 1
        var seed = environmentNumber("NVMED_SEED") ?? 1
        let end = ContinuousClock.now + .seconds(Int64(clamping: seconds))
        var totals = (runs: 0, faults: 0, commands: 0)
        repeat {
            let run = try FuzzRun(seed: seed)
            try run.run(rounds: 300, note: "seed \(seed)")
            totals = (totals.0 + 1, totals.1 + run.faults, totals.2 + run.commands)
            seed &+= 1
        } while ContinuousClock.now < end
        print("rings: \(totals.runs) runs, \(totals.faults) faults, \(totals.commands) commands")
        #expect(totals.faults > 0)
    }
}

@Suite("Rings damaged at random, a little")
struct RingFuzzSample {
    @Test("a few seeds of the fuzzer", arguments: 1...8 as ClosedRange<UInt64>)
    func sample(seed: UInt64) throws {
        let run = try FuzzRun(seed: seed)
        try run.run(rounds: 100, note: "seed \(seed)")
        #expect(run.commands > 0)
    }
}
