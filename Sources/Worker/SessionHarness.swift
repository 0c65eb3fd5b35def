// SPDX-License-Identifier: Apache-2.0
// One session's connection: messages are peeked, handed to the service, and taken off the socket
// when it says so.

internal import Linux
internal import Systemd
internal import Wire

/// The connection of a session. Holds itself in its registry until the session is over.
@Control
final class SessionHarness: SessionClient {
    private let service: DeviceService
    private let session: Session
    private let channel: Channel<SessionProtocol>
    private let stallNanoseconds: UInt64
    private var source: DescriptorSource?
    private var whenEnded: (@Control () -> Void)?
    private var turnIsScheduled = false
    private var watchesOutput = false
    private var deadlineTimer: Timer?
    private var limitTimer: Timer?
    private var stallTimer: Timer?
    private var relievedAtStallCheck: UInt64 = 0
    /// The request whose message is still on the socket although it was answered: the answer waits
    /// for room.
    private var answered: UInt64?
    /// The session is over, and the client has yet to make room for the reason.
    private var saysFarewell = false

    /// Takes over the worker's end of a session's socket pair. `whenEnded` is called once.
    init(
        service: DeviceService, session: Session, fd: consuming OwnedFD, buffer: MessageBuffer,
        stallMilliseconds: UInt64, whenEnded: @escaping @Control () -> Void
    ) throws(SystemCallError) {
        self.service = service
        self.session = session
        self.whenEnded = whenEnded
        stallNanoseconds = stallMilliseconds &* 1_000_000
        channel = Channel(fd, role: .server, buffer: buffer)
        // Edges, so that a message that has to wait on the socket costs nothing.
        source = try EventLoop.current.watch(
            channel.fd, [.readable, .peerClosed, .edgeTriggered]
        ) { [weak self] events in self?.ready(events) }
        session.client = self
    }

    // MARK: Events

    private func ready(_ events: Events) {
        if saysFarewell { return goOnWithFarewell(events) }
        guard !session.hasEnded else { return }
        if events.contains(.hangup) || events.contains(.error) {
            // What it sent and nobody took has not been done, and will not be.
            return service.end(session, Self.clientGone)
        }
        if watchesOutput { flush() }
        if session.waits == nil { turn() }
    }

    private static let clientGone = WireError(
        .cancelled, "the client closed the session or died")

    /// Takes messages until there are none, the session has to wait, or others should have their
    /// turn.
    private func turn() {
        turnIsScheduled = false
        guard !session.hasEnded else { return }
        service.beginTurn(session.queue)
        var count = 0
        var goesOn = true
        while goesOn, count < WorkerLimits.messagesPerTurn {
            goesOn = step()
            count += 1
        }
        service.ring(session.queue)
        if goesOn { scheduleTurn() }
        if session.waits != .queue { service.resumeNext(session.queue) }
    }

    private func scheduleTurn() {
        guard !turnIsScheduled, !session.hasEnded else { return }
        turnIsScheduled = true
        service.soon { [weak self] in self?.turn() }
    }

    /// One message; whether there may be another.
    private func step() -> Bool {
        guard !session.hasEnded, session.waits == nil else { return false }
        if channel.isCongested { return wait(.own) }
        if let answered { return take(answered) }
        if session.owedReads.first != nil, let reason = service.readAgain(session) {
            return wait(reason)
        }
        do throws(ChannelError) {
            let received = try channel.peek()
            switch consume received {
            case .nothing: return false
            case .closed:
                service.end(session, Self.clientGone)
                return false
            case .rejected(let rejection): return try reject(rejection)
            case .message(var message):
                let disposition = unsafe service.handle(
                    session, message.envelope, payload: message.payload, fds: &message.fds)
                return apply(
                    disposition, message.envelope.requestID,
                    deadline: message.envelope.deadlineNanoseconds)
            }
        } catch {
            failed(error)
            return false
        }
    }

    private func reject(_ rejection: Rejection) throws(ChannelError) -> Bool {
        service.counters.rejectedMessages += 1
        session.counters.errors += 1
        session.highestRequestID = max(session.highestRequestID, rejection.requestID)
        try channel.send(error: rejection.error, to: rejection.requestID)
        watchOutput()
        guard !rejection.endsConnection else {
            service.end(session, rejection.error)
            return false
        }
        return take(rejection.requestID)
    }

    private func apply(_ disposition: Disposition, _ id: UInt64, deadline: UInt64?) -> Bool {
        switch disposition {
        case .taken, .answered:
            guard !session.hasEnded else { return false }
            if case .taken = disposition { return dequeue(id) }
            return take(id)
        case .wait(let reason):
            if let deadline { armDeadline(deadline) }
            return wait(reason)
        case .end(let error):
            service.end(session, error)
            return false
        }
    }

    /// Takes the message of an answered request off the socket, when the answer is on it: a
    /// successor would otherwise know of neither.
    private func take(_ id: UInt64) -> Bool {
        guard !channel.wantsWrite else {
            answered = id
            return wait(.own)
        }
        answered = nil
        return dequeue(id)
    }

    private func dequeue(_ id: UInt64) -> Bool {
        service.noteTaken(session, id)
        do throws(ChannelError) { try channel.take() } catch {
            failed(error)
            return false
        }
        service.taken(session, id)
        return true
    }

    private func wait(_ reason: WaitReason) -> Bool {
        service.wait(session, reason)
        if reason == .limit { armLimit() }
        return false
    }

    /// A session at its limit goes on when it may have another request.
    private func armLimit() {
        session.limitWaits += 1
        service.countLimited(session)
        if limitTimer == nil {
            limitTimer = try? service.loop.timer { [weak self] in
                guard let self, session.waits == .limit, !session.hasEnded else { return }
                resume()
            }
        }
        guard let limitTimer else {
            // Out of memory: better unlimited than stuck.
            return resume()
        }
        limitTimer.arm(at: session.nextStartNanoseconds)
    }

    /// A message that waits is looked at again when its deadline has passed.
    private func armDeadline(_ deadline: UInt64) {
        if deadlineTimer == nil {
            deadlineTimer = try? service.loop.timer { [weak self] in
                guard let self, session.waits != nil, !session.hasEnded else { return }
                session.waits = nil
                scheduleTurn()
            }
        }
        deadlineTimer?.arm(at: deadline)
    }

    // MARK: SessionClient

    func resume() {
        session.waits = nil
        scheduleTurn()
    }

    var queuedByteCount: Int { channel.queuedByteCount }
    var isCongested: Bool { channel.isCongested }
    var sentCount: UInt64 { channel.relievedCount }

    var queuedUntil: UInt64? {
        channel.wantsWrite ? channel.relievedCount &+ UInt64(channel.queuedCount) : nil
    }

    func send(reply: SessionReply, to requestID: UInt64, payload: UnsafeRawBufferPointer) {
        sending { () throws(ChannelError) in
            try unsafe channel.send(reply: reply, to: requestID, payload: payload)
        }
    }

    func send(reply: SessionReply, to requestID: UInt64, fds: [CInt]) {
        sending { () throws(ChannelError) in
            try channel.send(reply: reply, to: requestID, fds: fds)
        }
    }

    func send(error: WireError, to requestID: UInt64) {
        sending { () throws(ChannelError) in try channel.send(error: error, to: requestID) }
    }

    func send(event: SessionEvent) {
        sending { () throws(ChannelError) in try channel.send(event: event) }
    }

    private func sending(_ body: () throws(ChannelError) -> Void) {
        guard !session.hasEnded else { return }
        do throws(ChannelError) {
            try body()
            watchOutput()
            service.settleOwed(session)
        } catch {
            failed(error)
        }
    }

    private func flush() {
        do throws(ChannelError) {
            try channel.flush()
            watchOutput()
            service.settleOwed(session)
        } catch {
            return failed(error)
        }
        if session.waits == .own, !channel.isCongested { resume() }
    }

    private func failed(_ error: ChannelError) {
        switch error {
        case .closed: service.end(session, Self.clientGone)
        case .outgoingFull:
            service.end(session, WireError(.resourceExhausted, error.description))
        case .timedOut, .tooLarge, .system:
            service.end(session, WireError(.internalError, error.description))
        }
    }

    // MARK: A client that does not read

    private func watchOutput() {
        guard channel.wantsWrite != watchesOutput else { return }
        watchesOutput = channel.wantsWrite
        let input: Events = [.readable, .peerClosed, .edgeTriggered]
        try? source?.setEvents(watchesOutput ? input.union(.writable) : input)
        guard watchesOutput else {
            stallTimer?.disarm()
            return
        }
        if stallTimer == nil {
            stallTimer = try? service.loop.timer { [weak self] in
                self?.checkStall()
            }
        }
        relievedAtStallCheck = channel.relievedCount
        stallTimer?.arm(after: stallNanoseconds)
    }

    /// Nothing left for the client within the bound: it does not read. How much waits says nothing:
    /// a slow client's queue is as full as before, because its next replies are in it.
    private func checkStall() {
        guard channel.wantsWrite, !session.hasEnded else { return }
        guard channel.relievedCount != relievedAtStallCheck else {
            return service.end(
                session,
                WireError(
                    .resourceExhausted,
                    "the client has not read its replies for \(stallNanoseconds / 1_000_000) ms"))
        }
        relievedAtStallCheck = channel.relievedCount
        stallTimer?.arm(after: stallNanoseconds)
    }

    // MARK: The end

    func end(_ reason: WireError) {
        guard whenEnded != nil, !saysFarewell else { return }
        deadlineTimer?.cancel()
        limitTimer?.cancel()
        stallTimer?.cancel()
        session.client = nil
        // What happened to requests without a reply is not known to the client anyway. That the
        // session is over, and why, is worth more than a few more replies.
        channel.dropQueued()
        try? channel.send(event: .ended(reason))
        if channel.wantsWrite, beginFarewell() { return }
        leave()
    }

    /// The socket is full of replies: waits until the client has taken some, bounded. False when
    /// that cannot be done.
    private func beginFarewell() -> Bool {
        guard let source, service.farewells < WorkerLimits.farewells else { return false }
        do throws(SystemCallError) {
            let timer = try service.loop.timer { [weak self] in self?.leave() }
            timer.arm(after: WorkerLimits.farewellNanoseconds)
            stallTimer = timer
            try source.setEvents([.writable, .peerClosed, .edgeTriggered])
        } catch { return false }
        saysFarewell = true
        service.farewells += 1
        return true
    }

    private func goOnWithFarewell(_ events: Events) {
        let isGone = events.contains(.hangup) || events.contains(.error)
        if !isGone, (try? channel.flush()) != nil, channel.wantsWrite { return }
        leave()
    }

    private func leave() {
        guard let whenEnded else { return }
        self.whenEnded = nil
        if saysFarewell { service.farewells -= 1 }
        stallTimer?.cancel()
        source?.cancel()
        source = nil
        channel.end()
        // The caller may be this object's own turn: it goes away in a turn of its own.
        service.soon(whenEnded)
    }
}

extension Channel {
    /// Messages that a socket can hold at most, whatever its buffer.
    private static var waitingMessageLimit: Int { 4096 }

    /// Ends the connection such that the peer still reads what was sent to it.
    ///
    /// Closing a Unix socket with messages unread gives the peer ECONNRESET in place of what waits
    /// for it.
    func end() {
        shutdown()
        var count = 0
        while count < Self.waitingMessageLimit, discardNext() { count += 1 }
    }

    /// Takes a message and throws it away; false when there is none.
    private func discardNext() -> Bool {
        do throws(ChannelError) {
            let received = try receive()
            switch consume received {
            case .nothing: return false
            case .closed: return false
            case .message: return true
            case .rejected: return true
            }
        } catch {
            return false
        }
    }
}
