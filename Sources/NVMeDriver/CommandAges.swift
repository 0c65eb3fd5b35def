// SPDX-License-Identifier: Apache-2.0
// How old the commands in flight are, where a successor finds it: a driver that dies again and
// again must not make a command that the device has lost young each time.
//
// Two words for each slot, beside the slots:
//
//   0  since when its command is in flight: milliseconds of CLOCK_MONOTONIC (32) | CRC-32C (32)
//   8  since when an Abort names it, in the same way
//
// The CRC covers the time, the slot's sequence and its word 6, which has the checksum of the words
// 0-5: a word counts for the command that it was written for, and for no other. Whatever else is
// there says nothing, and costs a command its age. No word is written while a command of an I/O
// queue is young: those who look for late ones write them, and adoption does. Admin commands, which
// are rare, have theirs from the beginning.

internal import CMemory
internal import Linux

/// The ages of one queue's commands.
@safe
struct CommandAges {
    /// Bytes for each slot.
    static let byteCount = 16
    /// Commands that are younger are not written down by those who look: most end before. Less than
    /// the shortest time-out.
    static let leastMilliseconds: UInt32 = 10

    /// What is known of a command.
    enum Kind: Int, CaseIterable {
        case submitted = 0
        case aborted = 8
    }

    private let base: UnsafeMutableRawPointer
    private let key: UInt32

    /// The words at `base`; `key` is that of queue and epoch.
    init(base: UnsafeMutableRawPointer, key: UInt32) {
        unsafe self.base = base
        self.key = key
    }

    /// A time as the words have it: whoever compares two gets what is below 24 days right.
    static func milliseconds(_ nanoseconds: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: nanoseconds / 1_000_000)
    }

    /// Milliseconds from a time of a word to now; 0 of one that has not come yet.
    static func passed(_ since: UInt32, now: UInt32) -> UInt32 {
        let passed = now &- since
        return passed <= .max / 2 ? passed : 0
    }

    private func place(_ kind: Kind, _ index: UInt32) -> UnsafeMutableRawPointer {
        unsafe base + (Int(index) * Self.byteCount + kind.rawValue)
    }

    private func seal(
        _ kind: Kind, _ index: UInt32, _ slot: UnsafeMutableRawPointer, _ since: UInt32
    ) -> UInt64 {
        let sequence = unsafe nv_load64(slot + 56) & SlotState.sequenceMask
        var crc = nv_crc32c_64(key &+ index, unsafe nv_load64(slot + 48))
        crc = nv_crc32c_64(
            crc, sequence | UInt64(kind.rawValue) << 8 | UInt64(since) << 32)
        return UInt64(since) | UInt64(crc) << 32
    }

    /// What is on record of the command of a slot; nil: nothing.
    func since(_ kind: Kind, _ index: UInt32, _ slot: UnsafeMutableRawPointer) -> UInt32? {
        let word = unsafe nv_load64(place(kind, index))
        let since = UInt32(truncatingIfNeeded: word)
        let expected = unsafe seal(kind, index, slot, since)
        return word != 0 && word == expected ? since : nil
    }

    /// Writes down a time of the command of a slot.
    func note(
        _ kind: Kind, _ index: UInt32, _ slot: UnsafeMutableRawPointer, since: UInt32
    ) {
        unsafe nv_store64(place(kind, index), seal(kind, index, slot, since))
    }

    /// Takes away what is there of a slot without a command.
    func forget(_ index: UInt32) {
        for kind in Kind.allCases where unsafe nv_load64(place(kind, index)) != 0 {
            unsafe nv_store64(place(kind, index), 0)
        }
    }

    /// Takes away what another command of the slot had.
    func forgetOthers(_ index: UInt32, _ slot: UnsafeMutableRawPointer) {
        for kind in Kind.allCases where unsafe since(kind, index, slot) == nil {
            unsafe nv_store64(place(kind, index), 0)
        }
    }
}

extension QueuePair {
    private func slot(_ index: UInt32) -> UnsafeMutableRawPointer {
        unsafe slots + Int(index) * 64
    }

    private func isStaged(_ index: UInt32) -> Bool {
        unsafe nv_load64(slot(index) + 56) & SlotState.mask == SlotState.staged
    }

    /// Whether the command of a STAGED slot lies behind the tail: the device was not told of it.
    private func isUnseen(_ index: UInt32) -> Bool {
        let ordinal = UInt32(truncatingIfNeeded: unsafe nv_load64(slot(index) + 56) >> 8)
        return (ordinal &- tail) & SlotState.ordinalMask <= slotCount
    }

    /// Writes down since when the commands are in flight that are not young any more.
    func keepAges(nowNanoseconds: UInt64 = MonotonicClock.nowNanoseconds) {
        guard let ages else { return }
        let tick = Tick.of(nanoseconds: nowNanoseconds)
        let now = CommandAges.milliseconds(nowNanoseconds)
        for index in 0..<slotCount {
            let slot = unsafe slot(index)
            guard isStaged(index) else {
                ages.forget(index)
                continue
            }
            if unsafe ages.since(.submitted, index, slot) != nil { continue }
            unsafe ages.forgetOthers(index, slot)
            let passed = tick &- (unsafe ticks[Int(index)])
            let age = UInt32(truncatingIfNeeded: UInt64(passed) * 256 / 1_000_000)
            // More than half of what can be told lies ahead.
            guard passed <= .max / 2, age >= CommandAges.leastMilliseconds else { continue }
            unsafe ages.note(.submitted, index, slot, since: now &- age)
        }
    }

    /// When the command of a slot that a predecessor left was pushed, on this owner's clock: as is
    /// on record, or now. Times to come are now, and those too long ago to be told are cut.
    func inheritedTick(_ index: UInt32, nowMilliseconds: UInt32) -> UInt32 {
        guard let ages, isStaged(index), !isUnseen(index),
            let since = unsafe ages.since(.submitted, index, slot(index))
        else { return tick }
        let passed = CommandAges.passed(since, now: nowMilliseconds)
        return tick &- Tick.count(milliseconds: passed)
    }

    /// Writes down that all commands are in flight from now on of which it is not known since when:
    /// a predecessor's, and an admin command that was sent now.
    func keepInheritedAges(nowMilliseconds now: UInt32) {
        guard let ages else { return }
        for index in 0..<slotCount where isStaged(index) {
            let slot = unsafe slot(index)
            if let since = unsafe ages.since(.submitted, index, slot),
                CommandAges.passed(since, now: now) > 0 || since == now
            {
                continue
            }
            unsafe ages.note(.submitted, index, slot, since: now)
        }
    }

    /// Writes down that the device is told of a command only now, whoever wrote it.
    func keepSubmitted(_ index: UInt32) {
        let now = CommandAges.milliseconds(MonotonicClock.nowNanoseconds)
        unsafe ages?.note(.submitted, index, slot(index), since: now)
    }

    /// How many milliseconds ago the oldest of some commands was sent, as far as is on record.
    func oldestAge(nowMilliseconds: UInt32, of isMeant: (CommandSlot) -> Bool) -> UInt32 {
        var oldest: UInt32 = 0
        for index in 0..<slotCount where isStaged(index) {
            guard isMeant(unsafe CommandSlot(at: slot(index))), let ages,
                let since = unsafe ages.since(.submitted, index, slot(index))
            else { continue }
            oldest = max(oldest, CommandAges.passed(since, now: nowMilliseconds))
        }
        return oldest
    }

    /// The slot that a command id names, when that command is in flight.
    private func staged(_ commandID: UInt16) -> UInt32? {
        let index = UInt32(commandID) & Self.slotMask
        guard index < slotCount, isStaged(index),
            self.commandID(index, unsafe nv_load64(slot(index) + 56)) == commandID
        else { return nil }
        return index
    }

    /// How many milliseconds ago the first Abort of a command was sent, by whomever; nil: none was.
    func abortAge(_ commandID: UInt16, nowMilliseconds: UInt32) -> UInt32? {
        guard let ages, let index = staged(commandID),
            let since = unsafe ages.since(.aborted, index, slot(index))
        else { return nil }
        return CommandAges.passed(since, now: nowMilliseconds)
    }

    /// Writes down that an Abort of a command is sent, unless one was before.
    func keepAbort(_ commandID: UInt16, nowMilliseconds: UInt32) {
        guard let ages, let index = staged(commandID),
            unsafe ages.since(.aborted, index, slot(index)) == nil
        else { return }
        unsafe ages.note(.aborted, index, slot(index), since: nowMilliseconds)
    }

    /// Whether an Abort that names a command has not been answered.
    func isBeingAborted(_ commandID: UInt16) -> Bool {
        guard let index = staged(commandID) else { return false }
        return unsafe holds[Int(index)] >= 2
    }
}

extension Engine {
    /// When the first Abort of a command was sent, by whomever; nil: none was, or the command is
    /// not in flight. CLOCK_MONOTONIC, nanoseconds.
    public func abortedSince(_ commandID: UInt16, nowNanoseconds: UInt64) -> UInt64? {
        let now = CommandAges.milliseconds(nowNanoseconds)
        return queue.abortAge(commandID, nowMilliseconds: now).map {
            nowNanoseconds &- min(UInt64($0) * 1_000_000, nowNanoseconds)
        }
    }

    /// Puts on record that an Abort of a command is sent now, unless one was before.
    public func keepAbort(_ commandID: UInt16, nowNanoseconds: UInt64) {
        queue.keepAbort(commandID, nowMilliseconds: CommandAges.milliseconds(nowNanoseconds))
    }

    /// Whether an Abort that names a command is with the controller, this process's or a
    /// predecessor's.
    public func isBeingAborted(_ commandID: UInt16) -> Bool { queue.isBeingAborted(commandID) }
}
