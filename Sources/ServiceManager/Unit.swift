// SPDX-License-Identifier: Apache-2.0
// One service: its process, its store, its watchdog, and when it starts again.

internal import CLinux
internal import Glibc
internal import Linux
internal import Systemd

/// What a unit needs of its manager.
@Control
protocol UnitOwner: AnyObject {
    /// The path of the notify socket.
    var notifyPath: String { get }
    /// Nothing is started any more.
    var isShuttingDown: Bool { get }
    /// Reads what waits on the notify socket.
    func drainNotifications()
    /// Tells the supervisor.
    func emit(_ event: UnitEvent)
    /// A new end of a control connection for a plain service that starts.
    func makeConnection() throws(SystemCallError) -> OwnedFD
    /// A process began or ended: notifications are told apart by it.
    func processChanged(_ unit: Unit, began: Int32?, ended: Int32?)
    /// A plain service that need not be restarted has exited with 0.
    func finished(_ unit: Unit)
}

/// One service.
///
/// | state    | connect | READY | exit              | stop            | restart        | timer |
/// |----------|---------|-------|-------------------|-----------------|----------------|-------|
/// | inactive | start   | –     | –                 | discard         | start          | –     |
/// | starting | –       | ready | start, or failing | SIGTERM, ending | SIGTERM, again | kill  |
/// | ready    | –       | –     | start, or failing | SIGTERM, ending | SIGTERM, again | –     |
/// | ending   | –       | –     | discard, inactive | –               | –              | kill  |
/// | again    | –       | –     | start             | ending          | –              | kill  |
/// | failing  | –       | –     | –                 | discard, inact. | start          | start |
///
/// Discard: the store is emptied. Failing: it failed fast too often, and waits.
@Control
final class Unit {
    enum State { case inactive, starting, ready, ending, again, failing }

    /// A process that lived shorter than this and was never ready has failed fast. What has been
    /// ready keeps count of its own failures: a worker that is killed again and again while it does
    /// its work is started at once each time.
    static let fastNanoseconds: UInt64 = 1_000_000_000
    /// So many fast failures in a row are answered at once; then starts wait.
    static let fastFailuresMax = 5
    /// The first wait, doubled with each further failure up to the last; the store is kept.
    static let backOffFirstNanoseconds: UInt64 = 100_000_000
    /// The longest wait.
    static let backOffLastNanoseconds: UInt64 = 5_000_000_000

    private final class Listener {
        let fd: OwnedFD
        init(_ fd: consuming OwnedFD) { self.fd = fd }
    }

    private final class Running {
        let process: SpawnedProcess
        init(_ process: consuming SpawnedProcess) { self.process = process }
    }

    let name: UnitName
    let template: ServiceTemplate
    let socketPath: String?
    private var state = State.inactive
    private let listener: Listener?
    private let store: DescriptorStore
    private unowned let owner: any UnitOwner
    private let log: Log
    private var running: Running?
    private var child: Source?
    private var activation: DescriptorSource?
    private var timer: Timer?
    private var watchdog: Timer?
    private var restarts = 0
    private var fastFailures = 0
    private var startedAt: UInt64 = 0
    private var statusText = ""

    init(
        _ name: UnitName, _ template: ServiceTemplate, directory: String, owner: any UnitOwner
    ) throws(SystemCallError) {
        self.name = name
        self.template = template
        self.owner = owner
        log = Log(fields: ["UNIT": name.description])
        store = DescriptorStore(limit: template.fdStoreMax)
        socketPath = template.socket.map {
            let path = ServiceTemplate.fill($0, name.instance)
            return path.hasPrefix("/") ? path : "\(directory)/\(path)"
        }
        if let socketPath {
            listener = Listener(
                try UnixSocket.listen(
                    socketPath, kind: .sequencedPacket, mode: template.socketMode))
        } else {
            listener = nil
        }
        let loop = EventLoop.current
        timer = try loop.timer { [weak self] in self?.timeOut() }
        watchdog = try loop.timer { [weak self] in
            self?.kill(because: "its watchdog ran out")
        }
        if let listener, !template.isPlain {
            activation = try loop.watch(listener.fd, .readable) { [weak self] _ in
                guard let self, state == .inactive else { return }
                start()
            }
        }
    }

    var status: UnitStatus {
        let reported: UnitState =
            switch state {
            case .inactive: .inactive
            case .failing: .failed
            case .starting, .ready, .ending, .again: .active
            }
        return UnitStatus(
            state: reported, pid: pid, isReady: state == .ready, restarts: restarts,
            stored: store.count, status: statusText)
    }

    var pid: Int32 { running?.process.pid ?? 0 }
    var isRunning: Bool { running != nil }
    /// Neither running nor about to.
    var isIdle: Bool { state == .inactive }

    /// Lets go of everything; the process must have ended.
    func close() {
        activation?.cancel()
        child?.cancel()
        timer?.cancel()
        watchdog?.cancel()
        store.removeAll()
        if let socketPath { unsafe unlink(socketPath) }
    }
}

// MARK: - Requests

extension Unit {
    /// Starts the service now, unless it runs.
    func start() {
        guard running == nil, !owner.isShuttingDown else { return }
        timer?.disarm()
        // Only a unit that waits for a connection looks at its listener.
        activation?.setEnabled(false)
        statusText = ""
        startedAt = MonotonicClock.nowNanoseconds
        do throws(SystemCallError) {
            let started = Running(try spawn())
            do throws(SystemCallError) {
                child = try EventLoop.current.onChild(started.process.pidfd) { [weak self] exit in
                    self?.ended(exit)
                }
            } catch {
                // Nobody would notice its end.
                try? started.process.signal(SIGKILL)
                throw error
            }
            running = started
        } catch {
            log.error("\(name): cannot be started: \(error); trying again")
            return startLater()
        }
        state = .starting
        owner.processChanged(self, began: pid, ended: nil)
        owner.emit(.started(name, pid: pid))
        timer?.arm(after: Self.nanoseconds(template.startTimeoutMilliseconds))
    }

    /// Ends the service and its store. Returns whether that takes until a `stopped` event.
    @discardableResult
    func stop() -> Bool {
        switch state {
        case .inactive, .failing:
            becomeInactive()
            return false
        case .starting, .ready:
            terminate()
            state = .ending
            return true
        case .again:
            state = .ending
            return true
        case .ending:
            return true
        }
    }

    /// Ends the process and starts another one with the same store.
    func restart() {
        switch state {
        case .inactive, .failing: start()
        case .starting, .ready:
            terminate()
            state = .again
        case .again, .ending: break
        }
    }

    /// Sends a signal to the process; false when there is none.
    func signal(_ number: Int32) -> Bool {
        guard let running else { return false }
        do {
            try running.process.signal(number)
            return true
        } catch {
            return false
        }
    }

    private func terminate() {
        _ = signal(SIGTERM)
        // A stopped process would sleep through SIGTERM.
        _ = signal(SIGCONT)
        watchdog?.disarm()
        timer?.arm(after: Self.nanoseconds(template.stopTimeoutMilliseconds))
    }

    func kill(because reason: String) {
        log.error("\(name): pid \(pid): killed: \(reason)", id: .workerKilled)
        _ = signal(SIGKILL)
    }

    private func timeOut() {
        switch state {
        case .starting: kill(because: "it was not ready in time")
        case .ending, .again: kill(because: "it did not stop in time")
        case .failing: start()
        case .inactive, .ready: break
        }
    }

    private static func nanoseconds(_ milliseconds: UInt64) -> UInt64 {
        let (product, overflow) = milliseconds.multipliedReportingOverflow(by: 1_000_000)
        return overflow ? .max : product
    }
}

// MARK: - What the process does

extension Unit {
    /// Acts on a message of the process.
    func notified(_ notification: Notification, _ fds: inout ReceivedFDs) {
        if let text = notification.status { statusText = text }
        if notification.store { keep(notification, &fds) }
        if notification.remove, let name = notification.name { store.remove(name) }
        if notification.ready, state == .starting {
            state = .ready
            timer?.disarm()
            owner.emit(.ready(name, pid: pid))
            armWatchdog()
        }
        if notification.watchdog, state == .ready { armWatchdog() }
        if notification.watchdogTrigger { kill(because: "it asked for it (WATCHDOG=trigger)") }
    }

    private func keep(_ notification: Notification, _ fds: inout ReceivedFDs) {
        for index in 0..<fds.count {
            guard let fd = fds.take(index) else { continue }
            if store.add(notification.name, fd, poll: notification.poll) == .full {
                log.warning("\(name): its store of \(template.fdStoreMax) is full, dropping one")
            }
        }
    }

    private func armWatchdog() {
        guard template.watchdogMilliseconds > 0 else { return }
        watchdog?.arm(after: Self.nanoseconds(template.watchdogMilliseconds))
    }

    private func ended(_ exit: ChildExit) {
        // What it stored before it died counts.
        owner.drainNotifications()
        let pid = pid
        let last = state
        timer?.disarm()
        watchdog?.disarm()
        child?.cancel()
        child = nil
        running = nil
        owner.processChanged(self, began: nil, ended: pid)
        switch exit {
        case .exited(let code): owner.emit(.exited(name, pid: pid, code: code))
        case .signalled(let signal): owner.emit(.killed(name, pid: pid, signal: signal))
        }
        if last == .ending || owner.isShuttingDown { return becomeInactive() }
        if last == .again {
            state = .inactive
            return start()
        }
        if template.restart == .onFailure, exit == .exited(code: 0) {
            becomeInactive()
            return owner.finished(self)
        }
        log.warning("\(name): pid \(pid): \(exit); starting it again")
        startAgain(wasReady: last == .ready)
    }

    private func startAgain(wasReady: Bool) {
        let lived = MonotonicClock.nowNanoseconds &- startedAt
        fastFailures = lived < Self.fastNanoseconds && !wasReady ? fastFailures + 1 : 0
        guard fastFailures > Self.fastFailuresMax else {
            restarts += 1
            state = .inactive
            return start()
        }
        startLater()
    }

    private func startLater() {
        restarts += 1
        state = .failing
        let doublings = min(max(fastFailures - Self.fastFailuresMax, 0), 10)
        timer?.arm(
            after: min(Self.backOffFirstNanoseconds << doublings, Self.backOffLastNanoseconds))
    }

    private func becomeInactive() {
        timer?.disarm()
        state = .inactive
        fastFailures = 0
        store.removeAll()
        owner.emit(.stopped(name))
        // A connection that waits starts it again, as a socket unit would.
        if !owner.isShuttingDown { activation?.setEnabled(true) }
    }
}

// MARK: - Starting

extension Unit {
    /// Listener, connection to the manager, stored descriptors: in this order, with their names.
    private func spawn() throws(SystemCallError) -> SpawnedProcess {
        var names: [String] = []
        var fds: [CInt] = []
        if let listener {
            names.append("listen")
            fds.append(listener.fd.raw)
        }
        var connection: Listener?
        if template.isPlain {
            let end = Listener(try owner.makeConnection())
            names.append("manager")
            fds.append(end.fd.raw)
            connection = end
        }
        names += store.names
        fds += store.rawFDs
        let spawn = Spawn(
            template.path,
            template.arguments.map { ServiceTemplate.fill($0, name.instance) },
            environment: environment(names))
        defer { withExtendedLifetime(connection) {} }
        return try spawn.start(fds: fds)
    }

    /// The manager's own variables without those of this contract, and those of the service.
    private func environment(_ names: [String]) -> [String] {
        let own = [
            "LISTEN_", "NOTIFY_SOCKET=", "WATCHDOG_", "SWIFT_BACKTRACE=", "NVMED_FDSTORE_MAX=",
        ]
        var variables: [String] = []
        var next = unsafe nv_environment()
        while let text = unsafe next.pointee {
            let variable = unsafe String(cString: text)
            if !own.contains(where: { variable.hasPrefix($0) }) { variables.append(variable) }
            unsafe next += 1
        }
        variables += template.environment.map { ServiceTemplate.fill($0, name.instance) }
        variables += [
            "NOTIFY_SOCKET=\(owner.notifyPath)", "SWIFT_BACKTRACE=enable=no",
            "NVMED_FDSTORE_MAX=\(template.fdStoreMax)",
        ]
        if template.watchdogMilliseconds > 0 {
            let (microseconds, overflow) = template.watchdogMilliseconds
                .multipliedReportingOverflow(by: 1000)
            variables.append("WATCHDOG_USEC=\(overflow ? .max : microseconds)")
        }
        if !names.isEmpty {
            variables += [
                "LISTEN_PID=0", "LISTEN_FDS=\(names.count)",
                "LISTEN_FDNAMES=\(names.joined(separator: ":"))",
            ]
        }
        return variables
    }
}
