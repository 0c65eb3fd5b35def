// SPDX-License-Identifier: Apache-2.0
// What clients are owed and what is kept for them: descriptors in the manager's store, and answers
// that have no other record.
//
// Peek, log, dequeue: a message is looked at on its socket; what it changes is stored and on
// record; only then is it taken off. A process that dies in between leaves a message that its
// successor finds again, and knows.

internal import Linux
internal import NVMeDriver
internal import Systemd
internal import Wire

extension DeviceService {
    // MARK: Descriptors

    /// Throws unless so many more descriptors can be stored.
    func checkStoreRoom(_ count: Int) throws(WireError) {
        do throws(FDStoreError) {
            try environment.stored?.checkRoom(count)
        } catch {
            throw WireError(.resourceExhausted, error.description, device: name)
        }
    }

    /// Stores a descriptor; `startStoring` waits for its confirmation. The number to put on
    /// record, which is another one's for memory that is stored already.
    @discardableResult
    func keep(
        _ kind: StoredKind, _ number: UInt64, _ fd: borrowing OwnedFD
    ) throws(WireError) -> UInt64 {
        guard let stored = environment.stored else { return number }
        do throws(FDStoreError) {
            return try stored.keep(kind, number, fd)
        } catch {
            throw WireError(.resourceExhausted, error.description, device: name)
        }
    }

    /// Waits until the manager has what was stored.
    func confirm() async throws(WireError) {
        do {
            try await environment.stored?.confirm()
        } catch {
            throw WireError(
                .resourceExhausted,
                "the service manager has not confirmed what it keeps: \(error)", device: name)
        }
    }

    /// The message at the head of a session's socket waits until its descriptors are confirmed.
    func startStoring(_ session: Session, _ storing: StoringRequest) {
        session.storing = storing
        loop.task { [weak self, weak session] in
            do throws(WireError) {
                try await self?.confirm()
            } catch {
                storing.failure = error
            }
            if storing.ring == nil {
                CrashPoint.hit(.memoryStored)
            } else {
                CrashPoint.hit(.ringStored)
            }
            storing.isConfirmed = true
            guard let self, let session, session.storing === storing, session.waits == .store
            else { return }
            resume(session)
        }
    }

    /// What was being stored for a session is not wanted any more.
    func dropStoring(_ session: Session) {
        guard let storing = session.storing else { return }
        session.storing = nil
        guard let stored = environment.stored else { return }
        guard storing.ring != nil else { return stored.remove(.memory, storing.number) }
        removeRing(storing.number, stored)
    }

    /// Removes the descriptors of a ring from the store.
    func removeRing(_ number: UInt64, _ stored: StoredFDs) {
        for kind in [StoredKind.ring, .kick, .wake, .clientWake] { stored.remove(kind, number) }
    }

    // MARK: Messages

    /// The highest id taken is on record before its message leaves the socket.
    func noteTaken(_ session: Session, _ id: UInt64) {
        session.highestRequestID = max(session.highestRequestID, id)
        controller?.state.setHighestRequest(session.slot, id: session.highestRequestID)
    }

    /// A message is off its socket: what was kept in case that it is found again can go.
    func taken(_ session: Session, _ id: UInt64) {
        CrashPoint.hit(.requestDequeued)
        for ring in session.rings.values where ring.record.openRequestID == id {
            guard ring.parts.clientWake != nil else { continue }
            ring.parts.clientWake = nil
            environment.stored?.remove(.clientWake, ring.record.number)
        }
    }

    // MARK: Answers that are owed

    /// Whether another request can be taken: each that is with the device may come to be owed.
    var hasOwedRoom: Bool {
        requestsInFlight + owedCount + WorkerLimits.owedReserve < StateLayout.owedCapacity
    }

    /// Puts on record that a session's request is owed an answer. The place; nil when there is
    /// none, which the limits prevent.
    func owe(
        _ kind: OwedKind, _ session: Session, _ requestID: UInt64,
        _ fill: (inout OwedRecord) -> Void = { _ in }
    ) -> Int? {
        guard let place = freeOwed.popLast() else { return nil }
        var record = OwedRecord(kind: kind, session: session.key, requestID: requestID)
        fill(&record)
        withState { $0.setOwed(place, record) }
        return place
    }

    /// How many answers are owed.
    var owedCount: Int { StateLayout.owedCapacity - freeOwed.count }

    /// An owed answer was given to a session's client: it is paid when the socket has it.
    func paid(_ session: Session, _ place: Int?) {
        guard let place else { return }
        guard let client = session.client, !session.hasEnded, let until = client.queuedUntil
        else {
            CrashPoint.hit(.owedSent)
            return forgetOwed(place)
        }
        session.owed.append((until, place))
    }

    /// Messages of a session that had to wait may have left.
    func settleOwed(_ session: Session) {
        guard let client = session.client, !session.owed.isEmpty else { return }
        let sent = client.sentCount
        let count = session.owed.firstIndex { $0.sentCount > sent } ?? session.owed.count
        guard count > 0 else { return }
        CrashPoint.hit(.owedSent)
        for entry in session.owed.prefix(count) { forgetOwed(entry.place) }
        session.owed.removeFirst(count)
        resumeNext(session.queue)
    }

    /// Nobody waits for the answers of a session any more.
    func forgetOwed(_ session: Session) {
        for entry in session.owed { forgetOwed(entry.place) }
        session.owed = []
        for read in session.owedReads { forgetOwed(read.place) }
        session.owedReads = []
    }

    func forgetOwed(_ place: Int) {
        withState { $0.clearOwed(place) }
        freeOwed.append(place)
    }

    // MARK: The state area

    /// Uses the state area, wherever it is; nil when nobody has it.
    @discardableResult
    func withState<Result>(_ body: (inout StateArea) -> Result) -> Result? {
        if let controller = controller ?? bringingUp { return body(&controller.state) }
        guard var state = idleState.take() else { return nil }
        let result = body(&state)
        idleState = consume state
        return result
    }
}
