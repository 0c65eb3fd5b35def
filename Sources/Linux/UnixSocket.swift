// SPDX-License-Identifier: Apache-2.0
// Unix sockets that carry messages and file descriptors.

internal import CLinux

/// The kind of a Unix socket.
public enum SocketKind: Sendable {
    /// Whole messages, connected, in order.
    case sequencedPacket
    /// A stream of bytes.
    case stream

    fileprivate var raw: CInt { self == .stream ? NV_STREAM : NV_SEQPACKET }
}

/// Who is at the other end of a Unix socket, as the kernel knows it.
public struct PeerCredentials: Sendable, Equatable {
    /// The process id at connect time.
    public let pid: Int32
    /// The user id at connect time.
    public let uid: UInt32
    /// The primary group id at connect time.
    public let gid: UInt32
    /// The supplementary group ids at connect time (at most 256 are read).
    public let groups: [UInt32]

    /// Credentials as given; the kernel's are those of `UnixSocket.peer`.
    public init(pid: Int32, uid: UInt32, gid: UInt32, groups: [UInt32]) {
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.groups = groups
    }
}

/// Descriptors that came with a message; those not taken are closed.
public struct ReceivedFDs: ~Copyable, Sendable {
    /// The most descriptors a message may carry.
    public static let capacity = 16
    fileprivate var storage: InlineArray<16, CInt>
    /// How many came.
    public let count: Int

    /// No descriptors.
    public init() {
        storage = InlineArray(repeating: -1)
        count = 0
    }

    fileprivate init(_ raw: [CInt], count: Int) {
        storage = InlineArray(repeating: -1)
        for index in 0..<count { storage[index] = raw[index] }
        self.count = count
    }

    deinit {
        for index in 0..<16 where storage[index] >= 0 { _ = nv_close(storage[index]) }
    }

    /// Takes ownership of one of them; nil when it never came or was taken.
    public mutating func take(_ index: Int) -> OwnedFD? {
        guard index >= 0, index < count, storage[index] >= 0 else { return nil }
        let raw = storage[index]
        storage[index] = -1
        return OwnedFD(adopting: raw)
    }

    /// Takes all that are left out of the message they came with.
    public mutating func takeAll() -> ReceivedFDs {
        var taken = ReceivedFDs()
        swap(&taken, &self)
        return taken
    }
}

/// A message as it came off a socket.
public struct ReceivedMessage: ~Copyable, Sendable {
    /// How many bytes were written to the buffer; 0 with `isEnd` when the peer closed.
    public let byteCount: Int
    /// The payload's true length, which may exceed the buffer.
    public let fullByteCount: Int
    /// The payload did not fit the buffer.
    public let isTruncated: Bool
    /// More descriptors came than a message may carry; all were closed.
    public let hadSurplusFDs: Bool
    /// The sender, on a socket that passes credentials (`passCredentials`).
    public let senderPID: Int32?
    /// The descriptors.
    public var fds: ReceivedFDs
    /// The peer closed. (Empty messages are not part of any protocol here.)
    public var isEnd: Bool { fullByteCount == 0 && fds.count == 0 }
    /// Gives up the message and keeps its descriptors.
    public consuming func takeFDs() -> ReceivedFDs { fds }
}

/// Operations on Unix sockets. All sockets are close-on-exec, and SIGPIPE is never raised.
public enum UnixSocket {
    /// Binds and listens; replaces the file of a dead listener. The listening socket does not
    /// block.
    public static func listen(
        _ path: String, kind: SocketKind, mode: UInt32, backlog: Int32 = 1024
    ) throws(SystemCallError) -> OwnedFD {
        OwnedFD(
            adopting: try checked(
                "listen \(path)", unsafe nv_unix_listen(path, kind.raw, backlog, mode)))
    }

    /// Binds a datagram socket (for notifications), replacing what was there. It does not block.
    public static func bindDatagram(_ path: String) throws(SystemCallError) -> OwnedFD {
        let fd = OwnedFD(adopting: try checked("bind \(path)", unsafe nv_unix_bind_dgram(path)))
        try checked("SO_PASSCRED", nv_set_passcred(fd.raw))
        return fd
    }

    /// Connects to a listener.
    public static func connect(
        _ path: String, kind: SocketKind, nonblocking: Bool = false
    ) throws(SystemCallError) -> OwnedFD {
        OwnedFD(
            adopting: try checked(
                "connect \(path)", unsafe nv_unix_connect(path, kind.raw, nonblocking ? 1 : 0)))
    }

    /// The next waiting connection, or nil when there is none.
    public static func accept(
        _ listener: borrowing OwnedFD, nonblocking: Bool = true
    ) throws(SystemCallError) -> OwnedFD? {
        let fd = nv_accept(listener.raw, nonblocking ? 1 : 0)
        if fd == -Errno.again { return nil }
        return OwnedFD(adopting: try checked("accept", fd))
    }

    /// Two connected sockets. (A pair, because tuples cannot hold owners.)
    public static func pair(
        kind: SocketKind = .sequencedPacket, nonblocking: Bool = false
    ) throws(SystemCallError) -> SocketPair {
        var fds: [CInt] = [-1, -1]
        try checked("socketpair", unsafe nv_socket_pair(kind.raw, nonblocking ? 1 : 0, &fds))
        return SocketPair(first: OwnedFD(adopting: fds[0]), second: OwnedFD(adopting: fds[1]))
    }

    /// Who is at the other end.
    public static func peer(of fd: borrowing OwnedFD) throws(SystemCallError) -> PeerCredentials {
        var raw = nv_credentials()
        try checked("SO_PEERCRED", unsafe nv_peer_credentials(fd.raw, &raw))
        var groups = [UInt32](repeating: 0, count: 256)
        let count = unsafe nv_peer_groups(fd.raw, &groups, 256)
        return PeerCredentials(
            pid: raw.pid, uid: raw.uid, gid: raw.gid,
            groups: count > 0 ? Array(groups[0..<Int(count)]) : [])
    }

    /// Asks the kernel for room for `byteCount` bytes in both directions; it may give less.
    public static func setBuffers(_ fd: borrowing OwnedFD, byteCount: Int) {
        _ = nv_set_buffers(fd.raw, CInt(clamping: byteCount))
    }

    /// Ends the connection for every holder of the socket, in both directions.
    public static func shutdown(_ fd: borrowing OwnedFD) {
        _ = nv_shutdown(fd.raw)
    }

    /// Sends one message made of two parts, with descriptors (which stay open here).
    ///
    /// Returns the bytes sent: all of them on a packet socket; possibly fewer on a stream.
    /// Throws EAGAIN when `nonblocking` and the peer's buffer is full.
    @discardableResult
    public static func send(
        _ fd: borrowing OwnedFD, _ head: UnsafeRawBufferPointer,
        body: UnsafeRawBufferPointer = unsafe UnsafeRawBufferPointer(start: nil, count: 0),
        fds: [CInt] = [], nonblocking: Bool = false
    ) throws(SystemCallError) -> Int {
        let sent = unsafe nv_send_message(
            fd.raw, head.baseAddress, head.count, body.baseAddress, body.count,
            fds, CInt(fds.count), nonblocking ? 1 : 0)
        return try checked("sendmsg", sent)
    }

    /// Receives (or with `peek` only looks at) the next message; nil when `nonblocking` and none
    /// waits.
    public static func receive(
        _ fd: borrowing OwnedFD, into buffer: UnsafeMutableRawBufferPointer,
        peek: Bool = false, nonblocking: Bool = false
    ) throws(SystemCallError) -> ReceivedMessage? {
        var raw = [CInt](repeating: -1, count: ReceivedFDs.capacity)
        var info = nv_message_info()
        let count = unsafe nv_receive_message(
            fd.raw, buffer.baseAddress, buffer.count, &raw, &info, peek ? 1 : 0, nonblocking ? 1 : 0
        )
        if count == -Int(Errno.again) { return nil }
        let byteCount = try checked("recvmsg", count)
        return ReceivedMessage(
            byteCount: byteCount, fullByteCount: Int(info.full_length),
            isTruncated: info.truncated != 0, hadSurplusFDs: info.fds_truncated != 0,
            senderPID: info.has_sender != 0 ? info.sender.pid : nil,
            fds: ReceivedFDs(raw, count: Int(info.fd_count)))
    }

    /// Takes the next message off a packet socket and throws it away with its descriptors.
    public static func discard(_ fd: borrowing OwnedFD) throws(SystemCallError) {
        try checked("recv", nv_discard_message(fd.raw))
    }
}

/// Two connected sockets.
@frozen
public struct SocketPair: ~Copyable, Sendable {
    /// One end.
    public var first: OwnedFD
    /// The other end.
    public var second: OwnedFD

    /// Pairs two ends.
    public init(first: consuming OwnedFD, second: consuming OwnedFD) {
        self.first = first
        self.second = second
    }
}
