// SPDX-License-Identifier: Apache-2.0
// The connection to one worker: requests with deadlines, replies, events, and its end.

internal import Linux
internal import Systemd
internal import Wire

/// A descriptor that travels with a reply; closed when nobody takes it.
@Control
final class PassedFD {
    private var fd: OwnedFD?
    init(_ fd: consuming OwnedFD) { self.fd = consume fd }

    /// Its number, for the arguments of a system call; nil when it was taken.
    var raw: CInt? { fd?.raw }

    /// Takes it out, once.
    func take() -> OwnedFD? { fd.take() }
}

/// What a worker answered.
struct WorkerAnswer: Sendable {
    var reply: WorkerReply
    /// What came along, in order.
    var fds: [PassedFD] = []
    var fd: PassedFD? { fds.first }
}

/// The room for messages that all connections of the control thread share.
@Control
enum SharedBuffer {
    static let instance = MessageBuffer()
}

/// A connection to the worker of one device.
@Control
final class WorkerLink {
    /// The device, for messages.
    let device: String
    private let channel: Channel<WorkerProtocol>
    private var source: DescriptorSource?
    // An answer that comes after its deadline finds a finished OneShot and is dropped with its
    // descriptor, which ends the session that nobody waits for.
    private var pending: [UInt64: OneShot<WorkerAnswer>] = [:]
    private let onEvent: @Control (WorkerEvent) -> Void
    private var onEnd: (@Control (String) -> Void)?

    /// Takes over a connected socket. `onEnd` is called once, with the reason, when the connection
    /// ends otherwise than by ``close()``.
    init(
        _ fd: consuming OwnedFD, device: String,
        onEvent: @escaping @Control (WorkerEvent) -> Void,
        onEnd: @escaping @Control (String) -> Void
    ) throws(SystemCallError) {
        self.device = device
        self.onEvent = onEvent
        self.onEnd = onEnd
        channel = Channel(fd, role: .client, buffer: SharedBuffer.instance)
        source = try EventLoop.current.watch(channel.fd, .readable) { [weak self] _ in
            self?.serve()
        }
    }

    /// Whether requests can be sent.
    var isOpen: Bool { onEnd != nil }

    /// How many requests wait for an answer, late ones included.
    var pendingCount: Int { pending.count }

    /// Sends a request and waits for its answer until a point of CLOCK_MONOTONIC.
    ///
    /// Throws what the worker answered; `workerRestarted` when it died meanwhile.
    func call(
        _ request: WorkerRequest, fd: PassedFD? = nil, deadlineNanoseconds: UInt64, _ what: String
    ) async throws(WireError) -> WorkerAnswer {
        guard isOpen else { throw lost("its worker is gone") }
        guard pending.count < SupervisorLimits.requestsPerWorker else {
            throw WireError(
                .resourceExhausted,
                "\(what): the worker does not answer; \(pending.count) "
                    + "requests wait already", device: device)
        }
        let answer = OneShot<WorkerAnswer>()
        do {
            let id = try channel.send(
                request: request, deadlineNanoseconds: deadlineNanoseconds,
                fds: fd?.raw.map { [$0] } ?? [])
            pending[id] = answer
            try watchOutput()
        } catch {
            end("\(error)")
            throw lost("\(error)")
        }
        return try await answer.wait(until: deadlineNanoseconds, what)
    }

    /// Ends the connection without a word to its owner.
    func close() {
        onEnd = nil
        end("closed")
    }

    private func serve() {
        do {
            try channel.flush()
            for _ in 0..<SupervisorLimits.messagesPerTurn {
                guard isOpen else { return }
                switch try channel.receive() {
                case .nothing: return try watchOutput()
                case .closed: return end("the worker ended")
                case .rejected(let rejection):
                    return end("the worker broke the protocol: \(rejection.error)")
                case .message(var message):
                    let envelope = message.envelope
                    var fds: [PassedFD] = []
                    for index in 0..<message.fds.count {
                        if let received = message.fds.take(index) { fds.append(PassedFD(received)) }
                    }
                    deliver(envelope, fds)
                }
            }
            // The socket is still readable: the next turn continues.
            try watchOutput()
        } catch {
            end("\(error)")
        }
    }

    private func deliver(_ envelope: Envelope<WorkerProtocol>, _ fds: [PassedFD]) {
        switch envelope.content {
        case .reply(let reply):
            pending.removeValue(forKey: envelope.requestID)?
                .succeed(WorkerAnswer(reply: reply, fds: fds))
        case .failure(var error):
            if error.device == nil { error.device = device }
            pending.removeValue(forKey: envelope.requestID)?.fail(error)
        case .event(let event): onEvent(event)
        case .request: end("the worker sent a request")
        }
    }

    private func watchOutput() throws(ChannelError) {
        do {
            try source?.setEvents(channel.wantsWrite ? [.readable, .writable] : .readable)
        } catch { throw .system(error) }
    }

    private func end(_ reason: String) {
        source?.cancel()
        source = nil
        channel.shutdown()
        let waiting = pending.values
        pending = [:]
        for answer in waiting { answer.fail(lost(reason)) }
        let tell = onEnd
        onEnd = nil
        tell?(reason)
    }

    private func lost(_ reason: String) -> WireError {
        WireError(
            .workerRestarted, "device \(device): \(reason); try again", device: device)
    }
}

// MARK: - What the supervisor asks

extension WorkerLink {
    /// The state of the device in its worker.
    func getDevice(_ deadlineNanoseconds: UInt64) async throws(WireError) -> WorkerDevice {
        let answer = try await call(
            .getDevice, deadlineNanoseconds: deadlineNanoseconds, "asking for the device")
        guard case .device(let device) = answer.reply else {
            throw surprise("asking for the device")
        }
        return device
    }

    /// Brings the device up, as `saved` (a sealed file) has it if there is one. Of a PCI device its
    /// descriptors come along.
    func loadDriver(
        _ config: DeviceConfig, saved: PassedFD? = nil, _ deadlineNanoseconds: UInt64
    ) async throws(WireError) -> (ready: DeviceReady, fds: [PassedFD]) {
        let answer = try await call(
            .loadDriver(config, savedState: saved != nil), fd: saved,
            deadlineNanoseconds: deadlineNanoseconds, "bringing the device up")
        guard case .deviceReady(let ready) = answer.reply else {
            throw surprise("bringing the device up")
        }
        return (ready, answer.fds)
    }

    /// All sessions of the worker.
    func sessions(_ deadlineNanoseconds: UInt64) async throws(WireError) -> [SessionInfo] {
        var all: [SessionInfo] = []
        var after: UInt64?
        for _ in 0..<SupervisorLimits.pagesPerList {
            let answer = try await call(
                .listSessions(after: after), deadlineNanoseconds: deadlineNanoseconds,
                "listing sessions")
            guard case .sessions(let page) = answer.reply else {
                throw surprise("listing sessions")
            }
            all += page.entries
            guard page.more, let last = page.entries.last?.sessionID else { break }
            after = last
        }
        return all
    }

    /// The worker's part of the inspection tree.
    func inspect(
        _ prefix: String, _ deadlineNanoseconds: UInt64
    ) async throws(WireError) -> [InspectEntry] {
        var all: [InspectEntry] = []
        var after: String?
        for _ in 0..<SupervisorLimits.pagesPerList {
            let answer = try await call(
                .inspect(prefix: prefix, after: after), deadlineNanoseconds: deadlineNanoseconds,
                "inspecting")
            guard case .inspect(let page) = answer.reply else { throw surprise("inspecting") }
            all += page.entries
            guard page.more, let last = page.entries.last?.path else { break }
            after = last
        }
        return all
    }

    func surprise(_ what: String) -> WireError {
        WireError(
            .internalError,
            "device \(device): \(what): the worker's answer is one to another question; are worker "
                + "and supervisor of the same version?", device: device)
    }
}

extension WorkerLink {
    /// One namespace, freshly identified.
    func getNamespace(
        _ nsid: UInt32, _ deadlineNanoseconds: UInt64
    ) async throws(WireError) -> NamespaceInfo {
        let answer = try await call(
            .getNamespace(nsid: nsid), deadlineNanoseconds: deadlineNanoseconds,
            "identifying namespace \(nsid)")
        guard case .namespace(let namespace) = answer.reply else {
            throw surprise("identifying a namespace")
        }
        return namespace
    }

    /// The worker's statistics.
    func openStatistics(
        _ deadlineNanoseconds: UInt64
    ) async throws(WireError) -> (byteCount: UInt64, fd: PassedFD) {
        let answer = try await call(
            .openStatistics, deadlineNanoseconds: deadlineNanoseconds, "opening statistics")
        guard case .statistics(let byteCount) = answer.reply, let fd = answer.fd else {
            throw surprise("opening statistics")
        }
        return (byteCount, fd)
    }

    /// Makes a session and gives its client's end.
    func openSession(
        _ session: OpenSession, _ deadlineNanoseconds: UInt64
    ) async throws(WireError) -> (info: DiskInfo, fd: PassedFD) {
        let answer = try await call(
            .openSession(session), deadlineNanoseconds: deadlineNanoseconds,
            "opening disk \(session.disk)")
        guard case .sessionOpened(let info) = answer.reply, let fd = answer.fd else {
            throw surprise("opening a session")
        }
        return (info, fd)
    }
}
