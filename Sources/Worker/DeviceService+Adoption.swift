// SPDX-License-Identifier: Apache-2.0
// Going on with a predecessor's sessions: their sockets, their requests, their memory, their rings.
// (CRASHES.md beside this file says who knows what after a death.)
//
// First the sessions are made from their records, and wait. Then there is a controller: the
// predecessor's own, or one that was reset. Then everything that the records name is put together
// again; what does not add up throws `notAdoptable` before anybody was told anything.

internal import CLinux
internal import DMA
internal import Linux
internal import NVMeDriver
internal import Systemd
internal import VFIO
internal import Wire

/// What a predecessor left for a controller; given out any number of times, by duplicates.
@Control
final class InheritedDescriptors {
    private let pool: HeldDescriptor?
    private let place: PoolPlace
    private let interrupts: [HeldDescriptor]
    private let stored: StoredFDs?
    /// Memory of clients by its number.
    private var memory: [UInt64: HeldDescriptor] = [:]
    /// The regions that count as users of their memory.
    private var users: Set<UInt32> = []

    /// The descriptors of a device that works on.
    init(_ live: inout LiveDevice, _ stored: StoredFDs?, place: PoolPlace = .memory) {
        self.place = place
        if let fd = live.takePool() { pool = HeldDescriptor(fd) } else { pool = nil }
        interrupts = live.takeInterrupts().map { HeldDescriptor(OwnedFD(adopting: $0)) }
        self.stored = stored
    }

    /// The device is brought up again: only the memory of clients, and the pool, count.
    init(pool: consuming OwnedFD?, _ stored: StoredFDs?, place: PoolPlace = .memory) {
        self.place = place
        if let fd = pool { self.pool = HeldDescriptor(fd) } else { self.pool = nil }
        interrupts = []
        self.stored = stored
    }

    /// As the driver asks for it.
    var inheritance: NVMeDriver.Inheritance {
        NVMeDriver.Inheritance(
            pool: { self.pool?.duplicate() }, place: place,
            interrupt: { self.interrupt($0) },
            memory: { self.memory($0, $1) })
    }

    private func interrupt(_ vector: Int) -> OwnedFD? {
        guard interrupts.indices.contains(vector) else { return nil }
        return interrupts[vector].duplicate()
    }

    private func memory(_ region: UInt32, _ record: RegionRecord) -> OwnedFD? {
        claim(region, record.number)
        return memory[record.number]?.duplicate()
    }

    /// Counts a region as a user of the memory with a number, once: several regions may be of one
    /// file, and each is removed from the store for itself when it is given back.
    func claim(_ region: UInt32, _ number: UInt64) {
        guard !users.contains(region), let fd = stored?.take(.memory, number) else { return }
        users.insert(region)
        if memory[number] == nil { memory[number] = HeldDescriptor(fd) }
    }
}

extension DeviceService {
    // MARK: Taking over

    /// Takes the device and its sessions over from a predecessor. A failure is logged and shows in
    /// the state.
    func recover() {
        guard let bytes = idleState?.configuration(),
            let config = KeptConfiguration.decode(bytes),
            case .enter = step(.recover, "the worker was restarted")
        else {
            endUnknown()
            return tellLooked()
        }
        inheritSessions()
        do throws(WireError) {
            try countStart()
        } catch {
            log.error("\(error.message)", id: .crashLoop)
            silencePredecessor()
            step(.startFailed, error.message)
            endInherited(error)
            return tellLooked()
        }
        watchStall()
        loop.task { [weak self] in
            guard let self else { return }
            let isAdopted = adopt(config)
            tellLooked()
            guard !isAdopted else { return }
            do throws(DriverError) {
                try await bringUp(config)
            } catch {
                _ = startFailed(error)
            }
        }
    }

    /// Waits until it is known whether the predecessor's controller can be gone on with.
    func lookedAtPredecessor() async { _ = try? await looked.value() }

    private func tellLooked() { looked.succeed(()) }

    /// Goes on with the predecessor's controller; false when that cannot be.
    func adopt(_ config: DeviceConfig) -> Bool {
        guard isStarting, var live = environment.adopt(config) else { return false }
        self.config = config
        let inherited = InheritedDescriptors(
            &live, environment.stored, place: config.poolPlace ?? .memory)
        self.inherited = inherited
        guard !needsFunctionReset || !config.transport.isHardware else {
            resetReason = "its function has to be reset, after an error"
            log.warning("\(resetReason); the sessions go on", id: .controllerFailed)
            return false
        }
        var tried: NVMeController?
        do throws(DriverError) {
            let controller = try NVMeController(
                device: live.device, options: options(config), state: try takeState())
            controller.poolSource = poolSource(config)
            tried = controller
            try controller.adopt(inherited.inheritance, tick: coarseClock)
            CrashPoint.hit(.adoptQueuesReady)
            // Nobody may have had it for a while: another may be there. No client waits.
            if isRestored || sessionCount == 0 { try controller.checkIdentity() }
            try use(controller, config, adopting: true)
            CrashPoint.hit(.adoptSessionsReady)
            counters.adoptions += 1
            adoptionIsOpen = true
            started(controller, config)
            let microseconds = controller.adoptionNanoseconds / 1000
            log.notice(
                "goes on after \(microseconds) µs with \(sessionCount) sessions and what is in "
                    + "flight", id: .controllerReady)
            guard !isRestored, requestsInFlight > 0 || !threadsAreIdle else {
                finishAdoption()
                return true
            }
            armAdoption()
            return true
        } catch {
            resetReason = error.description
            log.warning(
                "the controller \(error): it is reset, and the sessions go on",
                id: .controllerFailed)
            if let tried { putAway(tried) }
            return false
        }
    }

    /// What is in flight may never be answered: the silence ends all the same.
    private func armAdoption() {
        guard adoptionIsOpen else { return }
        adoptionTimer = try? loop.after(nanoseconds: WorkerLimits.stallNanoseconds) {
            [weak self] in self?.finishAdoption()
        }
    }

    private var sessionCount: Int { sessions.count { $0?.hasEnded == false } }

    /// Whether a predecessor left anything that a bring-up has to keep.
    var hasInheritance: Bool { stalledSince != nil && sessions.contains { $0 != nil } }

    /// Brings a controller up again with a predecessor's requests and memory.
    func startOver(_ controller: NVMeController) throws(DriverError) {
        try controller.startOver(
            inheritPool().inheritance, compare: { self.compareDisks($0, $1) },
            replay: { self.replay($0) }, tick: coarseClock, keep: { self.environment.keep($0) })
    }

    /// What a predecessor left for a controller that has to be brought up again.
    @discardableResult
    func inheritPool() -> InheritedDescriptors {
        let known =
            inherited
            ?? InheritedDescriptors(
                pool: environment.takePool(), environment.stored,
                place: config?.poolPlace ?? .memory)
        inherited = known
        return known
    }

    /// What of a session's requests may be done again after a reset.
    private func replay(_ key: UInt32) -> Replay {
        guard let session = session(key), !session.hasEnded else { return .nothing }
        return session.isExclusive ? .everything : .harmless
    }

    /// Ends the silence that an adoption needs: a client has got a completion, or none waits. What
    /// is asked of the controller is not in the state of a save: then it has to wait for the thaw.
    func finishAdoption() {
        guard adoptionIsOpen, !isQuiet, let controller = usableController else { return }
        adoptionIsOpen = false
        adoptionTimer?.cancel()
        adoptionTimer = nil
        do throws(DriverError) {
            let events = try controller.finishAdoption(comparing: true)
            for event in events { act(on: event, controller) }
        } catch {
            log.warning("the adopted controller: \(error)")
            note(error)
            // Another controller: nothing that is known of it is true.
            if case .unusable = error { giveUp(error) }
        }
        let cancels = owedCancels
        owedCancels = []
        for owed in cancels { cancelAgain(owed.place, owed.record) }
        afterAdminCommand()
    }

    // MARK: Sessions

    /// Makes the sessions of the records again. They wait until there is a controller.
    func inheritSessions() {
        for slot in 0..<StateLayout.sessionCapacity {
            let content = withState { $0.session(slot) } ?? .free
            if case .free = content { continue }
            guard let record = content.record, record.key & 0xFF == UInt32(slot),
                let opening = KeptOpening.decode(record.opening)
            else {
                log.error("the record of a session is damaged: it ends", id: .stateDiscarded)
                withState { $0.clearSession(slot) }
                continue
            }
            inherit(record, opening, slot)
        }
        endUnknownSessions()
        counters.sessionsInherited = UInt64(sessionCount)
    }

    private func inherit(_ record: SessionRecord, _ opening: OpenSession, _ slot: Int) {
        let session = Session(
            key: record.key, opening: opening, number: record.number, queue: Self.messageQueue,
            namespace: nil)
        session.keptCounters = withState { $0.sessionCounters(slot) } ?? []
        if record.openedNanoseconds > 0 { session.openedNanoseconds = record.openedNanoseconds }
        let highest = withState { $0.highestRequest(slot) } ?? nil
        session.highestRequestID = highest ?? 0
        session.mayHaveTaken = true
        session.waits = .held
        sessions[slot] = session
        sessionSerial = max(sessionSerial, record.key >> 8)
        let fd = environment.stored?.take(.session, record.number)
        countSession(session)
        // Hung up: what its client sent and nobody took has not been done, and will not be.
        guard let fd, nv_poll1(fd.raw, 0, 0) == 0, record.state != .ended else {
            // Its client died, or it was ended; what it has with the device has to end first.
            session.hasEnded = true
            session.isOrphan = true
            dyingSessions += 1
            if record.state != .ended {
                log.info(
                    "session \(opening.sessionID): its client is gone", id: .sessionEnded,
                    namespace: opening.nsid)
            }
            environment.stored?.remove(.session, record.number)
            return
        }
        attach(session, HeldDescriptor(fd))
        guard highest != nil, session.client != nil else {
            return end(
                session,
                WireError(
                    .internalError, "what is known of the session is damaged", device: name))
        }
    }

    /// Ends all sessions of a predecessor: nothing of theirs can be gone on with.
    func endInherited(_ reason: WireError) {
        for session in sessions.compactMap({ $0 }) {
            session.pending = [:]
            session.regions = [:]
            end(session, reason)
            dropRings(session)
            forgetStatistics(session)
            sessions[session.slot] = nil
            withState { $0.clearSession(session.slot) }
        }
        dyingSessions = 0
        requestsInFlight = 0
        freeOwed = Array((0..<StateLayout.owedCapacity).reversed())
        withState { state in
            for place in 0..<StateLayout.owedCapacity { state.clearOwed(place) }
            state.clearRings()
        }
        environment.stored?.disclaimMemory()
        environment.stored?.removeUnclaimed()
        countAdopted()
        inherited = nil
        serviceResumed()
    }

    /// Ends what nothing is known of.
    private func endUnknown() {
        // A worker that never had a device finds none stored, and does nothing.
        if generation > 1 || environment.stateIsLost { silencePredecessor() }
        endUnknownSessions()
        environment.stored?.removeUnclaimed()
        countAdopted()
    }

    /// Ends the sessions of which there is a socket and no record.
    private func endUnknownSessions() {
        guard let stored = environment.stored else { return }
        let reason = WireError(
            .workerRestarted, "the device's worker was restarted without knowing the session",
            device: name)
        for number in stored.numbers(.session) {
            guard let fd = stored.take(.session, number) else { continue }
            let channel = Channel<SessionProtocol>(fd, role: .server, buffer: MessageBuffer())
            try? channel.send(event: .ended(reason))
            channel.end()
            stored.remove(.session, number)
        }
    }

    // MARK: Putting together

    /// Gives the sessions back what they had, and delivers what a predecessor may not have
    /// delivered. Throws `notAdoptable` when it does not add up.
    func adoptSessions(_ controller: NVMeController) throws(DriverError) {
        for session in sessions.compactMap({ $0 }) {
            let namespace = controller.namespaces[session.opening.nsid]
            session.namespace = namespace.flatMap { $0.refusal == nil ? $0 : nil }
        }
        adoptRegions(controller)
        unsafe controller.engine(Self.messageQueue).pointee.forEachRequest { adopt($0) }
        try adoptRings(controller)
        let owed = adoptOwed(controller)
        // Before the threads run: a client must not overtake the commands of one that died.
        for session in sessions.compactMap({ $0 }) where !session.hasEnded && isHeld(session) {
            holdRings(session, true)
        }
        // Rings first: what does not add up there is found before any message is sent.
        for thread in threads { try thread.recover() }
        recoverMessages(controller)
        for entry in owed { pay(entry.place, entry.record) }
    }

    /// Forgets what `adoptSessions` has put together, for another try.
    func forgetAdopted() {
        for session in sessions.compactMap({ $0 }) {
            session.pending = [:]
            session.inlineReadBytes = 0
            session.regions = [:]
            session.rings = [:]
            session.regionTable?.deallocate()
            session.regionTable = nil
            session.owed = []
            session.owedReads = []
        }
        requestsInFlight = 0
        owedCancels = []
    }

    private func adoptRegions(_ controller: NVMeController) {
        for index in 1..<UInt32(StateLayout.regionCapacity) {
            guard let record = controller.state.region(index) else { continue }
            // The device may not have it any more; it is given back like those that it has.
            inherited?.claim(index, record.number)
            var region = ClientRegion(
                driverRegion: index, byteCount: record.stretch.byteCount,
                isReadOnly: record.stretch.isReadOnly, isPinned: !record.stretch.isPhysical,
                number: record.number, registerRequestID: record.registerRequestID)
            if record.unregisterRequestID != 0 {
                region.unregisterRequestID = record.unregisterRequestID
            }
            guard let session = session(record.session) else {
                unregister(region)
                controller.state.clearRegion(index)
                continue
            }
            session.highestRequestID = max(
                session.highestRequestID, record.unregisterRequestID)
            session.regions[record.clientID] = region
        }
    }

    private func adopt(_ request: InFlightRequest) {
        guard request.ring == 0, let session = session(request.session) else { return }
        guard !session.isOrphan else {
            requestsInFlight += 1
            return
        }
        session.highestRequestID = max(session.highestRequestID, request.token)
        let isTransfer = [IOOperation.read, IOOperation.write, IOOperation.compare].contains(
            request.operation)
        let isInline = isTransfer && request.region == RegionTable.bounceRegion
        let byteCount = request.blockCount << UInt64(request.blockShift)
        var pending = PendingRequest(
            operation: request.operation, byteCount: isTransfer ? Int(clamping: byteCount) : 0)
        pending.isInlineRead = isInline && request.operation == IOOperation.read
        pending.lba = request.lba
        pending.blockCount = UInt32(clamping: request.blockCount)
        if isTransfer, !isInline {
            pending.regionID =
                session.regions.first {
                    $0.value.driverRegion == request.region
                }?.key
        }
        session.pending[request.token] = pending
        requestsInFlight += 1
        if pending.isInlineRead { session.inlineReadBytes += pending.byteCount }
        if let regionID = pending.regionID { session.regions[regionID]?.inFlight += 1 }
    }

    private func adoptRings(_ controller: NVMeController) throws(DriverError) {
        for thread in threads {
            for index in 0..<StateLayout.ringsPerQueue {
                let content = controller.state.ring(queue: thread.queueNumber, index: index)
                guard content != .free else { continue }
                guard let record = content.record, let session = session(record.session),
                    let shape = RingShape(
                        submissionEntries: record.submissionEntries,
                        completionEntries: record.completionEntries)
                else {
                    throw .notAdoptable(
                        "the record of ring \(index) of queue \(thread.queueNumber) is damaged")
                }
                try adoptRing(session, record, shape, thread, index)
            }
        }
    }

    private func adoptRing(
        _ session: Session, _ record: RingRecord, _ shape: RingShape, _ thread: DataThread,
        _ index: Int
    ) throws(DriverError) {
        guard let parts = try ringParts(record, shape) else {
            throw .notAdoptable("the descriptors of ring \(record.number) did not come back")
        }
        let ring = makeRing(session, parts, record, thread, index)
        session.highestRequestID = max(session.highestRequestID, record.closeRequestID)
        try thread.adopt(
            parts.memory, at: index, session: session.key, regions: regionTable(session),
            rules: rules(session), gate: session.limiter.gate, kick: parts.kick.fd.raw,
            wakeFD: parts.wake.raw, isHeld: session.hasEnded || ring.isClosing,
            statistics: ring.statistics ?? .nowhere)
        session.rings[record.id] = ring
    }

    /// A ring's descriptors; those of an earlier try, or out of the store.
    private func ringParts(
        _ record: RingRecord, _ shape: RingShape
    ) throws(DriverError) -> RingDescriptors? {
        if let parts = adoptedRings[record.number] { return parts }
        guard let stored = environment.stored,
            let memory = stored.take(.ring, record.number),
            let kick = stored.take(.kick, record.number),
            let wake = stored.take(.wake, record.number)
        else { return nil }
        do throws(SystemCallError) {
            var clientWake: HeldDescriptor?
            if let fd = stored.take(.clientWake, record.number) { clientWake = HeldDescriptor(fd) }
            let parts = RingDescriptors(
                memory: try RingMemory(adopting: memory, shape: shape), kick: kick, wake: wake,
                clientWake: clientWake)
            adoptedRings[record.number] = parts
            return parts
        } catch { throw .system(error) }
    }

    private func adoptOwed(
        _ controller: NVMeController
    ) -> [(place: Int, record: OwedRecord)] {
        var owed: [(place: Int, record: OwedRecord)] = []
        freeOwed = []
        for place in (0..<StateLayout.owedCapacity).reversed() {
            guard let record = controller.state.owed(place).record,
                let session = session(record.session), !session.hasEnded
            else {
                controller.state.clearOwed(place)
                freeOwed.append(place)
                continue
            }
            session.highestRequestID = max(session.highestRequestID, record.requestID)
            owed.append((place, record))
        }
        return owed.sorted { $0.record.requestID < $1.record.requestID }
    }

    /// Delivers what a predecessor had taken from the message queue and perhaps not delivered.
    private func recoverMessages(_ controller: NVMeController) {
        let engine = unsafe controller.engine(Self.messageQueue)
        var ended: [IOCompletion] = []
        unsafe engine.pointee.recover { ended.append($0) }
        for completion in ended { complete(completion, failure: nil, queue: Self.messageQueue) }
        unsafe engine.pointee.retire()
        for completion in ended {
            unsafe engine.pointee.releasePages(
                first: Int(completion.firstPage), count: Int(completion.pageCount))
        }
        writeDoorbells(Self.messageQueue, controller)
    }

    // MARK: Owed answers

    private func pay(_ place: Int, _ record: OwedRecord) {
        guard let session = session(record.session), let client = session.client else {
            return forgetOwed(place)
        }
        switch record.kind {
        case .free: return forgetOwed(place)
        case .cancel: return owedCancels.append((place, record))
        case .change:
            let change = DiskChange(rawValue: UInt32(truncatingIfNeeded: record.argument))
            client.send(event: .diskChanged(change ?? .unspecified, diskInfo(session)))
        case .answer: send(record, session, client)
        case .completion:
            if record.firstPage > 0 { return session.owedReads.append((place, record)) }
            send(record, session, client)
        }
        paid(session, place)
    }

    private func send(_ record: OwedRecord, _ session: Session, _ client: any SessionClient) {
        let id = record.requestID
        if record.kind == .answer, record.code != 0 {
            let error = WireError(
                ErrorCode(rawValue: UInt32(record.code)), "was refused before the worker restarted",
                device: name)
            client.send(error: error, to: id)
        } else if record.status != 0 || record.code != 0 {
            var error = CommandStatus.error(
                record.status, device: name, disk: session.opening.disk)
            if record.code != 0 { error.code = ErrorCode(rawValue: UInt32(record.code)) }
            client.send(error: error, to: id)
        } else if record.opcode == IOOperation.read {
            unsafe client.send(reply: .read, to: id, payload: Self.noPayload)
        } else {
            unsafe client.send(reply: .done, to: id, payload: Self.noPayload)
        }
    }

    private func cancelAgain(_ place: Int, _ record: OwedRecord) {
        guard let session = session(record.session), !session.hasEnded else {
            return forgetOwed(place)
        }
        if cancel(session, record.requestID, record.argument, place: place) { return }
        unsafe session.client?.send(
            reply: .cancelled(false), to: record.requestID, payload: Self.noPayload)
        paid(session, place)
    }

    /// Reads again what a predecessor had read and could not send. Why it has to wait; nil when
    /// nothing is left to read.
    func readAgain(_ session: Session) -> WaitReason? {
        while let owed = session.owedReads.first {
            guard let controller = usableController else { return .held }
            guard let namespace = session.namespace else {
                session.owedReads.removeFirst()
                session.client?.send(
                    error: WireError(
                        .deviceRemoved, "the namespace is gone from the controller", device: name),
                    to: owed.record.requestID)
                paid(session, owed.place)
                continue
            }
            let count = UInt64(owed.record.firstPage) << UInt64(namespace.blockShift)
            let again = RequestPlan.Transfer(
                operation: IOOperation.read, lba: owed.record.argument,
                blockCount: owed.record.firstPage,
                byteCount: Int(clamping: min(count, UInt64(WireLimits.payloadByteCount))),
                location: .inline)
            let disposition = unsafe transfer(
                session, owed.record.requestID, again, namespace, controller, Self.noPayload)
            if case .wait(let reason) = disposition { return reason }
            session.owedReads.removeFirst()
            forgetOwed(owed.place)
        }
        return nil
    }

    // MARK: Service

    /// The sessions are served again: each looks at its socket, and its rings go on.
    func resumeSessions() {
        adoptedRings = [:]
        inherited = nil
        environment.stored?.removeUnclaimed()
        for session in sessions.compactMap({ $0 }) where !session.hasEnded {
            guard !isHeld(session) else {
                holdRings(session, true)
                continue
            }
            resume(session)
        }
        serviceResumed()
        if dyingSessions > 0 { scheduleSettling() }
        watchProgress()
        armTick()
        lookForInheritedDelays()
    }

    /// What was late in a predecessor's time is looked after at once: this process may not live
    /// until the next tick.
    private func lookForInheritedDelays() {
        guard requestsInFlight > 0, controller?.wasAdopted == true else { return }
        soon { [weak self] in
            guard let self, let controller = usableController, !isQuiet else { return }
            climb(Self.messageQueue, controller)
        }
    }

    /// Notes since when the sessions are not served, and tells them when that takes long.
    func watchStall() {
        let known = withState { $0.stalledSinceNanoseconds } ?? 0
        let since = known == 0 ? MonotonicClock.nowNanoseconds : known
        if known == 0 { withState { $0.setStalled(sinceNanoseconds: since) } }
        stalledSince = since
        stallIsTold = false
        stallTimer = try? loop.timer(priority: .high) { [weak self] in self?.checkStall() }
        stallTimer?.arm(at: since &+ WorkerLimits.stallNanoseconds)
    }

    /// Tells the sessions that they are not served, and ends them when that takes too long.
    func checkStall() {
        guard let since = stalledSince else { return }
        let passed = MonotonicClock.nowNanoseconds &- since
        guard passed >= WorkerLimits.stallNanoseconds else { return }
        let limit = environment.stallLimitNanoseconds
        guard passed < limit else {
            return endInherited(
                WireError(
                    .deviceFailed,
                    "the device has not been served for \(passed / 1_000_000_000) s: "
                        + (lifecycle.reason.isEmpty ? "\(lifecycle.state)" : lifecycle.reason),
                    device: name))
        }
        stallTimer?.arm(at: since &+ limit)
        tellStall()
    }

    /// Tells the sessions that they are not served, once, when they have not been for a while.
    func tellStall() {
        guard let since = stalledSince, !stallIsTold,
            MonotonicClock.nowNanoseconds &- since >= WorkerLimits.stallNanoseconds
        else { return }
        stallIsTold = true
        let reason = lifecycle.reason.isEmpty ? "the worker was restarted" : lifecycle.reason
        for session in sessions.compactMap({ $0 }) where !session.hasEnded {
            session.client?.send(event: .stalled(reason: reason))
        }
    }

    private func serviceResumed() {
        guard let since = stalledSince else { return }
        let passed = MonotonicClock.nowNanoseconds &- since
        stalledSince = nil
        stallTimer?.cancel()
        stallTimer = nil
        lastPauseNanoseconds = passed
        withState { $0.setStalled(sinceNanoseconds: 0) }
        // A predecessor may have told them.
        guard stallIsTold || passed >= WorkerLimits.stallNanoseconds else { return }
        for session in sessions.compactMap({ $0 }) where !session.hasEnded {
            session.client?.send(event: .resumed(stalledNanoseconds: passed))
        }
    }
}
