// SPDX-License-Identifier: Apache-2.0
// Commands that a device has lost, and drivers that die faster than it takes to find that out.

import CMemory
import Linux
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeDriver

@Suite("The ages of commands outlive drivers", .serialized)
struct CommandAgeTests {
    /// A controller that never answers a command of an I/O queue.
    private func silent() throws -> AdoptionRig {
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io"])
        unsafe rig.controller.engine(0).pointee.tick = Tick.now
        return rig
    }

    private var now: UInt32 { CommandAges.milliseconds(MonotonicClock.nowNanoseconds) }

    /// Has the record say that the command of slot 0 is in flight since then.
    private func note(
        _ rig: AdoptionRig, _ kind: CommandAges.Kind = .submitted, since: UInt32
    ) throws {
        let queue = unsafe rig.controller.engine(0)
        let ages = unsafe try requireValue(queue.pointee.queue.ages)
        unsafe ages.note(kind, 0, queue.pointee.queue.slots, since: since)
    }

    private func since(
        _ rig: AdoptionRig, _ kind: CommandAges.Kind = .submitted
    ) throws -> UInt32? {
        let queue = unsafe rig.controller.engine(0)
        let ages = unsafe try requireValue(queue.pointee.queue.ages)
        return unsafe ages.since(kind, 0, queue.pointee.queue.slots)
    }

    private func crashAndAdopt(_ rig: AdoptionRig) throws {
        try rig.crash()
        try rig.controller.adopt(rig.inheritance(), tick: Tick.now)
    }

    /// The age of the command in slot 0, milliseconds.
    private func age(_ rig: AdoptionRig) -> UInt64 {
        UInt64(unsafe rig.controller.engine(0).pointee.queue.age(0)) * 256 / 1_000_000
    }

    @Test("a command that is inherited again and again grows old")
    func inherited() throws {
        // Given
        let rig = try silent()
        try rig.submit(IOOperation.read, lba: 0, token: 1)
        // When: the first adoption notes the time, the others keep it.
        try crashAndAdopt(rig)
        let first = try requireValue(try since(rig))
        for _ in 0..<3 { try crashAndAdopt(rig) }
        // Then
        #expect(try since(rig) == first)
        // And a minute later, by the record:
        try note(rig, since: now &- 60_000)
        for _ in 0..<2 {
            try crashAndAdopt(rig)
            #expect(age(rig) >= 59_999)
        }
        let engine = unsafe rig.controller.engine(0)
        let limit = Tick.now &- Tick.count(milliseconds: 30_000)
        #expect(unsafe engine.pointee.commandIDs(olderThan: limit).count == 1)
    }

    @Test("whoever looks for late commands notes since when they are in flight, but not the young")
    func noted() throws {
        // Given
        let rig = try silent()
        let engine = unsafe rig.controller.engine(0)
        try rig.submit(IOOperation.read, lba: 0, token: 1)
        let begin = MonotonicClock.nowNanoseconds
        let pushed = Tick.of(nanoseconds: begin)
        unsafe engine.pointee.queue.ticks[0] = pushed
        // When
        unsafe engine.pointee.queue.keepAges(nowNanoseconds: begin + 9_000_000)
        let early = try since(rig)
        unsafe engine.pointee.queue.keepAges(nowNanoseconds: begin + 5_000_000_000)
        let late = try requireValue(try since(rig))
        unsafe engine.pointee.queue.keepAges(nowNanoseconds: begin + 9_000_000_000)
        // Then
        #expect(early == nil)
        #expect(late &- CommandAges.milliseconds(begin) <= 1)
        #expect(try since(rig) == late)
    }

    @Test("what a command had is not its successor's in the slot")
    func reused() throws {
        // Given
        let rig = try AdoptionRig()
        let engine = unsafe rig.controller.engine(0)
        unsafe engine.pointee.tick = Tick.now
        try rig.submit(IOOperation.read, lba: 0, token: 1)
        try note(rig, since: now &- 60_000)
        let word = unsafe rig.controller.state.address(rig.controller.state.layout.agesOffset(1))
        let before = unsafe nv_load64(word)
        _ = try rig.complete(1)
        // When: the same command once more, and its driver dies.
        _ = try rig.emulator.command("fault command:hang,queue=io")
        unsafe engine.pointee.tick = Tick.now
        try rig.submit(IOOperation.read, lba: 0, token: 1)
        try crashAndAdopt(rig)
        // Then
        #expect(before != 0)
        #expect(age(rig) < 59_000)
        #expect(try requireValue(try since(rig)) != UInt32(truncatingIfNeeded: before))
        // And whoever looks takes away what nobody needs any more.
        unsafe rig.controller.engine(0).pointee.queue.forgetAll()
        unsafe rig.controller.engine(0).pointee.queue.keepAges()
        #expect(unsafe nv_load64(word) == 0)
    }

    @Test(
        "a time to come says nothing", arguments: [1, 60_000, UInt32.max / 2 - 60_000] as [UInt32])
    func future(ahead: UInt32) throws {
        let rig = try silent()
        try rig.submit(IOOperation.read, lba: 0, token: 1)
        try note(rig, since: now &+ 60_000 &+ ahead)
        try crashAndAdopt(rig)
        #expect(age(rig) < 59_000)
        #expect(CommandAges.passed(try requireValue(try since(rig)), now: now) < 59_000)
        #expect(now &- (try requireValue(try since(rig))) < 59_000)
    }

    @Test("an age that the clock cannot tell is cut to the longest that it can")
    func ancient() throws {
        let rig = try silent()
        try rig.submit(IOOperation.read, lba: 0, token: 1)
        try note(rig, since: now &- 1_000_000_000)
        try crashAndAdopt(rig)
        #expect(age(rig) >= UInt64(Tick.maxMilliseconds) - 1)
        #expect(age(rig) < UInt64(Tick.maxMilliseconds) + 60_000)
    }

    @Test("a command that the device was never told of is young")
    func unseen() throws {
        let rig = try silent()
        try rig.submit(IOOperation.read, lba: 0, token: 1, ring: false)
        try note(rig, since: now &- 60_000)
        try crashAndAdopt(rig)
        #expect(rig.controller.adoptedDoorbells == [.resubmitted(1)])
        #expect(age(rig) < 59_000)
    }

    @Test(
        "an admin command that a device has lost is waited for once, by all drivers together",
        .timeLimit(.minutes(1)))
    func admin() throws {
        // Given: ten minutes may pass.
        let token = AdminQueue.waitedFor | 77
        let rig = try AdoptionRig(adminTimeoutMilliseconds: 600_000)
        _ = try rig.emulator.command("fault command:hang,queue=admin,opcode=6,times=1")
        try rig.controller.admin?.post(
            .identify(cns: .controller), token: token, device: rig.controller.device)
        let sent = now
        let ages = try (0..<3).map { _ in
            try crashAndAdopt(rig)
            return rig.controller.admin?.queue.oldestAge(nowMilliseconds: sent &+ 5_000) {
                $0.token == token
            }
        }
        #expect(try requireValue(ages[0]) >= 5_000)
        #expect(Set(ages).count == 1)
        // When: by the record, they have passed.
        try rig.controller.admin?.queue.noteAges(since: now &- 600_000)
        try crashAndAdopt(rig)
        // Then
        let error = #expect(throws: DriverError.self) { try rig.controller.checkIdentity() }
        #expect("\(error.map(String.init(describing:)) ?? "")".contains("is not answered"))
    }

    @Test("an Abort is on record, and whether it is answered is known")
    func abort() throws {
        // Given: an Abort that is never answered.
        let rig = try silent()
        _ = try rig.emulator.command("fault command:hang,queue=admin,opcode=8")
        try rig.submit(IOOperation.read, lba: 0, token: 1)
        let begin = MonotonicClock.nowNanoseconds
        let engine = unsafe rig.controller.engine(0)
        #expect(unsafe engine.pointee.abortedSince(0, nowNanoseconds: begin) == nil)
        try rig.controller.abort(queue: 0, commandID: 0)
        unsafe engine.pointee.keepAbort(0, nowNanoseconds: begin)
        // When
        for _ in 0..<2 { try crashAndAdopt(rig) }
        // Then
        let after = unsafe rig.controller.engine(0)
        let end = begin + 10_000_000_000
        let since = unsafe try requireValue(
            after.pointee.abortedSince(0, nowNanoseconds: end))
        #expect(since >= begin - 1_000_000 && since <= begin + 1_000_000)
        #expect(unsafe after.pointee.isBeingAborted(0))
        // Another command id of the slot is another command's.
        #expect(unsafe after.pointee.abortedSince(1 << 10, nowNanoseconds: end) == nil)
        #expect(unsafe !after.pointee.isBeingAborted(1 << 10))
    }
}

extension QueuePair {
    /// Has the record say that all commands are in flight since then.
    fileprivate func noteAges(since: UInt32) throws {
        for index in 0..<slotCount {
            unsafe ages?.note(.submitted, index, slots + Int(index) * 64, since: since)
        }
    }
}
