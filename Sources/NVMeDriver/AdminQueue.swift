// SPDX-License-Identifier: Apache-2.0
// The admin queue pair: commands with an answer that is waited for, and those whose answer comes
// some day.

internal import CMemory
internal import Linux
internal import NVMeSpec
internal import VFIO

/// An admin command that ended without anybody waiting for it.
struct AdminAnswer {
    var opcode: UInt8
    /// What the asker called it.
    var token: UInt64
    var status: Status
    var result: UInt32
}

/// The admin queue of a controller. Every wait is bounded.
@safe
struct AdminQueue: ~Copyable {
    /// Tokens of commands that somebody waits for have this bit.
    static let waitedFor: UInt64 = 1 << 63
    /// How long a wait lasts at most before the completion queue is looked at again: what a lost
    /// interrupt costs.
    private static let pollMilliseconds = 10
    /// Answers that nobody took yet; more than the queue has slots cannot be.
    private static let maxAnswers = 64

    var queue: QueuePair
    let interrupt: EventFD
    private(set) var answers: [AdminAnswer] = []
    private var nextToken: UInt64
    /// The command that is waited for; 0: none.
    private var awaited: UInt64 = 0
    /// Commands that somebody waited for who gave up, or died: they may still write to the page
    /// that the next one gets.
    private(set) var abandoned: Set<UInt64> = []
    /// Slots of commands that the device never saw and got another command for.
    var replaced: Set<UInt32> = []
    /// Where events are written down before the head passes their entries.
    private let log: TwinRecord
    /// Bits of `PendingEvents`: those that nobody was told of, and those that were told in the
    /// turn that has not ended.
    private(set) var pending: UInt64
    private var reported: UInt64 = 0

    /// `generation` tells the commands of this process from those of its predecessors; `pending`
    /// is what these left in `log`.
    init(
        queue: consuming QueuePair, interrupt: consuming EventFD, log: TwinRecord,
        pending: UInt64 = 0, generation: UInt64
    ) {
        self.queue = queue
        self.interrupt = interrupt
        self.log = log
        self.pending = pending
        nextToken = (generation & 0x3FFF_FFFF) << 32 | 1
        for index in 0..<self.queue.slotCount {
            let slot = unsafe self.queue.slots + Int(index) * 64
            guard unsafe nv_load64(slot + 56) & 3 == SlotState.staged else { continue }
            let token = unsafe CommandSlot(at: slot).token
            if token & Self.waitedFor != 0 { abandoned.insert(token) }
        }
    }

    /// Submits a command and does not wait. Throws `exhausted` when no slot is free.
    mutating func post(
        _ entry: SubmissionEntry, token: UInt64, device: any DeviceBacking
    ) throws(DriverError) {
        guard let slot = queue.nextFreeSlot() else {
            throw .exhausted("all \(queue.slotCount) admin commands are in use")
        }
        var command = CommandSlot()
        command.opcode = entry.opcode
        command.namespaceID = entry.namespaceID
        command.token = token
        // What an adopter needs to know of an admin command besides: its dwords 10 and 11.
        command.lba = UInt64(entry.cdw10) | UInt64(entry.cdw11) << 32
        queue.push(
            slot, command, prp1: entry.prp1, prp2: entry.prp2,
            dword10And11: UInt64(entry.cdw10) | UInt64(entry.cdw11) << 32,
            dword12And13: UInt64(entry.cdw12) | UInt64(entry.cdw13) << 32)
        queue.setLastDwords14And15(UInt64(entry.cdw14) | UInt64(entry.cdw15) << 32)
        keepAges()
        queue.ring()
        try queue.writePendingDoorbells(device)
    }

    /// Submits a command and waits for its answer. Answers to other commands are kept for
    /// `takeAnswers`.
    mutating func execute(
        _ entry: SubmissionEntry, operation: String, device: any DeviceBacking,
        timeoutMilliseconds: Int
    ) throws(DriverError) -> UInt32 {
        let token = nextToken | Self.waitedFor
        nextToken &+= 1
        let deadline =
            MonotonicClock.nowNanoseconds &+ UInt64(clamping: timeoutMilliseconds) &* 1_000_000
        var look = Look()
        awaited = token
        defer { awaited = 0 }
        try post(entry, token: token, device: device)
        abandoned.insert(token)
        while true {
            try collect(device)
            if let index = answers.firstIndex(where: { $0.token == token }) {
                let answer = answers.remove(at: index)
                guard answer.status.isSuccess else {
                    throw .command(operation: operation, status: answer.status)
                }
                return answer.result
            }
            try look.ifDue(device, operation)
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw .commandTimedOut(operation: operation, milliseconds: timeoutMilliseconds)
            }
            try wait(device)
        }
    }

    /// Writes down since when commands are in flight: whoever follows waits for the rest of their
    /// time, and not for all of it again.
    func keepAges() {
        queue.keepInheritedAges(
            nowMilliseconds: CommandAges.milliseconds(MonotonicClock.nowNanoseconds))
    }

    /// Takes answers off the completion queue.
    mutating func collect(_ device: any DeviceBacking) throws(DriverError) {
        var count = 0
        while count < Self.maxAnswers, answers.count < Self.maxAnswers, let answer = queue.next() {
            let command = unsafe CommandSlot(at: queue.slots + Int(answer.slot) * 64)
            queue.setCompleting(answer, position: 0)
            count += 1
            guard command.request != CommandSlot.probeRequest else { continue }
            // The answer is not the one to its command.
            let isOther = replaced.remove(answer.slot) != nil
            take(
                AdminAnswer(
                    opcode: command.opcode, token: command.token,
                    status: isOther ? .abortRequested : Status(rawValue: answer.status),
                    result: answer.result))
        }
        queue.retire()
        try queue.writePendingDoorbells(device)
        guard queue.fault == .none else {
            throw .queueFault(queue: 0, fault: queue.fault, entry: queue.faultyEntry)
        }
    }

    /// Takes the answers that a predecessor had taken and not passed; `collect` gives them back.
    mutating func takeRecovered() {
        var found: [AdminAnswer] = []
        queue.forEachCompleting { slot, command, status, _ in
            guard command.request != CommandSlot.probeRequest else { return }
            found.append(
                AdminAnswer(
                    opcode: command.opcode, token: command.token,
                    status: Status(rawValue: status), result: queue.resultOfTaken(slot)))
        }
        for answer in found { take(answer) }
    }

    /// Keeps an answer for its taker, before the head passes it.
    private mutating func take(_ answer: AdminAnswer) {
        if answer.token & Self.waitedFor != 0 {
            abandoned.remove(answer.token)
            // One that comes too late for the one who waited has no taker.
            guard answer.token == awaited else { return }
        } else if answer.token == AdminToken.event, answer.status.isSuccess {
            pending = PendingEvents.adding(
                AsynchronousEvent(rawValue: answer.result), to: pending)
            log.write([pending | reported])
            CrashPoint.hit(.eventStored)
        }
        answers.append(answer)
    }

    /// Takes the answers that nobody waits for.
    mutating func takeAnswers() -> [AdminAnswer] {
        let taken = answers.filter { $0.token & Self.waitedFor == 0 }
        answers.removeAll()
        return taken
    }

    // MARK: Events

    /// The events are told now; they are pending until `endTurn`.
    mutating func reportEvents() {
        reported |= pending
        pending = 0
    }

    /// What was told was acted upon.
    mutating func endTurn() {
        guard reported != 0 else { return }
        reported = 0
        log.write([pending])
    }

    /// Waits until the commands are answered that nobody waits for any more, but might have: none
    /// longer than `timeoutMilliseconds` from when it was sent, by whomever.
    mutating func settle(
        _ operation: String, device: any DeviceBacking, timeoutMilliseconds: Int
    ) throws(DriverError) {
        let deadline =
            MonotonicClock.nowNanoseconds &+ UInt64(clamping: timeoutMilliseconds) &* 1_000_000
        var look = Look()
        while true {
            try collect(device)
            if abandoned.isEmpty { return }
            try look.ifDue(device, operation)
            let now = MonotonicClock.nowNanoseconds
            let age = queue.oldestAge(nowMilliseconds: CommandAges.milliseconds(now)) {
                abandoned.contains($0.token)
            }
            guard now < deadline, age < timeoutMilliseconds else {
                throw .commandTimedOut(
                    operation: "\(operation), behind a command that is not answered",
                    milliseconds: timeoutMilliseconds)
            }
            try wait(device)
        }
    }

    private func wait(_ device: any DeviceBacking) throws(DriverError) {
        do throws(VFIOError) {
            try device.wait(interrupt: interrupt.fd.raw, milliseconds: Self.pollMilliseconds)
        } catch { throw .device(error) }
        _ = try? interrupt.drain()
    }
}

/// Events that were told and not acted upon, as one number of the state area: which kinds, and what
/// the last of a kind was.
enum PendingEvents {
    static let namespaces: UInt64 = 1
    static let health: UInt64 = 2
    static let other: UInt64 = 4
    /// Nobody can tell which.
    static let all: UInt64 = 7
    private static let healthShift: UInt64 = 16
    private static let otherShift: UInt64 = 40

    static func adding(_ event: AsynchronousEvent, to bits: UInt64) -> UInt64 {
        // An answer of which only its status was written down.
        guard event.rawValue != 0 else { return bits | all }
        let value = UInt64(event.rawValue & 0xFF_FFFF)
        if event == .namespaceAttributeChanged { return bits | namespaces }
        let (kind, shift) = event.type == .smart ? (health, healthShift) : (other, otherShift)
        return bits & ~(0xFF_FFFF << shift) | kind | value << shift
    }

    /// The events of a number.
    static func events(_ bits: UInt64) -> [AsynchronousEvent] {
        var events: [AsynchronousEvent] = []
        if bits & namespaces != 0 { events.append(.namespaceAttributeChanged) }
        if bits & health != 0 {
            let value = UInt32(truncatingIfNeeded: bits >> healthShift & 0xFF_FFFF)
            let event = AsynchronousEvent(rawValue: value)
            events.append(event.type == .smart ? event : smart)
        }
        if bits & other != 0 {
            let value = UInt32(truncatingIfNeeded: bits >> otherShift & 0xFF_FFFF)
            events.append(AsynchronousEvent(rawValue: value == 0 ? error : value))
        }
        return events
    }

    /// SMART / health (01h) with its log page (02h); error (00h) with its own (01h).
    private static let smart = AsynchronousEvent(rawValue: 0x02_0001)
    private static let error: UInt32 = 0x01_0000
}

/// Looks at CSTS now and then during a wait: a controller that has failed or is gone does not
/// answer, and waiting for the end of the timeout would keep everybody from knowing.
struct Look {
    /// An answer usually comes before the first look, which then costs nothing.
    private static let intervalNanoseconds: UInt64 = 10_000_000
    private var next = MonotonicClock.nowNanoseconds &+ intervalNanoseconds

    /// Throws when the controller will not answer any more.
    mutating func ifDue(_ device: any DeviceBacking, _ operation: String) throws(DriverError) {
        let now = MonotonicClock.nowNanoseconds
        guard now >= next else { return }
        next = now &+ Self.intervalNanoseconds
        try device.checkStatus(during: operation)
    }
}

extension QueuePair {
    /// Writes the doorbells that `ring` and `retire` could not write as memory.
    mutating func writePendingDoorbells(_ device: any DeviceBacking) throws(DriverError) {
        guard pendingDoorbells != 0 else { return }
        let pending = pendingDoorbells
        pendingDoorbells = 0
        do throws(VFIOError) {
            if pending & Self.submissionDoorbellPending != 0 {
                try device.writeDoorbell(
                    offset: submissionDoorbellOffset, value: committedPositions.tail)
                logDoorbell()
            }
            if pending & Self.completionDoorbellPending != 0 {
                try device.writeDoorbell(
                    offset: completionDoorbellOffset, value: committedPositions.head)
            }
        } catch { throw .device(error) }
    }
}
