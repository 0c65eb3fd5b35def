// SPDX-License-Identifier: Apache-2.0
// Channels over real sockets: peek and take, descriptors, a peer that does not read.

import Linux
import Testing
import Wire

/// Two ends of a connection, the client's and the server's.
private struct Ends {
    let client: Channel<SessionProtocol>
    let server: Channel<SessionProtocol>

    init() throws {
        let pair = try UnixSocket.pair()
        let first = try pair.first.duplicate()
        let second = try pair.second.duplicate()
        client = Channel(first, role: .client, buffer: MessageBuffer())
        server = Channel(second, role: .server, buffer: MessageBuffer())
    }
}

/// What was received, copyable and comparable.
private enum Got: Equatable {
    case nothing, closed
    case message(Envelope<SessionProtocol>, payload: [UInt8], fdCount: Int)
    case rejected(Rejection)

    init(_ received: consuming Received<SessionProtocol>) {
        switch consume received {
        case .nothing: self = .nothing
        case .closed: self = .closed
        case .rejected(let rejection): self = .rejected(rejection)
        case .message(let message):
            self = .message(
                message.envelope, payload: unsafe Array(message.payload),
                fdCount: message.fds.count)
        }
    }
}

@Suite("Channels")
struct ChannelTests {
    private let write = SessionRequest.write(lba: 1, blockCount: 1, fua: false, location: .inline)

    @Test("a peeked message stays until it is taken")
    func peek() throws {
        let ends = try Ends()
        let data = [UInt8](repeating: 0xa5, count: 512)
        let id = try unsafe data.withUnsafeBytes { bytes in
            try unsafe ends.client.send(request: write, payload: bytes)
        }
        let envelope = Envelope<SessionProtocol>(requestID: id, content: .request(write))
        let expected = Got.message(envelope, payload: data, fdCount: 0)
        #expect(Got(try ends.server.peek()) == expected)
        #expect(Got(try ends.server.peek()) == expected)
        try ends.server.take()
        #expect(Got(try ends.server.peek()) == .nothing)
    }

    @Test("a descriptor arrives and works")
    func descriptor() throws {
        let ends = try Ends()
        let memory = try MemFD.create(name: "test", byteCount: 8192)
        try ends.client.send(
            request: .registerMemory(regionID: 1, byteCount: 8192, readOnly: false),
            fds: [memory.raw])
        switch try ends.server.peek() {
        case .message(var message):
            let byteCount = try Self.byteCount(message.fds.take(0))
            #expect(byteCount == 8192)
        default: Issue.record("no message")
        }
    }

    @Test("ids rise, and replies and failures find their requests")
    func replies() throws {
        let ends = try Ends()
        let first = try ends.client.send(request: .flush)
        let second = try ends.client.send(request: .getDiskInfo)
        #expect(second > first)
        try ends.server.send(reply: .diskInfo(Samples.diskInfo), to: second)
        try ends.server.send(error: Samples.error, to: first)
        let one = Envelope<SessionProtocol>(
            requestID: second, content: .reply(.diskInfo(Samples.diskInfo)))
        let two = Envelope<SessionProtocol>(requestID: first, content: .failure(Samples.error))
        #expect(Got(try ends.client.receive()) == .message(one, payload: [], fdCount: 0))
        #expect(Got(try ends.client.receive()) == .message(two, payload: [], fdCount: 0))
        #expect(Got(try ends.client.receive()) == .nothing)
    }

    @Test("bytes that are no message are rejected, answered and taken")
    func garbage() throws {
        let pair = try UnixSocket.pair()
        let server = Channel<SessionProtocol>(
            try pair.second.duplicate(), role: .server, buffer: MessageBuffer())
        let client = Channel<SessionProtocol>(
            try pair.first.duplicate(), role: .client, buffer: MessageBuffer())
        let noise: [UInt8] = [0xff, 0xff, 0xff]
        _ = try unsafe noise.withUnsafeBytes { bytes in
            try unsafe UnixSocket.send(pair.first, bytes)
        }
        let rejection = try #require(Self.rejection(try server.peek()))
        #expect(rejection.endsConnection)
        try server.reject(rejection)
        #expect(Got(try server.peek()) == .nothing)
        let answer = Envelope<SessionProtocol>(requestID: 0, content: .failure(rejection.error))
        #expect(Got(try client.receive()) == .message(answer, payload: [], fdCount: 0))
    }

    @Test("a message larger than the buffer is rejected")
    func oversize() throws {
        let pair = try UnixSocket.pair()
        let server = Channel<SessionProtocol>(
            try pair.second.duplicate(), role: .server, buffer: MessageBuffer())
        let large = [UInt8](repeating: 0, count: WireLimits.messageByteCount + 1)
        _ = try unsafe large.withUnsafeBytes { bytes in
            try unsafe UnixSocket.send(pair.first, bytes)
        }
        let rejection = try #require(Self.rejection(try server.peek()))
        #expect(rejection.error.code == .malformedMessage)
        try server.reject(rejection)
        #expect(Got(try server.peek()) == .nothing)
    }

    @Test("a request with id 0 and a reply to a server are rejected")
    func roles() throws {
        let ends = try Ends()
        try ends.client.send(Envelope(requestID: 0, content: .request(.flush)))
        try ends.client.send(Envelope(requestID: 4, content: .reply(.done)))
        let first = try #require(Self.rejection(try ends.server.receive()))
        let second = try #require(Self.rejection(try ends.server.receive()))
        #expect(first.error.field == "request_id")
        #expect(second.error.code == .unknownMessage)
    }

    @Test("a peer that does not read fills the queue up to its bound, and then order is kept")
    func fullQueue() throws {
        let ends = try Ends()
        let data = [UInt8](repeating: 1, count: WireLimits.payloadByteCount)
        var sent: UInt64 = 0
        var failure: ChannelError?
        while failure == nil, sent < 1000 {
            do throws(ChannelError) {
                try Self.reply(ends.server, sent + 1, data)
                sent += 1
            } catch { failure = error }
        }
        #expect(sent < 100)
        #expect(ends.server.isCongested)
        #expect(ends.server.wantsWrite)
        #expect(ends.server.queuedByteCount <= Channel<SessionProtocol>.outgoingByteLimit * 2)
        for id in 1...sent {
            try ends.server.flush()
            let expected = Envelope<SessionProtocol>(requestID: id, content: .reply(.read))
            #expect(Got(try ends.client.receive()) == .message(expected, payload: data, fdCount: 0))
        }
        #expect(!ends.server.wantsWrite)
    }

    @Test("a peer that is gone is seen by both directions")
    func closed() throws {
        let pair = try UnixSocket.pair()
        let server = Channel<SessionProtocol>(
            try pair.second.duplicate(), role: .server, buffer: MessageBuffer())
        UnixSocket.shutdown(pair.first)
        #expect(Got(try server.peek()) == .closed)
        #expect(throws: ChannelError.closed) { try server.send(reply: .done, to: 1) }
    }

    @Test("waiting ends at the deadline")
    func deadline() throws {
        let ends = try Ends()
        #expect(throws: ChannelError.timedOut) {
            _ = Got(try ends.client.receive(deadlineNanoseconds: MonotonicClock.nowNanoseconds))
        }
    }

    private static func byteCount(_ fd: consuming OwnedFD?) throws -> Int? {
        switch consume fd {
        case .some(let fd): try MemFD.byteCount(of: fd)
        case .none: nil
        }
    }

    private static func rejection(_ received: consuming Received<SessionProtocol>) -> Rejection? {
        guard case .rejected(let rejection) = Got(received) else { return nil }
        return rejection
    }

    private static func reply(
        _ server: Channel<SessionProtocol>, _ id: UInt64, _ data: [UInt8]
    ) throws(ChannelError) {
        var failure: ChannelError?
        // SAFETY: the buffer is used inside the closure only.
        unsafe data.withUnsafeBytes { bytes in
            do throws(ChannelError) {
                try unsafe server.send(reply: .read, to: id, payload: bytes)
            } catch { failure = error }
        }
        if let failure { throw failure }
    }
}

@Suite("Policy by peer credentials")
struct PeerPolicyTests {
    private let peer = PeerCredentials(pid: 1, uid: 1000, gid: 100, groups: [27, 44])

    @Test("users, primary and supplementary groups are admitted, and root always")
    func admits() {
        #expect(PeerPolicy(users: [1000]).admits(peer))
        #expect(PeerPolicy(groups: [100]).admits(peer))
        #expect(PeerPolicy(groups: [44]).admits(peer))
        #expect(PeerPolicy().admits(PeerCredentials(pid: 1, uid: 0, gid: 0, groups: [])))
    }

    @Test("nobody else is")
    func refuses() {
        #expect(!PeerPolicy().admits(peer))
        #expect(!PeerPolicy(users: [1001, 100], groups: [1000]).admits(peer))
    }
}
