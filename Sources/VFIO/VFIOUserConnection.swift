// SPDX-License-Identifier: Apache-2.0
// The stream socket to a vfio-user server: whole messages out and in, with a deadline on
// everything.

internal import Glibc
internal import Linux

/// A message as it came from the server.
struct VFIOUserMessage: ~Copyable {
    let id: UInt16
    let command: UInt16
    let flags: UInt32
    let error: UInt32
    /// The payload, without the header.
    let body: [UInt8]
    /// The first descriptor that came along; more are closed.
    var fd: OwnedFD?

    var isReply: Bool { flags & VFIOUser.flagTypeMask == VFIOUser.flagReply }
    var isError: Bool { flags & VFIOUser.flagError != 0 }
}

/// Sends and receives whole messages over a stream that may deliver any number of bytes at a time.
struct VFIOUserConnection: ~Copyable {
    let fd: OwnedFD
    /// The same socket, for sending: data threads send doorbells while another thread receives.
    private let outgoing: VFIOUserSender
    private var buffer: [UInt8] = []
    /// The first unread byte of `buffer`.
    private var start = 0
    private var pendingFD: OwnedFD?
    private var ended = false

    /// Where the kernel puts what arrives.
    private let chunk: Mapping

    init(fd: consuming OwnedFD) throws(SystemCallError) {
        let outgoing = VFIOUserSender(try fd.duplicate())
        chunk = try Mapping(anonymous: 65536)
        self.fd = fd
        self.outgoing = outgoing
    }

    /// Sends messages, from any thread.
    var sender: VFIOUserSender { outgoing }

    /// The next whole message, or nil when none is there before the deadline.
    mutating func receive(deadline: UInt64) throws(VFIOError) -> VFIOUserMessage? {
        while true {
            if let message = try parse() { return message }
            let left = Self.millisecondsLeft(until: deadline)
            guard try fill() else {
                guard left > 0, try waitReadable(milliseconds: left) else { return nil }
                continue
            }
        }
    }

    /// Takes bytes off the socket without waiting; false when there were none.
    ///
    /// Never more than the message under way needs: what follows stays on the socket, which so
    /// stays readable for whoever watches it.
    private mutating func fill() throws(VFIOError) -> Bool {
        if start > 0 {
            buffer.removeFirst(start)
            start = 0
        }
        do throws(SystemCallError) {
            let room = unsafe UnsafeMutableRawBufferPointer(
                start: chunk.base, count: min(chunk.byteCount, missingByteCount))
            guard var message = try unsafe UnixSocket.receive(fd, into: room, nonblocking: true)
            else { return false }
            ended = message.byteCount == 0
            unsafe buffer.append(contentsOf: room[0..<message.byteCount])
            if let fd = message.fds.take(0) { pendingFD = consume fd }
        } catch {
            throw Self.translate(error)
        }
        guard !ended else { throw .gone("the server closed the connection") }
        return true
    }

    /// Bytes until the header, or else the message, is whole; `parse` has judged the size.
    private var missingByteCount: Int {
        let have = buffer.count - start
        guard have >= VFIOUser.headerByteCount, let size = ByteReader(buffer[start...]).u32(4)
        else { return VFIOUser.headerByteCount - have }
        return Int(size) - have
    }

    private mutating func parse() throws(VFIOError) -> VFIOUserMessage? {
        let reader = ByteReader(buffer[start...])
        guard let id = reader.u16(0), let command = reader.u16(2), let size = reader.u32(4),
            let flags = reader.u32(8), let error = reader.u32(12)
        else { return nil }
        guard size >= VFIOUser.headerByteCount, size <= VFIOUser.maxMessageByteCount else {
            throw .protocolViolation(
                operation: VFIOUserCommand.name(command), detail: "message size \(size)")
        }
        guard buffer.count - start >= Int(size) else { return nil }
        let body = Array(buffer[(start + VFIOUser.headerByteCount)..<(start + Int(size))])
        start += Int(size)
        return VFIOUserMessage(
            id: id, command: command, flags: flags, error: error, body: body, fd: pendingFD.take())
    }

    private func waitReadable(milliseconds: Int) throws(VFIOError) -> Bool {
        do throws(SystemCallError) {
            return try fd.waitReadable(timeoutMilliseconds: Int32(clamping: milliseconds))
        } catch {
            throw .system(error)
        }
    }

    static func millisecondsLeft(until deadline: UInt64) -> Int {
        let now = MonotonicClock.nowNanoseconds
        guard deadline > now else { return 0 }
        return Int(clamping: (deadline - now) / 1_000_000 + 1)
    }

    static func translate(_ error: SystemCallError) -> VFIOError {
        switch error.errno {
        case Errno.brokenPipe, Errno.connectionReset: .gone("the server closed the connection")
        default: .system(error)
        }
    }
}
