// SPDX-License-Identifier: Apache-2.0
// The minimal service manager: systemd's service contract where there is no systemd.
//
// ## Fault model
//
// Who may die, and what is kept:
// - A worker may die at any instant, by any signal, or hang. What it stored is kept; its listening
//   socket and the connections that wait on it are kept; another process is started at once, with
//   everything. Its messages sent before it died are acted on before its death is. Many fast
//   failures in a row make starts wait (up to 5 s), never give up, and never cost the store.
// - The supervisor is a service like any other: it may die, workers run on, it is started again
//   and gets a new control connection. It may flood, stop reading or send rubbish: its connection
//   is ended or it gets an error, nothing else.
// - A service may flood the notify socket: it gets its turns and no more. It can fill its own
//   store only. A message of a process that is no service of ours is dropped, its descriptors
//   closed. Services run as the same user and are trusted not to forge credentials.
// - This process may die: everything ends with it, as with PID 1. Services are killed by the
//   kernel (PDEATHSIG), so nobody is left with half a contract; the devices then reset. That is
//   why it knows no protobuf, no configuration and no device, and is a few hundred lines.
//
// What is thrown away: the store of a unit that is stopped on request, or with the manager.

internal import CLinux
internal import Glibc
public import Linux
public import Systemd

/// Why the manager cannot run.
public enum ServiceManagerError: Error, Sendable, Equatable, CustomStringConvertible {
    /// Another manager has this runtime directory.
    case alreadyRunning(directory: String, pid: Int32)
    /// A path would not fit a socket address.
    case pathTooLong(String)
    /// A system call failed.
    case system(SystemCallError)

    /// Names the directory and says what to do.
    public var description: String {
        switch self {
        case .alreadyRunning(let directory, let pid):
            "service manager: \(directory): in use by pid \(pid); stop it or choose another "
                + "runtime directory"
        case .pathTooLong(let path):
            "service manager: \(path): longer than 107 bytes; choose a shorter runtime directory"
        case .system(let error): "service manager: \(error)"
        }
    }
}

/// Starts services, keeps their descriptors, watches them, and starts them again.
///
/// ## Contract with a service
/// As systemd's: LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID (descriptor 3 onwards: `listen`, for a
/// plain service `manager`, then what is stored), NOTIFY_SOCKET, WATCHDOG_USEC; FDSTORE=1,
/// FDSTOREREMOVE=1, FDNAME=, FDPOLL=0, BARRIER=1, READY=1, STATUS=, STOPPING=1, WATCHDOG=1,
/// WATCHDOG=trigger. SWIFT_BACKTRACE=enable=no is set for all.
///
/// ## Control protocol
/// SOCK_SEQPACKET, one message of UTF-8 text each, requests of at most 512 bytes. Each request is
/// answered, in order, by `ok …` or `error <reason>`; events come in between.
///
/// | request | answer |
/// |---|---|
/// | `listen <unit>` | `ok <path>`: listens there; a connection starts the unit. Idempotent |
/// | `stop <unit>` | `ok stopping`, and later `event <unit> stopped`; or `ok inactive` |
/// | `restart <unit>` | `ok` |
/// | `kill <unit> <signal number>` | `ok` |
/// | `status <unit>` | `ok active\|inactive\|failed pid= ready= restarts= stored= status=…` |
/// | `forget <unit>` | `ok`: stops it, removes its socket, and the unit when it has stopped |
/// | `list` | `ok <unit> <unit>…` |
///
/// Events: `event <unit> started pid=…`, `… ready pid=…`, `… exited pid=… code=…` or `signal=…`,
/// `… stopped`.
@Control
public final class ServiceManager {
    /// The most units: bounds what a supervisor can make the manager hold.
    public static let unitsMax = 256
    /// Messages taken off the notify socket in one turn of the loop: others want a turn too.
    static let notificationsPerTurn = 64
    /// Messages taken when a process has ended: more than the socket's queue can hold
    /// (net.unix.max_dgram_qlen, 512 at most by default), so that none of its is left.
    static let notificationsAtExit = 1024

    private let directory: String
    private let templates: [String: ServiceTemplate]
    private let plainOrder: [String]
    let notifyPath: String
    private let notify: OwnedFD
    private let lock: OwnedFD
    private var notifySource: DescriptorSource?
    private let buffer = MessageBuffer(byteCount: Notification.byteCountMax)
    private var units: [UnitName: Unit] = [:]
    private var unitsByPID: [Int32: Unit] = [:]
    private var connections: [ControlConnection] = []
    private var forgotten: Set<UnitName> = []
    private(set) var isShuttingDown = false
    private var stopped = OneShot<Void>()
    private let log = Log()

    /// Called when a plain service that need not be restarted has exited with 0.
    public var onFinished: (@Control (UnitName) -> Void)?

    /// Takes the runtime directory (made if missing) and starts the plain services.
    public init(
        runtimeDirectory: String, templates: [ServiceTemplate]
    ) throws(ServiceManagerError) {
        directory = runtimeDirectory
        self.templates = Dictionary(templates.map { ($0.name, $0) }) { _, last in last }
        plainOrder = templates.filter(\.isPlain).map(\.name)
        notifyPath = "\(runtimeDirectory)/notify.sock"
        guard notifyPath.utf8.count <= 107 else { throw .pathTooLong(notifyPath) }
        do throws(SystemCallError) {
            unsafe mkdir(runtimeDirectory, 0o755)
            lock = try OwnedFD.open(
                "\(runtimeDirectory)/manager.lock", flags: O_RDWR | O_CREAT, mode: 0o600)
            var holder: Int32 = 0
            let locked = unsafe nv_lock_exclusive(lock.raw, &holder)
            if locked == -Errno.again {
                throw SystemCallError("lock \(holder)", errno: EADDRINUSE)
            }
            try checked("lock \(runtimeDirectory)/manager.lock", locked)
            notify = try UnixSocket.bindDatagram(notifyPath)
        } catch {
            throw Self.explain(error, runtimeDirectory)
        }
        do throws(SystemCallError) {
            notifySource = try EventLoop.current.watch(notify, .readable) { [weak self] _ in
                self?.takeNotifications(ServiceManager.notificationsPerTurn)
            }
            for name in plainOrder { try startPlain(name) }
        } catch {
            throw .system(error)
        }
    }

    private static func explain(
        _ error: SystemCallError, _ directory: String
    ) -> ServiceManagerError {
        guard error.errno == EADDRINUSE, error.call.hasPrefix("lock ") else {
            return .system(error)
        }
        return .alreadyRunning(directory: directory, pid: Int32(error.call.dropFirst(5)) ?? 0)
    }

    private func startPlain(_ name: String) throws(SystemCallError) {
        guard let template = templates[name], let unitName = UnitName(name) else {
            throw SystemCallError("\(name) is not a unit's name", errno: EINVAL)
        }
        let unit = try Unit(unitName, template, directory: directory, owner: self)
        units[unitName] = unit
        unit.start()
    }

    /// Stops everything: the plain services first, in order (a supervisor ends its workers), then
    /// the rest. Each stop is bounded by its template. Sockets are removed.
    public func shutDown() async {
        for name in plainOrder {
            guard let unitName = UnitName(name), let unit = units[unitName] else { continue }
            await stop([unit])
        }
        isShuttingDown = true
        await stop(Array(units.values))
        for unit in units.values { unit.close() }
        units = [:]
        for connection in connections { connection.end() }
        notifySource?.cancel()
        unsafe unlink(notifyPath)
        unsafe unlink("\(directory)/manager.lock")
    }

    /// Does not wait for anybody: SIGKILL to every service.
    public func killAll() {
        isShuttingDown = true
        for unit in units.values { _ = unit.signal(SIGKILL) }
    }

    private func stop(_ wanted: [Unit]) async {
        for unit in wanted { unit.stop() }
        while wanted.contains(where: \.isRunning) {
            stopped = OneShot()
            // Ends: every stop has its timer, and SIGKILL cannot be refused.
            try? await stopped.value()
        }
    }

    /// How many descriptors are stored for a unit.
    public func storedCount(_ unit: UnitName) -> Int { units[unit]?.status.stored ?? 0 }

    /// A connection as the supervisor has one; for a client in the same process.
    public func connect() throws(SystemCallError) -> OwnedFD { try makeConnection() }
}

// MARK: - Notifications

extension ServiceManager {
    private func takeNotifications(_ limit: Int) {
        for _ in 0..<limit {
            do throws(SystemCallError) {
                guard var message = try buffer.receive(notify) else { return }
                if message.hadSurplusFDs {
                    log.error(
                        "out of descriptors, or too many at once: what a service wanted to keep is "
                            + "lost; raise the hard limit of open files (LimitNOFILE=, ulimit -Hn)")
                }
                // A message cut short is dropped; whatever it carried is closed here.
                guard !message.isTruncated, let pid = message.senderPID,
                    let unit = unitsByPID[pid],
                    let notification = Notification(buffer.bytes(message.byteCount))
                else { continue }
                unit.notified(notification, &message.fds)
                // BARRIER=1: closing its descriptor, here with the message, is the answer.
            } catch {
                return log.error("notify socket: \(error); continuing")
            }
        }
    }
}

// MARK: - The units' side

extension ServiceManager: UnitOwner {
    func drainNotifications() { takeNotifications(Self.notificationsAtExit) }

    func emit(_ event: UnitEvent) {
        for connection in connections { connection.send(event.message) }
        if case .stopped(let name) = event, forgotten.remove(name) != nil {
            units.removeValue(forKey: name)?.close()
        }
    }

    func makeConnection() throws(SystemCallError) -> OwnedFD {
        let pair = try UnixSocket.pair()
        return try serve(pair)
    }

    private func serve(_ pair: consuming SocketPair) throws(SystemCallError) -> OwnedFD {
        let connection = try ControlConnection(pair.first, byteCountMax: Request.byteCountMax)
        connection.onMessage = { [weak self, weak connection] bytes in
            guard let self, let connection else { return }
            connection.send(answer(bytes))
        }
        connection.onEnd = { [weak self, weak connection] in
            self?.connections.removeAll { $0 === connection }
        }
        connections.append(connection)
        return pair.second
    }

    func processChanged(_ unit: Unit, began: Int32?, ended: Int32?) {
        if let began { unitsByPID[began] = unit }
        if let ended {
            unitsByPID[ended] = nil
            stopped.succeed(())
        }
    }

    func finished(_ unit: Unit) {
        if unit.template.isPlain { onFinished?(unit.name) }
    }
}

// MARK: - The supervisor's side

extension ServiceManager {
    private func answer(_ bytes: [UInt8]) -> String {
        switch Request.parse(bytes) {
        case .failure(let error): "error \(error.reason)"
        case .success(let request): answer(request)
        }
    }

    private func answer(_ request: Request) -> String {
        switch request {
        case .list:
            return "ok " + units.keys.map(\.description).sorted().joined(separator: " ")
        case .listen(let name): return listen(name)
        case .stop(let name):
            return with(name) { $0.stop() ? "ok stopping" : "ok inactive" }
        case .restart(let name):
            return with(name) {
                $0.restart()
                return "ok"
            }
        case .kill(let name, let signal):
            return with(name) { $0.signal(signal) ? "ok" : "error \(name) has no process" }
        case .status(let name): return with(name) { "ok " + $0.status.message }
        case .forget(let name):
            return with(name) {
                guard !$0.template.isPlain else { return "error \(name) is not to be forgotten" }
                self.forgotten.insert(name)
                $0.stop()
                return "ok"
            }
        }
    }

    private func with(_ name: UnitName, _ body: (Unit) -> String) -> String {
        guard let unit = units[name] else { return "error \(name) is not listened for" }
        return body(unit)
    }

    private func listen(_ name: UnitName) -> String {
        if let unit = units[name] {
            // It was about to be forgotten: then it is stopped and listens on.
            forgotten.remove(name)
            return unit.socketPath.map { "ok \($0)" } ?? "error \(name) has no socket"
        }
        guard let template = templates[name.template], !template.isPlain, name.instance != nil,
            let socket = template.socket
        else { return "error \(name) is not an instance of a template that listens" }
        guard units.count < Self.unitsMax else { return "error there are \(Self.unitsMax) units" }
        let path = "\(directory)/\(ServiceTemplate.fill(socket, name.instance))"
        guard path.utf8.count <= 107 else { return "error \(path) is longer than 107 bytes" }
        guard !isShuttingDown else { return "error shutting down" }
        do throws(SystemCallError) {
            let unit = try Unit(name, template, directory: directory, owner: self)
            units[name] = unit
            return "ok \(path)"
        } catch {
            return "error \(error)"
        }
    }
}
