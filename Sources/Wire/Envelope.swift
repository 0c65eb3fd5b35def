// SPDX-License-Identifier: Apache-2.0
// The envelope around every message, and what a protocol has to say about itself.

/// A protocol: its messages and how they become bytes. `SessionProtocol`, `WorkerProtocol` and
/// `SupervisorProtocol` are the three there are.
public protocol WireProtocol: Sendable, SendableMetatype {
    /// What the client sends.
    associatedtype Request: Sendable & Hashable
    /// What the server answers.
    associatedtype Reply: Sendable & Hashable
    /// What the server sends unasked.
    associatedtype Event: Sendable & Hashable

    /// Whether messages may end with a payload.
    static var hasPayload: Bool { get }
    /// Writes the body's field; used by `Channel`.
    static func write(_ content: Content<Self>, into writer: inout MessageWriter)
    /// Reads an envelope without its payload; used by `Channel`.
    static func read(
        _ head: UnsafeRawBufferPointer, arena: MessageArena
    ) throws(Rejection) -> (envelope: Envelope<Self>, fdCount: UInt32)
    /// How many descriptors this content must come with.
    static func fdCount(of content: Content<Self>) -> Int
}

extension WireProtocol {
    /// Most protocols have none.
    public static var hasPayload: Bool { false }
}

/// What a message is about.
public enum Content<P: WireProtocol>: Sendable, Hashable {
    /// A client asks.
    case request(P.Request)
    /// The server answers.
    case reply(P.Reply)
    /// The server answers that it failed.
    case failure(WireError)
    /// The server tells.
    case event(P.Event)
}

/// A message beside its payload and descriptors.
public struct Envelope<P: WireProtocol>: Sendable, Hashable {
    /// Of a request and its reply, from 1 and rising; 0 of an event.
    public var requestID: UInt64
    /// CLOCK_MONOTONIC nanoseconds after which an unsubmitted request fails; nil: never.
    public var deadlineNanoseconds: UInt64?
    /// What it is about.
    public var content: Content<P>

    /// Makes an envelope.
    public init(requestID: UInt64, deadlineNanoseconds: UInt64? = nil, content: Content<P>) {
        self.requestID = requestID
        self.deadlineNanoseconds = deadlineNanoseconds
        self.content = content
    }
}

/// Why a received message is not acted on, and to which request the answer belongs.
public struct Rejection: Error, Sendable, Hashable {
    /// The request, or 0 when the message was too broken to tell.
    public var requestID: UInt64
    /// What is wrong with it; goes back to the peer.
    public var error: WireError

    /// The peer does not speak the protocol: answer, then close the connection.
    public var endsConnection: Bool { error.code == .malformedMessage }

    /// Rejects a request.
    public init(requestID: UInt64, error: WireError) {
        self.init(requestID, error)
    }

    init(_ requestID: UInt64, _ error: WireError) {
        self.requestID = requestID
        self.error = error
    }
}

/// Bytes of a message and back; `Channel` uses it, and tests and fuzzers may.
public enum Codec<P: WireProtocol> {
    /// The number of the payload's field.
    static var payloadField: UInt32 { 1000 }

    /// Writes a message without its payload into `writer`, which is reset first.
    ///
    /// Throws `resourceExhausted` when the head is larger than a message may be.
    public static func encode(
        _ envelope: Envelope<P>, payloadByteCount: Int = 0, fdCount: Int = 0,
        into writer: inout MessageWriter
    ) throws(WireError) {
        writer.reset()
        writer.number(1, WireLimits.version)
        if envelope.requestID != 0 { writer.number(2, envelope.requestID) }
        writer.number(3, envelope.deadlineNanoseconds)
        if fdCount > 0 { writer.number(4, UInt32(clamping: fdCount)) }
        if case .failure(let error) = envelope.content {
            writer.message(5) { error.write(into: &$0) }
        } else {
            P.write(envelope.content, into: &writer)
        }
        if payloadByteCount > 0 {
            writer.payloadPrefix(payloadField, byteCount: payloadByteCount)
        }
        guard writer.bytes.count <= WireLimits.headByteCount,
            payloadByteCount <= (P.hasPayload ? WireLimits.payloadByteCount : 0)
        else {
            throw WireError(
                .resourceExhausted,
                "the message has \(writer.bytes.count) bytes and \(payloadByteCount) of payload; "
                    + "at most \(WireLimits.headByteCount) and \(WireLimits.payloadByteCount) go")
        }
    }

    /// Reads a message. The payload's range lies in `message`.
    ///
    /// `fdCount` is how many descriptors came with it; it must be what the envelope says and what
    /// the content needs.
    public static func decode(
        _ message: UnsafeRawBufferPointer, fdCount: Int, arena: MessageArena
    ) throws(Rejection) -> (envelope: Envelope<P>, payload: Range<Int>) {
        var headEnd = message.count
        var payload = message.count..<message.count
        if P.hasPayload, let found = try unsafe MessageScan.payload(in: message, payloadField) {
            headEnd = found.headEnd
            payload = found.payload
        }
        guard headEnd <= WireLimits.headByteCount, payload.count <= WireLimits.payloadByteCount
        else { throw Rejection(0, WireError(.malformedMessage, "the message is too large")) }
        let head = unsafe UnsafeRawBufferPointer(rebasing: message[0..<headEnd])
        let (envelope, said) = try unsafe P.read(head, arena: arena)
        let wanted = P.fdCount(of: envelope.content)
        guard Int(said) == fdCount, wanted == fdCount else {
            throw Rejection(
                envelope.requestID,
                WireError(
                    .fdMismatch,
                    "\(fdCount) file descriptors came, the envelope says \(said), "
                        + "this message needs \(wanted)", field: "fd_count"))
        }
        return (envelope, payload)
    }
}

/// Finds the payload without decoding anything else.
enum MessageScan {
    /// Where the head ends and the payload lies; nil when there is none.
    ///
    /// Only looks at top-level tags; what it passes over is protobuf-c's to judge.
    static func payload(
        in message: UnsafeRawBufferPointer, _ wanted: UInt32
    ) throws(Rejection) -> (headEnd: Int, payload: Range<Int>)? {
        var at = 0
        while at < message.count {
            let start = at
            let tag = try unsafe varint(message, &at)
            switch tag & 7 {
            case 0: _ = try unsafe varint(message, &at)
            case 1: at += 8
            case 5: at += 4
            case 2:
                let length = try unsafe varint(message, &at)
                guard length <= UInt64(message.count - at) else { throw truncated() }
                at += Int(length)
                guard tag >> 3 == UInt64(wanted) else { continue }
                guard at == message.count else {
                    throw Rejection(
                        0,
                        WireError(
                            .malformedMessage, "the payload is not the last field",
                            field: "payload"))
                }
                return (start, at - Int(length)..<at)
            default: throw truncated()
            }
        }
        guard at == message.count else { throw truncated() }
        return nil
    }

    private static func truncated() -> Rejection {
        Rejection(0, WireError(.malformedMessage, "the message is cut short or not protobuf"))
    }

    private static func varint(
        _ message: UnsafeRawBufferPointer, _ at: inout Int
    ) throws(Rejection) -> UInt64 {
        var value: UInt64 = 0
        for shift in stride(from: UInt64(0), to: 70, by: 7) {
            guard at < message.count else { throw truncated() }
            let byte = unsafe message[at]
            at += 1
            value |= UInt64(byte & 0x7f) << shift
            if byte < 0x80 { return value }
        }
        throw truncated()
    }
}
