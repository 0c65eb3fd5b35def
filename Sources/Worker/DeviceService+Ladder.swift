// SPDX-License-Identifier: Apache-2.0
// The ladder of a command that does not answer, step by step; each is bounded, logged and counted.

internal import Linux
internal import NVMeDriver
internal import NVMeSpec
internal import Systemd
internal import VFIO
internal import Wire

extension DeviceService {
    /// A command that does not answer climbs a ladder: look at the queue, Abort, delete the queue,
    /// give the device up, which resets the controller and, when that does not help, the function.
    func climb(_ queue: Int, _ controller: NVMeController) {
        let engine = unsafe controller.engine(queue)
        let limit = coarseClock &- Tick.count(milliseconds: ioTimeoutMilliseconds)
        let late = unsafe engine.pointee.commandIDs(olderThan: limit)
        guard !late.isEmpty else { return aborts[queue].removeAll() }
        if unsafe engine.pointee.hasAnswer {
            // A data thread takes it as soon as it may go on.
            return queue == Self.messageQueue ? reap(queue) : aborts[queue].removeAll()
        }
        let now = MonotonicClock.nowNanoseconds
        aborts[queue] = aborts[queue].filter { late.contains($0.key) }
        for commandID in late.prefix(WorkerLimits.abortsPerQueue)
        where aborts[queue][commandID] == nil {
            abort(queue, commandID, controller, now)
        }
        if aborts[queue].values.contains(where: { $0 <= now }) {
            guard !replace(queue, controller) else { return }
            return note(
                .commandTimedOut(
                    operation: "an I/O command on queue \(queue + 1), Abort included",
                    milliseconds: Int(ioTimeoutMilliseconds)))
        }
    }

    /// Sends an Abort, unless a predecessor's is still with the controller; one that a predecessor
    /// sent has the rest of its time, not all of it again.
    private func abort(
        _ queue: Int, _ commandID: UInt16, _ controller: NVMeController, _ now: UInt64
    ) {
        let engine = unsafe controller.engine(queue)
        let bound = UInt64(controller.options.adminTimeoutMilliseconds) * 1_000_000
        let first = unsafe engine.pointee.abortedSince(commandID, nowNanoseconds: now) ?? now
        aborts[queue][commandID] = first &+ bound
        guard first &+ bound > now, unsafe !engine.pointee.isBeingAborted(commandID) else {
            return
        }
        counters.aborts += 1
        unsafe engine.pointee.keepAbort(commandID, nowNanoseconds: now)
        log.warning(
            "command \(commandID) has not been answered for \(ioTimeoutMilliseconds) ms: aborting",
            id: .commandTimedOut, queue: UInt16(clamping: queue + 1))
        do throws(DriverError) {
            try controller.abort(queue: queue, commandID: commandID)
        } catch {
            // Of a full admin queue: the bound counts from here all the same.
            note(error)
        }
    }

    // MARK: The queue

    /// Deletes a queue with what is lost in it, and makes it anew; the controller, the other queues
    /// and all sessions go on. False when that cannot be done, or was done too often: the
    /// controller is next.
    private func replace(_ queue: Int, _ controller: NVMeController) -> Bool {
        let engine = unsafe controller.engine(queue)
        // A controller that leaves Aborts unanswered is in no state to delete queues; those of data
        // threads are theirs.
        guard queue == Self.messageQueue, unsafe !engine.pointee.hasAbortsUnderWay,
            queueReplacements < WorkerLimits.queueReplacements
        else { return false }
        queueReplacements += 1
        counters.queueDeletions += 1
        let name = UInt16(clamping: queue + 1)
        log.error(
            "Abort did not help against commands without an answer: deleting the queue",
            id: .commandTimedOut, queue: name)
        defer { afterAdminCommand() }
        do throws(DriverError) {
            try controller.deleteSubmissionQueue(queue)
            CrashPoint.hit(.queueDeleted)
            guard endCommands(queue, controller) else { return false }
            try controller.replaceQueue(queue)
            CrashPoint.hit(.queueRecreated)
        } catch {
            log.warning("the queue could not be replaced: \(error); resetting", queue: name)
            return false
        }
        aborts[queue].removeAll()
        suspects[queue] = nil
        log.notice("the queue was made anew", id: .abortEnded, queue: name)
        drainProgressed()
        resumeNext(queue)
        return true
    }

    /// Delivers what a deleted queue was answered before its end, then ends the rest. False when
    /// the answers cannot be right.
    private func endCommands(_ queue: Int, _ controller: NVMeController) -> Bool {
        let engine = unsafe controller.engine(queue)
        let release = { (completion: IOCompletion) in
            unsafe engine.pointee.releasePages(
                first: Int(completion.firstPage), count: Int(completion.pageCount))
        }
        // The queue takes nothing new, so that this ends with what is there.
        while true {
            let count = unsafe engine.pointee.reap(
                into: completions, capacity: WorkerLimits.completionsPerReap)
            for index in 0..<count {
                let completion = unsafe completions[index]
                complete(completion, failure: nil, queue: queue)
                release(completion)
            }
            guard count > 0 else { break }
        }
        guard unsafe engine.pointee.fault == .none else { return false }
        let lost = WireError(
            .outcomeUnknown,
            "no answer within \(ioTimeoutMilliseconds) ms, and Abort did not help: the queue was "
                + "deleted, and what the command was to do may have been done", device: name)
        var ended: [IOCompletion] = []
        unsafe engine.pointee.endUnanswered(status: Status.abortedQueueDeletion.rawValue) {
            ended.append($0)
        }
        for completion in ended {
            complete(completion, failure: lost, queue: queue)
            release(completion)
        }
        return true
    }

    // MARK: The function

    /// The function has to be reset before it is used again. On record: whoever has to do it may be
    /// a successor.
    var needsFunctionReset: Bool {
        get { withState { $0.functionResetIsDue } ?? false }
        set { withState { $0.setFunctionReset(isDue: newValue) } }
    }

    /// After a controller that did not confirm its reset, or whose function has reported an error:
    /// the function is reset at once where that is possible with the device open, and otherwise
    /// when it is opened next.
    func resetFunction(_ controller: NVMeController, _ reason: String) {
        needsFunctionReset = true
        if controller.resetFunction() {
            needsFunctionReset = false
            counters.functionResets += 1
            log.warning("\(reason): the function was reset", id: .controllerFailed)
        } else {
            log.warning(
                "\(reason): the function is reset before it is used again", id: .controllerFailed)
        }
    }
}
