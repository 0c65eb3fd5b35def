// SPDX-License-Identifier: Apache-2.0
// The way up: completions are taken, delivered, and their slots given back.

internal import Linux
internal import NVMeDriver
internal import NVMeSpec
internal import Systemd
internal import Wire

extension DeviceService {
    /// Takes what a queue has, as far as one turn goes.
    func reap(_ queue: Int) {
        guard let controller, failure == nil, !isQuiet, queue < controller.queueCount else {
            return
        }
        let engine = unsafe controller.engine(queue)
        // Commands of large requests go out from here too, and are stamped with this clock.
        unsafe engine.pointee.tick = coarseClock
        var rounds = 0
        var total = 0
        while rounds < WorkerLimits.reapsPerTurn {
            rounds += 1
            let count = unsafe engine.pointee.reap(
                into: completions, capacity: WorkerLimits.completionsPerReap)
            // Before anybody hears of it.
            if count > 0, !isFruitful { noteFruit(controller) }
            for index in 0..<count {
                unsafe complete(completions[index], failure: nil, queue: queue)
            }
            unsafe engine.pointee.retire()
            for index in 0..<count {
                let completion = unsafe completions[index]
                unsafe engine.pointee.releasePages(
                    first: Int(completion.firstPage), count: Int(completion.pageCount))
            }
            writeDoorbells(queue, controller)
            endFaultedSessions()
            total += count
            let fault = unsafe engine.pointee.fault
            if fault != .none {
                return note(
                    .queueFault(
                        queue: UInt16(clamping: queue + 1), fault: fault,
                        entry: unsafe engine.pointee.faultyEntry))
            }
            // Looked at once more after the slots were given back, so that nothing is left behind
            // unseen.
            guard unsafe engine.pointee.hasAnswer else { break }
        }
        if unsafe engine.pointee.hasAnswer { soon { [weak self] in self?.reap(queue) } }
        if total > 0 {
            countMessageQueue(controller)
            drainProgressed()
        }
        resumeNext(queue)
    }

    /// Delivers one completion. With `failure` the request ends with that, whatever the status.
    func complete(_ completion: IOCompletion, failure: WireError?, queue: Int) {
        // Those of rings end with their sessions.
        guard completion.ring == 0 else { return }
        requestsInFlight = max(0, requestsInFlight - 1)
        guard let session = session(completion.session),
            var pending = session.pending[completion.token]
        else {
            if dyingSessions > 0 { scheduleSettling() }
            return
        }
        if completion.isBounced { session.statistics?.add(.bounced) }
        pending.status = completion.status
        var payload: UnsafeRawBufferPointer?
        if pending.isInlineRead, pending.status == 0, let controller,
            let address = unsafe controller.engine(queue).pointee.pageAddress(
                Int(completion.firstPage))
        {
            unsafe payload = UnsafeRawBufferPointer(start: address, count: pending.byteCount)
        }
        unsafe finishRequest(
            session, completion.token, pending, payload: payload, failure: failure)
        if session.hasEnded, session.pending.isEmpty { scheduleSettling() }
        letGoOn(session)
    }

    /// A session that waited for an end of its own requests goes on.
    private func letGoOn(_ session: Session) {
        if session.waits == .own, !session.hasEnded { resume(session) }
    }

    /// Answers a request that has ended.
    func finishRequest(
        _ session: Session, _ id: UInt64, _ pending: PendingRequest,
        payload: UnsafeRawBufferPointer?, failure: WireError?
    ) {
        session.pending[id] = nil
        if pending.isInlineRead { session.inlineReadBytes -= pending.byteCount }
        let failed = failure != nil || pending.status != 0
        count(session, pending, failed: failed)
        session.statistics?.completed(
            operation: pending.operation, age: Tick.now &- pending.startTick, failed: failed)
        if let client = session.client, !session.hasEnded {
            let error = failure ?? statusError(session, pending)
            if let error {
                client.send(error: error, to: id)
            } else if pending.operation == IOOperation.read {
                unsafe client.send(
                    reply: .read, to: id, payload: payload ?? .init(start: nil, count: 0))
            } else {
                unsafe client.send(reply: .done, to: id, payload: .init(start: nil, count: 0))
            }
            // With the slot, which is freed next, this process would be all that knows of it.
            if client.queuedUntil != nil { oweCompletion(session, id, pending, error) }
            CrashPoint.hit(.replySent)
        }
        if let regionID = pending.regionID { releaseRegion(session, regionID) }
    }

    /// What a status other than success means to a session; nil for success.
    private func statusError(_ session: Session, _ pending: PendingRequest) -> WireError? {
        guard pending.status != 0 else { return nil }
        var error = CommandStatus.error(
            pending.status, device: name, disk: session.opening.disk)
        // Aborted by this worker's own ladder: the client cancelled nothing, and its effect may
        // have happened.
        if error.code == .cancelled, !pending.isCancelled { error.code = .outcomeUnknown }
        if error.code == .mediaError { tellMediaError(session, pending, error) }
        return error
    }

    /// Puts the end of a request on record, whose answer the socket had no room for. Data is not
    /// kept: until a read is answered, it may as well be read later.
    private func oweCompletion(
        _ session: Session, _ id: UInt64, _ pending: PendingRequest, _ error: WireError?
    ) {
        let place = owe(.completion, session, id) { record in
            record.opcode = pending.operation
            record.status = pending.status
            record.code = UInt16(truncatingIfNeeded: error?.code.rawValue ?? 0)
            guard pending.isInlineRead, error == nil else { return }
            record.argument = pending.lba
            record.firstPage = pending.blockCount
        }
        CrashPoint.hit(.replyOwed)
        paid(session, place)
    }

    private func count(_ session: Session, _ pending: PendingRequest, failed: Bool) {
        defer { controller?.state.setSessionCounters(session.slot, session.keptCounters) }
        if failed { session.counters.errors += 1 }
        let byteCount = failed ? 0 : UInt64(pending.byteCount)
        switch pending.operation {
        case IOOperation.read:
            session.counters.reads += 1
            session.counters.readBytes &+= byteCount
        case IOOperation.write:
            session.counters.writes += 1
            session.counters.writtenBytes &+= byteCount
        default: session.counters.others += 1
        }
    }

    // MARK: The tick

    private var tickMilliseconds: UInt32 {
        min(WorkerLimits.tickMilliseconds, max(ioTimeoutMilliseconds / 4, 5))
    }

    /// Looks after what is with the device as long as something is.
    func armTick() {
        guard !tickIsArmed, !isQuiet, requestsInFlight > 0 || !cancels.isEmpty || !overdue.isEmpty
        else {
            return
        }
        if tickTimer == nil {
            tickTimer = try? loop.timer { [weak self] in self?.tick() }
        }
        tickIsArmed = tickTimer != nil
        tickTimer?.arm(after: UInt64(tickMilliseconds) * 1_000_000)
    }

    private func tick() {
        tickIsArmed = false
        guard let controller, failure == nil, !isQuiet else { return }
        // First of all: a device that is gone or has failed needs no ladder.
        if requestsInFlight > 0 || !overdue.isEmpty { checkHealth(controller) }
        guard failure == nil else { return }
        lookForLostInterrupt(Self.messageQueue, controller)
        climb(Self.messageQueue, controller)
        for queue in overdue {
            exclusively(queue) { climb(queue, controller) }
            if failure == nil, aborts[queue].isEmpty { overdue.remove(queue) }
        }
        checkCancels()
        armTick()
    }

    /// An answer without an interrupt is only suspected at first: a device that holds interrupts
    /// back for some microseconds is in its right, so the accusation waits for a second look.
    private func lookForLostInterrupt(_ queue: Int, _ controller: NVMeController) {
        guard unsafe controller.engine(queue).pointee.hasAnswer else { return }
        suspects[queue] = unsafe controller.engine(queue).pointee.completed
        if suspectTimer == nil {
            suspectTimer = try? loop.timer(priority: .low) { [weak self] in self?.judgeSuspects() }
        }
        suspectTimer?.arm(after: WorkerLimits.interruptPatienceNanoseconds)
    }

    private func judgeSuspects() {
        let suspects = suspects
        self.suspects = [:]
        for (queue, completed) in suspects {
            guard let controller = usableController, queue < controller.queueCount,
                unsafe controller.engine(queue).pointee.hasAnswer,
                unsafe controller.engine(queue).pointee.completed == completed
            else { continue }
            counters.missedInterrupts += 1
            accuse(queue)
            reap(queue)
        }
    }

    /// The answer is taken; whether its interrupt was lost or only late, on a machine that is short
    /// of processors, the next while tells: one that is late still comes.
    private func accuse(_ queue: Int) {
        guard accused[queue] == nil, interruptCounts.indices.contains(queue) else { return }
        accused[queue] = interruptCounts[queue]
        guard accused.count == 1 else { return }
        if accusationTimer == nil {
            accusationTimer = try? loop.timer(priority: .low) { [weak self] in self?.judge() }
        }
        accusationTimer?.arm(after: WorkerLimits.lateInterruptNanoseconds)
    }

    private func judge() {
        let accused = accused
        self.accused = [:]
        for (queue, count) in accused.sorted(by: { $0.key < $1.key })
        where interruptCounts.indices.contains(queue) && interruptCounts[queue] == count {
            log.warning(
                "a completion came without an interrupt, and none came later; continuing",
                id: .missedInterrupt, queue: UInt16(clamping: queue + 1))
        }
    }

    /// CSTS, when nothing has been heard of the device for a while.
    private func checkHealth(_ controller: NVMeController) {
        let limit = coarseClock &- Tick.count(milliseconds: min(1000, ioTimeoutMilliseconds))
        var isQuiet = false
        for queue in overdue.union([Self.messageQueue]) {
            exclusively(queue) {
                let engine = unsafe controller.engine(queue)
                isQuiet = unsafe isQuiet || !engine.pointee.commandIDs(olderThan: limit).isEmpty
            }
        }
        guard isQuiet, failure == nil else { return }
        do throws(DriverError) {
            try controller.checkStatus()
        } catch {
            note(error)
        }
    }

    private func tellMediaError(
        _ session: Session, _ pending: PendingRequest, _ error: WireError
    ) {
        log.error(
            "session \(session.opening.sessionID) of disk \(session.opening.disk): a request of "
                + "\(pending.byteCount) bytes failed: \(error.message)", id: .mediaError,
            namespace: session.opening.nsid)
    }

    // MARK: Admin events

    /// An admin command waits by reading the eventfd, so that interrupts may have been swallowed:
    /// everything is looked at.
    func afterAdminCommand() {
        soon { [weak self] in
            guard let self, usableController != nil, !isQuiet else { return }
            takeAdminEvents()
            reap(Self.messageQueue)
            // Where a data queue shares the admin queue's interrupt.
            for thread in threads { thread.wake() }
        }
    }

    /// Takes what the controller has said unasked.
    func takeAdminEvents() {
        guard let controller, failure == nil, !isQuiet else { return }
        do throws(DriverError) {
            let events = try controller.pollAdmin()
            for event in events { act(on: event, controller) }
            if !events.isEmpty { afterAdminCommand() }
        } catch {
            note(error)
            if !error.isFatal { log.warning("an event was not understood: \(error); ignoring") }
        }
    }

    func act(on event: AdminEvent, _ controller: NVMeController) {
        switch event {
        case .namespacesChanged: refreshNamespaces(controller)
        case .health(let event): healthEvent(event, controller)
        case .healthRead: tellHealth(controller)
        case .other(let event):
            log.notice("the controller reports: \(event)", id: .controllerEvent)
        case .abortFinished(let queue, let commandID, let aborted):
            log.notice(
                "Abort of command \(commandID): \(aborted ? "aborted" : "not aborted")",
                id: .abortEnded, queue: UInt16(clamping: queue + 1))
            finishCancel(queue, commandID, aborted)
        case .failed(let error): note(error)
        case .eventsEnded(let status):
            log.warning(
                "the controller takes no more event requests: \(status); continuing",
                id: .controllerEvent)
        }
    }
}
