// SPDX-License-Identifier: Apache-2.0
// The stream socket to a vfio-user server: whole messages out and in, with a deadline on
// everything.
//
// The socket outlives the process, which may be killed at any instant, and a successor reads on
// where it stopped. So a message is looked at where it lies, acted upon, answered, and only then
// taken off the socket, by one system call; and it is sent by one system call. A message that a
// server sends in pieces is taken off as it comes: if that is where we die, the log says so, and
// the successor begins afresh.

internal import CLinux
internal import Linux

/// A message of the server's, which is still on the socket.
struct VFIOUserMessage {
    let id: UInt16
    let command: UInt16
    let flags: UInt32
    let error: UInt32
    /// The payload, without the header.
    let body: [UInt8]

    var isReply: Bool { flags & VFIOUser.flagTypeMask == VFIOUser.flagReply }
    var isError: Bool { flags & VFIOUser.flagError != 0 }
    fileprivate var byteCount: Int { VFIOUser.headerByteCount + body.count }
}

/// Sends and receives whole messages over a stream that may deliver any number of bytes at a time.
struct VFIOUserConnection: ~Copyable {
    let fd: OwnedFD
    /// What a successor has to know.
    let log: VFIOUserLog
    /// The same socket, for sending: data threads send doorbells while another thread receives.
    private let outgoing: VFIOUserSender
    /// What was taken off the socket of the message under way, which came in pieces.
    private var prefix: [UInt8] = []
    private var pendingFD: OwnedFD?

    /// Where the kernel puts what arrives.
    private let chunk: Mapping

    init(
        fd: consuming OwnedFD, log: VFIOUserLog, generation: UInt64
    ) throws(SystemCallError) {
        let outgoing = VFIOUserSender(try fd.duplicate(), generation: generation)
        chunk = try Mapping(anonymous: VFIOUser.maxMessageByteCount)
        self.log = log
        self.fd = fd
        self.outgoing = outgoing
    }

    /// Sends messages, from any thread.
    var sender: VFIOUserSender { outgoing }

    /// The next whole message, which stays where it is, or nil when none is there before the
    /// deadline.
    mutating func next(deadline: UInt64) throws(VFIOError) -> VFIOUserMessage? {
        while true {
            if let message = try look() { return message }
            let left = Self.millisecondsLeft(until: deadline)
            guard left > 0, try waitReadable(milliseconds: left) else { return nil }
        }
    }

    private mutating func look() throws(VFIOError) -> VFIOUserMessage? {
        // Ends: each turn but the last takes bytes of a message of bounded size.
        while true {
            let count = unsafe nv_peek(fd.raw, chunk.base, chunk.byteCount)
            if count == -Int(Errno.again) { return nil }
            guard count >= 0 else {
                throw Self.translate(SystemCallError("recv", errno: CInt(clamping: -count)))
            }
            guard count > 0 else { throw .gone("the server closed the connection") }
            if let message = try parse(count) { return message }
            log.isInMessage = true
            prefix += try takeOff(count)
        }
    }

    private func waitReadable(milliseconds: Int) throws(VFIOError) -> Bool {
        do throws(SystemCallError) {
            return try fd.waitReadable(timeoutMilliseconds: Int32(clamping: milliseconds))
        } catch {
            throw .system(error)
        }
    }

    /// The message at the head of the socket, of which `count` bytes can be seen.
    private func parse(_ count: Int) throws(VFIOError) -> VFIOUserMessage? {
        let seen = unsafe UnsafeRawBufferPointer(start: chunk.base, count: count)
        let headerPart = prefix.prefix(VFIOUser.headerByteCount)
        let header = unsafe headerPart + seen.prefix(VFIOUser.headerByteCount - headerPart.count)
        let reader = ByteReader(Array(header))
        guard let id = reader.u16(0), let command = reader.u16(2), let size = reader.u32(4),
            let flags = reader.u32(8), let error = reader.u32(12)
        else { return nil }
        guard size >= VFIOUser.headerByteCount, size <= VFIOUser.maxMessageByteCount else {
            throw .protocolViolation(
                operation: VFIOUserCommand.name(command), detail: "message size \(size)")
        }
        guard prefix.count + count >= Int(size) else { return nil }
        let rest = unsafe seen.prefix(Int(size) - prefix.count)
        let message = unsafe prefix.isEmpty ? Array(rest) : prefix + rest
        return VFIOUserMessage(
            id: id, command: command, flags: flags, error: error,
            body: Array(message[VFIOUser.headerByteCount...]))
    }

    /// Takes the message that `next` returned off the socket: the first descriptor that came along;
    /// more are closed.
    mutating func take(_ message: VFIOUserMessage) throws(VFIOError) -> OwnedFD? {
        _ = try takeOff(message.byteCount - prefix.count)
        if !prefix.isEmpty {
            prefix = []
            log.isInMessage = false
        }
        return pendingFD.take()
    }

    private mutating func takeOff(_ count: Int) throws(VFIOError) -> [UInt8] {
        do throws(SystemCallError) {
            let room = unsafe UnsafeMutableRawBufferPointer(start: chunk.base, count: count)
            if var message = try unsafe UnixSocket.receive(fd, into: room, nonblocking: true),
                message.byteCount == count
            {
                if let fd = message.fds.take(0) { pendingFD = consume fd }
                return unsafe Array(room)
            }
        } catch { throw Self.translate(error) }
        throw .gone("what was on the socket is not there any more: somebody else reads it")
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
