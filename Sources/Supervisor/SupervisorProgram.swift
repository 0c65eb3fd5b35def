// SPDX-License-Identifier: Apache-2.0
// The life of the supervisor process: sockets, registry, signals; and how it ends.

internal import DiskConfig
internal import Linux
internal import ServiceManager
internal import Systemd
internal import Wire

/// The supervisor as a process.
public enum SupervisorProgram {
    /// What the command line says.
    public struct Options: Sendable, Equatable {
        /// Configuration directories in rising precedence.
        public var configDirectories = ConfigurationFiles.standardDirectories
        /// Where sockets are.
        public var runtimeDirectory = "/run/nvmed"
        /// The public socket, when no listening socket is handed over; nil: what the configuration
        /// says, or `nvmed.sock` in the runtime directory.
        public var socketPath: String?
        /// The worker's program; nil: beside this one.
        public var workerPath: String?
        /// What outlives a full stop is in this directory; nil: what systemd says
        /// ($STATE_DIRECTORY), or the runtime directory.
        public var stateDirectory: String?
        /// SIGTERM ends the workers too, in order: nobody else would.
        public var endsWorkers = false
        /// The defaults.
        public init() {}

        /// Where saved state is.
        var state: String {
            let given = Program.environment("STATE_DIRECTORY")?.split(separator: ":").first
            return stateDirectory ?? given.map(String.init) ?? runtimeDirectory
        }

        /// Where the public socket is.
        func socket(_ settings: SupervisorSettings) -> String {
            socketPath ?? settings.socketPath ?? "\(runtimeDirectory)/nvmed.sock"
        }
    }

    /// The mode of the public socket: whoever is in its group may connect.
    static let socketMode: UInt32 = 0o660
    /// Clients, workers, and what travels between them.
    static let openFiles: UInt64 = 16384

    /// Runs until it is asked to leave; returns the exit code.
    public static func run(_ options: Options) -> Int32 {
        Process.prepare(openFiles: openFiles)
        let log = Log()
        do {
            let loop = try EventLoop.main()
            let process = try Control.assumeIsolated {
                let process = try SupervisorProcess(options, log)
                process.begin()
                return process
            }
            defer { withExtendedLifetime(process) {} }
            return try loop.run()
        } catch {
            log.error("the supervisor cannot go on: \(error)", id: .supervisorFailed)
            return 1
        }
    }

    /// Runs the minimal service manager with the supervisor as its first service.
    public static func runStandalone(_ options: Options) -> Int32 {
        guard let own = Process.executablePath else {
            Log().error(
                "/proc/self/exe cannot be read; is /proc mounted?", id: .supervisorFailed)
            return 1
        }
        let settings = ConfigurationFiles.read(options.configDirectories).supervisor
        var arguments = ["--runtime", options.runtimeDirectory, "--end-workers"]
        if let directory = options.stateDirectory { arguments += ["--state", directory] }
        if options.configDirectories != ConfigurationFiles.standardDirectories {
            for directory in options.configDirectories { arguments += ["--config", directory] }
        }
        var supervisor = ServiceTemplate(
            name: "nvmed", path: own, arguments: arguments, socket: options.socket(settings))
        supervisor.socketMode = settings.socketMode ?? socketMode
        supervisor.isPlain = true
        supervisor.restart = .onFailure
        supervisor.watchdogMilliseconds = 30_000
        // All workers end in parallel, each within its own bound.
        supervisor.stopTimeoutMilliseconds =
            3 * SupervisorLimits.shutdownNanoseconds / 1_000_000
        var worker = ServiceTemplate(
            name: ManagedUnits.template,
            path: options.workerPath ?? Process.beside(own, "nvmed-worker"), arguments: ["%i"],
            socket: "worker-%i.sock")
        worker.restart = .onFailure
        worker.watchdogMilliseconds = 10_000
        return ServiceManagerMain.run(
            .init(runtimeDirectory: options.runtimeDirectory, templates: [supervisor, worker]))
    }
}

/// Everything the process holds.
@Control
private final class SupervisorProcess {
    private let service: Service
    private let options: SupervisorProgram.Options
    private let log: Log
    private let notifier = Notifier()
    private let manager: ServiceManagerClient?
    private var listener: OwnedFD?
    private var harness: Harness?
    private var signals: [Source] = []
    private var isEnding = false

    init(_ options: SupervisorProgram.Options, _ log: Log) throws {
        self.options = options
        self.log = log
        var fds = try ListenFDs.receive()
        var manager: ServiceManagerClient?
        if let fd = fds.take(ServiceManagerClient.descriptorName) {
            manager = try ServiceManagerClient(fd)
        }
        self.manager = manager
        let units = Self.units(manager, options, log)
        let directories = options.configDirectories
        service = Service(
            units: units, ownUID: Process.uid,
            savedState: SavedStateFile(directory: options.state), log: log
        ) { () throws(WireError) in try ConfigurationFiles.plan(directories) }
        if let handed = fds.take("listen") ?? fds.takeNext()?.takeFD() {
            listener = consume handed
        } else {
            let settings = ConfigurationFiles.read(directories).supervisor
            listener = try UnixSocket.listen(
                options.socket(settings), kind: .sequencedPacket,
                mode: settings.socketMode ?? SupervisorProgram.socketMode)
        }
    }

    /// With a connection to the minimal service manager the workers are its units; under systemd
    /// (something listens to notifications) they are systemd's; else somebody else starts them.
    private static func units(
        _ manager: ServiceManagerClient?, _ options: SupervisorProgram.Options, _ log: Log
    ) -> any WorkerUnits {
        if let manager { return ManagedUnits(manager) }
        guard Notifier().hasManager else {
            return SocketUnits(directory: options.runtimeDirectory)
        }
        return SystemdUnits(directory: options.runtimeDirectory, bus: Bus(), log: log)
    }

    func begin() {
        manager?.onDisconnect = { [log] in
            log.error(
                "the service manager is gone; workers can no longer be started or stopped",
                id: .supervisorFailed)
        }
        do {
            let loop = EventLoop.current
            signals = [
                try loop.onSignal(Process.terminate) { [weak self] in self?.asked() },
                // On a terminal it reaches all processes; under a manager that one decides.
                try loop.onSignal(Process.interrupt) { [weak self] in
                    if self?.manager == nil { self?.asked() }
                },
                try loop.onSignal(Process.hangup) { [weak self] in self?.reload() },
            ]
            try loop.enableWatchdog()
        } catch {
            log.error("signals: \(error)", id: .supervisorFailed)
            return EventLoop.current.exit(1)
        }
        EventLoop.current.task { await self.start() }
    }

    private func start() async {
        do {
            for warning in try await service.start() {
                log.warning("\(warning); continuing", id: .configurationWarning)
            }
            guard let listener = listener.take() else { return }
            harness = try Harness(
                listener, service: service, log: log,
                onShutdown: { [weak self] in self?.leave() })
            try notifier.ready(status: "\(service.devices.count) devices")
            log.notice("nvmed \(Program.commit) is ready")
        } catch let error as WireError {
            log.error(
                "\(error.message)",
                id: error.code == .invalidArgument ? .configurationError : .supervisorFailed)
            EventLoop.current.exit(1)
        } catch {
            log.error("the supervisor cannot start: \(error)", id: .supervisorFailed)
            EventLoop.current.exit(1)
        }
    }

    private func reload() {
        EventLoop.current.task {
            do throws(WireError) {
                for warning in try await self.service.reload() {
                    self.log.warning("\(warning); continuing", id: .configurationWarning)
                }
            } catch {
                self.log.error("reloading: \(error.message)", id: .configurationError)
            }
        }
    }

    /// SIGTERM: the workers go on, unless nobody else ends them.
    private func asked() {
        guard !isEnding else { return }
        isEnding = true
        _ = try? notifier.stopping()
        guard options.endsWorkers else { return leave() }
        EventLoop.current.task {
            await self.service.stopAll()
            self.leave()
        }
    }

    private func leave() {
        harness?.stopAccepting()
        harness?.closeAll()
        EventLoop.current.exit(0)
    }
}
