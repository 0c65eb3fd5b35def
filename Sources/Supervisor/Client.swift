// SPDX-License-Identifier: Apache-2.0
// One connection to the public socket: bounded requests, bounded replies, cancelled when it ends.

internal import Linux
internal import Systemd
internal import Wire

/// A connected client.
@Control
final class Client {
    private let channel: Channel<SupervisorProtocol>
    private let peer: PeerCredentials
    private let service: Service
    private let log: Log
    private var source: DescriptorSource?
    private var requests: [UInt64: Task<Void, Never>] = [:]
    private var lastRequestID: UInt64 = 0
    private var rejections = 0
    /// Runs while replies wait, anew whenever some could be sent.
    private var unread: Timer?
    private var unreadByteCount = 0
    private var onEnd: (@Control () -> Void)?
    private let onShutdown: @Control () -> Void

    /// Serves a connected socket with this peer at the other end.
    init(
        _ fd: consuming OwnedFD, _ peer: PeerCredentials, service: Service, log: Log,
        onEnd: @escaping @Control () -> Void, onShutdown: @escaping @Control () -> Void
    ) throws(SystemCallError) {
        self.peer = peer
        self.service = service
        self.log = log
        self.onEnd = onEnd
        self.onShutdown = onShutdown
        channel = Channel(fd, role: .server, buffer: SharedBuffer.instance)
        source = try EventLoop.current.watch(channel.fd, .readable) { [weak self] events in
            self?.serve(events)
        }
    }

    // MARK: Receiving

    private func serve(_ events: Events) {
        do throws(ChannelError) {
            try channel.flush()
            if events.contains(.hangup) || events.contains(.error), !canTake {
                return end()
            }
            for _ in 0..<SupervisorLimits.messagesPerTurn where canTake {
                switch try channel.peek() {
                case .nothing: return try watch()
                case .closed: return end()
                case .rejected(let rejection):
                    try channel.reject(rejection)
                    guard tolerates(rejection) else { return end() }
                case .message(let message):
                    let envelope = message.envelope
                    try channel.take()
                    try take(envelope)
                }
            }
            try watch()
        } catch { fail(error) }
    }

    private var canTake: Bool {
        onEnd != nil && requests.count < SupervisorLimits.requestsPerClient
            && channel.queuedByteCount <= SupervisorLimits.outgoingByteCount / 2
    }

    private func watch() throws(ChannelError) {
        var events: Events = canTake ? .readable : []
        if channel.wantsWrite { events.insert(.writable) }
        do { try source?.setEvents(events) } catch { throw .system(error) }
        watchUnread()
    }

    /// A client that does not read its replies loses its connection.
    private func watchUnread() {
        let byteCount = channel.queuedByteCount
        defer { unreadByteCount = byteCount }
        guard byteCount > 0 else {
            unread?.cancel()
            unread = nil
            return
        }
        guard unread == nil || byteCount < unreadByteCount else { return }
        unread?.cancel()
        unread = try? EventLoop.current.after(
            nanoseconds: SupervisorLimits.unreadNanoseconds
        ) { [weak self] in
            guard let self else { return }
            fail(.outgoingFull(byteCount: channel.queuedByteCount))
        }
    }

    private func tolerates(_ rejection: Rejection) -> Bool {
        rejections += 1
        log.warning(
            "process \(peer.pid) of user \(peer.uid) sent a bad message: \(rejection.error)",
            id: .clientRefused)
        return !rejection.endsConnection && rejections < SupervisorLimits.rejectionsPerClient
    }

    private func take(_ envelope: Envelope<SupervisorProtocol>) throws(ChannelError) {
        guard case .request(let request) = envelope.content else { return }
        let id = envelope.requestID
        guard id > lastRequestID else {
            rejections += 1
            guard rejections < SupervisorLimits.rejectionsPerClient else { return end() }
            return try channel.send(
                error: WireError(
                    .invalidArgument,
                    "request ids must rise: \(id) came after \(lastRequestID)",
                    field: "request_id"), to: id)
        }
        lastRequestID = id
        let caller = Caller(
            peer: peer,
            deadlineNanoseconds: envelope.deadlineNanoseconds
                ?? Deadline.after(SupervisorLimits.requestNanoseconds))
        requests[id] = EventLoop.current.task {
            await self.answer(request, id, caller)
        }
    }

    // MARK: Answering

    private func answer(_ request: SupervisorRequest, _ id: UInt64, _ caller: Caller) async {
        var content: Content<SupervisorProtocol>
        var fd: PassedFD?
        do throws(WireError) {
            let answer = try await perform(request, caller)
            content = .reply(answer.reply)
            fd = answer.fd
        } catch {
            content = .failure(error)
        }
        requests[id] = nil
        guard onEnd != nil else { return }
        do throws(ChannelError) {
            do throws(ChannelError) {
                try channel.send(
                    Envelope(requestID: id, content: content), fds: fd?.raw.map { [$0] } ?? [])
            } catch .tooLarge(let error) {
                try channel.send(error: error, to: id)
            }
            guard channel.queuedByteCount <= SupervisorLimits.outgoingByteCount else {
                throw .outgoingFull(byteCount: channel.queuedByteCount)
            }
            try watch()
        } catch { return fail(error) }
        if case .reply = content, request == .shutdown { onShutdown() }
    }

    private struct Answer {
        var reply: SupervisorReply
        var fd: PassedFD?
        init(_ reply: SupervisorReply, _ fd: PassedFD? = nil) {
            self.reply = reply
            self.fd = fd
        }
    }

    private func perform(
        _ request: SupervisorRequest, _ caller: Caller
    ) async throws(WireError) -> Answer {
        guard !service.isStopping else {
            throw WireError(.shuttingDown, "the service is stopping; try again later")
        }
        switch request {
        case .listDevices(let name, let after):
            return Answer(.devices(try service.listDevices(name: name, after: after)))
        case .listDisks(let name, let after):
            return Answer(.disks(try service.listDisks(name: name, after: after, caller)))
        case .openDisk(let name, let access):
            let opened = try await service.openDisk(name, access, caller)
            return Answer(.diskOpened(sessionID: opened.sessionID, opened.info), opened.fd)
        case .listSessions(let after):
            return Answer(.sessions(await service.listSessions(after: after, caller)))
        case .closeSession(let id, let reason):
            try await service.closeSession(id, reason: reason, caller)
            return Answer(.done)
        case .inspect(let prefix, let after):
            return Answer(
                .inspect(await service.inspect(prefix: prefix, after: after, caller)))
        case .reload: return Answer(.reloaded(warnings: try await service.reload(caller)))
        case .retryDevice(let name):
            try await service.retryDevice(name, caller)
            return Answer(.done)
        case .releaseDevice(let name, let reason, let undo):
            try await service.releaseDevice(name, reason: reason, undo: undo, caller)
            return Answer(.done)
        case .openStatistics(let name):
            let opened = try await service.openStatistics(name, caller)
            return Answer(.statistics(byteCount: opened.byteCount), opened.fd)
        case .shutdown:
            try await service.shutdown(caller)
            return Answer(.done)
        case .servicingSave, .servicingCancel, .servicingRestore, .getServicing:
            return try await performServicing(request, caller)
        }
    }

    private func performServicing(
        _ request: SupervisorRequest, _ caller: Caller
    ) async throws(WireError) -> Answer {
        switch request {
        case .servicingSave(let deadline, let allOrNothing):
            try await service.save(deadline: deadline, allOrNothing: allOrNothing, caller)
        case .servicingCancel: try await service.cancelSave(caller)
        case .servicingRestore: try await service.restore(caller)
        case .getServicing(let after):
            return Answer(.servicing(service.servicing.status(after: after)))
        default: break
        }
        return Answer(.done)
    }

    // MARK: Ending

    private func fail(_ error: ChannelError) {
        switch error {
        case .closed: break
        case .outgoingFull, .timedOut, .tooLarge, .system:
            log.warning(
                "process \(peer.pid) of user \(peer.uid) lost its connection: \(error)",
                id: .clientRefused)
        }
        end()
    }

    /// Ends the connection; whatever it waited for is cancelled.
    func end() {
        guard let onEnd else { return }
        self.onEnd = nil
        source?.cancel()
        source = nil
        unread?.cancel()
        unread = nil
        channel.shutdown()
        for request in requests.values { request.cancel() }
        onEnd()
    }
}
