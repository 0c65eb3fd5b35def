// SPDX-License-Identifier: Apache-2.0
// Whole messages over a stream socket: framing, descriptors, replies that wait for room or for
// their time.

internal import CLinux
internal import Linux

/// A message as it came: header, body and descriptors.
struct IncomingMessage: ~Copyable {
    let header: MessageHeader
    let body: ArraySlice<UInt8>
    var fds: IncomingFDs
}

/// Descriptors that came with a message; those not taken are closed.
struct IncomingFDs: ~Copyable {
    private var raw: [CInt]

    init(_ raw: [CInt]) { self.raw = raw }

    deinit { for fd in raw where fd >= 0 { _ = nv_close(fd) } }

    var count: Int { raw.count }

    /// The number, which stays owned here.
    func peek(_ index: Int) -> CInt? { raw.indices.contains(index) ? raw[index] : nil }

    mutating func take(_ index: Int) -> OwnedFD? {
        guard raw.indices.contains(index), raw[index] >= 0 else { return nil }
        defer { raw[index] = -1 }
        return OwnedFD(adopting: raw[index])
    }
}

/// Why a connection ended.
enum StreamEnd: Error, Equatable {
    /// The client closed it.
    case closed
    /// The client broke the framing, or the kernel refused.
    case broken(String)
}

/// A message on its way out.
private struct OutgoingMessage {
    var bytes: [UInt8]
    var fd: CInt
    var sent = 0
    var notBeforeNanoseconds: UInt64
}

/// One client's socket.
///
/// Headers and bodies are received by their exact size: so descriptors, which the kernel attaches
/// to the first byte they were sent with and at which a receive stops, always belong to the message
/// being received.
@safe
final class MessageStream {
    /// Replies that wait for the client to read; beyond it nothing more is received.
    static let maxOutgoing = 64
    /// The pieces of `--short-replies`: small, odd, never a whole header.
    private static let pieces = [1, 2, 3, 5, 7, 11]

    let fd: OwnedFD
    private let options: EmulatorOptions
    private var buffer: [UInt8]
    private var filled = 0
    private var header: MessageHeader?
    private var fds: [CInt] = []
    private var outgoing: [OutgoingMessage] = []
    private var piece = 0

    init(fd: consuming OwnedFD, options: EmulatorOptions) {
        self.fd = fd
        self.options = options
        buffer = Array(repeating: 0, count: 4096)
    }

    deinit {
        for fd in fds { _ = nv_close(fd) }
        for message in outgoing where message.fd >= 0 { _ = nv_close(message.fd) }
    }

    // MARK: Receiving

    /// The client reads too slowly: nothing is received until it does.
    var isCongested: Bool { outgoing.count >= Self.maxOutgoing }

    /// The next whole message, or nil when there is none yet. Never waits.
    func receive() throws(StreamEnd) -> IncomingMessage? {
        guard !isCongested else { return nil }
        while true {
            let wanted = header.map { Int($0.byteCount) } ?? VFIOUser.headerByteCount
            while filled < wanted {
                guard try fill(wanted) else { return nil }
            }
            guard let header else {
                try takeHeader()
                continue
            }
            let message = IncomingMessage(
                header: header, body: buffer[VFIOUser.headerByteCount..<filled],
                fds: IncomingFDs(fds))
            self.header = nil
            filled = 0
            fds.removeAll()
            return message
        }
    }

    private func takeHeader() throws(StreamEnd) {
        guard let header = MessageHeader(ByteReader(buffer[0..<filled])) else {
            throw .broken("no header")
        }
        guard header.byteCount >= UInt32(VFIOUser.headerByteCount),
            header.byteCount <= UInt32(VFIOUser.maxMessageByteCount)
        else { throw .broken("a message of \(header.byteCount) bytes") }
        if buffer.count < Int(header.byteCount) {
            buffer.append(
                contentsOf: repeatElement(0, count: Int(header.byteCount) - buffer.count))
        }
        self.header = header
    }

    /// Receives up to `wanted` bytes; false when nothing waits.
    private func fill(_ wanted: Int) throws(StreamEnd) -> Bool {
        var info = nv_message_info()
        var received: InlineArray<16, CInt> = InlineArray(repeating: -1)
        let start = filled
        let socket = fd.raw
        let count = unsafe buffer.withUnsafeMutableBytes { bytes -> Int in
            guard let base = bytes.baseAddress else { return 0 }
            var span = received.mutableSpan
            return unsafe span.withUnsafeMutableBufferPointer { fds in
                unsafe nv_receive_message(
                    socket, base + start, wanted - start, fds.baseAddress, &info, 0, 1)
            }
        }
        if count == -Int(Errno.again) { return false }
        guard count >= 0 else {
            throw .broken("\(SystemCallError("recvmsg", errno: CInt(-count)))")
        }
        for index in 0..<Int(info.fd_count) { fds.append(received[index]) }
        guard info.fds_truncated == 0, fds.count <= VFIOUser.maxMessageFDs else {
            throw .broken("more than \(VFIOUser.maxMessageFDs) descriptors in a message")
        }
        guard count > 0 else { throw .closed }
        filled += count
        return true
    }

    // MARK: Sending

    /// Something waits to be sent as soon as the socket has room.
    var wantsWritable: Bool {
        guard let first = outgoing.first else { return false }
        return first.sent > 0 || first.notBeforeNanoseconds <= MonotonicClock.nowNanoseconds
    }

    /// When the next reply's time comes.
    var nextDeadline: UInt64? { outgoing.first?.notBeforeNanoseconds }

    /// Sends a reply, or queues it. The descriptor is duplicated.
    func reply(
        to header: MessageHeader, _ body: [UInt8], error: CInt = 0, fd: CInt = -1
    ) throws(StreamEnd) {
        guard header.wantsReply else { return }
        let flags = VFIOUser.typeReply | (error == 0 ? 0 : VFIOUser.flagError)
        let delay = options.replyDelayMilliseconds
        let due = delay == 0 ? 0 : MonotonicClock.nowNanoseconds &+ delay &* 1_000_000
        try send(
            MessageHeader(
                id: header.id, command: header.command, flags: flags,
                error: UInt32(bitPattern: error)),
            error == 0 ? body : [], fd: fd, notBefore: due)
    }

    /// Sends a command to the client, ahead of replies that wait for their time.
    func command(_ header: MessageHeader, _ body: [UInt8]) throws(StreamEnd) {
        try send(header, body, fd: -1, notBefore: 0)
    }

    private func send(
        _ header: MessageHeader, _ body: [UInt8], fd: CInt, notBefore: UInt64
    ) throws(StreamEnd) {
        var writer = ByteWriter()
        writer.u16(header.id)
        writer.u16(header.command)
        writer.u32(UInt32(VFIOUser.headerByteCount + body.count))
        writer.u32(header.flags)
        writer.u32(header.error)
        writer.raw(body)
        let duplicate = fd >= 0 ? nv_dup_cloexec(fd) : -1
        let message = OutgoingMessage(
            bytes: writer.bytes, fd: duplicate, notBeforeNanoseconds: notBefore)
        let waiting = outgoing.firstIndex { $0.sent == 0 && $0.notBeforeNanoseconds > notBefore }
        outgoing.insert(message, at: waiting ?? outgoing.count)
        try flush()
    }

    /// Sends what can be sent now.
    func flush() throws(StreamEnd) {
        while wantsWritable {
            guard try sendSome() else { return }
            if options.shortReplies { return }
        }
    }

    /// Sends (part of) the first message; false when the socket is full.
    private func sendSome() throws(StreamEnd) -> Bool {
        var limit = outgoing[0].bytes.count - outgoing[0].sent
        if options.shortReplies {
            limit = min(limit, Self.pieces[piece % Self.pieces.count])
            piece += 1
        }
        let sent = outgoing[0].sent
        let fds = outgoing[0].fd >= 0 ? [outgoing[0].fd] : []
        let socket = fd.raw
        let count = unsafe outgoing[0].bytes.withUnsafeBytes { bytes -> Int in
            guard let base = bytes.baseAddress else { return 0 }
            return unsafe nv_send_message(
                socket, base + sent, limit, nil, 0, fds, CInt(fds.count), 1)
        }
        if count == -Int(Errno.again) { return false }
        guard count >= 0 else {
            throw .broken("\(SystemCallError("sendmsg", errno: CInt(-count)))")
        }
        // The descriptor went with the first byte.
        if outgoing[0].fd >= 0 {
            _ = nv_close(outgoing[0].fd)
            outgoing[0].fd = -1
        }
        outgoing[0].sent += count
        if outgoing[0].sent == outgoing[0].bytes.count { outgoing.removeFirst() }
        return true
    }
}
