// SPDX-License-Identifier: Apache-2.0
// One connection of the opener: requests one after the other, each read when the last is answered.

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
        @Control (OpenerRequest, PassedFile?) async throws(WireError) -> OpenerAnswer
    private var onEnd: (@Control () -> Void)?
    private var source: DescriptorSource?
    private var silence: Timer?
    private var lastRequestID: UInt64 = 0
    /// The request that is being worked on.
    private var work: Task<Void, Never>?

    /// Takes over a connected socket.
    init(
        _ fd: consuming OwnedFD, asker: Asker, buffer: MessageBuffer, log: Log,
        answer:
            @escaping @Control (OpenerRequest, PassedFile?) async throws(WireError) -> OpenerAnswer,
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
        try awaitWords()
    }

    private func awaitWords() throws(SystemCallError) {
        silence = try EventLoop.current.after(nanoseconds: OpenerLimits.silenceNanoseconds) {
            [weak self] in self?.end()
        }
    }

    private func serve() {
        // While a request is worked on, all there is to hear is that nobody waits for it any more.
        guard work == nil else { return end() }
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
                    if work != nil { return }
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
        var file: PassedFile?
        if let fd = fds.take(0) { file = PassedFile(fd) }
        begin(request, id, file)
    }

    private func begin(_ request: OpenerRequest, _ id: UInt64, _ file: PassedFile?) {
        silence?.cancel()
        silence = nil
        // Hanging up is told all the same.
        try? source?.setEvents([])
        let answer = answer
        work = EventLoop.current.task { [weak self] in
            let outcome: Result<OpenerAnswer, WireError>
            do throws(WireError) {
                outcome = .success(try await answer(request, file))
            } catch {
                outcome = .failure(error)
            }
            self?.finish(id, outcome)
        }
    }

    private func finish(_ id: UInt64, _ outcome: Result<OpenerAnswer, WireError>) {
        guard work != nil else { return }
        work = nil
        do {
            switch outcome {
            case .success(let answer):
                try channel.send(reply: answer.reply, to: id, fds: answer.raw)
            case .failure(let error): try channel.send(error: error, to: id)
            }
            guard !channel.wantsWrite else { return end() }
            try source?.setEvents(.readable)
            try awaitWords()
        } catch {
            log.warning("process \(asker.pid): the connection ended: \(error)")
            end()
        }
    }

    /// Ends the connection.
    func end() {
        source?.cancel()
        source = nil
        silence?.cancel()
        silence = nil
        work?.cancel()
        work = nil
        channel.shutdown()
        let tell = onEnd
        onEnd = nil
        tell?()
    }
}
