// SPDX-License-Identifier: Apache-2.0
// Taking over the queue pair of a predecessor that died: what it wrote down is checked, and the
// queue goes on from there (DESIGN, section 5).
//
// What the log says, and what follows:
//
//   FREE                          nothing
//   STAGED, before the tail       with the device: answered some day, or the answer waits
//   STAGED, from the tail on      the device never saw it: its queue entry is written again
//   COMPLETING                    answered: delivered again (who has it ignores it), then freed
//   doorbell written ≠ tail       the device may not know of the last commands: one more command, a
//                                 probe, makes a tail that no register can hold yet
//
// All of this may be damaged, or written by somebody else: every index is checked before it is
// used.

internal import CMemory

extension QueuePair {
    /// The pair that a predecessor left in `memory`. `held` are command ids that Aborts name which
    /// were not answered: they are not used again before `letGo`.
    ///
    /// Throws `notAdoptable`; nothing was changed then. Afterwards COMPLETING slots wait for
    /// `retire`, and `unseenSlots` for `writeAgain`.
    static func adopt(
        _ memory: QueueMemory, queueID: UInt16, entries: UInt32, epoch: UInt32,
        doorbellsAreMapped: Bool, held: [UInt16] = []
    ) throws(DriverError) -> QueuePair {
        guard entries >= 4, entries <= Self.maxEntries, entries & (entries - 1) == 0 else {
            throw .notAdoptable("queue \(queueID) has \(entries) entries")
        }
        var pair = QueuePair(
            at: memory, queueID: queueID, entries: entries, epoch: epoch,
            doorbellsAreMapped: doorbellsAreMapped)
        try pair.adoptIndexes()
        try pair.adoptSlots(held)
        pair.skipTaken()
        guard pair.unseenSlots() != nil else {
            throw pair.notAdoptable("the commands behind its tail do not follow each other")
        }
        return pair
    }

    private func notAdoptable(_ what: String) -> DriverError {
        .notAdoptable("queue \(queueID): \(what)")
    }

    private func sealed(_ word: Int) -> UInt32? {
        SealedWord.open(unsafe nv_load64(indexLine + word * 8), key: indexKey &+ UInt32(word))
    }

    private mutating func adoptIndexes() throws(DriverError) {
        guard let tail = sealed(0), let headAndPhase = sealed(1), let rung = sealed(2),
            let isOpen = sealed(3)
        else { throw notAdoptable("its indexes are damaged") }
        guard isOpen == 1 else { throw notAdoptable("it was being replaced") }
        let head = headAndPhase & 0x7FFF_FFFF
        guard head <= mask else { throw notAdoptable("its head is \(head) of \(mask)") }
        // No more are pushed between two doorbells than there are slots, the probe's included.
        guard tail &- rung <= slotCount + 1 else {
            throw notAdoptable("its doorbell is \(tail &- rung) commands behind its tail")
        }
        self.tail = tail
        committedTail = rung
        self.head = head
        committedHead = head
        phase = UInt64(headAndPhase >> 31)
    }

    private mutating func adoptSlots(_ held: [UInt16]) throws(DriverError) {
        for commandID in held { hold(commandID) }
        for index in (0...slotCount).reversed() {
            let slot = unsafe slots + Int(index) * 64
            guard unsafe CommandSlot.isIntact(at: slot, key: slotKey &+ index) else {
                throw notAdoptable("slot \(index) is damaged")
            }
            unsafe ticks[Int(index)] = tick
            let word = unsafe nv_load64(slot + 56)
            switch word & SlotState.mask {
            case SlotState.free:
                if index < slotCount { adoptFree(index) }
                continue
            case SlotState.completing:
                unsafe reaped[Int(reapedCount)] = UInt16(truncatingIfNeeded: index)
                reapedCount += 1
            default:
                guard isPlausible(ordinal: word) else {
                    throw notAdoptable("slot \(index) has a command from nowhere")
                }
            }
            if index == slotCount { takeProbeSlot() }
        }
    }

    private mutating func adoptFree(_ index: UInt32) {
        if unsafe holds[Int(index)] == 0 {
            pushFree(index)
        } else {
            // Its command was answered while an Abort named it.
            unsafe holds[Int(index)] |= 1
        }
    }

    /// Whether a STAGED slot's command was pushed before the tail, or is one of the few behind it.
    private func isPlausible(ordinal word: UInt64) -> Bool {
        let distance = (tail &- UInt32(truncatingIfNeeded: word >> 8)) & SlotState.ordinalMask
        return distance > 0 && distance <= SlotState.ordinalMask / 2
            || SlotState.ordinalMask + 1 - distance <= slotCount || distance == 0
    }

    /// Passes the answers that the predecessor had taken when it died: those whose slots are
    /// COMPLETING with the same sequence and status. What follows is taken as always.
    private mutating func skipTaken() {
        var skipped = [Bool](repeating: false, count: Int(slotCount) + 1)
        for _ in 0...slotCount {
            let word = unsafe nv_load64(completion + Int(head) * 16 + 8)
            guard (word >> 48) & 1 == phase else { return }
            let commandID = UInt32(truncatingIfNeeded: (word >> 32) & 0xFFFF)
            let index = Int(commandID & Self.slotMask)
            guard index <= Int(slotCount), !skipped[index] else { return }
            let state = unsafe nv_load64(slots + index * 64 + 56)
            guard
                state & SlotState.commandMask
                    == SlotState.completing | UInt64(commandID >> 8) & SlotState.sequenceMask,
                (state >> 17) & 0x7FFF == (word >> 49) & 0x7FFF
            else { return }
            skipped[index] = true
            head = (head &+ 1) & mask
            if head == 0 { phase ^= 1 }
        }
    }

    /// The next answer of a stopped device that nobody has taken: they need not follow each other.
    mutating func nextUntaken() -> Answer? {
        skipTaken()
        return next()
    }

    // MARK: Answers that were taken

    /// Dword 0 of the answer that a COMPLETING slot had, as long as the head had not passed it; 0
    /// when it had: its completion was delivered then.
    func resultOfTaken(_ slotIndex: UInt32) -> UInt32 {
        var place = committedHead
        while place != head {
            let entry = unsafe completion + Int(place) * 16
            if unsafe nv_load16(entry + 12) & UInt16(Self.slotMask) == UInt16(slotIndex) {
                return unsafe nv_load32(entry)
            }
            place = (place &+ 1) & mask
        }
        return 0
    }

    /// The slots that a predecessor left COMPLETING: calls `body` with slot, command, status, and
    /// the slot's state word, for `completionPosition`.
    func forEachCompleting(_ body: (UInt32, CommandSlot, UInt16, UInt64) -> Void) {
        for place in 0..<reapedCount {
            let index = UInt32(unsafe reaped[Int(place)])
            let slot = unsafe slots + Int(index) * 64
            let word = unsafe nv_load64(slot + 56)
            guard word & SlotState.mask == SlotState.completing else { continue }
            body(
                index, unsafe CommandSlot(at: slot),
                UInt16(truncatingIfNeeded: (word >> 17) & 0x7FFF), word)
        }
    }

    // MARK: Commands that the device never saw

    /// The slots of the commands that the tail does not cover, in their order; nil when some are
    /// missing.
    func unseenSlots() -> [UInt32]? {
        var found: [UInt32: UInt32] = [:]
        for index in 0...slotCount {
            let word = unsafe nv_load64(slots + Int(index) * 64 + 56)
            guard word & SlotState.mask == SlotState.staged else { continue }
            let after =
                (UInt32(truncatingIfNeeded: word >> 8) &- tail) & SlotState.ordinalMask
            guard after <= slotCount else { continue }
            guard found.updateValue(index, forKey: after) == nil else { return nil }
        }
        var inOrder: [UInt32] = []
        for after in 0..<UInt32(found.count) {
            guard let index = found[after] else { return nil }
            inOrder.append(index)
        }
        return inOrder
    }

    /// Writes the queue entry of a slot that `unseenSlots` gave; in that order, all of them.
    mutating func writeAgain(
        _ slotIndex: UInt32, prp1: UInt64, prp2: UInt64, dword10And11: UInt64, dword12And13: UInt64
    ) {
        let slot = unsafe slots + Int(slotIndex) * 64
        let command = unsafe CommandSlot(at: slot)
        let commandID = UInt64(commandID(slotIndex, unsafe nv_load64(slot + 56)))
        writeEntry(
            UInt64(command.opcode) | commandID << 16 | UInt64(command.namespaceID) << 32,
            prp1: prp1, prp2: prp2, dword10And11: dword10And11, dword12And13: dword12And13)
        unseenCount &+= 1
        CrashPoint.hit(.adoptResubmitted)
    }

    /// The same with another command's entry, whose answer will do as well: `opcode` is that of the
    /// entry.
    mutating func writeAgain(
        _ slotIndex: UInt32, opcode: UInt8, dword10And11: UInt64
    ) {
        let state = unsafe nv_load64(slots + Int(slotIndex) * 64 + 56)
        writeEntry(
            UInt64(opcode) | UInt64(commandID(slotIndex, state)) << 16, prp1: 0, prp2: 0,
            dword10And11: dword10And11, dword12And13: 0)
        unseenCount &+= 1
        CrashPoint.hit(.adoptResubmitted)
    }

    // MARK: The doorbell

    /// Whether the device may not have been told of commands that the tail covers.
    var doorbellIsDoubtful: Bool { tail != committedTail }

    /// Pushes a command whose answer is nobody's; false when there is no entry left for one.
    /// `command` needs its opcode and what goes into its entry; `ring` must follow.
    mutating func pushProbe(
        _ command: CommandSlot, prp1: UInt64, dword10And11: UInt64, dword12And13: UInt64
    ) -> Bool {
        var command = command
        command.request = CommandSlot.probeRequest
        if unsafe holds[Int(slotCount)] == 0 {
            takeProbeSlot()
            stage(
                slotCount, command, prp1: prp1, prp2: 0, dword10And11: dword10And11,
                dword12And13: dword12And13)
        } else {
            // A predecessor's probe is out.
            guard let slot = nextFreeSlot() else { return false }
            push(
                slot, command, prp1: prp1, prp2: 0, dword10And11: dword10And11,
                dword12And13: dword12And13)
        }
        CrashPoint.hit(.adoptProbeStaged)
        return true
    }

    private mutating func takeProbeSlot() {
        unsafe holds[Int(slotCount)] = Self.probeHold
        heldCount &+= 1
    }

    /// Has the device look at the completion head where it reads that from memory: a predecessor
    /// may have died before it wrote it there.
    mutating func tellHeadAgain() {
        guard hasShadow else { return }
        unsafe nv_store32(shadow.completionHead, head)
    }
}
