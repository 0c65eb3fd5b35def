// SPDX-License-Identifier: Apache-2.0
// The supervisor's connection: who may connect, what it asks, what it is told.

internal import Glibc
internal import Linux
internal import NVMeDriver
internal import Systemd
internal import Wire

/// The listening socket and the one connection of the supervisor.
///
/// A connection that comes later replaces the one before: it is a restarted supervisor. Losing it
/// changes nothing for the sessions.
@Control
final class SupervisorHarness: DeviceObserver {
    private let service: DeviceService
    private let listener: OwnedFD
    private let stallMilliseconds: UInt64
    private let buffer = MessageBuffer()
    private let arrived: UInt64
    private var listenSource: DescriptorSource?
    private var channel: Channel<WorkerProtocol>?
    private var source: DescriptorSource?
    private var lastRequestID: UInt64 = 0
    private var harnesses: [UInt32: SessionHarness] = [:]
    /// Called for Shutdown, with what to do when its reply can be sent.
    var shutDown: @Control (_ doNotReset: Bool, _ done: @escaping @Control () -> Void) -> Void = {
        _, done in done()
    }

    /// Called for Shutdown of a device whose saved state is durable, with what to do when its reply
    /// can be sent.
    var leaveSaved: @Control (_ done: @escaping @Control () -> Void) -> Void = { done in done() }

    /// Connections accepted in one turn of the loop.
    private static let acceptsPerTurn = 16

    /// Listens.
    init(
        service: DeviceService, listener: consuming OwnedFD, stallMilliseconds: UInt64
    ) throws(SystemCallError) {
        self.service = service
        self.listener = listener
        self.stallMilliseconds = stallMilliseconds
        arrived = MonotonicClock.nowNanoseconds
        try self.listener.setNonblocking(true)
        listenSource = try EventLoop.current.watch(self.listener, .readable, priority: .high) {
            [weak self] _ in self?.accept()
        }
        service.observer = self
        service.attach = { [weak self] session, held in
            guard let fd = held.take() else { return }
            do throws(SystemCallError) {
                try self?.attach(session, fd)
            } catch {
                service.log.error("a session cannot be gone on with: \(error)")
            }
        }
    }

    // MARK: Connections

    private func accept() {
        for _ in 0..<Self.acceptsPerTurn {
            do throws(SystemCallError) {
                guard let fd = try UnixSocket.accept(listener) else { return }
                try admit(fd)
            } catch {
                // A client that is gone already, or no descriptor left: the next one is another
                // try.
                service.log.warning("a connection was not taken: \(error); ignoring")
                return
            }
        }
    }

    private func admit(_ fd: consuming OwnedFD) throws(SystemCallError) {
        let peer = try UnixSocket.peer(of: fd)
        let channel = Channel<WorkerProtocol>(fd, role: .server, buffer: buffer)
        guard Self.mayConnect(peer, ownUID: geteuid()) else {
            service.log.warning(
                "process \(peer.pid) of user \(peer.uid) is not the supervisor: refused")
            let error = WireError(
                .permissionDenied, "only the supervisor may connect to a worker",
                device: service.name)
            try? channel.send(error: error, to: 0)
            return channel.end()
        }
        disconnect()
        source = try EventLoop.current.watch(channel.fd, .readable) { [weak self] events in
            self?.ready(events)
        }
        self.channel = channel
        lastRequestID = 0
    }

    /// The worker's own user, and root.
    nonisolated static func mayConnect(_ peer: PeerCredentials, ownUID: UInt32) -> Bool {
        peer.uid == 0 || peer.uid == ownUID
    }

    private func disconnect() {
        source?.cancel()
        source = nil
        channel?.end()
        channel = nil
        // Nobody is left who could say what follows.
        service.thaw("the supervisor's connection ended")
    }

    // MARK: Messages

    private func ready(_ events: Events) {
        guard let channel else { return }
        do throws(ChannelError) {
            try channel.flush()
            try take(channel)
            watchOutput()
        } catch {
            if error != .closed { service.log.warning("the supervisor is lost: \(error)") }
            disconnect()
        }
    }

    private func take(_ channel: Channel<WorkerProtocol>) throws(ChannelError) {
        var count = 0
        while count < WorkerLimits.supervisorMessagesPerTurn, !channel.isCongested,
            channel === self.channel
        {
            count += 1
            let received = try channel.receive()
            switch consume received {
            case .nothing: return
            case .closed: throw .closed
            case .rejected(let rejection):
                try channel.send(error: rejection.error, to: rejection.requestID)
                if rejection.endsConnection { throw .closed }
            case .message(var message):
                var held: HeldDescriptor?
                if let fd = message.fds.take(0) { held = HeldDescriptor(fd) }
                try handle(message.envelope, held, channel)
            }
        }
    }

    private func handle(
        _ envelope: Envelope<WorkerProtocol>, _ fd: HeldDescriptor?,
        _ channel: Channel<WorkerProtocol>
    ) throws(ChannelError) {
        guard case .request(let request) = envelope.content else { return }
        let id = envelope.requestID
        guard id > lastRequestID else {
            try channel.send(
                error: WireError(
                    .invalidArgument, "request id \(id) is not above \(lastRequestID)",
                    field: "request_id"), to: id)
            throw .closed
        }
        lastRequestID = id
        if let deadline = envelope.deadlineNanoseconds, MonotonicClock.nowNanoseconds >= deadline {
            return try channel.send(
                error: WireError(
                    .deadlineExceeded, "the deadline passed", device: service.name,
                    field: "deadline_ns"), to: id)
        }
        do throws(WireError) {
            try answer(request, id, fd, channel)
        } catch {
            var error = error
            error.device = error.device ?? service.name
            try channel.send(error: error, to: id)
        }
    }

    private func answer(
        _ request: WorkerRequest, _ id: UInt64, _ fd: HeldDescriptor?,
        _ channel: Channel<WorkerProtocol>
    ) throws(WireError) {
        switch request {
        case .loadDriver(let config, let isSaved):
            try checkName(config)
            let saved = isSaved ? fd : nil
            service.loop.task { [weak self] in await self?.load(config, saved, id, channel) }
        case .getDevice: reply(.device(device()), id, channel)
        case .getNamespace(let nsid):
            reply(.namespace(try service.freshNamespace(nsid)), id, channel)
        case .openSession(let opening): try open(opening, id, channel)
        case .closeSession(let sessionID, let reason):
            try service.closeSession(sessionID, reason: reason)
            reply(.done, id, channel)
        case .listSessions(let after):
            let all = service.sessions.compactMap { $0 }.filter { !$0.hasEnded }
                .map { $0.onWire(device: service.name) }
                .sorted { $0.sessionID < $1.sessionID }
            reply(.sessions(Paging.page(all, after: after)), id, channel)
        case .inspect(let prefix, let after):
            let entries = service.inspect(prefix: prefix)
            reply(.inspect(Paging.page(entries, after: after)), id, channel)
        case .openStatistics:
            guard let memory = service.statisticsMemory else {
                throw WireError(.resourceExhausted, "there is no memory for statistics")
            }
            reply(.statistics(byteCount: memory.byteCount), id, channel, fds: [memory.raw])
        case .save(let save):
            service.loop.task { [weak self] in await self?.save(save, id, channel) }
        case .thaw:
            service.thaw("asked for by the supervisor")
            reply(.done, id, channel)
        case .shutdown(_, saved: true):
            try service.commit()
            leaveSaved { [weak self] in self?.reply(.done, id, channel) }
        case .shutdown(let doNotReset, _):
            shutDown(doNotReset) { [weak self] in self?.reply(.done, id, channel) }
        }
    }

    private func load(
        _ config: DeviceConfig, _ saved: HeldDescriptor?, _ id: UInt64,
        _ channel: Channel<WorkerProtocol>
    ) async {
        do throws(WireError) {
            var ready = try await service.load(config, saved: saved)
            let fds = service.environment.watched()
            ready.descriptorCount = UInt32(fds.count)
            reply(.deviceReady(ready), id, channel, fds: fds)
        } catch {
            refuse(error, id, channel)
        }
    }

    private func refuse(_ error: WireError, _ id: UInt64, _ channel: Channel<WorkerProtocol>) {
        guard channel === self.channel else { return }
        var error = error
        error.device = error.device ?? service.name
        do throws(ChannelError) {
            try channel.send(error: error, to: id)
            watchOutput()
        } catch { disconnect() }
    }

    private func save(
        _ save: SaveDevice, _ id: UInt64, _ channel: Channel<WorkerProtocol>
    ) async {
        do throws(WireError) {
            let saved = try await service.save(save)
            // Whoever asked is gone, and its end came before there was anything to thaw.
            guard channel === self.channel else {
                return service.thaw("the supervisor's connection ended")
            }
            reply(.saved(saved.summary), id, channel, fds: [saved.file.raw])
            CrashPoint.hit(.saveAnswered)
        } catch {
            refuse(error, id, channel)
        }
    }

    private func reply(
        _ reply: WorkerReply, _ id: UInt64, _ channel: Channel<WorkerProtocol>, fds: [CInt] = []
    ) {
        guard channel === self.channel else { return }
        do throws(ChannelError) {
            try channel.send(Envelope(requestID: id, content: .reply(reply)), fds: fds)
            watchOutput()
        } catch .tooLarge(let error) {
            service.log.error("a reply is too large: \(error)")
            try? channel.send(error: error, to: id)
        } catch {
            disconnect()
        }
    }

    private func watchOutput() {
        guard let channel, let source else { return }
        try? source.setEvents(channel.wantsWrite ? [.readable, .writable] : .readable)
    }

    /// Sends what waits for the supervisor, for a bounded time: before the process ends.
    func flush(milliseconds: UInt64) {
        let deadline = MonotonicClock.nowNanoseconds + milliseconds * 1_000_000
        try? channel?.flush(deadlineNanoseconds: deadline)
    }

    private func checkName(_ config: DeviceConfig) throws(WireError) {
        guard config.name == service.name else {
            throw WireError(
                .invalidArgument, "this is the worker of device '\(service.name)'",
                field: "load_driver.config.name")
        }
    }

    private func device() -> WorkerDevice {
        var device = WorkerDevice(state: service.lifecycle.state.onWire)
        device.reason = service.lifecycle.reason
        device.config = service.config
        device.ready = service.ready
        device.workerPID = getpid()
        return device
    }

    /// Makes a session. Its client gets its end of the socket when the manager keeps ours.
    private func open(
        _ opening: OpenSession, _ id: UInt64, _ channel: Channel<WorkerProtocol>
    ) throws(WireError) {
        let session = try service.openSession(opening)
        do {
            let pair = try UnixSocket.pair()
            try service.keep(.session, session.number, pair.first)
            let theirs = HeldDescriptor(try pair.second.duplicate())
            try attach(session, pair.first)
            service.loop.task { [weak self] in
                await self?.finishOpening(session, theirs, id, channel)
            }
        } catch {
            let failure =
                error as? WireError
                ?? WireError(.resourceExhausted, "\(error)", device: service.name)
            service.end(session, failure)
            throw failure
        }
    }

    private func finishOpening(
        _ session: Session, _ theirs: HeldDescriptor, _ id: UInt64,
        _ channel: Channel<WorkerProtocol>
    ) async {
        do throws(WireError) {
            try await service.confirm()
            guard !session.hasEnded else { throw service.unavailable() }
            guard let info = service.diskInfo(session) else { throw service.unavailable() }
            service.opened(session)
            reply(.sessionOpened(info), id, channel, fds: [theirs.raw])
            CrashPoint.hit(.sessionAnswered)
        } catch {
            service.end(session, error)
            guard channel === self.channel else { return }
            try? channel.send(error: error, to: id)
            watchOutput()
        }
    }

    /// Connects a session with the worker's end of its socket.
    private func attach(
        _ session: Session, _ fd: consuming OwnedFD
    ) throws(SystemCallError) {
        let key = session.key
        harnesses[key] = try SessionHarness(
            service: service, session: session, fd: fd, buffer: buffer,
            stallMilliseconds: stallMilliseconds
        ) { [weak self] in self?.harnesses[key] = nil }
    }

    // MARK: Events

    func tell(_ event: WorkerEvent) {
        guard let channel else { return }
        do throws(ChannelError) {
            try channel.send(event: event)
            watchOutput()
        } catch {
            disconnect()
        }
    }
}

/// A descriptor that closures can pass on.
final class HeldDescriptor {
    private var fd: OwnedFD?
    /// Holds it.
    init(_ fd: consuming OwnedFD) { self.fd = consume fd }
    /// Its number; -1 when it was given up.
    var raw: CInt { fd?.raw ?? -1 }
    /// Another descriptor of the same.
    func duplicate() -> OwnedFD? {
        switch fd {
        case .some(let fd): try? fd.duplicate()
        case nil: nil
        }
    }
    /// Gives it up.
    func take() -> OwnedFD? { fd.take() }
}

/// Lists that do not fit one message.
enum Paging {
    /// What an entry takes beside its texts: tags, lengths, numbers.
    private static let overheadByteCount = 208

    /// The sessions with ids above `after`, as far as they fit.
    static func page(_ all: [SessionInfo], after: UInt64?) -> Page<SessionInfo> {
        let rest = all.filter { $0.sessionID > after ?? 0 }
        return page(rest) { $0.disk.utf8.count + $0.device.utf8.count }
    }

    /// The entries with paths behind `after`, as far as they fit.
    static func page(_ all: [InspectEntry], after: String?) -> Page<InspectEntry> {
        let rest = all.filter { entry in
            after.map { $0.utf8.lexicographicallyPrecedes(entry.path.utf8) } ?? true
        }
        return page(rest) { $0.path.utf8.count + $0.value.utf8.count }
    }

    private static func page<Entry>(
        _ rest: [Entry], _ byteCount: (Entry) -> Int
    ) -> Page<Entry> {
        var used = 0
        var entries: [Entry] = []
        for entry in rest.prefix(WireLimits.pageEntryCount) {
            used += byteCount(entry) + overheadByteCount
            guard used <= WireLimits.pageByteCount else { break }
            entries.append(entry)
        }
        return Page(entries, more: entries.count < rest.count)
    }
}
