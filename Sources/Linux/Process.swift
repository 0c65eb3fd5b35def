// SPDX-License-Identifier: Apache-2.0
// The running process: its user, its program file, its limits.

internal import CLinux
internal import Glibc

/// The process that runs this code.
public enum Process {
    /// SIGTERM.
    public static let terminate = SIGTERM
    /// SIGINT.
    public static let interrupt = SIGINT
    /// SIGKILL.
    public static let kill = SIGKILL
    /// SIGHUP.
    public static let hangup = SIGHUP

    /// The effective user.
    public static var uid: UInt32 { geteuid() }

    /// Ignores SIGPIPE and raises the limit of open descriptors as far as it goes up to
    /// `openFiles`.
    public static func prepare(openFiles: UInt64) {
        _ = nv_ignore_sigpipe()
        _ = nv_raise_nofile_limit(openFiles)
    }

    /// Bytes of memory that this process may lock (RLIMIT_MEMLOCK); nil: as much as there is.
    public static var lockedMemoryLimit: UInt64? {
        var limit = rlimit()
        guard unsafe getrlimit(__rlimit_resource_t(__RLIMIT_MEMLOCK.rawValue), &limit) == 0,
            limit.rlim_cur != .max
        else {
            return nil
        }
        return UInt64(limit.rlim_cur)
    }

    /// The path of the program that runs; nil when /proc does not tell.
    public static var executablePath: String? { Files.target(ofLink: "/proc/self/exe") }

    /// A path that goes on meaning the same in a process with another working directory.
    public static func absolute(_ path: String) -> String {
        guard !path.hasPrefix("/"), let directory = Files.target(ofLink: "/proc/self/cwd") else {
            return path
        }
        return "\(directory)/\(path)"
    }

    /// The path of a program in the same directory as another.
    public static func beside(_ path: String, _ name: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return name }
        return path[...slash] + name
    }
}
