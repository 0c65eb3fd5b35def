// SPDX-License-Identifier: Apache-2.0
// The life of a worker process: fence, state area, socket, device; and how it ends.

internal import CLinux
internal import DMA
internal import Glibc
internal import Linux
internal import NVMeDriver
internal import NullDevice
internal import Systemd
internal import VFIO
internal import Wire

/// A worker process. `run` returns its exit code.
public enum WorkerProgram {
    /// Runs the worker of `device`, as the service manager started it, until it is asked to leave.
    public static func run(device: String) -> Int32 {
        let log = Log(device: device)
        guard Processor.hasCRC32C else {
            log.error(
                "the processor has no CRC-32C instruction (SSE 4.2, ARMv8.1); use another",
                id: .workerFailed)
            return 1
        }
        _ = nv_ignore_sigpipe()
        _ = nv_raise_nofile_limit(WorkerLimits.openFiles)
        _ = nv_install_sigbus_handler()
        do {
            let loop = try EventLoop.main()
            var fds = try ListenFDs.receive()
            guard let listener = fds.take("listen") else {
                log.error(
                    "no listening socket came with LISTEN_FDS under the name 'listen'; start "
                        + "workers by nvmed, systemd or systemd-socket-activate --fdname=listen",
                    id: .workerFailed)
                return 1
            }
            let names = fds.names
            let kept = fds.take("state")
            // Closing a second descriptor of the state area's file would drop the lock.
            while fds.take("state") != nil {}
            let area = try fenced(kept, log)
            return try start(device, log, listener, area, Inheritance(fds: fds, names: names), loop)
        } catch {
            log.error("the worker cannot go on: \(error)", id: .workerFailed)
            return 1
        }
    }

    private static func start(
        _ device: String, _ log: Log, _ listener: consuming OwnedFD, _ area: consuming FoundArea,
        _ inherited: consuming Inheritance, _ loop: EventLoop
    ) throws -> Int32 {
        // Closures cannot consume what they capture, but they can take it out of an optional.
        var listener: OwnedFD? = consume listener
        var area: FoundArea? = consume area
        var inherited: Inheritance? = consume inherited
        let process = try Control.assumeIsolated { () throws -> WorkerProcess? in
            guard let listener = listener.take(), let area = area.take(),
                let inherited = inherited.take()
            else { return nil }
            return try WorkerProcess(
                device: device, log: log, listener: listener, found: area, inherited: inherited)
        }
        Control.assumeIsolated { process?.begin() }
        defer { withExtendedLifetime(process) {} }
        return try loop.run()
    }

    /// The state area of a predecessor, or a new one. A predecessor that is still alive is waited
    /// for, bounded.
    private static func fenced(
        _ kept: consuming OwnedFD?, _ log: Log
    ) throws -> FoundArea {
        guard let fd = kept else {
            return FoundArea(area: try StateArea.create(layout: stateLayout), isNew: true)
        }
        let deadline =
            MonotonicClock.nowNanoseconds + UInt64(WorkerLimits.fenceMilliseconds) * 1_000_000
        var holder: Int32 = 0
        while unsafe nv_lock_exclusive(fd.raw, &holder) == -Errno.again {
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw StateAreaError.held(pid: holder)
            }
            log.warning(
                "process \(holder) still holds the device's state area: waiting for its end",
                id: .workerStuck)
            try waitForEnd(of: holder, deadline)
        }
        CrashPoint.hit(.adoptFenced)
        do throws(StateAreaError) {
            let area = try StateArea.adopt(fd)
            CrashPoint.hit(.adoptGenerationRaised)
            return FoundArea(area: area, isNew: false)
        } catch {
            log.error(
                "the state area of the predecessor is not used: \(error); continuing",
                id: .stateDiscarded)
            return FoundArea(
                area: try StateArea.create(layout: stateLayout), isNew: true, isLost: true)
        }
    }

    private static var stateLayout: StateLayout { DeviceService.stateLayout }

    private static func waitForEnd(of pid: Int32, _ deadline: UInt64) throws(SystemCallError) {
        let raw = nv_pidfd_open(pid)
        // It has ended already.
        guard raw >= 0 else { return }
        let pidfd = OwnedFD(adopting: raw)
        let now = MonotonicClock.nowNanoseconds
        let left = deadline > now ? (deadline - now) / 1_000_000 + 1 : 0
        _ = try pidfd.waitReadable(timeoutMilliseconds: Int32(clamping: left))
    }
}

/// A state area, and whether it still has to be stored.
///
/// It has one owner, and one thread at a time: Sendable so that it can be handed to the control
/// actor.
struct FoundArea: ~Copyable, @unchecked Sendable {
    var area: StateArea
    var isNew: Bool
    /// A predecessor left one that is of no use.
    var isLost = false
}

/// What came from the manager beside listener and state area.
struct Inheritance: ~Copyable, Sendable {
    var fds: ListenFDs
    /// The names of all that is stored.
    let names: [String]
}

/// The parts of a worker process, wired together.
@Control
final class WorkerProcess {
    private let log: Log
    private let service: DeviceService
    private let harness: SupervisorHarness
    private let store: FDStore
    private let keeper: DeviceKeeper
    private let notifier = Notifier()
    private var sources: [Source] = []
    private var watchdog: Timer?
    private var isLeaving = false
    private var isAsked = false

    init(
        device: String, log: Log, listener: consuming OwnedFD,
        found: consuming FoundArea, inherited: consuming Inheritance
    ) throws {
        self.log = log
        let names = inherited.names
        var fds = inherited.fds
        let store = FDStore(inherited: names)
        self.store = store
        if found.isNew { Self.replace("state", found.area.fd, store, log) }
        let pause = PauseWatch()
        let statistics = Self.statistics(&fds)
        let keeper = DeviceKeeper(
            device: device, log: log, store: store, stored: StoredDevice(from: &fds), names: names,
            generation: found.area.generation)
        keeper.statistics = statistics
        self.keeper = keeper
        var environment = DeviceEnvironment(
            name: device, log: log,
            open: { config throws(DriverError) in
                try Self.open(config, device, keeper, pause)
            },
            adopt: { config in keeper.adopt(config) },
            takePool: { keeper.takePool() },
            stored: StoredFDs(store: store, log: log, from: &fds),
            prepare: { config, reset async throws(DriverError) in
                try await keeper.prepare(config, reset: reset)
            },
            started: { config in await keeper.setAffinity(config) },
            keep: { controller in keeper.keep(controller) },
            forget: { keeper.forget() },
            watched: { keeper.watched })
        environment.statistics = statistics
        environment.silence = { keeper.silence() }
        environment.stateIsLost = found.isLost
        Self.connectServicing(&environment, keeper, store, log)
        environment.guestMemory = { config throws(WireError) in try keeper.guestMemory(config) }
        if let limit = Program.environment("NVMED_SESSION_STALL_MS").flatMap({ UInt64($0) }) {
            environment.stallLimitNanoseconds = limit &* 1_000_000
        }
        if let limit = Program.environment("NVMED_FAILURES").flatMap({ UInt32($0) }) {
            environment.failureLimit = limit
        }
        let service = DeviceService(environment: environment, state: found.area)
        self.service = service
        pause.look = { [weak service] in service?.tellStall() }
        let stall = Program.environment("NVMED_CLIENT_STALL_MS").flatMap { UInt64($0) }
        harness = try SupervisorHarness(
            service: service, listener: listener,
            stallMilliseconds: stall ?? WorkerLimits.clientStallMilliseconds)
        service.leaveToSuccessor = { [weak self] in
            guard let self, !isLeaving else { return }
            isLeaving = true
            _ = try? notifier.stopping()
            exit(Self.keptCode)
        }
        harness.shutDown = { [weak self] doNotReset, done in
            self?.shutDown(doNotReset: doNotReset, done)
        }
        harness.leaveSaved = { [weak self] done in self?.leaveSaved(done) }
    }

    /// What is counted, going on with what a predecessor counted.
    private static func statistics(_ fds: inout ListenFDs) -> Statistics? {
        let pid = getpid()
        guard let predecessor = fds.take(DeviceKeeper.statisticsName) else {
            return try? Statistics(pid: pid)
        }
        // There is one; the removal of another would take what is stored next with it.
        while fds.take(DeviceKeeper.statisticsName) != nil {}
        return try? Statistics(pid: pid, continuing: predecessor)
    }

    /// What a device needs that may be saved and restored.
    private static func connectServicing(
        _ environment: inout DeviceEnvironment, _ keeper: DeviceKeeper, _ store: FDStore,
        _ log: Log
    ) {
        environment.poolFile = { place, byteCount, node throws(PoolFileError) in
            try keeper.poolFile(place, byteCount, node)
        }
        environment.savedPool = { config, byteCount throws(DriverError) in
            try keeper.savedPool(config, byteCount)
        }
        environment.reconnect = { config throws(DriverError) in try keeper.reconnect(config) }
        environment.keepReconnected = { pool, interrupts throws(DriverError) in
            try keeper.keepReconnected(pool: pool, interrupts: interrupts)
        }
        environment.replaceState = { fd in replace("state", fd, store, log) }
    }

    /// Connects to a device of a configuration.
    private static func open(
        _ config: DeviceConfig, _ name: String, _ keeper: DeviceKeeper, _ pause: PauseWatch
    ) throws(DriverError) -> any DeviceBacking {
        switch config.transport {
        case .vfioUser(let path):
            return WatchedDevice(try keeper.connect(path, keepsState: config.keepAlive), pause)
        case .pci: return WatchedDevice(try keeper.open(), pause)
        case .null:
            do throws(VFIOError) {
                return try NullController(
                    name: name, byteCount: config.nullByteCount ?? NullController.defaultByteCount,
                    blockByteCount: config.nullBlockByteCount
                        ?? NullController.defaultBlockByteCount)
            } catch { throw .device(error) }
        }
    }

    // MARK: The store

    private static func replace(
        _ name: String, _ fd: borrowing OwnedFD, _ store: FDStore, _ log: Log
    ) {
        do throws(FDStoreError) {
            try store.remove(name)
            try store.store(name, fd)
        } catch {
            log.warning(
                "\(error); continuing without: a restarted worker begins afresh", id: .storeFailed)
        }
    }

    // MARK: Life

    /// Starts: signals, watchdog, READY=1, and the device when a predecessor had one.
    func begin() {
        do {
            sources.append(
                try service.loop.onSignal(SIGTERM, priority: .high) { [weak self] in
                    self?.terminated()
                })
            watchdog = try service.loop.pingWatchdog { [weak self] in
                self?.service.threadsTurn ?? true
            }
        } catch {
            log.warning("\(error); continuing", id: .storeFailed)
        }
        let notifier = notifier
        let log = log
        let service = service
        service.loop.task { [store] in
            do {
                try await store.barrier(timeoutNanoseconds: WorkerLimits.barrierNanoseconds)
            } catch {
                log.warning(
                    "the manager has not confirmed the stored state: \(error); continuing",
                    id: .storeFailed)
            }
            // A predecessor's device works on meanwhile: whoever waits for this process may count
            // on it. A device that has to be reset takes longer, and is not waited for.
            await service.lookedAtPredecessor()
            do {
                try notifier.ready(status: "listening")
                CrashPoint.hit(.adoptReady)
            } catch {
                log.error("the manager cannot be told: \(error)")
            }
        }
        // A predecessor's device is brought up at once: its supervisor need not even know.
        service.recover()
    }

    // MARK: Leaving

    /// SIGTERM: a restart, an upgrade, or the end. Work goes on until that is known.
    private func terminated() {
        guard !isAsked, !isLeaving else { return }
        isAsked = true
        service.loop.task { [weak self, log] in
            let isEnd = await EndOrRestart.isEnd(log)
            guard let self, !isLeaving else { return }
            log.notice(isEnd ? "stopping: the controller is shut down" : "leaving for a successor")
            if isEnd { shutDown(doNotReset: false) {} } else { leaveForRestart() }
        }
    }

    /// The controller and what is stored stay as they are.
    ///
    /// What is in flight may finish for a moment: a successor that cannot go on with the controller
    /// then loses nothing at all.
    private func leaveForRestart() {
        leave(WorkerLimits.restartNanoseconds) { [weak self] _ in
            guard let self else { return }
            service.forgetStarts()
            service.leave(orderly: false, WireError(.workerRestarted, "the worker is restarted"))
            exit(Self.keptCode)
        }
    }

    private func shutDown(doNotReset: Bool, _ done: @escaping @Control () -> Void) {
        let bound =
            doNotReset ? WorkerLimits.restartNanoseconds : WorkerLimits.drainNanoseconds
        leave(bound) { [weak self] _ in
            guard let self else { return }
            service.leave(
                orderly: !doNotReset,
                WireError(.shuttingDown, "the worker was shut down", device: service.name))
            guard !doNotReset else {
                service.forgetStarts()
                done()
                return exit(Self.keptCode)
            }
            forget(done)
        }
    }

    /// The device goes on by itself: its state is durable. First nobody can take over from here any
    /// more, then the sessions end, then the device is closed as it is.
    private func leaveSaved(_ done: @escaping @Control () -> Void) {
        guard !isLeaving else { return }
        isLeaving = true
        _ = try? notifier.stopping()
        service.loop.task { [weak self, store, log, service] in
            do {
                try store.remove("state")
                try await store.barrier(timeoutNanoseconds: WorkerLimits.barrierNanoseconds)
            } catch {
                log.warning(
                    "the manager has not confirmed that it forgets the state: \(error); "
                        + "continuing", id: .storeFailed)
            }
            CrashPoint.hit(.saveForgotten)
            service.leaveSaved()
            self?.forget {
                CrashPoint.hit(.saveClosed)
                log.notice("the device goes on by itself")
                done()
            }
        }
    }

    /// Removes what is stored, so that the next worker begins afresh.
    private func forget(_ done: @escaping @Control () -> Void) {
        service.loop.task { [weak self, store, keeper, service, log] in
            do {
                keeper.forget()
                try store.remove("state")
                try store.remove("pool")
                try store.remove(DeviceKeeper.lockName)
                try await store.barrier(timeoutNanoseconds: WorkerLimits.barrierNanoseconds)
            } catch {
                log.warning(
                    "what is stored could not be removed: \(error); continuing", id: .storeFailed)
            }
            done()
            await service.allAreTold()
            self?.exit(0)
        }
    }

    private func leave(_ nanoseconds: UInt64, _ then: @escaping @Control (Bool) -> Void) {
        guard !isLeaving else { return }
        isLeaving = true
        _ = try? notifier.stopping()
        service.drain(nanoseconds, then)
    }

    /// The exit code of a worker whose device a successor goes on with: the manager starts one. 0
    /// says that there is nothing to go on with (RestartPreventExitStatus= of the unit).
    private static let keptCode: Int32 = 75

    private func exit(_ code: Int32) {
        // The last events and replies of sessions were sent when they ended.
        harness.flush(milliseconds: 1000)
        service.loop.exit(code)
    }
}
