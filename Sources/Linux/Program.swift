// SPDX-License-Identifier: Apache-2.0
// What a program's main needs of the process around it, so that mains stay free of unsafe code.

internal import CVersion
internal import Glibc

/// The process: standard streams, environment, build.
public enum Program {
    /// The commit this program was built from.
    public static var commit: String { unsafe String(cString: nv_version_commit()) }

    /// Writes a line to the standard output; a closed output is ignored.
    public static func show(_ text: String) { write(text, to: 1) }

    /// Writes a line to the standard error.
    public static func complain(_ text: String) { write(text, to: 2) }

    /// The value of an environment variable, or nil.
    public static func environment(_ name: String) -> String? {
        guard let value = unsafe getenv(name) else { return nil }
        return unsafe String(cString: value)
    }

    /// Removes an environment variable.
    public static func removeEnvironment(_ name: String) { _ = unsafe unsetenv(name) }

    /// Removes a file; one that is not there is fine.
    public static func removeFile(_ path: String) { _ = unsafe unlink(path) }

    private static func write(_ text: String, to fd: CInt) {
        let bytes = Array("\(text)\n".utf8)
        var done = 0
        while done < bytes.count {
            let count = unsafe bytes.withUnsafeBytes { buffer -> Int in
                guard let base = buffer.baseAddress else { return 0 }
                return unsafe Glibc.write(fd, base + done, buffer.count - done)
            }
            guard count > 0 else { return }
            done += count
        }
    }
}
