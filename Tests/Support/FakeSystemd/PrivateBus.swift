// SPDX-License-Identifier: Apache-2.0
// A message bus of a test's own: the real dbus-daemon with a configuration that allows all.

import CLinux
import Glibc
public import Linux
import TestSupport

/// A running dbus-daemon, ended with its owner.
public final class PrivateBus {
    /// Where it listens, as libsystemd wants it.
    public var address: String { "unix:path=\(directory.path)/bus" }
    private let directory: TemporaryDirectory
    private var process: SpawnedProcess?

    /// Starts a bus; it listens when this returns.
    public init() throws(SystemCallError) {
        directory = try TemporaryDirectory()
        try writeConfiguration()
        try start()
    }

    deinit { stop() }

    /// Starts it again after ``stop()``, at the same address.
    public func start() throws(SystemCallError) {
        var ends: [CInt] = [-1, -1]
        try checked("pipe", unsafe pipe(&ends))
        let read = OwnedFD(adopting: ends[0])
        let write = OwnedFD(adopting: ends[1])
        var spawn = Spawn(
            "/usr/bin/dbus-daemon",
            [
                "--config-file=\(directory.path)/conf", "--nofork", "--nopidfile",
                "--print-address=3",
            ])
        spawn.diesWithParent = false
        process = try spawn.start(fds: [write.raw])
        // The address is printed once it listens.
        guard try read.waitReadable(timeoutMilliseconds: 20_000) else {
            throw SystemCallError("dbus-daemon", errno: ETIMEDOUT)
        }
    }

    /// Ends the bus; every connection is lost.
    public func stop() {
        guard let process = process.take() else { return }
        kill(process.pid, SIGKILL)
        var status: CInt = 0
        _ = unsafe waitpid(process.pid, &status, 0)
        _ = unsafe unlink("\(directory.path)/bus")
    }

    private func writeConfiguration() throws(SystemCallError) {
        let text = """
            <!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
             "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
            <busconfig><listen>\(address)</listen><auth>EXTERNAL</auth>
            <policy context="default"><allow user="*"/><allow own="*"/>
            <allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>
            """
        let file = try OwnedFD.open(
            "\(directory.path)/conf", flags: O_WRONLY | O_CREAT | O_TRUNC, mode: 0o600)
        let bytes = Array(text.utf8)
        guard unsafe write(file.raw, bytes, bytes.count) == bytes.count else {
            throw SystemCallError("write", errno: EIO)
        }
    }
}
