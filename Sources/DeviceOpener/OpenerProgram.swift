// SPDX-License-Identifier: Apache-2.0
// The life of the opener process: started by its socket, gone when nobody asks.

internal import Linux
internal import Systemd

/// The opener as a process. `run` returns its exit code.
public enum OpenerProgram {
    /// Connections and the descriptors of the device that is being handed over.
    private static let openFiles: UInt64 = 1024

    /// Serves the socket that the manager handed over, until it is idle or asked to leave.
    public static func run(directories: [String]) -> Int32 {
        Process.prepare(openFiles: openFiles)
        let log = Log()
        do {
            let loop = try EventLoop.main()
            var fds = try ListenFDs.receive()
            var listener = fds.take("listen") ?? fds.takeNext()?.takeFD()
            let process = try Control.assumeIsolated { () throws -> OpenerProcess? in
                guard let fd = listener.take() else { return nil }
                return try OpenerProcess(fd, directories, log)
            }
            guard let process else {
                log.error("no listening socket came with LISTEN_FDS; start nvmed-opener.socket")
                return 1
            }
            defer { withExtendedLifetime(process) {} }
            return try loop.run()
        } catch {
            log.error("the opener cannot go on: \(error)")
            return 1
        }
    }
}

/// Everything the process holds.
@Control
private final class OpenerProcess {
    private let opener: Opener
    private let signal: Source

    init(_ listener: consuming OwnedFD, _ directories: [String], _ log: Log) throws {
        let loop = EventLoop.current
        opener = try Opener(
            listener, configuration: { OpenerFiles.configuration(directories) }, actions: .real,
            log: log, onIdle: { EventLoop.current.exit(0) })
        signal = try loop.onSignal(Process.terminate) { EventLoop.current.exit(0) }
        try loop.enableWatchdog()
        try Notifier().ready()
    }
}
