// SPDX-License-Identifier: Apache-2.0
// The manager as a process: `nvmed --standalone`.

internal import CLinux
internal import Glibc
internal import Linux
internal import Systemd

/// The manager as a process of its own.
public enum ServiceManagerMain {
    /// Descriptors for 256 units with full stores, as far as the hard limit allows: one that does
    /// not get here is lost at its service's next death, when it is too late to say so.
    static let descriptorsMax: UInt64 = 1 << 20

    /// Where the manager lives and what it starts.
    public struct Options: Sendable {
        /// Holds the sockets; a short path (socket addresses have 107 bytes).
        public var runtimeDirectory: String
        /// The services; plain ones are started at once, in this order.
        public var templates: [ServiceTemplate]

        /// Names the directory and the services.
        public init(runtimeDirectory: String, templates: [ServiceTemplate]) {
            self.runtimeDirectory = runtimeDirectory
            self.templates = templates
        }
    }

    /// Runs until SIGTERM or SIGINT, or until a plain service with `Restart.onFailure` is done.
    ///
    /// The second signal does not wait: it kills. Returns the exit code: 0, or 1 after a failure,
    /// which is logged. Call it on the first thread.
    public static func run(_ options: Options) -> Int32 {
        _ = nv_ignore_sigpipe()
        _ = nv_raise_nofile_limit(descriptorsMax)
        do {
            let loop = try EventLoop.main()
            return try Control.assumeIsolated { try serve(options, loop) }
        } catch {
            Log().error("\(error)")
            return 1
        }
    }

    @Control
    private static func serve(_ options: Options, _ loop: EventLoop) throws -> Int32 {
        let manager = try ServiceManager(
            runtimeDirectory: options.runtimeDirectory, templates: options.templates)
        let ending = Ending()
        let end: @Control () -> Void = {
            if ending.began { return manager.killAll() }
            ending.began = true
            loop.task {
                await manager.shutDown()
                loop.exit(0)
            }
        }
        manager.onFinished = { _ in if !ending.began { end() } }
        let signals = [
            try loop.onSignal(SIGTERM, end), try loop.onSignal(SIGINT, end),
        ]
        defer { for signal in signals { signal.cancel() } }
        return try loop.run()
    }
}

/// Whether the end has begun.
@Control
private final class Ending {
    var began = false
}
