// SPDX-License-Identifier: Apache-2.0
// Bytes of the standard streams, for programs that move data through them.

internal import CLinux
internal import Glibc

/// The standard input, output and error as streams of bytes.
public enum StandardStream: CInt, Sendable {
    /// Descriptor 0.
    case input = 0
    /// Descriptor 1.
    case output = 1
    /// Descriptor 2.
    case error = 2

    /// Whether a person is at the other end.
    public var isTerminal: Bool { isatty(rawValue) == 1 }

    /// Opens those that the process was started without, as /dev/null: otherwise the next socket
    /// or file takes their number, and what is meant for a stream ends up there.
    public static func openMissing() {
        for raw: CInt in 0...2 where fcntl(raw, F_GETFD) < 0 {
            _ = unsafe open("/dev/null", O_RDWR)
        }
    }

    /// Bytes until `byteCount` have come or the stream ends; fewer only at the end.
    public func read(byteCount: Int) throws(SystemCallError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: max(byteCount, 0))
        var done = 0
        while done < bytes.count {
            let count = unsafe bytes.withUnsafeMutableBytes { buffer -> Int in
                guard let base = buffer.baseAddress else { return 0 }
                return unsafe nv_read(rawValue, base + done, buffer.count - done)
            }
            let came = try checked("read the standard input", count)
            if came == 0 { break }
            done += came
        }
        bytes.removeLast(bytes.count - done)
        return bytes
    }

    /// Writes all bytes.
    public func write(_ bytes: [UInt8]) throws(SystemCallError) {
        var done = 0
        while done < bytes.count {
            let count = unsafe bytes.withUnsafeBytes { buffer -> Int in
                guard let base = buffer.baseAddress else { return 0 }
                return unsafe nv_write(rawValue, base + done, buffer.count - done)
            }
            done += try checked("write to a standard stream", count)
        }
    }

    /// Writes text, without a newline of its own.
    public func write(_ text: String) throws(SystemCallError) { try write(Array(text.utf8)) }
}

/// Signals that a program does not want to die of.
public enum Signals {
    /// Writing to a closed pipe becomes an error instead of the end of the process.
    public static func ignoreBrokenPipes() { _ = nv_ignore_sigpipe() }
}
