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
    private static let waitedFor: UInt64 = 1 << 63
    /// How long a wait lasts at most before the completion queue is looked at again: what a lost
    /// interrupt costs.
    private static let pollMilliseconds = 10
    /// Answers that nobody took yet; more than the queue has slots cannot be.
    private static let maxAnswers = 64

    var queue: QueuePair
    let interrupt: EventFD
    private var nextToken: UInt64 = 1
    private(set) var answers: [AdminAnswer] = []

    init(queue: consuming QueuePair, interrupt: consuming EventFD) {
        self.queue = queue
        self.interrupt = interrupt
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
        try post(entry, token: token, device: device)
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
            do throws(VFIOError) {
                try device.wait(interrupt: interrupt.fd.raw, milliseconds: Self.pollMilliseconds)
            } catch { throw .device(error) }
            _ = try? interrupt.drain()
        }
    }

    /// Takes answers off the completion queue.
    mutating func collect(_ device: any DeviceBacking) throws(DriverError) {
        var count = 0
        while count < Self.maxAnswers, answers.count < Self.maxAnswers, let answer = queue.next() {
            let command = unsafe CommandSlot(at: queue.slots + Int(answer.slot) * 64)
            queue.setCompleting(answer, position: 0)
            count += 1
            guard command.request != CommandSlot.probeRequest else { continue }
            // An answer that came too late for the one who waited has no taker.
            answers.append(
                AdminAnswer(
                    opcode: command.opcode, token: command.token,
                    status: Status(rawValue: answer.status), result: answer.result))
        }
        queue.retire()
        try queue.writePendingDoorbells(device)
        guard queue.fault == .none else {
            throw .queueFault(queue: 0, fault: queue.fault, entry: queue.faultyEntry)
        }
    }

    /// Takes the answers that nobody waits for.
    mutating func takeAnswers() -> [AdminAnswer] {
        let taken = answers.filter { $0.token & Self.waitedFor == 0 }
        answers.removeAll()
        return taken
    }
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
            }
            if pending & Self.completionDoorbellPending != 0 {
                try device.writeDoorbell(
                    offset: completionDoorbellOffset, value: committedPositions.head)
            }
        } catch { throw .device(error) }
    }
}
