// SPDX-License-Identifier: Apache-2.0
// One connection of the opener: requests one after the other, each answered at once.

internal import Linux
internal import Systemd
internal import VFIO
internal import Wire

/// Somebody who is connected.
@Control
final class OpenerConnection {
    /// Who it is.
    let asker: Asker
    private let channel: Channel<OpenerProtocol>
    private let log: Log
    private let answer:
        @Control (OpenerRequest, inout ReceivedFDs) throws(WireError) -> OpenerAnswer
    private var onEnd: (@Control () -> Void)?
    private var source: DescriptorSource?
    private var silence: Timer?
    private var lastRequestID: UInt64 = 0

    /// Takes over a connected socket.
    init(
        _ fd: consuming OwnedFD, asker: Asker, buffer: MessageBuffer, log: Log,
        answer:
            @escaping @Control (OpenerRequest, inout ReceivedFDs) throws(WireError) -> OpenerAnswer,
        onEnd: @escaping @Control () -> Void
    ) throws(SystemCallError) {
        self.asker = asker
        self.log = log
        self.answer = answer
        self.onEnd = onEnd
        channel = Channel(fd, role: .server, buffer: buffer)
        source = try EventLoop.current.watch(channel.fd, .readable) { [weak self] _ in
            self?.serve()
        }
        silence = try EventLoop.current.after(nanoseconds: OpenerLimits.silenceNanoseconds) {
            [weak self] in self?.end()
        }
    }

    private func serve() {
        do throws(ChannelError) {
            for _ in 0..<OpenerLimits.messagesPerTurn {
                switch try channel.receive() {
                case .nothing: return
                case .closed: return end()
                case .rejected(let rejection):
                    try channel.send(error: rejection.error, to: rejection.requestID)
                    if rejection.endsConnection { return end() }
                case .message(var message):
                    let envelope = message.envelope
                    try handle(envelope, &message.fds)
                    // Whoever does not read its answers does not get more of them.
                    if channel.wantsWrite { return end() }
                }
            }
        } catch {
            if error != .closed {
                log.warning("process \(asker.pid): the connection ended: \(error)")
            }
            end()
        }
    }

    private func handle(
        _ envelope: Envelope<OpenerProtocol>, _ fds: inout ReceivedFDs
    ) throws(ChannelError) {
        guard case .request(let request) = envelope.content else { return }
        let id = envelope.requestID
        guard id > lastRequestID else {
            try channel.send(
                error: WireError(
                    .invalidArgument, "request id \(id) is not above \(lastRequestID)",
                    field: "request_id"), to: id)
            throw .closed
        }
        lastRequestID = id
        if let deadline = envelope.deadlineNanoseconds, MonotonicClock.nowNanoseconds >= deadline {
            return try channel.send(
                error: WireError(
                    .deadlineExceeded, "the deadline passed", field: "deadline_ns"), to: id)
        }
        do throws(WireError) {
            let done = try answer(request, &fds)
            try send(done, id)
        } catch {
            try channel.send(error: error, to: id)
        }
    }

    private func send(_ answer: consuming OpenerAnswer, _ id: UInt64) throws(WireError) {
        let reply = answer.reply
        var raw: [CInt] = []
        let descriptors = answer.descriptors.take()
        if let descriptors {
            raw = descriptors.raw
            try deliver(reply, id, raw)
            return
        }
        try deliver(reply, id, raw)
    }

    private func deliver(_ reply: OpenerReply, _ id: UInt64, _ raw: [CInt]) throws(WireError) {
        do throws(ChannelError) {
            try channel.send(reply: reply, to: id, fds: raw)
        } catch {
            throw WireError(.internalError, error.description)
        }
    }

    /// Ends the connection.
    func end() {
        source?.cancel()
        source = nil
        silence?.cancel()
        silence = nil
        channel.shutdown()
        let tell = onEnd
        onEnd = nil
        tell?()
    }
}
