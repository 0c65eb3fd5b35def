// SPDX-License-Identifier: Apache-2.0
// The error of a system call: which call, and what the kernel answered.

internal import Glibc

/// A system call that failed.
public struct SystemCallError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The call and, where it helps, the object: `connect /run/nvmed/nvmed.sock`.
    public let call: String
    /// The error number, positive.
    public let errno: CInt

    /// Creates an error from a positive error number.
    public init(_ call: String, errno: CInt) {
        self.call = call
        self.errno = errno
    }

    /// The call and the kernel's words for the error.
    public var description: String {
        "\(call): \(unsafe String(cString: strerror(errno)))"
    }
}

/// Passes a result of a `CLinux` function through, or throws when it is a negated error number.
@inline(__always)
@discardableResult
public func checked<Result: SignedInteger & FixedWidthInteger>(
    _ call: @autoclosure () -> String, _ result: Result
) throws(SystemCallError) -> Result {
    guard result < 0 else { return result }
    throw SystemCallError(call(), errno: CInt(truncatingIfNeeded: 0 - result))
}

/// Error numbers that callers compare with.
public enum Errno {
    /// Try again: nothing there now, or held by somebody else.
    public static let again = EAGAIN
    /// The peer is gone.
    public static let brokenPipe = EPIPE
    /// The peer closed with data unread.
    public static let connectionReset = ECONNRESET
    /// Nobody listens there.
    public static let connectionRefused = ECONNREFUSED
    /// No such file.
    public static let noEntry = ENOENT
    /// The message does not fit the socket.
    public static let messageSize = EMSGSIZE
    /// There is no memory, or it may not be locked.
    public static let noMemory = ENOMEM
    /// The descriptor table is full.
    public static let tooManyFiles = EMFILE
    /// The system's descriptor table is full.
    public static let systemTooManyFiles = ENFILE
    /// An invalid argument.
    public static let invalid = EINVAL
    /// No permission.
    public static let accessDenied = EACCES
    /// The address is taken.
    public static let addressInUse = EADDRINUSE
    /// A protocol error: the peer broke the rules.
    public static let `protocol` = EPROTO
    /// Somebody else uses it.
    public static let busy = EBUSY
    /// It took too long.
    public static let timedOut = ETIMEDOUT
    /// The device is gone.
    public static let noDevice = ENODEV
    /// A signal came first.
    public static let interrupted = EINTR
    /// Not supported.
    public static let notSupported = EOPNOTSUPP
    /// There is no room on the file system.
    public static let noSpace = ENOSPC
    /// The file would be too large.
    public static let tooLarge = EFBIG
    /// A symbolic link where none may be.
    public static let tooManyLinks = ELOOP
    /// Nobody is behind a node, or at the other end of a FIFO.
    public static let noSuchDevice = ENXIO
    /// It is a directory.
    public static let isDirectory = EISDIR
    /// A part of a path is no directory.
    public static let notDirectory = ENOTDIR
}
