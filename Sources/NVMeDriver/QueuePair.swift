// SPDX-License-Identifier: Apache-2.0
// A submission queue and its completion queue (NVM Express Base Specification 2.0, 3.3), with the
// slots of the commands in flight. The admin queue and the I/O queues are the same thing.
//
// Order on the way down: slot STAGED → queue entry → `sqTail` in the state area → doorbell
// → "doorbell written" value. Order on the way up: slot COMPLETING → the client's completion,
// by the caller → {cqHead, phase} in the state area → slot FREE → doorbell. Each step can be
// repeated by a successor. (DESIGN, section 5.)
//
// One command id in flight is one slot, and there are two slots fewer than entries: a full queue
// cannot happen, the completion queue cannot overflow, and an entry and an id, those of the slot
// behind the last one, are always left for a successor's probe.
//
// Commands are counted: the ordinal of a command is how many were pushed before it, modulo 2^32,
// and its place in the queue follows from that. So a successor knows which commands the tail that
// was published covers, however often the queue has gone round.

internal import CMemory

/// Where a queue pair's memory is. All pointers stay valid as long as the pair is used.
@safe
struct QueueMemory {
    var submission: UnsafeMutableRawPointer
    var completion: UnsafeMutableRawPointer
    var prpLists: UnsafeMutableRawPointer
    var prpListsIOVA: UInt64
    var prpListByteCount: UInt64
    var slots: UnsafeMutableRawPointer
    var indexLine: UnsafeMutableRawPointer
    /// Free-slot stack, reaped list, submit ticks: `scratchByteCount(entries)` bytes of private
    /// memory.
    var scratch: UnsafeMutableRawPointer
    var submissionDoorbell: UnsafeMutableRawPointer
    var completionDoorbell: UnsafeMutableRawPointer
    /// Where the doorbells are in BAR0, for a backing that cannot map them.
    var submissionDoorbellOffset: Int
    var completionDoorbellOffset: Int
    var shadow: ShadowDoorbells?
    /// Since when commands are in flight, `CommandAges.byteCount` bytes for each slot; nil: nobody
    /// is to know.
    var ages: UnsafeMutableRawPointer?

    static func scratchByteCount(entries: UInt32) -> Int { Int(entries) * (2 + 2 + 4 + 1) }
}

/// The four words of the Doorbell Buffer Config buffers that belong to a queue pair (Base
/// Specification 2.0, 5.8).
@safe
struct ShadowDoorbells {
    var submissionTail: UnsafeMutableRawPointer
    var submissionEventIndex: UnsafeMutableRawPointer
    var completionHead: UnsafeMutableRawPointer
    var completionEventIndex: UnsafeMutableRawPointer
}

/// A queue pair. One owner, one thread; nothing here allocates, blocks or calls into a runtime.
@safe
struct QueuePair: ~Copyable {
    /// Bits of the doorbells that must be written by the owner because they are not mapped.
    static let submissionDoorbellPending: UInt8 = 1
    static let completionDoorbellPending: UInt8 = 2
    /// Ten bits of a command id are the slot, six a sequence that tells a late answer from a new
    /// one.
    static let slotBits: UInt32 = 10
    static let slotMask: UInt32 = 1023
    static let maxEntries: UInt32 = 1024
    /// What `holds` says of the probe's slot while the probe is out.
    static let probeHold: UInt8 = 0xFF

    // What submission and completion touch, first.
    let submission: UnsafeMutableRawPointer
    let completion: UnsafeMutableRawPointer
    let slots: UnsafeMutableRawPointer
    let indexLine: UnsafeMutableRawPointer
    let freeSlots: UnsafeMutablePointer<UInt16>
    let reaped: UnsafeMutablePointer<UInt16>
    let ticks: UnsafeMutablePointer<UInt32>
    /// For each slot: twice the Aborts that name it, and 1 when it was to be freed meanwhile; for
    /// the probe's: `probeHold` while it is out.
    let holds: UnsafeMutablePointer<UInt8>
    var heldCount: UInt32 = 0
    let mask: UInt32
    /// Ordinals: of the next command, and of the first that the device was not told of.
    var tail: UInt32 = 0
    var committedTail: UInt32 = 0
    private var deviceHead: UInt32 = 0
    var head: UInt32 = 0
    var committedHead: UInt32 = 0
    var phase: UInt64 = 1
    var freeCount: UInt32 = 0
    var reapedCount: UInt32 = 0
    let slotCount: UInt32
    let slotKey: UInt32
    let indexKey: UInt32
    let queueID: UInt16
    /// The owner's clock in ticks of 256 ns; each command is stamped with it.
    var tick: UInt32 = 0

    private let prpLists: UnsafeMutableRawPointer
    private let prpListsIOVA: UInt64
    private let prpListByteCount: UInt64
    /// Commands of a predecessor whose entries were written again, and not rung.
    var unseenCount: UInt32 = 0
    private let submissionDoorbell: UnsafeMutableRawPointer
    private let completionDoorbell: UnsafeMutableRawPointer
    let shadow: ShadowDoorbells
    let hasShadow: Bool
    private let doorbellsAreMapped: Bool
    let submissionDoorbellOffset: Int
    let completionDoorbellOffset: Int

    /// Since when commands are in flight, for a successor.
    let ages: CommandAges?

    /// Doorbells that the owner must write by message: bits of `…DoorbellPending`.
    var pendingDoorbells: UInt8 = 0
    /// Once set, the device of this queue must not be believed any more.
    private(set) var fault: QueueFault = .none
    /// The completion entry that caused the fault: its upper eight bytes.
    private(set) var faultyEntry: UInt64 = 0
    private(set) var doorbellWrites: UInt64 = 0
    private(set) var shadowWrites: UInt64 = 0

    /// A pair over zeroed queue memory. `entries` is a power of two, from 4 to 1024.
    init(
        queueID: UInt16, entries: UInt32, epoch: UInt32, memory: QueueMemory,
        doorbellsAreMapped: Bool
    ) {
        self.init(
            at: memory, queueID: queueID, entries: entries, epoch: epoch,
            doorbellsAreMapped: doorbellsAreMapped)
        for index in 0...slotCount { markFree(index, word: SlotState.sequenceMask) }
        // The lowest slot is used first: at low depth the same few cache lines serve.
        for index in 0..<slotCount { pushFree(slotCount - 1 - index) }
        publishTail()
        publishHead()
        publishDoorbell()
        publishOpen(true)
    }

    /// Nothing but the places of things: the indexes, and which slots are free, are still missing.
    init(
        at memory: QueueMemory, queueID: UInt16, entries: UInt32, epoch: UInt32,
        doorbellsAreMapped: Bool
    ) {
        precondition(entries >= 4 && entries <= Self.maxEntries && entries & (entries - 1) == 0)
        self.queueID = queueID
        mask = entries - 1
        slotCount = entries - 2
        slotKey = Checksum.key(Checksum.slotKind, queue: UInt32(queueID), epoch: epoch)
        indexKey = Checksum.key(Checksum.indexKind, queue: UInt32(queueID), epoch: epoch)
        unsafe submission = memory.submission
        unsafe completion = memory.completion
        unsafe slots = memory.slots
        unsafe indexLine = memory.indexLine
        unsafe prpLists = memory.prpLists
        prpListsIOVA = memory.prpListsIOVA
        prpListByteCount = memory.prpListByteCount
        unsafe submissionDoorbell = memory.submissionDoorbell
        unsafe completionDoorbell = memory.completionDoorbell
        self.doorbellsAreMapped = doorbellsAreMapped
        submissionDoorbellOffset = memory.submissionDoorbellOffset
        completionDoorbellOffset = memory.completionDoorbellOffset
        hasShadow = memory.shadow != nil
        if let base = unsafe memory.ages {
            let key = Checksum.key(Checksum.agesKind, queue: UInt32(queueID), epoch: epoch)
            unsafe ages = CommandAges(base: base, key: key)
        } else {
            ages = nil
        }
        unsafe shadow =
            memory.shadow
            ?? ShadowDoorbells(
                submissionTail: memory.scratch, submissionEventIndex: memory.scratch,
                completionHead: memory.scratch, completionEventIndex: memory.scratch)
        let count = Int(entries)
        unsafe ticks = memory.scratch.bindMemory(to: UInt32.self, capacity: count)
        unsafe freeSlots = (memory.scratch + 4 * count).bindMemory(
            to: UInt16.self, capacity: count)
        unsafe reaped = (memory.scratch + 6 * count).bindMemory(to: UInt16.self, capacity: count)
        unsafe holds = (memory.scratch + 8 * count).bindMemory(to: UInt8.self, capacity: count)
        for index in 0..<count { unsafe holds[index] = 0 }
    }

    // MARK: Down

    /// The device address of a slot's PRP list pages.
    @inline(__always)
    func listIOVA(_ slot: UInt32) -> UInt64 { prpListsIOVA &+ UInt64(slot) &* prpListByteCount }

    /// Bytes of a slot's PRP list pages.
    var listByteCount: UInt64 { prpListByteCount }

    /// A slot's PRP list pages.
    @inline(__always)
    func list(_ slot: UInt32) -> UnsafeMutableRawPointer {
        unsafe prpLists + Int(slot) &* Int(truncatingIfNeeded: prpListByteCount)
    }

    /// The next free slot, or nil. It is taken by `push`, so that a caller can still change its
    /// mind.
    @inline(__always)
    func nextFreeSlot() -> UInt32? {
        guard freeCount > 0 else { return nil }
        return UInt32(unsafe freeSlots[Int(freeCount &- 1)])
    }

    /// Stages the command of a slot that `nextFreeSlot` gave and writes its queue entry.
    ///
    /// `prp2` must be 0 or point to what is already written; `dword10And11` and `dword12` are the
    /// command's own.
    @inline(__always)
    mutating func push(
        _ slotIndex: UInt32, _ command: CommandSlot, prp1: UInt64, prp2: UInt64,
        dword10And11: UInt64, dword12And13: UInt64
    ) {
        freeCount = freeCount &- 1
        stage(
            slotIndex, command, prp1: prp1, prp2: prp2, dword10And11: dword10And11,
            dword12And13: dword12And13)
    }

    @inline(__always)
    mutating func stage(
        _ slotIndex: UInt32, _ command: CommandSlot, prp1: UInt64, prp2: UInt64,
        dword10And11: UInt64, dword12And13: UInt64
    ) {
        let slot = unsafe slots + Int(slotIndex) &* 64
        let sequence = unsafe nv_load64(slot + 56) & SlotState.sequenceMask
        unsafe command.stage(
            at: slot, key: slotKey &+ slotIndex, sequence: sequence, ordinal: tail)
        unsafe ticks[Int(slotIndex)] = tick
        let commandID = UInt64(slotIndex) | sequence << SlotState.sequenceToCommandID
        writeEntry(
            UInt64(command.opcode) | commandID << 16 | UInt64(command.namespaceID) << 32,
            prp1: prp1, prp2: prp2, dword10And11: dword10And11, dword12And13: dword12And13)
    }

    /// `push` of a request that moves data by one command.
    @inline(__always)
    mutating func push(
        _ slotIndex: UInt32, _ request: UnsafePointer<IORequest>, prp1: UInt64, prp2: UInt64
    ) {
        freeCount = freeCount &- 1
        let slot = unsafe slots + Int(slotIndex) &* 64
        let sequence = unsafe nv_load64(slot + 56) & SlotState.sequenceMask
        unsafe CommandSlot.stage(
            request, at: slot, key: slotKey &+ slotIndex, sequence: sequence, ordinal: tail)
        unsafe ticks[Int(slotIndex)] = tick
        let commandID = UInt64(slotIndex) | sequence << SlotState.sequenceToCommandID
        let head =
            unsafe UInt64(request.pointee.operation)
            | UInt64(request.pointee.namespaceID) << 32
        writeEntry(
            head | commandID << 16, prp1: prp1, prp2: prp2,
            dword10And11: unsafe request.pointee.lba,
            dword12And13: unsafe CommandSlot.dword12(
                blockCount: request.pointee.blockCount, flags: request.pointee.flags))
    }

    /// The same of a ring's entry, whose words are in registers.
    @inline(__always)
    mutating func push(_ slotIndex: UInt32, _ words: DirectCommand, prp1: UInt64, prp2: UInt64) {
        freeCount = freeCount &- 1
        let slot = unsafe slots + Int(slotIndex) &* 64
        let sequence = unsafe nv_load64(slot + 56) & SlotState.sequenceMask
        unsafe CommandSlot.stage(
            words, at: slot, key: slotKey &+ slotIndex, sequence: sequence, ordinal: tail)
        unsafe ticks[Int(slotIndex)] = tick
        let commandID = UInt64(slotIndex) | sequence << SlotState.sequenceToCommandID
        writeEntry(
            words.entryHead | commandID << 16, prp1: prp1, prp2: prp2, dword10And11: words.lba,
            dword12And13: words.dword12)
    }

    /// Writes the next entry of the submission queue; `head` is dwords 0 and 1.
    @inline(__always)
    mutating func writeEntry(
        _ head: UInt64, prp1: UInt64, prp2: UInt64, dword10And11: UInt64, dword12And13: UInt64
    ) {
        let entry = unsafe submission + Int(tail & mask) &* 64
        unsafe nv_store64(entry, head)
        unsafe nv_store64(entry + 8, 0)
        unsafe nv_store64(entry + 16, 0)
        unsafe nv_store64(entry + 24, prp1)
        unsafe nv_store64(entry + 32, prp2)
        unsafe nv_store64(entry + 40, dword10And11)
        unsafe nv_store64(entry + 48, dword12And13)
        unsafe nv_store64(entry + 56, 0)
        tail = tail &+ 1
        CrashPoint.hit(.entryWritten)
    }

    /// Replaces dwords 14 and 15 of the entry that `push` wrote last.
    mutating func setLastDwords14And15(_ value: UInt64) {
        unsafe nv_store64(submission + Int((tail &- 1) & mask) &* 64 + 56, value)
    }

    /// Tells the device about everything pushed since the last call.
    @inline(__always)
    mutating func ring() {
        guard tail != committedTail else { return }
        // The entries are complete before the tail that covers them is published, here and to the
        // device.
        nv_dma_wmb()
        publishTail()
        CrashPoint.hit(.tailPublished)
        nv_io_wmb()
        if hasShadow {
            unsafe writeShadow(
                shadow.submissionTail, shadow.submissionEventIndex, submissionDoorbell,
                old: committedTail & mask, new: tail & mask,
                pending: Self.submissionDoorbellPending)
        } else {
            unsafe writeDoorbell(
                submissionDoorbell, tail & mask, pending: Self.submissionDoorbellPending)
        }
        committedTail = tail
        // The log must not say that the device was told before it was: a message is still to come.
        if pendingDoorbells & Self.submissionDoorbellPending == 0 { logDoorbell() }
    }

    /// The device was told of `committedTail`.
    @inline(__always)
    func logDoorbell() {
        CrashPoint.hit(.doorbellRung)
        publishDoorbell()
        CrashPoint.hit(.doorbellLogged)
    }

    @inline(__always)
    private mutating func writeDoorbell(
        _ doorbell: UnsafeMutableRawPointer, _ value: UInt32, pending: UInt8
    ) {
        unsafe nv_store32(doorbell, value)
        doorbellWrites = doorbellWrites &+ 1
        if !doorbellsAreMapped { pendingDoorbells |= pending }
    }

    /// Base Specification 2.0, 5.8: the shadow always, the doorbell only when the move passes
    /// EventIdx.
    @inline(__always)
    private mutating func writeShadow(
        _ shadow: UnsafeMutableRawPointer, _ eventIndex: UnsafeMutableRawPointer,
        _ doorbell: UnsafeMutableRawPointer, old: UInt32, new: UInt32, pending: UInt8
    ) {
        unsafe nv_store32(shadow, new)
        shadowWrites = shadowWrites &+ 1
        // The shadow is visible before EventIdx is read: the device writes EventIdx and then reads
        // the shadow, so that one of the two sees the other.
        nv_full_fence()
        let event = UInt16(truncatingIfNeeded: unsafe nv_load32(eventIndex))
        let new16 = UInt16(truncatingIfNeeded: new)
        if new16 &- event &- 1 < new16 &- UInt16(truncatingIfNeeded: old) {
            unsafe writeDoorbell(doorbell, new, pending: pending)
        }
    }

    // MARK: Up

    /// How long ago, by the owner's clock, the command of a slot was pushed.
    @inline(__always)
    func age(_ slotIndex: UInt32) -> UInt32 { tick &- (unsafe ticks[Int(slotIndex)]) }

    /// A completion entry, checked.
    struct Answer {
        var slot: UInt32
        /// State and sequence of the slot.
        fileprivate let command: UInt64
        var status: UInt16
        var result: UInt32
    }

    /// The next answer of the device; nil when there is none or the device is at fault.
    /// `setCompleting` must follow before anything else is asked of the queue.
    @inline(__always)
    mutating func next() -> Answer? {
        let entry = unsafe completion + Int(head) &* 16
        let word = unsafe nv_load64(entry + 8)
        guard (word >> 48) & 1 == phase, fault == .none else { return nil }
        // The rest of the entry is read after the phase bit that vouches for it.
        nv_dma_rmb()
        let result = unsafe nv_load32(entry)
        let commandID = UInt32(truncatingIfNeeded: (word >> 32) & 0xFFFF)
        let index = commandID & Self.slotMask
        guard index < slotCount || isProbe(index) else {
            return refuse(.inventedCommandID, word)
        }
        let slot = unsafe slots + Int(index) &* 64
        let state = unsafe nv_load64(slot + 56) & SlotState.commandMask
        guard state == SlotState.staged | UInt64(commandID >> 8) & SlotState.sequenceMask else {
            return refuse(.staleCommandID, word)
        }
        guard UInt16(truncatingIfNeeded: word >> 16) == queueID else {
            return refuse(.wrongQueueID, word)
        }
        // Only its range can be checked: controllers that complete from several places at once post
        // it slightly out of order. Nothing depends on it, since free slots bound what is queued.
        let newHead = UInt32(truncatingIfNeeded: word & 0xFFFF)
        guard newHead <= mask else { return refuse(.badHeadPointer, word) }
        deviceHead = newHead
        CrashPoint.hit(.completionSeen)
        unsafe reaped[Int(reapedCount)] = UInt16(truncatingIfNeeded: index)
        reapedCount = reapedCount &+ 1
        head = (head &+ 1) & mask
        if head == 0 { phase ^= 1 }
        return Answer(
            slot: index, command: state, status: UInt16(truncatingIfNeeded: word >> 49),
            result: result)
    }

    /// Writes down that an answer was taken, and where in its ring the completion goes.
    @inline(__always)
    func setCompleting(_ answer: Answer, position: UInt32) {
        let slot = unsafe slots + Int(answer.slot) &* 64
        let low = UInt64((position & SlotState.positionMask) << 8) | UInt64(answer.status) << 17
        unsafe CommandSlot.setState(
            at: slot, word6: nv_load64(slot + 48), key: slotKey &+ answer.slot,
            low: low | (answer.command ^ (SlotState.staged ^ SlotState.completing)))
        CrashPoint.hit(.slotCompleting)
    }

    /// Whether a slot that commands do not get is the one of a probe that is out.
    @inline(__always)
    func isProbe(_ index: UInt32) -> Bool {
        guard index == slotCount else { return false }
        return unsafe holds[Int(index)] == Self.probeHold
    }

    private mutating func refuse(_ fault: QueueFault, _ word: UInt64) -> Answer? {
        self.fault = fault
        faultyEntry = word
        return nil
    }

    /// Gives back the slots of all answers since the last call, and their queue entries to the
    /// device.
    @inline(__always)
    mutating func retire() {
        guard reapedCount > 0 else { return }
        publishHead()
        CrashPoint.hit(.headPublished)
        var index: UInt32 = 0
        let count = reapedCount
        let (reaped, freeSlots) = unsafe (self.reaped, self.freeSlots)
        var free = freeCount
        while index < count {
            let slotIndex = UInt32(unsafe reaped[Int(index)])
            unsafe markFree(slotIndex, word: nv_load64(slots + Int(slotIndex) &* 64 + 56))
            CrashPoint.hit(.slotFreed)
            if heldCount == 0 || !deferFreeing(slotIndex) {
                unsafe freeSlots[Int(free)] = UInt16(truncatingIfNeeded: slotIndex)
                free = free &+ 1
            }
            index = index &+ 1
        }
        freeCount = free
        reapedCount = 0
        nv_io_wmb()
        if hasShadow {
            unsafe writeShadow(
                shadow.completionHead, shadow.completionEventIndex, completionDoorbell,
                old: committedHead, new: head, pending: Self.completionDoorbellPending)
        } else {
            unsafe writeDoorbell(
                completionDoorbell, head, pending: Self.completionDoorbellPending)
        }
        committedHead = head
        CrashPoint.hit(.completionDoorbellRung)
    }

    /// A slot FREE for the command after the one whose state word is given.
    @inline(__always)
    private func markFree(_ slotIndex: UInt32, word: UInt64) {
        let slot = unsafe slots + Int(slotIndex) &* 64
        let sequence = (word &+ SlotState.sequenceOne) & SlotState.sequenceMask
        unsafe CommandSlot.setState(
            at: slot, word6: 0, key: slotKey &+ slotIndex, low: SlotState.free | sequence)
    }

    @inline(__always)
    mutating func pushFree(_ slotIndex: UInt32) {
        unsafe freeSlots[Int(freeCount)] = UInt16(truncatingIfNeeded: slotIndex)
        freeCount = freeCount &+ 1
    }

    // MARK: Command ids that an Abort names

    /// Keeps the id of a command from being used again until `letGo`: an Abort that is under way
    /// names it, and must not hit another command. May be called several times.
    mutating func hold(_ commandID: UInt16) {
        let index = UInt32(commandID) & Self.slotMask
        guard index < slotCount, unsafe holds[Int(index)] < 0xFE else { return }
        if unsafe holds[Int(index)] == 0 { heldCount &+= 1 }
        unsafe holds[Int(index)] += 2
    }

    /// The Abort has ended.
    mutating func letGo(_ commandID: UInt16) {
        let index = UInt32(commandID) & Self.slotMask
        guard index < slotCount, unsafe holds[Int(index)] >= 2 else { return }
        unsafe holds[Int(index)] -= 2
        guard unsafe holds[Int(index)] < 2 else { return }
        if unsafe holds[Int(index)] == 1 { pushFree(index) }
        unsafe holds[Int(index)] = 0
        heldCount &-= 1
    }

    /// Whether a slot is held; it is then given back by `letGo`. The probe's is given to nobody.
    @inline(never)
    private mutating func deferFreeing(_ slotIndex: UInt32) -> Bool {
        guard unsafe holds[Int(slotIndex)] != 0 else { return false }
        guard slotIndex < slotCount else {
            unsafe holds[Int(slotIndex)] = 0
            heldCount &-= 1
            return true
        }
        unsafe holds[Int(slotIndex)] |= 1
        return true
    }

    /// Whether an answer waits: what is asked once more before sleeping.
    @inline(__always)
    func hasAnswer() -> Bool {
        (unsafe nv_load64(completion + Int(head) &* 16 + 8) >> 48) & 1 == phase
            && fault == .none
    }

    // MARK: The index line

    @inline(__always)
    func publishTail() {
        #if !NVMED_WITHOUT_LOG
            unsafe nv_store64(indexLine, SealedWord.seal(tail, key: indexKey))
        #endif
    }

    @inline(__always)
    func publishHead() {
        #if !NVMED_WITHOUT_LOG
            let value = head | UInt32(truncatingIfNeeded: phase) << 31
            unsafe nv_store64(indexLine + 8, SealedWord.seal(value, key: indexKey &+ 1))
        #endif
    }

    @inline(__always)
    private func publishDoorbell() {
        #if !NVMED_WITHOUT_LOG
            unsafe nv_store64(indexLine + 16, SealedWord.seal(committedTail, key: indexKey &+ 2))
        #endif
    }

    /// Whether the queue takes commands, or is being taken off the controller.
    func publishOpen(_ isOpen: Bool) {
        unsafe nv_store64(
            indexLine + 24, SealedWord.seal(isOpen ? 1 : 0, key: indexKey &+ 3))
    }

    // MARK: Cold

    /// Leaves a mark that the worker of a generation has taken an answer (`StateArea`).
    func publishFruit(generation: UInt32) {
        let mark = SealedWord.seal(generation, key: StateArea.fruitKey(Int(queueID)))
        unsafe nv_store64(indexLine + 32, mark)
    }

    /// Commands in flight, those answered and not yet retired included.
    var inFlight: UInt32 { slotCount - freeCount }

    /// The queue's positions, for `inspect`.
    var positions: (tail: UInt32, deviceHead: UInt32, head: UInt32, phase: UInt32) {
        (tail & mask, deviceHead, head, UInt32(phase))
    }

    /// The tail that the device was told last, for a doorbell by message.
    var committedPositions: (tail: UInt32, head: UInt32) {
        (committedTail & mask, committedHead)
    }

    /// After how many more commands the ordinal of one that is still in flight is written anew: an
    /// adopter sees 24 bits of it, and must never take an old command for a new one.
    static let ordinalAge: UInt32 = 1 << 22

    /// The commands in flight whose stamp is older than `tick`, oldest irrelevant: calls `body`
    /// with slot and command id.
    func forEachOlder(than limit: UInt32, _ body: (UInt32, UInt16) -> Void) {
        refreshOrdinals()
        keepAges()
        for index in 0..<slotCount {
            let state = unsafe nv_load64(slots + Int(index) * 64 + 56)
            guard state & SlotState.mask == SlotState.staged,
                unsafe ticks[Int(index)] &- limit > UInt32.max / 2
            else { continue }
            body(index, commandID(index, state))
        }
    }

    /// To be called several times while the queue takes 2^22 commands.
    func refreshOrdinals() {
        for index in 0...slotCount {
            let slot = unsafe slots + Int(index) * 64
            let state = unsafe nv_load64(slot + 56)
            guard state & SlotState.mask == SlotState.staged else { continue }
            unsafe refreshOrdinal(slot, index, state)
        }
    }

    private func refreshOrdinal(
        _ slot: UnsafeMutableRawPointer, _ index: UInt32, _ state: UInt64
    ) {
        let ordinal = UInt32(truncatingIfNeeded: state >> 8) & SlotState.ordinalMask
        guard (tail &- ordinal) & SlotState.ordinalMask > Self.ordinalAge else { return }
        unsafe CommandSlot.setState(
            at: slot, word6: nv_load64(slot + 48), key: slotKey &+ index,
            low: state & SlotState.commandMask | UInt64((tail &- Self.ordinalAge) &<< 8))
    }

    /// The commands of one request that the device has not answered: calls `body` with the command
    /// id.
    func forEachStaged(session: UInt32, token: UInt64, _ body: (UInt16) -> Void) {
        for index in 0..<slotCount {
            let slot = unsafe slots + Int(index) * 64
            let state = unsafe nv_load64(slot + 56)
            guard state & SlotState.mask == SlotState.staged else { continue }
            let command = unsafe CommandSlot(at: slot)
            guard command.session == session, command.token == token else { continue }
            body(commandID(index, state))
        }
    }

    func commandID(_ index: UInt32, _ state: UInt64) -> UInt16 {
        UInt16(truncatingIfNeeded: index)
            | UInt16(
                truncatingIfNeeded: (state & SlotState.sequenceMask)
                    << SlotState.sequenceToCommandID)
    }

    /// Has no free slot any more, and is not adopted by anybody.
    mutating func close() {
        publishOpen(false)
        freeCount = 0
    }

    /// Marks every slot free without giving any out: the queue is gone.
    mutating func forgetAll() {
        for index in 0...slotCount { markFree(index, word: SlotState.sequenceMask) }
        freeCount = 0
        reapedCount = 0
    }

    /// Has every command that the device has not answered count as answered.
    func answerStaged(_ status: UInt16) {
        for index in 0..<slotCount {
            let slot = unsafe slots + Int(index) * 64
            let state = unsafe nv_load64(slot + 56) & SlotState.commandMask
            guard state & SlotState.mask == SlotState.staged else { continue }
            unsafe CommandSlot.setState(
                at: slot, word6: nv_load64(slot + 48), key: slotKey &+ index,
                low: UInt64(status) << 17 | (state ^ (SlotState.staged ^ SlotState.completing)))
        }
    }

    /// Every command that was staged and not retired, for ending them when the device has failed.
    func forEachInFlight(_ body: (UInt32, CommandSlot) -> Void) {
        for index in 0..<slotCount {
            let slot = unsafe slots + Int(index) * 64
            guard unsafe nv_load64(slot + 56) & SlotState.mask != SlotState.free else { continue }
            body(index, unsafe CommandSlot(at: slot))
        }
    }
}
