// SPDX-License-Identifier: Apache-2.0
// One end of a control connection: text messages both ways, nothing that can block.

internal import Linux
internal import Systemd

/// Text messages over a SOCK_SEQPACKET socket.
@Control
final class ControlConnection {
    /// Messages that wait for a peer that does not read; one more ends the connection.
    static let outgoingMax = 1024
    /// Messages taken in one turn of the loop: others want a turn too.
    static let messagesPerTurn = 32

    private let fd: OwnedFD
    private var source: DescriptorSource?
    private var outgoing: [String] = []
    private let buffer: MessageBuffer
    var onMessage: (@Control ([UInt8]) -> Void)?
    var onEnd: (@Control () -> Void)?

    init(_ fd: consuming OwnedFD, byteCountMax: Int) throws(SystemCallError) {
        self.fd = fd
        // One more than allowed: a longer message shows as such.
        buffer = MessageBuffer(byteCount: byteCountMax + 1)
        UnixSocket.setBuffers(self.fd, byteCount: 4 * Request.replyByteCountMax)
        source = try EventLoop.current.watch(self.fd, .readable) { [weak self] events in
            self?.serve(events)
        }
    }

    var isOpen: Bool { source != nil }

    /// Sends, or queues while the peer is slow.
    func send(_ message: String) {
        guard isOpen else { return }
        guard outgoing.count < Self.outgoingMax else { return end() }
        outgoing.append(message)
        flush()
    }

    /// Ends the connection; `onEnd` is called.
    func end() {
        guard let source else { return }
        source.cancel()
        self.source = nil
        UnixSocket.shutdown(fd)
        outgoing = []
        let handler = onEnd
        onEnd = nil
        onMessage = nil
        handler?()
    }

    private func serve(_ events: Events) {
        if events.contains(.writable) { flush() }
        for _ in 0..<Self.messagesPerTurn {
            guard isOpen else { return }
            do throws(SystemCallError) {
                guard let message = try buffer.receive(fd) else { return }
                if message.isEnd { return end() }
                onMessage?(buffer.bytes(message.byteCount))
            } catch {
                return end()
            }
        }
    }

    private func flush() {
        var sent = 0
        defer {
            outgoing.removeFirst(min(sent, outgoing.count))
            try? source?.setEvents(outgoing.isEmpty ? .readable : [.readable, .writable])
        }
        for message in outgoing {
            do throws(SystemCallError) {
                try UnixSocket.sendText(fd, message)
                sent += 1
            } catch {
                if error.errno == Errno.again { return }
                sent = outgoing.count
                return end()
            }
        }
    }
}
