// SPDX-License-Identifier: Apache-2.0
// Rings: opening, closing, and what their data threads have to say.

internal import Glibc
internal import Linux
internal import NVMeDriver
internal import Systemd
internal import Wire

extension DeviceService {
    // MARK: Data threads

    /// The queue that serves messages; the others belong to data threads.
    static var messageQueue: Int { 0 }

    /// Starts a thread for each queue but the one that serves messages.
    ///
    /// With `adopting` they touch nothing before `recover`.
    func startThreads(
        _ controller: NVMeController, _ config: DeviceConfig, adopting: Bool
    ) throws(DriverError) {
        let log = log
        let placement = placement(config)
        // None of these was asked to tell anything, whatever waits already.
        progressIsWatched = false
        for queue in 1..<max(controller.queueCount, 1) {
            let thread = try DataThread(
                controller: controller, queue: queue,
                policy: placement.spinPolicy(config, queue: queue),
                timeoutMilliseconds: ioTimeoutMilliseconds, isAdopting: adopting
            ) { queue in
                log.error(
                    "the data thread of queue \(queue + 1) hangs in the kernel; the worker ends",
                    id: .workerFailed, queue: UInt16(clamping: queue + 1))
                // Nothing can be put in order any more: the thread still has the queue.
                _exit(70)
            }
            threads.append(thread)
            do throws(SystemCallError) {
                let index = threads.count - 1
                watches.append(
                    try DescriptorWatch(thread.notifyFD, .readable) { [weak self] _ in
                        self?.threadSpoke(index)
                    })
            } catch { throw .system(error) }
        }
        controller.exclusively = { [weak self] queue, body in self?.exclusively(queue, body) }
    }

    /// Ends the threads; the queues can then be touched freely.
    func stopThreads() {
        for thread in threads { thread.stop() }
    }

    /// Forgets the threads. Their rings are closed.
    func dropThreads() {
        threads = []
        overdue = []
    }

    /// Whether each data thread has turned since the last call, or rests.
    var threadsTurn: Bool {
        let rounds = threads.map(\.rounds)
        defer { roundsSeen = rounds }
        guard rounds.count == roundsSeen.count else { return true }
        return zip(threads, roundsSeen).allSatisfy { $0.isResting || $0.rounds != $1 }
    }

    /// Runs `body` while nobody else touches a queue.
    func exclusively(_ queue: Int, _ body: () -> Void) {
        guard queue > Self.messageQueue, queue - 1 < threads.count else { return body() }
        unsafe threads[queue - 1].withEngine { _ in body() }
    }

    private func threadSpoke(_ index: Int) {
        guard index < threads.count, let controller, failure == nil else { return }
        let thread = threads[index]
        let queue = index + 1
        let notices = thread.takeNotices()
        if notices.contains(.fruit), !isFruitful { noteFruit(controller) }
        if notices.contains(.memoryFault) { endFaultedSessions() }
        if notices.contains(.ringFault) { endFaulty(thread) }
        if notices.contains(.queueFault) {
            let (fault, entry) = unsafe thread.withEngine {
                unsafe ($0.pointee.fault, $0.pointee.faultyEntry)
            }
            return note(
                .queueFault(queue: UInt16(clamping: queue + 1), fault: fault, entry: entry))
        }
        if notices.contains(.doorbellFailed) {
            return note(
                .commandTimedOut(
                    operation: "a doorbell of queue \(queue + 1)",
                    milliseconds: Int(ioTimeoutMilliseconds)))
        }
        if notices.contains(.overdue) {
            overdue.insert(queue)
            armTick()
            // What was late in a predecessor's time must not wait until this process is replaced.
            if controller.wasAdopted, !isQuiet {
                exclusively(queue) { climb(queue, controller) }
            }
        }
        if notices.contains(.progress) { settleRings() }
    }

    /// Ends the sessions whose rings broke the protocol.
    private func endFaulty(_ thread: DataThread) {
        for session in sessions.compactMap({ $0 }) where !session.hasEnded {
            for ring in session.rings.values where ring.thread === thread {
                guard let fault = ring.status?.fault, fault != .none else { continue }
                end(
                    session,
                    WireError(
                        .invalidArgument, "ring \(ring.id) broke the protocol: \(fault)",
                        device: name, disk: session.opening.disk, field: "ring"))
                break
            }
        }
    }

    // MARK: Opening and closing

    /// Opens a ring and answers with its descriptors. The message is looked at again when they are
    /// stored, by this process or by a successor.
    func openRing(
        _ session: Session, _ requestID: UInt64, ringID: UInt32, submissionEntryCount: UInt32,
        completionEntryCount: UInt32
    ) throws(WireError) -> Disposition {
        guard let controller = usableController else { throw unavailable() }
        if let known = session.rings[ringID] {
            guard known.record.openRequestID == requestID else {
                throw WireError(
                    .alreadyExists, "ring \(ringID) is open", field: "open_ring.ring_id")
            }
            // The process that opened it died before its message was off the socket.
            return answer(session, requestID, known)
        }
        guard let storing = session.storing else {
            let shape = try shape(
                session, ringID, submissionEntryCount: submissionEntryCount,
                completionEntryCount: completionEntryCount)
            return try store(session, requestID, ringID, shape, controller)
        }
        guard storing.isConfirmed else { return .wait(.store) }
        if let failure = storing.failure { throw failure }
        guard let parts = storing.ring else {
            throw WireError(.internalError, "memory was stored in the place of a ring")
        }
        let ring = try open(session, storing, parts, ringID, controller)
        session.storing = nil
        session.rings[ringID] = ring
        counters.ringsOpened += 1
        session.counters.others += 1
        return answer(session, requestID, ring)
    }

    /// Gives a ring's descriptors to its client.
    private func answer(
        _ session: Session, _ requestID: UInt64, _ ring: SessionRing
    ) -> Disposition {
        guard let theirs = ring.parts.clientWake?.raw else {
            // It was answered, and its message is off the socket.
            return .taken
        }
        session.client?.send(
            reply: .ringOpened(
                ringID: ring.id, byteCount: UInt64(ring.parts.memory.shape.byteCount)),
            to: requestID, fds: [ring.parts.memory.fd.raw, ring.parts.kick.fd.raw, theirs])
        CrashPoint.hit(.ringAnswered)
        return .answered
    }

    private func shape(
        _ session: Session, _ ringID: UInt32, submissionEntryCount: UInt32,
        completionEntryCount: UInt32
    ) throws(WireError) -> RingShape {
        guard session.rings.count < WorkerLimits.ringsPerSession else {
            throw WireError(
                .resourceExhausted, "a session may open \(WorkerLimits.ringsPerSession) rings",
                field: "open_ring.ring_id")
        }
        guard
            let shape = RingShape(
                submissionEntries: submissionEntryCount, completionEntries: completionEntryCount)
        else {
            throw WireError(
                .invalidArgument,
                "\(submissionEntryCount) and \(completionEntryCount) entries: both have to be "
                    + "powers of two from 2 to 4096", field: "open_ring.submission_entry_count")
        }
        guard !threads.isEmpty else {
            throw WireError(
                .notSupported,
                "the device has one I/O queue pair, which serves messages; set Queues=2 or more",
                device: name)
        }
        return shape
    }

    /// Makes a ring and has the manager keep it; the message waits for that.
    private func store(
        _ session: Session, _ requestID: UInt64, _ ringID: UInt32, _ shape: RingShape,
        _ controller: NVMeController
    ) throws(WireError) -> Disposition {
        try checkStoreRoom(4)
        let parts: RingDescriptors
        do throws(SystemCallError) {
            parts = try RingDescriptors(shape: shape, ringID: ringID)
        } catch {
            throw WireError(
                .resourceExhausted, "the ring cannot be made: \(error)", device: name,
                field: "open_ring")
        }
        let number = controller.state.nextNumber()
        CrashPoint.hit(.ringRecorded)
        startStoring(session, StoringRequest(requestID: requestID, number: number, ring: parts))
        try keep(.ring, number, parts.memory.fd)
        try keep(.kick, number, parts.kick.fd)
        try keep(.wake, number, parts.wake)
        if let clientWake = parts.clientWake?.duplicate() {
            try keep(.clientWake, number, clientWake)
        }
        return .wait(.store)
    }

    /// Has a data thread serve a ring, which is on record before.
    private func open(
        _ session: Session, _ storing: StoringRequest, _ parts: RingDescriptors,
        _ ringID: UInt32, _ controller: NVMeController
    ) throws(WireError) -> SessionRing {
        let place = threads.filter { $0.nextRingPlace != nil }.min { $0.ringCount < $1.ringCount }
        guard let thread = place, let index = thread.nextRingPlace else {
            throw WireError(
                .resourceExhausted, "the device's queues serve as many rings as they can",
                device: name)
        }
        let shape = parts.memory.shape
        let record = RingRecord(
            state: .open, session: session.key, id: ringID,
            submissionEntries: shape.submissionEntries,
            completionEntries: shape.completionEntries, number: storing.number,
            openRequestID: storing.requestID)
        controller.state.setRing(queue: thread.queueNumber, index: index, record)
        let ring = makeRing(session, parts, record, thread, index)
        do throws(DriverError) {
            let opened = try thread.open(
                parts.memory, session: session.key, regions: regionTable(session),
                rules: rules(session), gate: session.limiter.gate, kick: parts.kick.fd.raw,
                wakeFD: parts.wake.raw, isHeld: isHeld(session),
                statistics: ring.statistics ?? .nowhere, at: index)
            guard opened == index else { throw .exhausted("its place is taken") }
        } catch {
            controller.state.clearRing(queue: thread.queueNumber, index: index)
            forget(ring.statistics)
            throw WireError(
                .resourceExhausted, "the ring cannot be made: \(error)", device: name,
                field: "open_ring")
        }
        return ring
    }

    func makeRing(
        _ session: Session, _ parts: RingDescriptors, _ record: RingRecord, _ thread: DataThread,
        _ index: Int
    ) -> SessionRing {
        SessionRing(
            parts: parts, record: record, thread: thread, index: index,
            statistics: ringStatistics(session, record.id, thread))
    }

    /// The table of regions that a session's ring entries name.
    func regionTable(_ session: Session) -> SessionRegions {
        if let table = session.regionTable { return table }
        let table = SessionRegions()
        for (id, region) in session.regions where region.unregisterRequestID == nil {
            table.set(id, driverRegion: region.driverRegion, isReadOnly: region.isReadOnly)
        }
        session.regionTable = table
        return table
    }

    /// What a session's rings may do.
    func rules(_ session: Session) -> RingRules {
        RingRules(
            session.namespace, isWritable: session.opening.access == .readWrite,
            maxRequestByteCount: WorkerLimits.requestByteCount)
    }

    /// The namespace of a session has changed, or is gone.
    func updateRules(_ session: Session) {
        for ring in session.rings.values { ring.thread.setRules(ring.index, rules(session)) }
    }

    /// Closes a ring: at once, or when nothing of it is with the device any more. The answer comes
    /// then.
    ///
    /// The request is on record with the ring, so that the message can go.
    func closeRing(
        _ session: Session, ringID: UInt32, requestID: UInt64
    ) throws(WireError) {
        guard let ring = session.rings[ringID], !ring.isClosing else {
            throw WireError(
                .notFound, "there is no ring \(ringID)", field: "close_ring.ring_id")
        }
        ring.thread.setHeld(ring.index, true)
        ring.record.closeRequestID = requestID
        controller?.state.setRing(
            queue: ring.thread.queueNumber, index: ring.index, ring.record)
        noteTaken(session, requestID)
        CrashPoint.hit(.ringEnding)
        guard ring.isIdle else { return watchProgress() }
        finishClosing(session, ring)
    }

    private func finishClosing(_ session: Session, _ ring: SessionRing) {
        let requestID = ring.record.closeRequestID
        // The record of the ring goes before the answer: that it is owed has its own.
        let place = owe(.answer, session, requestID)
        drop(session, ring)
        unsafe session.client?.send(reply: .done, to: requestID, payload: Self.noPayload)
        paid(session, place)
    }

    private func drop(_ session: Session, _ ring: SessionRing) {
        ring.thread.close(ring.index, kick: ring.parts.kick.fd.raw)
        controller?.state.clearRing(queue: ring.thread.queueNumber, index: ring.index)
        CrashPoint.hit(.ringFreed)
        if let block = ring.statistics { session.counters.add(block) }
        withState { $0.setSessionCounters(session.slot, session.keptCounters) }
        forget(ring.statistics)
        session.rings[ring.id] = nil
        if let stored = environment.stored { removeRing(ring.record.number, stored) }
        CrashPoint.hit(.ringRemoved)
    }

    /// Closes what is left of a session's rings; nothing of them is with the device.
    func dropRings(_ session: Session) {
        for ring in session.rings.values { drop(session, ring) }
        session.regionTable?.deallocate()
        session.regionTable = nil
    }

    /// Takes nothing more from a session's rings, or goes on.
    func holdRings(_ session: Session, _ on: Bool) {
        for ring in session.rings.values where !ring.isClosing {
            ring.thread.setHeld(ring.index, on)
        }
    }

    // MARK: Progress

    /// Whether a session's rings have nothing with the device.
    func ringsAreIdle(_ session: Session) -> Bool { session.rings.values.allSatisfy(\.isIdle) }

    /// Whether anything of any ring is with the device.
    var threadsAreIdle: Bool { threads.allSatisfy(\.isIdle) }

    /// Whether something waits for the end of ring requests.
    private var waitsForProgress: Bool {
        if isFrozen || lifecycle.state == .removed { return true }
        return sessions.contains { session in
            guard let session else { return false }
            return session.hasEnded && (!session.rings.isEmpty || session.isOrphan)
                || session.rings.values.contains { $0.isClosing }
                || session.regions.values.contains { $0.unregisterRequestID != nil }
        }
    }

    /// Has the threads tell when requests end, as long as something waits for it.
    func watchProgress() {
        let on = waitsForProgress
        guard on != progressIsWatched else { return }
        progressIsWatched = on
        for thread in threads { thread.setWantsProgress(on) }
        // What ended before the threads were asked is seen now.
        if on { soon { [weak self] in self?.settleRings() } }
    }

    /// Goes on with what waited for the end of ring requests.
    func settleRings() {
        for session in sessions.compactMap({ $0 }) {
            for ring in session.rings.values where ring.isClosing && ring.isIdle {
                finishClosing(session, ring)
            }
            settleRegions(session)
            if session.hasEnded { scheduleSettling() }
        }
        drainProgressed()
        watchProgress()
    }

    /// Whether ring requests point at a region.
    func ringsUse(_ session: Session, _ region: ClientRegion) -> Bool {
        guard !session.rings.isEmpty else { return false }
        return threads.contains { $0.uses(region: region.driverRegion) }
    }
}

extension DeviceService {
    /// The rings, for operators.
    func inspectRings(_ tree: inout InspectTree) {
        for session in sessions.compactMap({ $0 }) {
            for ring in session.rings.values {
                guard let status = ring.status else { continue }
                let path = "rings/\(session.opening.sessionID)/\(ring.id)"
                tree.add("\(path)/queue", ring.thread.queueNumber)
                tree.add("\(path)/submission_entries", ring.parts.memory.shape.submissionEntries)
                tree.add("\(path)/completion_entries", ring.parts.memory.shape.completionEntries)
                tree.add("\(path)/inflight", status.inFlight)
                tree.add("\(path)/taken", status.taken)
                tree.add("\(path)/completed", status.completed)
                tree.add("\(path)/wakes", status.wakes)
            }
        }
        for thread in threads {
            tree.add("queues/\(thread.queueNumber)/rings", thread.ringCount)
            tree.add("queues/\(thread.queueNumber)/rounds", thread.rounds)
            tree.add("queues/\(thread.queueNumber)/resting", thread.isResting)
        }
    }
}
