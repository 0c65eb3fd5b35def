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
    func startThreads(_ controller: NVMeController, _ config: DeviceConfig) throws(DriverError) {
        let log = log
        for queue in 1..<max(controller.queueCount, 1) {
            let thread = try DataThread(
                controller: controller, queue: queue, policy: spinPolicy(config, queue),
                timeoutMilliseconds: ioTimeoutMilliseconds
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

    private func spinPolicy(_ config: DeviceConfig, _ queue: Int) -> SpinPolicy {
        var policy = SpinPolicy.standard
        if let nanoseconds = config.spinNanoseconds { policy.limitNanoseconds = nanoseconds }
        if !config.dataAffinity.isEmpty {
            policy.processor = config.dataAffinity[(queue - 1) % config.dataAffinity.count]
        }
        return policy
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

    /// Opens a ring and answers with its descriptors.
    func openRing(
        _ session: Session, _ requestID: UInt64, ringID: UInt32, submissionEntryCount: UInt32,
        completionEntryCount: UInt32
    ) throws(WireError) {
        guard usableController != nil else { throw unavailable() }
        guard session.rings[ringID] == nil else {
            throw WireError(
                .alreadyExists, "ring \(ringID) is open", field: "open_ring.ring_id")
        }
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
        let thread = threads.min { $0.ringCount < $1.ringCount }
        guard let thread else {
            throw WireError(
                .notSupported,
                "the device has one I/O queue pair, which serves messages; set Queues=2 or more",
                device: name)
        }
        do {
            try open(session, requestID, ringID, shape, on: thread)
        } catch let error as WireError {
            throw error
        } catch {
            throw WireError(
                .resourceExhausted, "the ring cannot be made: \(error)", device: name,
                field: "open_ring")
        }
    }

    private func open(
        _ session: Session, _ requestID: UInt64, _ ringID: UInt32, _ shape: RingShape,
        on thread: DataThread
    ) throws {
        let memory = try RingMemory(shape: shape, ringID: ringID)
        let kick = try EventFD()
        let pair = try UnixSocket.pair(kind: .sequencedPacket, nonblocking: true)
        let ours = try pair.first.duplicate()
        let block = ringStatistics(session, ringID, thread)
        var index: Int?
        defer { if index == nil { forget(block, on: thread) } }
        index = try thread.open(
            memory, session: session.key, regions: regionTable(session), rules: rules(session),
            gate: session.limiter.gate, kick: kick.fd.raw, wakeFD: ours.raw,
            isHeld: isHeld(session), statistics: block ?? .nowhere)
        guard let index else {
            throw WireError(
                .resourceExhausted, "the device's queues serve as many rings as they can",
                device: name)
        }
        let ring = SessionRing(
            id: ringID, memory: memory, kick: kick, wake: ours, thread: thread, index: index,
            statistics: block)
        session.rings[ringID] = ring
        session.client?.send(
            reply: .ringOpened(ringID: ringID, byteCount: UInt64(shape.byteCount)), to: requestID,
            fds: [ring.memory.fd.raw, ring.kick.fd.raw, pair.second.raw])
        counters.ringsOpened += 1
    }

    /// The table of regions that a session's ring entries name.
    private func regionTable(_ session: Session) -> SessionRegions {
        if let table = session.regionTable { return table }
        let table = SessionRegions()
        for (id, region) in session.regions where region.unregisterRequestID == nil {
            table.set(id, driverRegion: region.driverRegion, isReadOnly: region.isReadOnly)
        }
        session.regionTable = table
        return table
    }

    /// What a session's rings may do.
    private func rules(_ session: Session) -> RingRules {
        RingRules(
            session.namespace, isWritable: session.opening.access == .readWrite,
            maxRequestByteCount: WorkerLimits.requestByteCount)
    }

    /// The namespace of a session has changed, or is gone.
    func updateRules(_ session: Session) {
        for ring in session.rings.values { ring.thread.setRules(ring.index, rules(session)) }
    }

    /// Closes a ring: at once when nothing of it is with the device; true then.
    func closeRing(
        _ session: Session, ringID: UInt32, requestID: UInt64
    ) throws(WireError) -> Bool {
        guard let ring = session.rings[ringID], ring.closeRequestID == nil else {
            throw WireError(
                .notFound, "there is no ring \(ringID)", field: "close_ring.ring_id")
        }
        ring.thread.setHeld(ring.index, true)
        guard ring.isIdle else {
            ring.closeRequestID = requestID
            watchProgress()
            return false
        }
        drop(session, ring)
        return true
    }

    private func drop(_ session: Session, _ ring: SessionRing) {
        ring.thread.close(ring.index, kick: ring.kick.fd.raw)
        forget(ring.statistics, on: ring.thread)
        session.rings[ring.id] = nil
    }

    /// Closes what is left of a session's rings; nothing of them is with the device.
    func dropRings(_ session: Session) {
        for ring in session.rings.values { drop(session, ring) }
        session.regionTable?.deallocate()
        session.regionTable = nil
    }

    /// Takes nothing more from a session's rings, or goes on.
    func holdRings(_ session: Session, _ on: Bool) {
        for ring in session.rings.values where ring.closeRequestID == nil {
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
        if lifecycle.state == .draining || lifecycle.state == .removed { return true }
        return sessions.contains { session in
            guard let session else { return false }
            return session.hasEnded && !session.rings.isEmpty
                || session.rings.values.contains { $0.closeRequestID != nil }
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
            for ring in session.rings.values where ring.isIdle {
                guard let requestID = ring.closeRequestID else { continue }
                drop(session, ring)
                unsafe session.client?.send(
                    reply: .done, to: requestID, payload: Self.noPayload)
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
                tree.add("\(path)/submission_entries", ring.memory.shape.submissionEntries)
                tree.add("\(path)/completion_entries", ring.memory.shape.completionEntries)
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
