// SPDX-License-Identifier: Apache-2.0
// The way down: a session's request is validated, logged by being submitted, and then taken off its
// socket.

internal import Glibc
internal import Linux
internal import NVMeDriver
internal import NVMeSpec
internal import Systemd
internal import Wire

/// What became of a request.
enum Disposition {
    /// It is under way and on record: take its message off the socket.
    case taken
    /// It was answered: take its message off the socket when the answer is on it.
    case answered
    /// It cannot go on now: leave its message where it is.
    case wait(WaitReason)
    /// It breaks the protocol: the session is over.
    case end(WireError)
}

extension DeviceService {
    static var noPayload: UnsafeRawBufferPointer {
        unsafe UnsafeRawBufferPointer(start: nil, count: 0)
    }

    /// Does the request of a message that is still on the socket.
    func handle(
        _ session: Session, _ envelope: Envelope<SessionProtocol>,
        payload: UnsafeRawBufferPointer, fds: inout ReceivedFDs
    ) -> Disposition {
        let id = envelope.requestID
        CrashPoint.hit(.requestPeeked)
        if session.mayHaveTaken {
            session.mayHaveTaken = false
            // A predecessor did it, and died before it was off the socket.
            if id == session.highestRequestID { return .taken }
        }
        guard case .request(let request) = envelope.content, id > session.highestRequestID else {
            return .end(
                WireError(
                    .invalidArgument,
                    "request id \(id) is not above \(session.highestRequestID), the last one",
                    field: "request_id"))
        }
        if let deadline = envelope.deadlineNanoseconds, MonotonicClock.nowNanoseconds >= deadline {
            return refuse(
                session, id,
                WireError(
                    .deadlineExceeded, "the deadline passed before the device saw the request",
                    field: "deadline_ns"))
        }
        let disposition = unsafe act(session, id, request, payload, &fds)
        switch disposition {
        case .taken, .answered: session.highestRequestID = id
        case .wait, .end: break
        }
        return disposition
    }

    private func refuse(_ session: Session, _ id: UInt64, _ error: WireError) -> Disposition {
        dropStoring(session)
        session.counters.errors += 1
        var error = error
        error.device = error.device ?? name
        error.disk = error.disk ?? session.opening.disk
        // The reason may pass: who finds the message again must not carry it out after all.
        var place: Int?
        if controller != nil, hasOwedRoom {
            place = owe(.answer, session, id) {
                $0.code = UInt16(truncatingIfNeeded: error.code.rawValue)
            }
            noteTaken(session, id)
        }
        session.client?.send(error: error, to: id)
        paid(session, place)
        session.highestRequestID = max(session.highestRequestID, id)
        return .answered
    }

    private func act(
        _ session: Session, _ id: UInt64, _ request: SessionRequest,
        _ payload: UnsafeRawBufferPointer, _ fds: inout ReceivedFDs
    ) -> Disposition {
        // While the worker leaves, or is about to be saved, requests stay on their sockets; and
        // while nobody knows whether a failure ends the sessions or a successor goes on with them.
        if isFrozen || failure != nil { return .wait(.held) }
        guard let controller = usableController else { return refuse(session, id, unavailable()) }
        guard let namespace = session.namespace else {
            return refuse(
                session, id, WireError(.deviceRemoved, "the namespace is gone from the controller"))
        }
        let plan: RequestPlan
        do throws(WireError) {
            let rules = RequestRules(namespace: namespace, access: session.opening.access)
            plan = try rules.plan(request, payloadByteCount: payload.count)
        } catch {
            return refuse(session, id, error)
        }
        switch plan {
        case .nothing: return answer(session, id, request, &fds)
        case .flush, .transfer, .ranges:
            if isHeld(session) { return .wait(.held) }
            guard session.pending.count < WorkerLimits.requestsInFlightPerSession else {
                return .wait(.own)
            }
            guard hasOwedRoom else { return .wait(.queue) }
            guard session.mayStart else { return .wait(.limit) }
        }
        switch plan {
        case .nothing: return .taken
        case .flush: return flush(session, id, namespace, controller)
        case .transfer(let transfer):
            return unsafe self.transfer(session, id, transfer, namespace, controller, payload)
        case .ranges(let work): return ranges(session, id, work, namespace, controller)
        }
    }

    // MARK: Requests that the device does not see

    private func answer(
        _ session: Session, _ id: UInt64, _ request: SessionRequest, _ fds: inout ReceivedFDs
    ) -> Disposition {
        do throws(WireError) {
            return try carryOut(session, id, request, &fds)
        } catch {
            return refuse(session, id, error)
        }
    }

    private func carryOut(
        _ session: Session, _ id: UInt64, _ request: SessionRequest, _ fds: inout ReceivedFDs
    ) throws(WireError) -> Disposition {
        switch request {
        case .getDiskInfo:
            guard let info = diskInfo(session) else { throw unavailable() }
            return done(session, id, .diskInfo(info))
        case .cancel(let target):
            guard target < id else {
                throw WireError(
                    .invalidArgument, "request \(target) comes after this one",
                    field: "cancel.target_request_id")
            }
            return cancel(session, id, target) ? .taken : done(session, id, .cancelled(false))
        case .registerMemory(let regionID, let byteCount, let readOnly, let fileOffset):
            guard let fd = fds.take(0) else {
                throw WireError(.fdMismatch, "no descriptor came", field: "fd_count")
            }
            var stretch = ClientMemoryStretch(byteCount: byteCount)
            stretch.offset = fileOffset
            stretch.isReadOnly = readOnly
            return try registerMemory(session, id, regionID: regionID, stretch, fd)
        case .unregisterMemory(let regionID):
            try unregisterMemory(session, regionID: regionID, requestID: id)
            session.counters.others += 1
            return .taken
        case .openRing(let ringID, let submissionEntryCount, let completionEntryCount):
            return try openRing(
                session, id, ringID: ringID, submissionEntryCount: submissionEntryCount,
                completionEntryCount: completionEntryCount)
        case .closeRing(let ringID):
            try closeRing(session, ringID: ringID, requestID: id)
            session.counters.others += 1
            return .taken
        case .flush: return done(session, id, .done)
        case .read, .write, .unmap, .writeZeroes, .compare, .verify:
            throw WireError(.internalError, "a request for the device was taken for one without")
        }
    }

    private func done(_ session: Session, _ id: UInt64, _ reply: SessionReply) -> Disposition {
        session.counters.others += 1
        unsafe session.client?.send(reply: reply, to: id, payload: Self.noPayload)
        return .answered
    }

    // MARK: Requests for the device

    private func flush(
        _ session: Session, _ id: UInt64, _ namespace: NVMeDriver.NamespaceInfo,
        _ controller: NVMeController
    ) -> Disposition {
        let request = IORequest(
            operation: IOOperation.flush, namespaceID: namespace.namespaceID,
            session: session.key, token: id)
        let pending = PendingRequest(operation: IOOperation.flush, byteCount: 0)
        return submit(session, id, request, pending, controller)
    }

    func transfer(
        _ session: Session, _ id: UInt64, _ transfer: RequestPlan.Transfer,
        _ namespace: NVMeDriver.NamespaceInfo, _ controller: NVMeController,
        _ payload: UnsafeRawBufferPointer
    ) -> Disposition {
        var request = IORequest(
            operation: transfer.operation, namespaceID: namespace.namespaceID,
            session: session.key, token: id)
        request.lba = transfer.lba
        request.blockCount = transfer.blockCount
        request.blockShift = namespace.blockShift
        request.maxBlocksPerCommand = namespace.maxTransferBlocks
        request.forceUnitAccess = transfer.forceUnitAccess
        var pending = PendingRequest(
            operation: transfer.operation, byteCount: transfer.byteCount)
        switch transfer.location {
        case .region(let regionID, let byteOffset):
            do throws(WireError) {
                let region = try region(session, regionID, byteOffset, transfer)
                request.region = region.driverRegion
                request.offset = byteOffset
                pending.regionID = regionID
            } catch {
                return refuse(session, id, error)
            }
        case .inline:
            pending.isInlineRead = transfer.operation == IOOperation.read
            pending.lba = transfer.lba
            pending.blockCount = transfer.blockCount
            if pending.isInlineRead, !hasReplyRoom(session, transfer.byteCount) {
                return .wait(.own)
            }
            guard unsafe fillPages(&request, transfer, controller, session.queue, payload) else {
                return .wait(.queue)
            }
        }
        let disposition = submit(session, id, request, pending, controller)
        if case .taken = disposition, session.pending[id] != nil { return disposition }
        unsafe controller.engine(session.queue).pointee.releasePages(
            first: Int(request.firstPage), count: Int(request.pageCount))
        return disposition
    }

    /// Whether the replies of inline reads, this one included, still fit what may wait for the
    /// client.
    private func hasReplyRoom(_ session: Session, _ byteCount: Int) -> Bool {
        let waiting = session.inlineReadBytes + (session.client?.queuedByteCount ?? 0)
        return waiting == 0 || waiting + byteCount <= WorkerLimits.inlineReadByteCount
    }

    private func region(
        _ session: Session, _ regionID: UInt64, _ byteOffset: UInt64,
        _ transfer: RequestPlan.Transfer
    ) throws(WireError) -> ClientRegion {
        let name =
            transfer.operation == IOOperation.read
            ? "read" : transfer.operation == IOOperation.write ? "write" : "compare"
        guard let region = session.regions[regionID], region.unregisterRequestID == nil else {
            throw WireError(
                .notFound, "there is no region \(regionID)", field: "\(name).region_id")
        }
        guard byteOffset <= region.byteCount,
            UInt64(transfer.byteCount) <= region.byteCount - byteOffset
        else {
            throw WireError(
                .invalidArgument,
                "\(transfer.byteCount) bytes at \(byteOffset) do not lie within the region's "
                    + "\(region.byteCount)", field: "\(name).region_offset")
        }
        guard !(region.isReadOnly && transfer.operation == IOOperation.read) else {
            throw WireError(
                .invalidArgument, "region \(regionID) was registered as read-only",
                field: "\(name).region_id")
        }
        return region
    }

    /// Takes pool pages for inline data and fills them when the device will read them; false when
    /// none are free.
    private func fillPages(
        _ request: inout IORequest, _ transfer: RequestPlan.Transfer,
        _ controller: NVMeController, _ queue: Int, _ payload: UnsafeRawBufferPointer
    ) -> Bool {
        let engine = unsafe controller.engine(queue)
        guard let first = unsafe engine.pointee.takePages(byteCount: transfer.byteCount) else {
            return false
        }
        request.region = RegionTable.bounceRegion
        request.firstPage = UInt32(first)
        request.pageCount = UInt16((transfer.byteCount + 4095) / 4096)
        request.offset = UInt64(first) * 4096
        guard transfer.operation != IOOperation.read, let source = payload.baseAddress,
            let target = unsafe engine.pointee.pageAddress(first)
        else { return true }
        unsafe memcpy(target, source, min(payload.count, transfer.byteCount))
        return true
    }

    /// Write Zeroes, Verify and Deallocate: one request of the engine, whatever its ranges.
    private func ranges(
        _ session: Session, _ id: UInt64, _ work: RequestPlan.RangeWork,
        _ namespace: NVMeDriver.NamespaceInfo, _ controller: NVMeController
    ) -> Disposition {
        var request = IORequest(
            operation: work.operation, namespaceID: namespace.namespaceID,
            session: session.key, token: id)
        request.blockShift = namespace.blockShift
        request.maxBlocksPerCommand = work.maxBlocksPerCommand
        request.mayDeallocate = work.mayDeallocate
        request.forceUnitAccess = work.forceUnitAccess
        let spans = work.ranges.map { BlockSpan(lba: $0.lba, blockCount: $0.blockCount) }
        let engine = unsafe controller.engine(session.queue)
        let result = unsafe spans.withUnsafeBufferPointer { spans in
            guard let base = spans.baseAddress else { return SubmitResult.invalid }
            return unsafe engine.pointee.submit(request, ranges: base, count: spans.count)
        }
        return submitted(
            session, id, result, PendingRequest(operation: work.operation, byteCount: 0))
    }

    private func submit(
        _ session: Session, _ id: UInt64, _ request: IORequest, _ pending: PendingRequest,
        _ controller: NVMeController
    ) -> Disposition {
        let result = unsafe controller.engine(session.queue).pointee.submit(request)
        return submitted(session, id, result, pending)
    }

    private func submitted(
        _ session: Session, _ id: UInt64, _ result: SubmitResult, _ pending: PendingRequest
    ) -> Disposition {
        switch result {
        case .accepted:
            CrashPoint.hit(.requestStaged)
            session.pending[id] = pending
            session.charge(byteCount: pending.byteCount)
            session.statistics?.submitted(
                operation: pending.operation, byteCount: UInt64(clamping: pending.byteCount))
            requestsInFlight += 1
            if pending.isInlineRead { session.inlineReadBytes += pending.byteCount }
            if let regionID = pending.regionID { session.regions[regionID]?.inFlight += 1 }
            return .taken
        case .full:
            counters.queueFull += 1
            return .wait(.queue)
        case .invalid:
            return refuse(
                session, id, WireError(.internalError, "the engine refused a checked request"))
        }
    }

    // MARK: Turns

    /// Sets the engine's clock: called before requests of a session are taken.
    func beginTurn(_ queue: Int) {
        guard let controller = usableController, queue < controller.queueCount else { return }
        unsafe controller.engine(queue).pointee.tick = coarseClock
    }

    /// Ticks of 256 ns, truncated: only differences count.
    var coarseClock: UInt32 { Tick.now }

    /// Tells the device about everything submitted in this turn.
    func ring(_ queue: Int) {
        guard let controller = usableController, queue < controller.queueCount else { return }
        let engine = unsafe controller.engine(queue)
        unsafe engine.pointee.ring()
        writeDoorbells(queue, controller)
        // A device that is done already need not interrupt, and the null device never does.
        if unsafe engine.pointee.hasAnswer { reap(queue) }
        armTick()
    }

    func writeDoorbells(_ queue: Int, _ controller: NVMeController) {
        guard unsafe controller.engine(queue).pointee.hasPendingDoorbells else { return }
        do throws(DriverError) {
            try controller.writePendingDoorbells(queue)
        } catch {
            note(error)
        }
    }

    // MARK: Waiting

    /// A session's next message stays on its socket.
    func wait(_ session: Session, _ reason: WaitReason) {
        session.waits = reason
        guard reason == .queue, session.queue < waiting.count else { return }
        waiting[session.queue].append(session.key)
    }

    /// A session may try again.
    func resume(_ session: Session) {
        session.waits = nil
        session.client?.resume()
    }

    /// Lets the next session that waits for a queue try again. Each one that gets through calls
    /// this in its turn.
    func resumeNext(_ queue: Int) {
        while queue < waiting.count, !waiting[queue].isEmpty {
            let key = waiting[queue].removeFirst()
            guard let session = session(key), session.waits == .queue else { continue }
            return resume(session)
        }
    }
}
