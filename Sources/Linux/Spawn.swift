// SPDX-License-Identifier: Apache-2.0
// Starting a program with exactly the descriptors and the environment that are named.

internal import CLinux
internal import Glibc

/// A program to start.
public struct Spawn: Sendable {
    /// The file to execute; no search in PATH.
    public var path: String
    /// The arguments after the program's name.
    public var arguments: [String]
    /// The whole environment, `NAME=value` each. `LISTEN_PID=` is filled in by the child.
    public var environment: [String]
    /// Becomes standard output and standard error; -1 leaves them as they are here.
    public var output: CInt = -1
    /// The child is killed when the thread that starts it ends.
    public var diesWithParent = true

    /// Names a program, its arguments and its environment.
    public init(_ path: String, _ arguments: [String] = [], environment: [String] = []) {
        self.path = path
        self.arguments = arguments
        self.environment = environment
    }

    /// Starts the program. `fds` become its descriptors 3, 4, 5…; they stay open here.
    ///
    /// A program that cannot be executed shows as a child that exits with 127.
    public func start(fds: [CInt] = []) throws(SystemCallError) -> SpawnedProcess {
        // LISTEN_PID is written in place by the child, so it needs room for ten digits.
        let environment = environment.map {
            $0.hasPrefix("LISTEN_PID=") ? "LISTEN_PID=0000000000" : $0
        }
        let argv = CStrings([path] + arguments)
        let envp = CStrings(environment)
        var pidfd: CInt = -1
        let pid = unsafe path.withCString { path in
            unsafe fds.withUnsafeBufferPointer { fds in
                var spec = unsafe nv_spawn(
                    path: path, argv: argv.pointers, envp: envp.pointers, fds: fds.baseAddress,
                    fd_count: CInt(clamping: fds.count), output: output, set_listen_pid: 1,
                    die_with_parent: diesWithParent ? 1 : 0)
                return unsafe nv_spawn_process(&spec, &pidfd)
            }
        }
        extendLifetime(argv)
        extendLifetime(envp)
        try checked("start \(path)", pid)
        if pidfd < 0 {
            kill(pid, SIGKILL)
            var status: CInt = 0
            _ = unsafe waitpid(pid, &status, 0)
            throw SystemCallError("pidfd_open \(path)", errno: -pidfd)
        }
        return SpawnedProcess(pid: pid, pidfd: OwnedFD(adopting: pidfd))
    }
}

/// A child process. Letting go of it neither ends nor reaps it.
public struct SpawnedProcess: ~Copyable, Sendable {
    /// The process id.
    public let pid: Int32
    /// A descriptor that names exactly this process and is readable when it has ended.
    public let pidfd: OwnedFD

    /// Sends a signal; throws ESRCH when the process is gone.
    public borrowing func signal(_ signal: Int32) throws(SystemCallError) {
        try checked("signal \(signal) to \(pid)", nv_pidfd_kill(pidfd.raw, signal))
    }
}

/// A null-terminated array of C strings.
@safe
private struct CStrings: ~Copyable {
    let pointers: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>
    let count: Int

    init(_ strings: [String]) {
        count = strings.count
        unsafe pointers = .allocate(capacity: strings.count + 1)
        for (index, string) in strings.enumerated() {
            unsafe pointers[index] = unsafe strdup(string)
        }
        unsafe pointers[strings.count] = nil
    }

    deinit {
        for index in 0..<count { unsafe free(pointers[index]) }
        unsafe pointers.deallocate()
    }
}
