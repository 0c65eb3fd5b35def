// SPDX-License-Identifier: Apache-2.0
// The connection to the supervisor: opening disks, and administration.
//
//     let backend = try NVMeBackend.connect("/run/nvmed/nvmed.sock")
//     let disk = try backend.openDisk("vol0", access: .readWrite)
//     let buffer = try IOBuffer(byteCount: 1 << 20)
//     try disk.read(into: buffer, byteOffset: 0, byteCount: 1 << 20)
//
// Everything blocks until it is done or the deadline passes. One owner at a time: not thread-safe.

public import Linux
public import Wire

/// A connection to nvmed.
public final class NVMeBackend {
    /// How long the supervisor may take to answer, which includes starting a device.
    public static let defaultTimeoutMilliseconds: UInt64 = 60_000
    /// The most pages of a list that are asked for: a bound on a service that always says "more".
    static let pageLimit = 4096

    /// The path of the socket.
    public let path: String
    private(set) var channel: Channel<SupervisorProtocol>
    let buffer: MessageBuffer

    private init(path: String) throws(ClientError) {
        self.path = path
        buffer = MessageBuffer()
        channel = try Self.connectChannel(path, buffer)
    }

    private static func connectChannel(
        _ path: String, _ buffer: MessageBuffer
    ) throws(ClientError) -> Channel<SupervisorProtocol> {
        do {
            return Channel(
                try UnixSocket.connect(path, kind: .sequencedPacket), role: .client,
                buffer: buffer)
        } catch { throw .unreachable(path: path, error) }
    }

    /// Connects to the supervisor.
    public static func connect(_ path: String) throws(ClientError) -> NVMeBackend {
        try NVMeBackend(path: path)
    }

    /// Connects again, after `disconnected`.
    public func reconnect() throws(ClientError) {
        channel = try Self.connectChannel(path, buffer)
    }

    /// Waits a moment before another try; ends early when the supervisor goes away.
    func pause(milliseconds: Int32) {
        _ = try? channel.fd.waitReadable(timeoutMilliseconds: milliseconds)
    }

    // MARK: Disks

    /// Opens a disk; nil access: the most that is configured.
    public func openDisk(
        _ name: String, access: AccessMode? = nil, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> Disk {
        let (session, info) = try openSession(name, access, deadlineNanoseconds)
        return try Disk(
            backend: self, name: name, access: access, session: session, info: info,
            deadlineNanoseconds: deadlineNanoseconds)
    }

    func openSession(
        _ name: String, _ access: AccessMode?, _ deadline: UInt64?, firstRequestID: UInt64 = 1
    ) throws(ClientError) -> (Channel<SessionProtocol>, DiskInfo?) {
        let (reply, fd) = try call(.openDisk(name: name, access: access), deadline)
        guard case .diskOpened(_, let info) = reply, let session = fd.take() else {
            throw .protocolViolation("the supervisor opened the disk without giving a session")
        }
        return (
            Channel(session, role: .client, buffer: buffer, firstRequestID: firstRequestID), info
        )
    }

    /// The disks this caller may open.
    public func listDisks(
        deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> [DiskEntry] {
        try pages(deadlineNanoseconds, \.name) {
            .listDisks(name: nil, after: $0)
        } take: {
            if case .disks(let page) = $0 { page } else { nil }
        }
    }

    /// One disk; throws `notFound`.
    public func disk(
        _ name: String, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> DiskEntry {
        let (reply, _) = try call(.listDisks(name: name, after: nil), deadlineNanoseconds)
        guard case .disks(let page) = reply, let entry = page.entries.first else {
            throw .failed(
                WireError(.notFound, "there is no such disk; see nvmectl disk list", disk: name))
        }
        return entry
    }

    // MARK: Administration

    /// All devices.
    public func listDevices(
        deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> [DeviceInfo] {
        try pages(deadlineNanoseconds, \.name) {
            .listDevices(name: nil, after: $0)
        } take: {
            if case .devices(let page) = $0 { page } else { nil }
        }
    }

    /// One device; throws `notFound`.
    public func device(
        _ name: String, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> DeviceInfo {
        let (reply, _) = try call(.listDevices(name: name, after: nil), deadlineNanoseconds)
        guard case .devices(let page) = reply, let device = page.entries.first else {
            throw .failed(
                WireError(
                    .notFound, "there is no such device; see nvmectl device list", device: name))
        }
        return device
    }

    /// All open sessions.
    public func listSessions(
        deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> [SessionInfo] {
        try pages(deadlineNanoseconds, \.sessionID) {
            .listSessions(after: $0)
        } take: {
            if case .sessions(let page) = $0 { page } else { nil }
        }
    }

    /// Ends a session; its client is told the reason.
    public func closeSession(
        _ sessionID: UInt64, reason: String, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        try done(.closeSession(sessionID: sessionID, reason: reason), deadlineNanoseconds)
    }

    /// The values of the inspection tree whose path begins with `prefix`.
    public func inspect(
        _ prefix: String = "", deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> [InspectEntry] {
        try pages(deadlineNanoseconds, \.path) {
            .inspect(prefix: prefix, after: $0)
        } take: {
            if case .inspect(let page) = $0 { page } else { nil }
        }
    }

    /// The statistics of a device's worker: memory for `StatisticsReader`.
    public func openStatistics(
        _ device: String, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> OwnedFD {
        let (reply, fd) = try call(.openStatistics(device: device), deadlineNanoseconds)
        guard case .statistics = reply, let memory = fd.take() else {
            throw .protocolViolation("the supervisor opened statistics without giving any")
        }
        return memory
    }

    /// Has the configuration read again; returns what is odd about it.
    public func reload(deadlineNanoseconds: UInt64? = nil) throws(ClientError) -> [String] {
        let (reply, _) = try call(.reload, deadlineNanoseconds)
        guard case .reloaded(let warnings) = reply else {
            throw .protocolViolation("the supervisor did not answer Reload")
        }
        return warnings
    }

    /// Has a failed device brought up again; returns when it was started.
    public func retryDevice(
        _ name: String, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        try done(.retryDevice(name: name), deadlineNanoseconds)
    }

    /// Has nvmed let go of a device until it is retried, or until a call with `undo`. Returns when
    /// its worker has ended.
    public func releaseDevice(
        _ name: String, reason: String, undo: Bool = false, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        try done(.releaseDevice(name: name, reason: reason, undo: undo), deadlineNanoseconds)
    }

    /// Stops the service in order.
    public func shutdown(deadlineNanoseconds: UInt64? = nil) throws(ClientError) {
        try done(.shutdown, deadlineNanoseconds)
    }

    // MARK: Calls

    func done(_ request: SupervisorRequest, _ deadline: UInt64?) throws(ClientError) {
        let (reply, _) = try call(request, deadline)
        guard case .done = reply else {
            throw .protocolViolation("the supervisor answered something else than Done")
        }
    }

    private func pages<Entry, Key>(
        _ deadline: UInt64?, _ key: (Entry) -> Key, request: (Key?) -> SupervisorRequest,
        take: (SupervisorReply) -> Page<Entry>?
    ) throws(ClientError) -> [Entry] {
        var entries: [Entry] = []
        for _ in 0..<Self.pageLimit {
            let (reply, _) = try call(request(entries.last.map(key)), deadline)
            guard let page = take(reply) else {
                throw .protocolViolation("the supervisor answered with another list")
            }
            entries += page.entries
            if !page.more || page.entries.isEmpty { return entries }
        }
        throw .protocolViolation("the list has no end")
    }

    func call(
        _ request: SupervisorRequest, _ deadline: UInt64?
    ) throws(ClientError) -> (SupervisorReply, FDBox) {
        let deadline = deadline ?? Deadline.after(milliseconds: Self.defaultTimeoutMilliseconds)
        return try finish(try begin(request, deadline), deadline)
    }

    /// Sends a request; its id.
    func begin(_ request: SupervisorRequest, _ deadline: UInt64) throws(ClientError) -> UInt64 {
        do throws(ChannelError) {
            return try channel.send(request: request, deadlineNanoseconds: deadline)
        } catch { throw ClientError(error) }
    }

    /// Waits for the reply to a request.
    func finish(
        _ id: UInt64, _ deadline: UInt64
    ) throws(ClientError) -> (SupervisorReply, FDBox) {
        let answer: (Content<SupervisorProtocol>, FDBox)
        do throws(ChannelError) {
            answer = try self.answer(id, Deadline.withGrace(deadline))
        } catch { throw ClientError(error) }
        switch answer.0 {
        case .reply(let reply): return (reply, answer.1)
        case .failure(let error): throw .failed(error)
        case .request, .event:
            throw .protocolViolation("the supervisor answered with something that is no reply")
        }
    }

    /// The answer to one request. Answers to others (which nobody waits for any more) are dropped,
    /// and their descriptors closed.
    private func answer(
        _ id: UInt64, _ deadline: UInt64?
    ) throws(ChannelError) -> (Content<SupervisorProtocol>, FDBox) {
        while true {
            switch try channel.receive(deadlineNanoseconds: deadline) {
            case .message(var message):
                // A failure without an id is about what we sent, which is one thing at a time.
                let isFailure = if case .failure = message.envelope.content { true } else { false }
                let answered = message.envelope.requestID
                guard answered == id || (answered == 0 && isFailure) else { continue }
                return (message.envelope.content, FDBox(message.fds.take(0)))
            case .rejected(let rejection): return (.failure(rejection.error), FDBox(nil))
            case .closed: throw .closed
            case .nothing: continue
            }
        }
    }
}

/// A descriptor in a box, because tuples and copyable values cannot hold its owner.
final class FDBox {
    private var fd: OwnedFD?
    init(_ fd: consuming OwnedFD?) { self.fd = fd }
    /// The descriptor, once.
    func take() -> OwnedFD? { fd.take() }
}
