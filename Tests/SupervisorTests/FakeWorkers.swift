// SPDX-License-Identifier: Apache-2.0
// Workers that are part of the test: they speak the worker protocol over a socket pair.

import DiskConfig
import Linux
import Systemd
import TestSupport
import Wire

@testable import Supervisor

/// Runs a test's body as control code.
func onLoop(_ body: @escaping @Control () async throws -> Void) async throws {
    EventLoop.startOnOwnThread()
    try await LoopTurn.run { try await EventLoop.current.task { try await body() }.value }
}

/// One worker process that is not one.
@Control
final class FakeWorker {
    /// What the device is like.
    var namespaces = [NamespaceInfo(nsid: 1, blockByteCount: 512, blockCount: 1000)]
    var serial = "SERIAL"
    /// Why the next loads fail; consumed one by one.
    var loadFailures: [WireError] = []
    /// Kinds of requests that get no answer.
    var isDeaf = false
    var isDeafToSessions = false
    private(set) var isLoaded = false
    /// The successor of one that died is taking the device over.
    private(set) var isRecovering = false
    private var pid: Int32 = 42
    var continuity: Continuity?
    /// Dies under so many of the next opens, before it answers.
    var deathsUnderOpen = 0
    /// Ends this session right after it has told of it.
    var endsAfterListing: UInt64?
    private(set) var config: DeviceConfig?
    private(set) var requests: [String] = []
    private(set) var isStopped = false
    var sessions: [UInt64: SessionInfo] = [:]
    private var ends: [UInt64: (end: OwnedSocket, source: DescriptorSource)] = [:]
    private var channel: Channel<WorkerProtocol>?
    private var source: DescriptorSource?

    /// The worker's end of a session.
    final class OwnedSocket {
        let fd: OwnedFD
        init(_ fd: consuming OwnedFD) { self.fd = fd }
    }

    func connect() throws -> OwnedFD {
        let pair = try UnixSocket.pair(nonblocking: true)
        let theirs = try pair.first.duplicate()
        let channel = Channel<WorkerProtocol>(
            try pair.second.duplicate(), role: .server, buffer: SharedBuffer.instance)
        self.channel = channel
        source = try EventLoop.current.watch(channel.fd, .readable) { [weak self] _ in
            self?.serve()
        }
        isStopped = false
        return theirs
    }

    /// As SIGKILL does: the connection and everything it knew are gone.
    func die(keepingSessions: Bool = false) {
        source?.cancel()
        source = nil
        channel?.shutdown()
        channel = nil
        isLoaded = false
        if !keepingSessions {
            sessions = [:]
            ends = [:]
        }
    }

    /// As SIGKILL does to a worker whose successor adopts the device: everything is kept.
    func beReplaced() {
        die(keepingSessions: true)
        isRecovering = true
        pid += 1
    }

    /// The successor has taken everything over.
    func finishRecovery() {
        isRecovering = false
        isLoaded = true
        tell(.stateChanged(.ready, reason: ""))
    }

    func tell(_ event: WorkerEvent) { try? channel?.send(event: event) }

    private func serve() {
        guard let channel else { return }
        while self.channel === channel, let received = try? channel.receive() {
            switch received {
            case .nothing: return
            case .closed:
                // As a supervisor that was restarted: the worker lives on.
                source?.cancel()
                self.channel = nil
                return
            case .rejected: return
            case .message(let message):
                if case .request(let request) = message.envelope.content {
                    handle(request, message.envelope.requestID, channel)
                }
            }
        }
    }

    private func handle(
        _ request: WorkerRequest, _ id: UInt64, _ channel: Channel<WorkerProtocol>
    ) {
        requests.append(String("\(request)".prefix { $0 != "(" }))
        if isDeaf { return }
        do {
            switch request {
            case .loadDriver(let config, _): try load(config, id, channel)
            case .getDevice: try channel.send(reply: .device(device), to: id)
            case .getNamespace(let nsid):
                guard let found = namespaces.first(where: { $0.nsid == nsid }) else {
                    return try channel.send(error: WireError(.notFound, "none"), to: id)
                }
                try channel.send(reply: .namespace(found), to: id)
            case .openSession(let open):
                if isDeafToSessions { return }
                guard deathsUnderOpen > 0 else { return try self.open(open, id, channel) }
                deathsUnderOpen -= 1
                // Nobody has the client's end: the successor finds that out at once.
                beReplaced()
                isRecovering = false
                isLoaded = true
            case .closeSession(let session, let reason):
                end(session, WireError(.sessionRevoked, reason))
                try channel.send(reply: .done, to: id)
            case .listSessions:
                let all = sessions.values.sorted { $0.sessionID < $1.sessionID }
                try channel.send(reply: .sessions(Page(all)), to: id)
                if let id = endsAfterListing { end(id, WireError(.cancelled, "the client left")) }
            case .inspect(let prefix, _):
                let tree = [InspectEntry("queue/1/depth", "64"), InspectEntry("serial", serial)]
                try channel.send(
                    reply: .inspect(Page(tree.filter { $0.path.hasPrefix(prefix) })), to: id)
            case .openStatistics:
                try channel.send(error: WireError(.notSupported, "none here"), to: id)
            case .save, .thaw:
                try channel.send(error: WireError(.notSupported, "none here"), to: id)
            case .shutdown:
                isStopped = true
                try channel.send(reply: .done, to: id)
            }
        } catch { die() }
    }

    private var ready: DeviceReady {
        var controller = ControllerInfo()
        controller.serial = serial
        var ready = DeviceReady(
            controller: controller, namespaces: namespaces, bringUpNanoseconds: 1, generation: 1)
        ready.continuity = continuity
        return ready
    }

    private var device: WorkerDevice {
        var device = WorkerDevice(
            state: isRecovering ? .recovering : isLoaded ? .ready : .absent)
        device.config = config
        device.ready = isLoaded ? ready : nil
        device.workerPID = pid
        return device
    }

    private func load(
        _ config: DeviceConfig, _ id: UInt64, _ channel: Channel<WorkerProtocol>
    ) throws {
        if isRecovering {
            return try channel.send(error: WireError(.deviceStarting, "not yet"), to: id)
        }
        if !loadFailures.isEmpty {
            return try channel.send(error: loadFailures.removeFirst(), to: id)
        }
        isLoaded = true
        self.config = config
        try channel.send(reply: .deviceReady(ready), to: id)
    }

    private func open(
        _ open: OpenSession, _ id: UInt64, _ channel: Channel<WorkerProtocol>
    ) throws {
        let pair = try UnixSocket.pair(nonblocking: true)
        let mine = OwnedSocket(try pair.first.duplicate())
        let theirs = try pair.second.duplicate()
        var session = SessionInfo(sessionID: open.sessionID, disk: open.disk, access: open.access)
        session.nsid = open.nsid
        session.shared = open.shared
        session.clientUID = open.clientUID
        session.device = config?.name ?? ""
        sessions[open.sessionID] = session
        let source = try EventLoop.current.watch(mine.fd, []) { [weak self] _ in
            self?.end(open.sessionID, WireError(.cancelled, "the client closed it"))
        }
        ends[open.sessionID] = (mine, source)
        var info = DiskInfo()
        info.name = open.disk
        info.nsid = open.nsid
        try channel.send(reply: .sessionOpened(info), to: id, fds: [theirs.raw])
    }

    private func end(_ id: UInt64, _ reason: WireError) {
        guard sessions.removeValue(forKey: id) != nil else { return }
        ends.removeValue(forKey: id)?.source.cancel()
        tell(.sessionEnded(sessionID: id, reason: reason, counters: SessionCounters()))
    }
}

/// Workers by device; connecting to one starts it.
@Control
final class FakeUnits: WorkerUnits {
    var workers: [String: FakeWorker] = [:]
    var running: Set<String> = []
    private(set) var stopped: [String] = []
    private(set) var connects: [String] = []
    /// Connecting fails with this.
    var connectFailure: WireError?

    nonisolated init() {}

    func worker(_ device: String) -> FakeWorker {
        if let worker = workers[device] { return worker }
        let worker = FakeWorker()
        workers[device] = worker
        return worker
    }

    func connect(_ device: String) async throws(WireError) -> PassedFD {
        connects.append(device)
        if let connectFailure { throw connectFailure }
        running.insert(device)
        do { return PassedFD(try worker(device).connect()) } catch {
            throw WireError(.internalError, "\(error)")
        }
    }

    func isRunning(_ device: String) async throws(WireError) -> Bool { running.contains(device) }

    func stop(_ device: String) async throws(WireError) {
        stopped.append(device)
        running.remove(device)
        workers[device]?.die()
    }
}

/// A plan with devices `a`, `b` and `c` and some disks on them, as files say it.
func examplePlan() -> Plan {
    let uuid = "07070707-0707-0707-0707-070707070707"
    let files = [
        "a.device": "[Device]\nTransport=null\n",
        "b.device": "[Device]\nTransport=null\n",
        "c.device": "[Device]\nTransport=pci\nAddress=0000:01:00.0\n",
        "root.disk": "[Disk]\nDevice=a\nNamespace=1\n",
        "alias.disk": "[Disk]\nDevice=a\nNamespace=1\n",
        "data.disk": "[Disk]\nDevice=b\nNamespace=1\n",
        "frozen.disk": "[Disk]\nDevice=a\nNamespace=1\nAccess=read-only\n",
        "shared.disk": "[Disk]\nDevice=b\nNamespace=2\nShared=yes\n",
        "absent.disk": "[Disk]\nDevice=a\nNamespace=9\n",
        "by-uuid.disk": "[Disk]\nUUID=\(uuid)\n",
        "theirs.disk": "[Disk]\nDevice=b\nNamespace=1\nUser=4242\nGroup=77\n",
    ]
    let sources = files.map { name, text in
        ConfigSourceFile(directory: 0, relativePath: name, path: name, bytes: Array(text.utf8))
    }
    let lookup = NameLookup(user: { UInt32($0) }, group: { UInt32($0) })
    let configuration = Configuration.parse(
        sources.sorted { $0.path.sortsBefore($1.path) }, lookup: lookup)
    precondition(!configuration.hasErrors, "\(configuration.problems)")
    return Plan(configuration)
}

extension Service {
    /// A service over fake workers.
    static func example(
        _ units: FakeUnits, _ plan: @escaping @Control () throws(WireError) -> Plan = examplePlan
    ) async throws -> Service {
        let quiet = Log(sink: LogSink(levelMax: .emergency, format: .plain))
        let service = Service(units: units, ownUID: 1000, log: quiet, readPlan: plan)
        _ = try await service.start()
        return service
    }
}

extension Caller {
    /// A caller with a deadline far enough for any test that does not wait for it.
    static func user(
        _ uid: UInt32, groups: [UInt32] = [], nanoseconds: UInt64 = 60_000_000_000
    ) -> Caller {
        Caller(
            peer: PeerCredentials(pid: 1, uid: uid, gid: uid, groups: groups),
            deadlineNanoseconds: Deadline.after(nanoseconds))
    }

    static var root: Caller { .user(0) }
}
