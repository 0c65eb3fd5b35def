// SPDX-License-Identifier: Apache-2.0
// A file descriptor with one owner, which closes it.

internal import CLinux

/// A file descriptor that is closed when its owner lets go of it.
///
/// The only things that may hold a bare descriptor number are a system call's arguments.
public struct OwnedFD: ~Copyable, Sendable {
    /// The number, for the arguments of a system call.
    public let raw: CInt

    /// Takes ownership of an open descriptor.
    public init(adopting raw: CInt) {
        precondition(raw >= 0, "a negative descriptor has no owner")
        self.raw = raw
    }

    deinit { _ = nv_close(raw) }

    /// Gives the descriptor up without closing it.
    public consuming func release() -> CInt {
        let raw = raw
        discard self
        return raw
    }

    /// A second descriptor of the same open file, close-on-exec.
    public borrowing func duplicate() throws(SystemCallError) -> OwnedFD {
        OwnedFD(adopting: try checked("dup", nv_dup_cloexec(raw)))
    }

    /// Opens a file. `flags` are those of open(2); close-on-exec is added.
    public static func open(
        _ path: String, flags: CInt, mode: UInt32 = 0o600
    ) throws(SystemCallError) -> OwnedFD {
        OwnedFD(adopting: try checked("open \(path)", unsafe nv_open(path, flags, mode)))
    }

    /// Waits until the descriptor is readable; false when `timeoutMilliseconds` passed first.
    public borrowing func waitReadable(timeoutMilliseconds: Int32) throws(SystemCallError) -> Bool {
        try checked("poll", nv_poll1(raw, NV_POLLIN, timeoutMilliseconds)) > 0
    }

    /// Waits until the descriptor is writable; false when `timeoutMilliseconds` passed first.
    public borrowing func waitWritable(timeoutMilliseconds: Int32) throws(SystemCallError) -> Bool {
        try checked("poll", nv_poll1(raw, NV_POLLOUT, timeoutMilliseconds)) > 0
    }

    /// Waits until the descriptor is readable or writable; false when `timeoutMilliseconds` passed
    /// first.
    public borrowing func waitReadableOrWritable(
        timeoutMilliseconds: Int32
    ) throws(SystemCallError) -> Bool {
        try checked("poll", nv_poll1(raw, NV_POLLIN | NV_POLLOUT, timeoutMilliseconds)) > 0
    }

    /// Switches O_NONBLOCK of the open file.
    public borrowing func setNonblocking(_ on: Bool) throws(SystemCallError) {
        try checked("fcntl F_SETFL", nv_set_nonblocking(raw, on ? 1 : 0))
    }
}
