// SPDX-License-Identifier: Apache-2.0
// Cancel: a request that a client gives up on is aborted at the device.

internal import Linux
internal import NVMeDriver
internal import Wire

/// A Cancel that waits for the ends of its Aborts.
struct PendingCancel {
    let session: Session
    /// The request id of the Cancel itself.
    let id: UInt64
    let queue: Int
    /// Command ids whose Abort has not ended.
    var waiting: Set<UInt16>
    /// Whether the controller aborted any of them.
    var aborted = false
    /// Where it is on record that its answer is owed.
    let place: Int?
    /// CLOCK_MONOTONIC: an Abort that is not answered by then fails the device, as one of the
    /// time-out ladder does.
    let deadlineNanoseconds: UInt64
}

extension DeviceService {
    /// Aborts the commands of a request. False when there is nothing to abort: the request was
    /// answered, was never seen, or as many Aborts are out as the controller
    /// takes; it then runs on.
    ///
    /// `place` is where a predecessor put on record that the answer is owed.
    func cancel(_ session: Session, _ id: UInt64, _ target: UInt64, place: Int? = nil) -> Bool {
        guard let controller = usableController, session.pending[target] != nil,
            cancels.count < WorkerLimits.abortsPerQueue
        else { return false }
        let engine = unsafe controller.engine(session.queue)
        let commands = unsafe engine.pointee.commandIDs(
            session: session.key, token: target)
        var waiting: Set<UInt16> = []
        for commandID in commands.prefix(WorkerLimits.abortsPerQueue) {
            do throws(DriverError) {
                try controller.abort(queue: session.queue, commandID: commandID)
                counters.aborts += 1
                waiting.insert(commandID)
            } catch .exhausted {
                // The admin queue is full: what was aborted so far counts.
                break
            } catch {
                note(error)
                break
            }
        }
        guard !waiting.isEmpty else { return false }
        session.pending[target]?.isCancelled = true
        // Its message is not on the socket when the answer comes.
        let place = place ?? owe(.cancel, session, id) { $0.argument = target }
        unsafe engine.pointee.stopIssuing(session: session.key, token: target)
        let bound = UInt64(controller.options.adminTimeoutMilliseconds) * 1_000_000
        cancels.append(
            PendingCancel(
                session: session, id: id, queue: session.queue, waiting: waiting,
                place: place,
                deadlineNanoseconds: MonotonicClock.nowNanoseconds &+ bound))
        armTick()
        return true
    }

    /// Fails the device when it has not answered an Abort in time. Called with every tick.
    func checkCancels() {
        let now = MonotonicClock.nowNanoseconds
        guard let controller, cancels.contains(where: { $0.deadlineNanoseconds <= now }) else {
            return
        }
        note(
            .commandTimedOut(
                operation: "Abort", milliseconds: controller.options.adminTimeoutMilliseconds))
    }

    /// An Abort has ended: the Cancel that waited for it may be answered.
    func finishCancel(_ queue: Int, _ commandID: UInt16, _ aborted: Bool) {
        guard
            let index = cancels.firstIndex(where: {
                $0.queue == queue && $0.waiting.contains(commandID)
            })
        else { return }
        cancels[index].waiting.remove(commandID)
        cancels[index].aborted = cancels[index].aborted || aborted
        guard cancels[index].waiting.isEmpty else { return }
        let cancel = cancels.remove(at: index)
        unsafe cancel.session.client?.send(
            reply: .cancelled(cancel.aborted), to: cancel.id, payload: Self.noPayload)
        paid(cancel.session, cancel.place)
    }
}
