// SPDX-License-Identifier: Apache-2.0
// Files of sysfs whose reading or writing may block in the kernel for ever.

internal import CLinux

/// Reads and writes files in a process of its own, so that the caller never waits longer than it
/// wants to. A write that unbinds a driver blocks until everybody has closed the device, and what
/// blocks there can neither be interrupted nor killed.
public enum SlowFiles {
    /// A file and what to write to it. Neither may contain NUL.
    public struct Write: Sendable, Equatable {
        /// The path of a file that exists.
        public var path: String
        /// The text, written with one system call.
        public var value: String

        /// Names a file and a text.
        public init(_ path: String, _ value: String) {
            self.path = path
            self.value = value
        }
    }

    /// What came of it.
    public enum Failure: Error, Sendable, Equatable, CustomStringConvertible {
        /// The kernel refused.
        case system(SystemCallError)
        /// It was not done in time and goes on in the process `pid`, for as long as it takes.
        case stuck(path: String, pid: Int32, milliseconds: Int32)

        /// For people.
        public var description: String {
            switch self {
            case .system(let error): error.description
            case .stuck(let path, let pid, let milliseconds):
                "\(path): the kernel has not answered for \(milliseconds) ms; pid \(pid) waits on"
            }
        }
    }

    /// Writes one after the other and stops at the first that fails.
    public static func write(
        _ writes: [Write], timeoutMilliseconds: Int32
    ) throws(Failure) {
        var steps: [CChar] = []
        for write in writes {
            for text in [write.path, write.value] {
                guard !text.utf8.contains(0) else {
                    throw .system(SystemCallError("write \(write.path)", errno: Errno.invalid))
                }
                steps += text.utf8.map { CChar(bitPattern: $0) } + [0]
            }
        }
        var step: CInt = 0
        var pid: Int32 = 0
        let result = unsafe nv_write_bounded(
            steps, CInt(clamping: writes.count), timeoutMilliseconds, &step, &pid)
        guard result < 0 else { return }
        let path = writes.indices.contains(Int(step)) ? writes[Int(step)].path : ""
        throw failure("write \(path)", path, result, pid, timeoutMilliseconds)
    }

    /// Reads a file of at most 4096 bytes; a longer one is cut.
    public static func read(
        _ path: String, timeoutMilliseconds: Int32
    ) throws(Failure) -> [UInt8] {
        var buffer = [UInt8](repeating: 0, count: Int(NV_BOUNDED_READ_MAX))
        var pid: Int32 = 0
        let count = unsafe nv_read_bounded(
            path, &buffer, buffer.count, timeoutMilliseconds, &pid)
        guard count >= 0 else {
            throw failure(
                "read \(path)", path, CInt(truncatingIfNeeded: count), pid, timeoutMilliseconds)
        }
        return Array(buffer.prefix(count))
    }

    private static func failure(
        _ call: String, _ path: String, _ result: CInt, _ pid: Int32, _ milliseconds: Int32
    ) -> Failure {
        result == -Errno.timedOut
            ? .stuck(path: path, pid: pid, milliseconds: milliseconds)
            : .system(SystemCallError(call, errno: 0 &- result))
    }
}
