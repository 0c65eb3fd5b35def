// SPDX-License-Identifier: Apache-2.0
// Workers that are part of the test: they speak the worker protocol over a socket pair.

import DiskConfig
import Linux
import SavedState
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
    /// The next open waits until `heldOpen` is called.
    var holdsOpens = false
    private(set) var heldOpen: (@Control () throws -> Void)?
    /// Answers to the next opens: it has found its device failed.
    var openFailures: [WireError] = []
    /// How it takes part in servicing.
    var servicing = FakeServicing()
    fileprivate(set) var isLoaded = false
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

    /// Has a session from before, for writing on namespace 1.
    func keep(_ id: UInt64, _ disk: String) {
        sessions[id] = SessionInfo(sessionID: id, disk: disk, access: .readWrite)
        sessions[id]?.nsid = 1
    }

    func connect() throws -> OwnedFD {
        let pair = try UnixSocket.pair(nonblocking: true)
        let theirs = try pair.first.duplicate()
        let channel = Channel<WorkerProtocol>(
            try pair.second.duplicate(), role: .server, buffer: SharedBuffer.instance)
        // The connection of the supervisor before has ended.
        thaw()
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
        servicing.isFrozen = false
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
                thaw()
                return
            case .rejected: return
            case .message(var message):
                if case .request(let request) = message.envelope.content {
                    let envelope = message.envelope
                    var fd: PassedFD?
                    if let received = message.fds.take(0) { fd = PassedFD(received) }
                    handle(request, fd, envelope.requestID, channel)
                }
            }
        }
    }

    private func handle(
        _ request: WorkerRequest, _ fd: PassedFD?, _ id: UInt64,
        _ channel: Channel<WorkerProtocol>
    ) {
        requests.append(String("\(request)".prefix { $0 != "(" }))
        if isDeaf { return }
        do {
            switch request {
            case .loadDriver(let config, _): try load(config, fd, id, channel)
            case .getDevice: try channel.send(reply: .device(device), to: id)
            case .getNamespace(let nsid):
                guard let found = namespaces.first(where: { $0.nsid == nsid }) else {
                    return try channel.send(error: WireError(.notFound, "none"), to: id)
                }
                try channel.send(reply: .namespace(found), to: id)
            case .openSession(let open):
                if isDeafToSessions { return }
                if holdsOpens {
                    holdsOpens = false
                    heldOpen = { [self] in try self.open(open, id, channel) }
                    return
                }
                if !openFailures.isEmpty {
                    return try channel.send(error: openFailures.removeFirst(), to: id)
                }
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
            case .save(let save): try self.save(save, id, channel)
            case .thaw:
                thaw()
                try channel.send(reply: .done, to: id)
            case .shutdown(_, saved: true): try endSaved(id, channel)
            case .shutdown:
                servicing.token = nil
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
        ready.restored = servicing.isRestored
        ready.coldReason = servicing.coldReason
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
        _ config: DeviceConfig, _ saved: PassedFD?, _ id: UInt64,
        _ channel: Channel<WorkerProtocol>
    ) throws {
        if let file = saved?.take() {
            servicing.offers.append(try SealedFile.read(file, limit: 1 << 24))
        }
        if isRecovering {
            return try channel.send(error: WireError(.deviceStarting, "not yet"), to: id)
        }
        if !loadFailures.isEmpty {
            return try channel.send(error: loadFailures.removeFirst(), to: id)
        }
        if servicing.holdsLoads {
            servicing.holdsLoads = false
            servicing.held = { [self] in try finishLoad(config, saved, id, channel) }
            return
        }
        try finishLoad(config, saved, id, channel)
    }

    private func finishLoad(
        _ config: DeviceConfig, _ saved: PassedFD?, _ id: UInt64,
        _ channel: Channel<WorkerProtocol>
    ) throws {
        if !isLoaded { servicing.begin(saved == nil ? nil : servicing.offers.last) }
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

// MARK: - Servicing

extension FakeWorker {
    /// Goes on, if it is frozen; what it saved is void first.
    fileprivate func thaw() {
        guard servicing.isFrozen else { return }
        servicing.token = nil
        servicing.isFrozen = false
    }

    fileprivate func save(
        _ save: SaveDevice, _ id: UInt64, _ channel: Channel<WorkerProtocol>
    ) throws {
        servicing.saves.append(save)
        if servicing.deathsUnderSave > 0 {
            servicing.deathsUnderSave -= 1
            return adoptItself()
        }
        if let error = servicing.saveFailure { return try channel.send(error: error, to: id) }
        guard !servicing.isFrozen else {
            return try channel.send(error: WireError(.busy, "frozen already"), to: id)
        }
        servicing.isFrozen = true
        if servicing.isDeafToSave { return }
        servicing.token = save.token
        let token = servicing.tellsAnotherToken ? .random() : SaveToken(bytes: save.token)
        let section = try FakeServicing.section(config?.name ?? "", token ?? .random())
        var saved = DeviceSaved(byteCount: UInt64(section.count))
        saved.commandsInFlight = 3
        saved.queueCount = 2
        saved.sessionCount = UInt32(sessions.count)
        let file = try SealedFile.make(name: "fake", section)
        try channel.send(reply: .saved(saved), to: id, fds: [file.raw])
        servicing.onFrozen(self)
    }

    fileprivate func endSaved(_ id: UInt64, _ channel: Channel<WorkerProtocol>) throws {
        if servicing.isDeafToEnd { return }
        if servicing.diesUnderEnd {
            servicing.token = nil
            return adoptItself()
        }
        if servicing.endsWithoutAWord {
            die()
            return servicing.onEnd()
        }
        guard servicing.isFrozen else {
            return try channel.send(error: WireError(.busy, "not frozen any more"), to: id)
        }
        try channel.send(reply: .done, to: id)
        die()
        servicing.onEnd()
    }

    /// Dies, and its successor has taken the device over before anybody asks.
    private func adoptItself() {
        beReplaced()
        isRecovering = false
        isLoaded = true
    }
}

/// A worker's part in servicing.
struct FakeServicing {
    /// In the memory of the device, which outlives everything here.
    var token: [UInt8]?
    var isFrozen = false
    /// What it was asked.
    var saves: [SaveDevice] = []
    /// The saved states that it was offered.
    var offers: [[UInt8]] = []
    var saveFailure: WireError?
    var isDeafToSave = false
    var tellsAnotherToken = false
    var deathsUnderSave = 0
    var isDeafToEnd = false
    var diesUnderEnd = false
    var endsWithoutAWord = false
    /// The next load waits until `held` is called.
    var holdsLoads = false
    var held: (@Control () throws -> Void)?
    /// What came of the last load.
    var isRestored = false
    var coldReason = ""
    /// Called when the device is frozen and written down.
    var onFrozen: @Control (FakeWorker) -> Void = { _ in }
    /// Called when the process has ended in order.
    var onEnd: @Control () -> Void = {}

    /// A device is brought up, from this saved state or from none.
    mutating func begin(_ section: [UInt8]?) {
        defer { token = nil }
        (isRestored, coldReason) = (false, "")
        guard let section else { return }
        let saved = try? SavedState.decode(device: section)
        isRestored = saved != nil && saved?.token.bytes == token
        coldReason = isRestored ? "" : "the pool has another token"
    }

    /// The saved state of a device that never did anything.
    static func section(_ name: String, _ token: SaveToken) throws -> [UInt8] {
        var controller = SavedController(generation: 1, epoch: 1)
        controller.identifyController = [UInt8](repeating: 0, count: 4096)
        controller.queues = [SavedQueue(id: 0, entries: 4), SavedQueue(id: 1, entries: 4)]
        return try SavedState.encode(
            device: SavedDevice(
                name: name, transport: .vfioUser, address: "/x", configuration: [], token: token,
                generation: 1,
                identity: SavedIdentity(
                    vendorID: 1, deviceID: nil, serial: "S", model: "M", firmware: "F",
                    controllerID: 0),
                controller: controller,
                pool: SavedPool(backing: .file, path: "/p", byteCount: 4096), sessions: []),
            version: "test")
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
        worker.servicing.onEnd = { [weak self] in self?.running.remove(device) }
        workers[device] = worker
        return worker
    }

    /// This supervisor is no more: the workers are another one's from now on.
    func leave() -> FakeUnits {
        let next = FakeUnits()
        next.workers = workers
        next.running = running
        for (device, worker) in workers {
            worker.servicing.onEnd = { [weak next] in next?.running.remove(device) }
        }
        connectFailure = WireError(.cancelled, "this supervisor is dead")
        return next
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

    func running() async throws(WireError) -> [String] { running.sorted() }

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
        _ units: FakeUnits, state: String = "/nonexistent", host: HostIdentity = .current,
        _ plan: @escaping @Control () throws(WireError) -> Plan = examplePlan
    ) async throws -> Service {
        let quiet = Log(sink: LogSink(levelMax: .emergency, format: .plain))
        let service = Service(
            units: units, ownUID: 1000, savedState: SavedStateFile(directory: state), host: host,
            log: quiet, readPlan: plan)
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
