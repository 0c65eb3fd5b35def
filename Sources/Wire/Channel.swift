// SPDX-License-Identifier: Apache-2.0
// A connection that carries messages of one protocol.
//
// A server's loop (worker, supervisor), one channel per connection, all on one thread and sharing
// one MessageBuffer:
//
//     readable:  loop (bounded):
//                  if channel.isCongested { stop watching for input until flush() relieved it }
//                  switch consume channel.peek() {
//                  case .nothing: wait for the next readable event
//                  case .closed: the peer is gone: end the session
//                  case .message(var message): log it; message.fds.take(0) …; channel.take(); act
//                  case .rejected(let rejection): channel.reject(rejection)  // answers and takes
//                  }                              // then close if rejection.endsConnection
//     reply:     channel.send(reply: .read, to: id, payload: bytes)
//     writable:  channel.flush();  watch for output while channel.wantsWrite
//
// A client's: `request(...)` gives the id; `receive()` or `receive(deadline)` gives replies and
// events.

public import Linux

/// Why a connection cannot go on (all but `tooLarge`, after which it can).
public enum ChannelError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The peer closed it or died.
    case closed
    /// The peer does not read: the outgoing queue is full. End the connection.
    case outgoingFull(byteCount: Int)
    /// The deadline passed.
    case timedOut
    /// The message to be sent is larger than a message may be. Nothing was sent.
    case tooLarge(WireError)
    /// A system call failed.
    case system(SystemCallError)

    init(_ error: SystemCallError) {
        switch error.errno {
        case Errno.brokenPipe, Errno.connectionReset: self = .closed
        default: self = .system(error)
        }
    }

    /// What happened, in words.
    public var description: String {
        switch self {
        case .closed: "the other end closed the connection"
        case .outgoingFull(let byteCount):
            "the other end does not read: \(byteCount) bytes wait for it"
        case .timedOut: "the deadline passed"
        case .tooLarge(let error): error.message
        case .system(let error): error.description
        }
    }
}

/// Room for receiving and decoding one message at a time; channels on one thread may share it.
@safe
public final class MessageBuffer {
    let bytes: UnsafeMutableRawBufferPointer
    let arena: MessageArena
    var writer = MessageWriter()

    /// Sets the room aside; pages that are never used cost nothing.
    public init() {
        unsafe bytes = UnsafeMutableRawBufferPointer.allocate(
            byteCount: WireLimits.messageByteCount, alignment: 64)
        arena = MessageArena()
    }

    deinit { unsafe bytes.deallocate() }
}

/// A message that came. The payload lies in the channel's buffer: use it before the next receive.
@safe
public struct Incoming<P: WireProtocol>: ~Copyable {
    /// What it says.
    public let envelope: Envelope<P>
    /// The inline data; empty when there is none.
    public let payload: UnsafeRawBufferPointer
    // Never moved out of a message as a whole: Swift 6.3 then copies the envelope after it was
    // destroyed. `takeAll` leaves an empty set.
    /// The descriptors, exactly as many as the content needs; those not taken are closed.
    public var fds: ReceivedFDs
}

/// What a look at the socket found.
public enum Received<P: WireProtocol>: ~Copyable {
    /// Nothing waits.
    case nothing
    /// The peer closed, and everything it sent was taken.
    case closed
    /// A message that holds to the protocol.
    case message(Incoming<P>)
    /// A message that does not; `Channel.reject` answers and takes it.
    case rejected(Rejection)
}

/// Which end of a connection this is: it decides which messages are acceptable.
public enum ChannelRole: Sendable {
    /// Gets requests.
    case server
    /// Gets replies, failures and events.
    case client
}

/// A SOCK_SEQPACKET connection with messages of protocol `P`. Not thread-safe: one owner.
public final class Channel<P: WireProtocol> {
    /// The most bytes that wait for a peer that does not read: 32 replies with full payloads, which
    /// is what an honest client may have in flight.
    public static var outgoingByteLimit: Int { 32 * WireLimits.messageByteCount }
    /// The most bytes that wait for this peer. A client whose worker is being replaced asks for as
    /// much as it may have in flight: nobody reads meanwhile.
    public var outgoingByteLimit = Channel<P>.outgoingByteLimit
    /// Above this many waiting bytes a server should not take more requests.
    public static var congestedByteCount: Int { 4 * WireLimits.messageByteCount }
    /// The most messages that wait.
    static var outgoingMessageLimit: Int { 4096 }
    /// What is asked of the kernel, so that a few full messages fit; it may give less.
    static var socketBufferByteCount: Int { 1 << 20 }

    /// The socket, for the event loop. It is never closed or switched by anybody but the channel.
    public let fd: OwnedFD
    let role: ChannelRole
    let buffer: MessageBuffer
    private var outgoing = OutgoingQueue()
    private var lastRequestID: UInt64

    /// Takes over a connected socket. The first request gets the id `firstRequestID`, 1 or more:
    /// what follows another connection goes on with its numbers.
    public init(
        _ fd: consuming OwnedFD, role: ChannelRole, buffer: MessageBuffer,
        firstRequestID: UInt64 = 1
    ) {
        UnixSocket.setBuffers(fd, byteCount: Self.socketBufferByteCount)
        self.fd = fd
        self.role = role
        self.buffer = buffer
        lastRequestID = max(firstRequestID, 1) - 1
    }

    /// The id that the next request gets: above those of all requests of this channel.
    public var nextRequestID: UInt64 { lastRequestID &+ 1 }

    // MARK: Receiving

    /// Looks at the next message and leaves it (and its descriptors) on the socket; never blocks.
    public func peek() throws(ChannelError) -> Received<P> {
        try receive(peek: true)
    }

    /// Takes the message that was peeked off the socket.
    public func take() throws(ChannelError) {
        do { try UnixSocket.discard(fd) } catch { throw ChannelError(error) }
    }

    /// Takes the next message off the socket; never blocks.
    public func receive() throws(ChannelError) -> Received<P> {
        try receive(peek: false)
    }

    /// Waits for the next message, until `deadlineNanoseconds` (CLOCK_MONOTONIC; nil: for ever).
    ///
    /// Sends what waits to be sent meanwhile. Throws `timedOut`, never returns `.nothing`.
    public func receive(deadlineNanoseconds: UInt64?) throws(ChannelError) -> Received<P> {
        while true {
            try flush()
            switch try receive(peek: false) {
            case .nothing: try waitForEvent(deadlineNanoseconds)
            case .closed: return .closed
            case .message(let message): return .message(message)
            case .rejected(let rejection): return .rejected(rejection)
            }
        }
    }

    private func receive(peek: Bool) throws(ChannelError) -> Received<P> {
        do {
            guard let received = try receiveOnce(peek) else { return .nothing }
            guard received.isEnd else { return judge(received) }
        } catch {
            guard case .closed = ChannelError(error) else { throw ChannelError(error) }
        }
        // What the peer said last may come after its end: one that closed before it read everything
        // is reported once, ahead of it, and the kernel looks for messages first and for the end
        // afterwards. The next look finds it.
        guard let last = try? receiveOnce(peek), !last.isEnd else { return .closed }
        return judge(last)
    }

    private func receiveOnce(_ peek: Bool) throws(SystemCallError) -> ReceivedMessage? {
        try unsafe UnixSocket.receive(fd, into: buffer.bytes, peek: peek, nonblocking: true)
    }

    private func judge(_ received: consuming ReceivedMessage) -> Received<P> {
        guard !received.isTruncated, !received.hadSurplusFDs else {
            let problem =
                received.isTruncated
                ? "the message has \(received.fullByteCount) bytes; at most "
                    + "\(WireLimits.messageByteCount) go"
                : "more file descriptors came than a message may carry"
            return .rejected(Rejection(0, WireError(.malformedMessage, problem)))
        }
        let message = unsafe UnsafeRawBufferPointer(
            rebasing: UnsafeRawBufferPointer(buffer.bytes)[0..<received.byteCount])
        do {
            let (envelope, payload) = try unsafe Codec<P>.decode(
                message, fdCount: received.fds.count, arena: buffer.arena)
            try checkRole(envelope)
            return .message(
                unsafe Incoming(
                    envelope: envelope,
                    payload: UnsafeRawBufferPointer(rebasing: message[payload]),
                    fds: received.takeFDs()))
        } catch {
            return .rejected(error)
        }
    }

    private func checkRole(_ envelope: Envelope<P>) throws(Rejection) {
        switch (role, envelope.content) {
        case (.server, .request):
            guard envelope.requestID == 0 else { return }
            throw Rejection(
                0,
                WireError(
                    .invalidArgument, "a request needs an id of 1 or more", field: "request_id"))
        case (.client, .reply), (.client, .failure), (.client, .event): return
        case (.server, _), (.client, .request):
            throw Rejection(
                envelope.requestID,
                WireError(.unknownMessage, "this end does not take such messages", field: "body"))
        }
    }

    /// Answers a rejected message that was peeked, and takes it off the socket.
    public func reject(_ rejection: Rejection) throws(ChannelError) {
        try take()
        if role == .server { try send(error: rejection.error, to: rejection.requestID) }
    }

    private func waitForEvent(_ deadlineNanoseconds: UInt64?) throws(ChannelError) {
        let timeout = try Self.millisecondsLeft(deadlineNanoseconds)
        do {
            if wantsWrite {
                _ = try fd.waitReadableOrWritable(timeoutMilliseconds: timeout)
            } else {
                _ = try fd.waitReadable(timeoutMilliseconds: timeout)
            }
        } catch { throw ChannelError(error) }
    }

    static func millisecondsLeft(_ deadlineNanoseconds: UInt64?) throws(ChannelError) -> Int32 {
        guard let deadlineNanoseconds else { return 1000 }
        let now = MonotonicClock.nowNanoseconds
        guard now < deadlineNanoseconds else { throw .timedOut }
        return Int32(clamping: (deadlineNanoseconds - now) / 1_000_000 + 1)
    }

    // MARK: Sending

    /// Sends a request without payload and returns its id, which is above every earlier one of
    /// this channel. Descriptors stay open here. Never blocks.
    @discardableResult
    public func send(
        request: P.Request, deadlineNanoseconds: UInt64? = nil, fds: [CInt] = []
    ) throws(ChannelError) -> UInt64 {
        try unsafe send(
            request: request, deadlineNanoseconds: deadlineNanoseconds, payload: Self.noPayload,
            fds: fds)
    }

    /// Sends a request with a payload, which is copied only when the socket is full.
    @discardableResult
    public func send(
        request: P.Request, deadlineNanoseconds: UInt64? = nil, payload: UnsafeRawBufferPointer,
        fds: [CInt] = []
    ) throws(ChannelError) -> UInt64 {
        let id = nextRequestID
        try unsafe send(
            Envelope(
                requestID: id, deadlineNanoseconds: deadlineNanoseconds,
                content: .request(request)),
            payload: payload, fds: fds)
        lastRequestID = id
        return id
    }

    /// Answers a request without payload. Descriptors stay open here. Never blocks.
    public func send(
        reply: P.Reply, to requestID: UInt64, fds: [CInt] = []
    ) throws(ChannelError) {
        try send(Envelope(requestID: requestID, content: .reply(reply)), fds: fds)
    }

    /// Answers a request with a payload, which is copied only when the socket is full.
    public func send(
        reply: P.Reply, to requestID: UInt64, payload: UnsafeRawBufferPointer
    ) throws(ChannelError) {
        try unsafe send(
            Envelope(requestID: requestID, content: .reply(reply)), payload: payload, fds: [])
    }

    /// Answers that a request failed.
    public func send(error: WireError, to requestID: UInt64) throws(ChannelError) {
        try send(Envelope(requestID: requestID, content: .failure(error)))
    }

    /// Tells the client something.
    public func send(event: P.Event, fds: [CInt] = []) throws(ChannelError) {
        try send(Envelope(requestID: 0, content: .event(event)), fds: fds)
    }

    /// Sends a message without payload, or queues it when the socket is full; never blocks.
    public func send(_ envelope: Envelope<P>, fds: [CInt] = []) throws(ChannelError) {
        try unsafe send(envelope, payload: Self.noPayload, fds: fds)
    }

    /// Sends a message, or queues it when the socket is full; never blocks.
    public func send(
        _ envelope: Envelope<P>, payload: UnsafeRawBufferPointer, fds: [CInt]
    ) throws(ChannelError) {
        do throws(WireError) {
            try Codec.encode(
                envelope, payloadByteCount: payload.count, fdCount: fds.count,
                into: &buffer.writer)
        } catch { throw .tooLarge(error) }
        try flush()
        if outgoing.isEmpty, try unsafe sendNow(payload, fds) { return }
        guard outgoing.byteCount <= outgoingByteLimit,
            outgoing.count < Self.outgoingMessageLimit
        else { throw .outgoingFull(byteCount: outgoing.byteCount) }
        do { try unsafe outgoing.append(buffer.writer.bytes, payload, fds) } catch {
            throw ChannelError(error)
        }
    }

    private static var noPayload: UnsafeRawBufferPointer {
        unsafe UnsafeRawBufferPointer(start: nil, count: 0)
    }

    private func sendNow(
        _ payload: UnsafeRawBufferPointer, _ fds: [CInt]
    ) throws(ChannelError) -> Bool {
        let bytes = buffer.writer.bytes
        return try Self.sent { () throws(SystemCallError) in
            try unsafe UnixSocket.sendParts(fd, bytes, payload, fds)
        }
    }

    /// True when the call sent, false when the socket is full.
    private static func sent(
        _ call: () throws(SystemCallError) -> Void
    ) throws(ChannelError) -> Bool {
        do {
            try call()
            return true
        } catch {
            if error.errno == Errno.again { return false }
            throw ChannelError(error)
        }
    }

    /// Messages wait for room in the socket: watch for output and call `flush`.
    public var wantsWrite: Bool { !outgoing.isEmpty }
    /// Bytes that wait for room in the socket.
    public var queuedByteCount: Int { outgoing.byteCount }
    /// Messages that wait for room in the socket.
    public var queuedCount: Int { outgoing.count }
    /// Messages that had to wait and were sent: rises as long as the peer reads.
    public var relievedCount: UInt64 { outgoing.sentCount }
    /// So much waits that no more requests should be taken from this peer.
    public var isCongested: Bool { outgoing.byteCount > Self.congestedByteCount }

    /// Sends what waits, as far as there is room; never blocks.
    public func flush() throws(ChannelError) {
        while let next = outgoing.first {
            let sent = try Self.sent { () throws(SystemCallError) in
                try unsafe UnixSocket.sendParts(
                    fd, next.bytes, Self.noPayload, next.rawFDs)
            }
            guard sent else { return }
            outgoing.removeFirst()
        }
    }

    /// Throws away what waits for room in the socket: the peer never gets it.
    public func dropQueued() { outgoing.removeAll() }

    /// Waits until everything is sent, until `deadlineNanoseconds` (CLOCK_MONOTONIC; nil: for
    /// ever).
    public func flush(deadlineNanoseconds: UInt64?) throws(ChannelError) {
        while true {
            try flush()
            if outgoing.isEmpty { return }
            let timeout = try Self.millisecondsLeft(deadlineNanoseconds)
            do { _ = try fd.waitWritable(timeoutMilliseconds: timeout) } catch {
                throw ChannelError(error)
            }
        }
    }

    /// Ends the connection for every holder of the socket.
    public func shutdown() { UnixSocket.shutdown(fd) }
}
