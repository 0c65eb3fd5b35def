// SPDX-License-Identifier: Apache-2.0
// Fetching commands and posting completions, and going to sleep without losing a wake-up.
// NVM Express Base Specification 2.0, sections 3.3 and 5.8 (Doorbell Buffer Config).

internal import CMemory
internal import Linux
internal import NVMeSpec

/// What became of a command.
enum Outcome {
    /// Complete it now.
    case done(Status, UInt32)
    /// It completes later, or never.
    case held
}

extension Controller {
    /// Commands taken from one queue before the next has its turn: round robin with a bounded
    /// burst.
    static let batch = 32

    // MARK: Passes

    /// Takes one turn around all queues. True when there was something to do.
    func pass() -> Bool {
        if readyAtNanoseconds != nil || !held.isEmpty {
            nowNanoseconds = MonotonicClock.nowNanoseconds
            advanceReadiness()
        }
        guard isRunning else { return false }
        if queueGeneration != memory.generation { rebindQueues() }
        var worked = serve(0)
        if csts.shst == .normal {
            var index = 0
            // A command may end the controller or change the list: look again each time.
            while index < activeQueues.count, isRunning {
                if serve(activeQueues[index]) { worked = true }
                index &+= 1
            }
        }
        if !held.isEmpty, completeHeld() { worked = true }
        if dirtyCount > 0 || !watched.isEmpty { settleInterrupts() }
        return worked
    }

    /// Fetches and executes a burst of one queue.
    private func serve(_ id: UInt16) -> Bool {
        let index = Int(id)
        guard submission[index].isActive, refreshTail(index) else { return false }
        var left = Self.batch
        while left > 0, submission[index].head != submission[index].tail {
            guard hasRoom(Int(submission[index].completionQueue)) else { break }
            guard let entry = fetch(index) else { return true }
            left &-= 1
            handle(entry, from: id)
            guard isRunning, submission[index].isActive else { return true }
        }
        return left < Self.batch
    }

    /// Looks at the host's tail; true when commands wait.
    @inline(__always)
    private func refreshTail(_ index: Int) -> Bool {
        guard let source = unsafe submission[index].source else { return false }
        let tail = unsafe nv_load32(source)
        if tail != submission[index].tail { acceptTail(index, tail) }
        return submission[index].head != submission[index].tail
    }

    private func acceptTail(_ index: Int, _ tail: UInt32) {
        guard !submission[index].isBroken else { return }
        guard tail < submission[index].entryCount else {
            submission[index].isBroken = true
            counters.doorbellsInvalid &+= 1
            return report(.invalidDoorbellValue)
        }
        submission[index].tail = tail
        guard let eventIndex = unsafe submission[index].eventIndex else {
            counters.tailsFromRegister &+= 1
            return
        }
        counters.tailsFromShadow &+= 1
        // Keeps the event index behind the tail, where the host does not pass it: it rings only
        // when it moves from at or before the event index to beyond it. Rewritten each half lap,
        // not each time: the host reads it.
        let size = submission[index].entryCount
        let armed = submission[index].armedAt
        let distance = tail >= armed ? tail &- armed : tail &+ size &- armed
        if distance > size / 2 {
            submission[index].armedAt = tail == 0 ? size &- 1 : tail &- 1
            unsafe nv_store32(eventIndex, submission[index].armedAt)
        }
    }

    /// Whether a completion can be posted. Looks at the host's head only when the queue seems
    /// nearly full.
    @inline(__always)
    private func hasRoom(_ index: Int) -> Bool {
        // One more than needed: a fault may post twice.
        if completion[index].room > 1 { return true }
        refreshHead(index)
        return completion[index].room > 0
    }

    func refreshHead(_ index: Int) {
        guard let source = unsafe completion[index].source else { return }
        let head = unsafe nv_load32(source)
        guard head != completion[index].head, !completion[index].isBroken else { return }
        // The host can give back only what was posted: the new head lies between the old one and
        // the tail.
        let size = completion[index].entryCount
        let old = completion[index].head
        let tail = completion[index].tail
        let moved = head >= old ? head &- old : head &+ size &- old
        let posted = tail >= old ? tail &- old : tail &+ size &- old
        guard head < size, moved <= posted else {
            completion[index].isBroken = true
            counters.doorbellsInvalid &+= 1
            return report(.invalidDoorbellValue)
        }
        completion[index].head = head
    }

    /// Copies the entry at the head. Nil when the memory is gone, which is fatal.
    private func fetch(_ index: Int) -> SubmissionEntry? {
        let head = submission[index].head
        let next = head &+ 1
        submission[index].head = next == submission[index].entryCount ? 0 : next
        if let entries = unsafe submission[index].entries {
            // The tail was read before this: the entry is at least as new.
            nv_dma_rmb()
            return unsafe SubmissionEntry(at: entries + Int(head) &* 64)
        }
        let address = submission[index].address &+ UInt64(head) &* 64
        guard unsafe memory.read(address, into: scratch.base, 64) else {
            fail("submission queue \(index) is not in mapped memory")
            return nil
        }
        return unsafe SubmissionEntry(at: scratch.base)
    }

    private func handle(_ entry: SubmissionEntry, from id: UInt16) {
        if faults.concerns(.command), interfere(entry, from: id) { return }
        let outcome = id == 0 ? executeAdmin(entry) : executeIO(entry)
        if case .done(let status, let dword0) = outcome {
            complete(entry, from: id, status, dword0)
        }
    }

    // MARK: Completions

    /// Posts the completion of a command, unless a rule says otherwise.
    func complete(
        _ entry: SubmissionEntry, from id: UInt16, _ status: Status, _ dword0: UInt32
    ) {
        if !status.isSuccess {
            counters.commandsFailed &+= 1
            recordError(entry, id, status)
        }
        var record = CompletionEntry(
            dw0: dword0, dw1: 0,
            sqHead: UInt16(truncatingIfNeeded: submission[Int(id)].head), sqID: id,
            commandID: entry.commandID, statusAndPhase: status.rawValue << 1)
        if id != 0 { hasServedIO = true }
        let queue = Int(submission[Int(id)].completionQueue)
        if faults.concerns(.completion) {
            guard falsify(&record, entry, id, queue) else { return }
        }
        post(record, to: queue)
    }

    /// Writes an entry and makes it visible with its phase tag.
    func post(_ record: CompletionEntry, to index: Int, invertPhase: Bool = false) {
        guard completion[index].isActive else { return }
        if !completion[index].isDirty { beginBatch(index) }
        let tail = completion[index].tail
        var record = record
        record.statusAndPhase =
            record.statusAndPhase & ~1 | (completion[index].phase ^ (invertPhase ? 1 : 0))
        let next = tail &+ 1
        if next == completion[index].entryCount {
            completion[index].tail = 0
            completion[index].phase ^= 1
        } else {
            completion[index].tail = next
        }
        if let entries = unsafe completion[index].entries {
            let slot = unsafe entries + Int(tail) &* 16
            unsafe nv_store64(slot, record.word0)
            // Data and the first words are visible before the phase tag in the last.
            unsafe nv_store_release64(slot + 8, record.word1)
            return
        }
        var words = (record.word0, record.word1)
        let address = completion[index].address &+ UInt64(tail) &* 16
        let isWritten = unsafe withUnsafeBytes(of: &words) {
            guard let base = $0.baseAddress else { return false }
            return unsafe memory.write(address, from: base, 16)
        }
        if !isWritten { fail("completion queue \(index) is not in mapped memory") }
    }

    /// Completes held commands that are due. True when there was one.
    private func completeHeld() -> Bool {
        var worked = false
        var index = 0
        while index < held.count {
            let command = held[index]
            guard let due = command.dueNanoseconds, nowNanoseconds >= due,
                hasRoom(Int(submission[Int(command.submissionQueue)].completionQueue))
            else {
                index &+= 1
                continue
            }
            held.remove(at: index)
            execute(command)
            worked = true
        }
        return worked
    }

    /// Ends a held command whose time has come.
    private func execute(_ command: HeldCommand) {
        guard let entry = command.postponed else {
            return finish(command, Status(rawValue: command.status))
        }
        let id = command.submissionQueue
        let outcome = id == 0 ? executeAdmin(entry) : executeIO(entry)
        if case .done(let status, let dword0) = outcome {
            complete(entry, from: id, status, dword0)
        }
    }

    func finish(_ command: HeldCommand, _ status: Status) {
        var entry = SubmissionEntry(opcode: command.entry)
        entry.commandID = command.commandID
        complete(entry, from: command.submissionQueue, status, command.dword0)
    }

    /// When `pass` has to be called again even if nothing happens; nil means never.
    var nextDeadline: UInt64? {
        var next = readyAtNanoseconds
        for command in held {
            guard let due = command.dueNanoseconds else { continue }
            next = min(next ?? due, due)
        }
        return next
    }

    // MARK: Memory of queues

    /// Takes pointers to the queues' memory and doorbells anew, after anything about them has
    /// changed.
    func rebindQueues() {
        queueGeneration = memory.generation
        for index in 0..<submission.count where submission[index].isActive {
            bindSubmission(index)
        }
        for index in 0..<completion.count where completion[index].isActive {
            bindCompletion(index)
        }
    }

    private func bindSubmission(_ index: Int) {
        let bytes = Int(submission[index].entryCount) &* 64
        unsafe submission[index].entries = memory.direct(
            submission[index].address, bytes, write: false)
        let place = index &* 8
        unsafe submission[index].source = shadow(index, shadowAddress, place, write: false)
        unsafe submission[index].eventIndex = shadow(index, eventIndexAddress, place, write: true)
        if unsafe submission[index].source == nil {
            unsafe submission[index].source = doorbells.slice(place, 4).base
        }
    }

    private func bindCompletion(_ index: Int) {
        let bytes = Int(completion[index].entryCount) &* 16
        unsafe completion[index].entries = memory.direct(
            completion[index].address, bytes, write: true)
        let place = index &* 8 &+ 4
        unsafe completion[index].source = shadow(index, shadowAddress, place, write: false)
        unsafe completion[index].eventIndex = shadow(index, eventIndexAddress, place, write: true)
        if unsafe completion[index].source == nil {
            unsafe completion[index].source = doorbells.slice(place, 4).base
        }
    }

    /// Where a queue's shadow word is. The admin queue has none: hosts differ in whether they use
    /// it, but all of them ring its doorbell as long as its event index stays at the last value
    /// seen, which is where it begins.
    private func shadow(
        _ index: Int, _ base: UInt64, _ place: Int, write: Bool
    ) -> UnsafeMutableRawPointer? {
        guard index > 0, base != 0 else { return nil }
        return unsafe memory.direct(base &+ UInt64(place), 4, write: write)
    }

    // MARK: Sleep

    /// Prepares for waiting on the sockets. False when there is work after all.
    ///
    /// No wake-up is lost. For each queue the host stores its new tail, executes a full fence, then
    /// loads the event index and rings when it passes it. Here the event index is set to the last
    /// tail seen, a full fence is executed, then the tail is loaded again. Fences order both sides'
    /// store before their load, so of two concurrent updates at least one side sees the other's:
    /// either the tail is new here and we do not sleep, or the event index is new there and the
    /// host's message ends the sleep (a message that arrives between here and the wait is in the
    /// socket, and the wait returns at once). The same holds for the head of a completion queue
    /// that has no room. Interrupts that were held back are raised first, because nobody would
    /// later.
    func prepareToSleep() -> Bool {
        guard isRunning else { return true }
        settleBeforeSleep()
        armQueues()
        nv_full_fence()
        if refreshTail(0), hasRoom(0) { return false }
        for id in activeQueues {
            let index = Int(id)
            guard refreshTail(index), !submission[index].isBroken else { continue }
            if hasRoom(Int(submission[index].completionQueue)) { return false }
        }
        // A broken doorbell found just now was reported, and that report is still to be announced.
        guard dirtyCount == 0 else { return false }
        counters.sleeps &+= 1
        return true
    }

    private func armQueues() {
        for id in activeQueues {
            let index = Int(id)
            guard let eventIndex = unsafe submission[index].eventIndex else { continue }
            submission[index].armedAt = submission[index].tail
            unsafe nv_store32(eventIndex, submission[index].tail)
            armHead(Int(submission[index].completionQueue), isBlocked: false)
        }
        // Heads matter only while commands wait for room; a second turn, because queues share
        // completion queues.
        for id in activeQueues where submission[Int(id)].head != submission[Int(id)].tail {
            armHead(Int(submission[Int(id)].completionQueue), isBlocked: true)
        }
    }

    private func armHead(_ index: Int, isBlocked: Bool) {
        guard let eventIndex = unsafe completion[index].eventIndex else { return }
        let head = completion[index].head
        let behind = head == 0 ? completion[index].entryCount &- 1 : head &- 1
        unsafe nv_store32(eventIndex, isBlocked ? head : behind)
    }
}

extension SubmissionEntry {
    /// Copies an entry out of memory that the host may change meanwhile: each word is read once.
    @inline(__always)
    init(at pointer: UnsafeRawPointer) {
        let word0 = unsafe nv_load64(pointer)
        let word1 = unsafe nv_load64(pointer + 8)
        let word5 = unsafe nv_load64(pointer + 40)
        let word6 = unsafe nv_load64(pointer + 48)
        let word7 = unsafe nv_load64(pointer + 56)
        self.init(
            opcode: UInt8(truncatingIfNeeded: word0),
            namespaceID: UInt32(truncatingIfNeeded: word0 >> 32),
            prp1: unsafe nv_load64(pointer + 24), prp2: unsafe nv_load64(pointer + 32),
            cdw10: UInt32(truncatingIfNeeded: word5),
            cdw11: UInt32(truncatingIfNeeded: word5 >> 32),
            cdw12: UInt32(truncatingIfNeeded: word6),
            cdw13: UInt32(truncatingIfNeeded: word6 >> 32),
            cdw14: UInt32(truncatingIfNeeded: word7),
            cdw15: UInt32(truncatingIfNeeded: word7 >> 32))
        flags = UInt8(truncatingIfNeeded: word0 >> 8)
        commandID = UInt16(truncatingIfNeeded: word0 >> 16)
        cdw2 = UInt32(truncatingIfNeeded: word1)
        cdw3 = UInt32(truncatingIfNeeded: word1 >> 32)
        metadataPointer = unsafe nv_load64(pointer + 16)
    }
}

extension Controller {
    /// Whether work can appear without a message: there are queues whose tails are read from shared
    /// memory.
    var canBePolled: Bool {
        guard isRunning else { return false }
        if options.doorbells == .mapped { return true }
        return shadowAddress != 0 && !activeQueues.isEmpty
    }
}
