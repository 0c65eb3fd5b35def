// SPDX-License-Identifier: Apache-2.0
// Loading of kernel modules by modprobe, which knows aliases and dependencies.

internal import CLinux
internal import Glibc

/// Kernel modules.
public enum KernelModules {
    /// The places of modprobe, in the order they are tried.
    private static let programs = ["/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe"]
    /// The most milliseconds that a module may take; it probes what it finds.
    private static let timeoutMilliseconds: Int32 = 30_000

    /// Loads a module and waits until that is done. Throws ENOENT without a modprobe, EIO when it
    /// fails and ETIMEDOUT when it takes too long.
    public static func load(_ name: String) throws(SystemCallError) {
        guard let program = programs.first(where: Files.exists) else {
            throw SystemCallError("modprobe \(name)", errno: ENOENT)
        }
        var spawn = Spawn(
            program, ["--quiet", name], environment: ["PATH=/usr/sbin:/usr/bin:/sbin"])
        spawn.diesWithParent = false
        let status = try spawn.run(timeoutMilliseconds: timeoutMilliseconds)
        guard status == 0 else { throw SystemCallError("modprobe \(name)", errno: EIO) }
    }
}

extension Spawn {
    /// Starts the program and waits until it has ended: its exit code, or 128 and its signal.
    /// ETIMEDOUT when that takes too long; then it is killed, and not waited for.
    public func run(timeoutMilliseconds: Int32) throws(SystemCallError) -> Int32 {
        let child = try start()
        guard try child.pidfd.waitReadable(timeoutMilliseconds: timeoutMilliseconds) else {
            _ = try? child.signal(SIGKILL)
            throw SystemCallError(path, errno: ETIMEDOUT)
        }
        var status: CInt = 0
        guard unsafe waitpid(child.pid, &status, 0) == child.pid else {
            throw SystemCallError("waitpid \(path)", errno: errno)
        }
        let signal = status & 0x7f
        return signal == 0 ? status >> 8 & 0xff : 128 + signal
    }
}
