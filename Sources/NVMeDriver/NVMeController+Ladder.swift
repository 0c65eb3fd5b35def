// SPDX-License-Identifier: Apache-2.0
// What a queue with a lost command costs: the queue, not the controller (NVM Express Base
// Specification 2.0, 5.4 to 5.7 and 3.3.3).

internal import CMemory
internal import DMA
internal import NVMeSpec

extension NVMeController {
    /// The bound on each admin command of a replacement: the caller's thread waits for it, and a
    /// controller that still works answers at once. (A watchdog's patience is longer than four.)
    private static let replacementMilliseconds = 2_000

    /// Has the controller end everything of an I/O queue: when this returns, each of its commands
    /// was answered or never will be, and none touches memory any more. The queue takes nothing
    /// from then on; `endUnanswered` and `replaceQueue` follow.
    public func deleteSubmissionQueue(_ index: Int) throws(DriverError) {
        let engine = unsafe engine(index)
        unsafe engine.pointee.close()
        _ = try execute(
            .deleteIOSubmissionQueue(queueID: UInt16(index + 1)),
            "Delete I/O Submission Queue \(index + 1)",
            timeoutMilliseconds: min(
                Self.replacementMilliseconds, options.adminTimeoutMilliseconds))
    }

    /// Deletes the completion queue of a queue whose submission queue was deleted, and makes both
    /// anew, empty.
    public func replaceQueue(_ index: Int) throws(DriverError) {
        let bound = min(Self.replacementMilliseconds, options.adminTimeoutMilliseconds)
        unsafe engine(index).pointee.forgetEnded()
        _ = try execute(
            .deleteIOCompletionQueue(queueID: UInt16(index + 1)),
            "Delete I/O Completion Queue \(index + 1)", timeoutMilliseconds: bound)
        clearQueueMemory(index + 1)
        CrashPoint.hit(.queueDeleted)
        let pair = try createIOQueue(index + 1, timeoutMilliseconds: bound)
        CrashPoint.hit(.queueRecreated)
        unsafe engine(index).pointee.replaceQueue(pair)
    }

    /// A new queue begins with the phase that an old entry may have, and with doorbells of 0.
    private func clearQueueMemory(_ queueID: Int) {
        guard let part = plan?.queues[queueID],
            let completion = unsafe pool?.deviceWritesAddress(part.completion)
        else { return }
        for word in 0..<(Int(part.entries) * 2) { unsafe nv_store64(completion + word * 8, 0) }
        guard hasShadowDoorbells, let shadow = shadowDoorbells(queueID) else { return }
        unsafe nv_store32(shadow.submissionTail, 0)
        unsafe nv_store32(shadow.submissionEventIndex, 0)
        unsafe nv_store32(shadow.completionHead, 0)
        unsafe nv_store32(shadow.completionEventIndex, 0)
    }
}

extension Engine {
    /// Takes no more requests, and issues no more commands, until the queue is replaced.
    mutating func close() { queue.close() }

    /// Whether an Abort that names a command of this queue has not been answered: it would hit
    /// whatever gets that id in a new queue.
    public var hasAbortsUnderWay: Bool { queue.isHolding }

    /// Ends what the controller has not answered and never will: each request once, with `status`.
    /// What it did answer must have been taken with `reap`; the pages of both are the caller's to
    /// release. Their ends are on record before anybody is told, and stay there until
    /// `replaceQueue`: who dies in between leaves them to a successor.
    public mutating func endUnanswered(status: UInt16, _ deliver: (IOCompletion) -> Void) {
        var ended: [IOCompletion] = []
        var completion = IOCompletion()
        for index in 0..<RequestRecords.capacity {
            let record = requests.load(index)
            guard record.state == RequestRecords.stateActive else { continue }
            unsafe Self.fill(&completion, record.command, status)
            ended.append(completion)
        }
        var bounced: [CommandSlot] = []
        queue.forEachStaged { command in
            if command.request == CommandSlot.noRequest {
                unsafe Self.fill(&completion, command, status)
                ended.append(completion)
            } else if command.pageCount > 0 {
                bounced.append(command)
            }
        }
        queue.answerStaged(status)
        for command in bounced {
            releasePages(first: Int(command.firstPage), count: Int(command.pageCount))
        }
        for completion in ended { deliver(completion) }
    }

    /// Forgets what was ended, when everybody has been told.
    mutating func forgetEnded() {
        queue.forgetAll()
        requests.forgetAll()
    }

    mutating func replaceQueue(_ pair: consuming QueuePair) {
        let tick = queue.tick
        queue = pair
        queue.tick = tick
    }
}

extension QueuePair {
    /// Whether ids are held for Aborts.
    var isHolding: Bool { heldCount > (isProbe(slotCount) ? 1 : 0) }

    /// Every command that the device has not answered.
    func forEachStaged(_ body: (CommandSlot) -> Void) {
        for index in 0..<slotCount {
            let slot = unsafe slots + Int(index) * 64
            guard unsafe nv_load64(slot + 56) & SlotState.mask == SlotState.staged else { continue }
            body(unsafe CommandSlot(at: slot))
        }
    }
}
