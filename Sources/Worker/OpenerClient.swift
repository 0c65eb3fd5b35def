// SPDX-License-Identifier: Apache-2.0
// The worker's side of the opener protocol: one connection for each request.

internal import DMA
internal import Linux
internal import Systemd
internal import VFIO
internal import Wire

/// What the opener answered. One owner takes the descriptors out.
@Control
final class OpenerAnswer {
    let reply: OpenerReply
    private var fds: ReceivedFDs

    init(reply: OpenerReply, fds: consuming ReceivedFDs) {
        self.reply = reply
        self.fds = fds
    }

    /// Takes a descriptor out, once.
    func take(_ index: Int) -> OwnedFD? { fds.take(index) }
}

/// Asks the opener. The loop goes on meanwhile.
@Control
final class OpenerClient {
    private let channel: Channel<OpenerProtocol>
    private let answer = OneShot<OpenerAnswer>()
    private var source: DescriptorSource?

    /// The opener's socket.
    nonisolated static var path: String {
        Program.environment("NVMED_OPENER") ?? "/run/nvmed/opener.sock"
    }

    /// Asks at a path; nil when there is none, which is for the worker to be its own.
    static func connect(_ path: String) throws(SystemCallError) -> OpenerClient? {
        do throws(SystemCallError) {
            return try OpenerClient(
                UnixSocket.connect(path, kind: .sequencedPacket, nonblocking: true))
        } catch {
            guard error.errno == Errno.noEntry else { throw error }
            return nil
        }
    }

    private init(_ fd: consuming OwnedFD) throws(SystemCallError) {
        channel = Channel(fd, role: .client, buffer: MessageBuffer())
        source = try EventLoop.current.watch(channel.fd, .readable) { [weak self] _ in
            self?.receive()
        }
    }

    /// Sends the one request and waits for its answer, bounded.
    func ask(
        _ request: OpenerRequest, fds: [CInt] = [], device: String
    ) async throws(WireError) -> OpenerAnswer {
        defer {
            source?.cancel()
            source = nil
            channel.shutdown()
        }
        do {
            try channel.send(request: request, fds: fds)
            let timer = try EventLoop.current.after(nanoseconds: WorkerLimits.openerNanoseconds) {
                [answer] in
                answer.fail(
                    WireError(
                        .deadlineExceeded, "the opener does not answer (nvmed-opener.service)",
                        device: device))
            }
            defer { timer.cancel() }
            return try await answer.value()
        } catch let error as WireError {
            throw error
        } catch {
            throw WireError(.internalError, "the opener cannot be asked: \(error)", device: device)
        }
    }

    private func receive() {
        do throws(ChannelError) {
            switch try channel.receive() {
            case .nothing: break
            case .closed:
                answer.fail(WireError(.internalError, "the opener closed the connection"))
            case .rejected(let rejection): answer.fail(rejection.error)
            case .message(var message):
                switch message.envelope.content {
                case .reply(let reply):
                    answer.succeed(OpenerAnswer(reply: reply, fds: message.fds.takeAll()))
                case .failure(let error): answer.fail(error)
                case .request, .event: break
                }
            }
        } catch {
            answer.fail(WireError(.internalError, error.description))
        }
    }
}

extension OpenerClient {
    /// Asks where memory lies. Blocks, bounded: it is part of a bring-up, which blocks anyway.
    nonisolated static func translate(
        _ fd: borrowing OwnedFD, offset: UInt64, _ byteCount: UInt64, device: String, path: String
    ) throws(VFIOError) -> [UInt64] {
        do throws(WireError) {
            let reply = try askNow(
                .translateMemory(name: device, byteCount: byteCount, offset: offset),
                fds: [fd.raw], path: path)
            guard case .translated(_, let addresses) = reply else { throw unexpected }
            return addresses
        } catch {
            throw .unsupported("physical addresses: \(error.message)")
        }
    }

    /// Asks for the guest memory of a device. Blocks, bounded: the opener only looks at a file.
    nonisolated static func findGuestMemory(
        _ device: String, path: String
    ) throws(WireError) -> GuestMemory {
        let reply = try askNow(.findGuestMemory(name: device), fds: [], path: path)
        guard case .guestMemory(let found) = reply else { throw unexpected }
        return GuestMemory(node: found.deviceNumber, ranges: found.ranges)
    }

    /// Asks for the file of a pool: the memory, and what holds its lock. Blocks, bounded: it is
    /// part of a bring-up, which blocks anyway. `busy`: another worker has it.
    nonisolated static func openPool(
        _ device: String, _ place: PoolPlace, byteCount: UInt64, isKept: Bool, path: String
    ) throws(WireError) -> PoolFile {
        var fds = ReceivedFDs()
        let reply = try askNow(
            .openPool(name: device, byteCount: byteCount, isKept: isKept), fds: [], path: path,
            received: &fds)
        guard case .poolOpened(let isClean) = reply, let memory = fds.take(0),
            let lock = fds.take(1)
        else { throw unexpected }
        do throws(PoolFileError) {
            return try PoolFile(received: memory, lock: lock, place: place, isClean: isClean)
        } catch { throw WireError(.internalError, error.description, device: device) }
    }

    private nonisolated static var unexpected: WireError {
        WireError(.internalError, "the opener answered something else")
    }

    private nonisolated static func askNow(
        _ request: OpenerRequest, fds: [CInt], path: String
    ) throws(WireError) -> OpenerReply {
        var none = ReceivedFDs()
        return try askNow(request, fds: fds, path: path, received: &none)
    }

    private nonisolated static func askNow(
        _ request: OpenerRequest, fds: [CInt], path: String, received: inout ReceivedFDs
    ) throws(WireError) -> OpenerReply {
        do {
            let channel = Channel<OpenerProtocol>(
                try UnixSocket.connect(path, kind: .sequencedPacket, nonblocking: true),
                role: .client, buffer: MessageBuffer())
            try channel.send(request: request, fds: fds)
            let deadline = MonotonicClock.nowNanoseconds + WorkerLimits.translationNanoseconds
            switch try channel.receive(deadlineNanoseconds: deadline) {
            case .message(var message):
                received = message.fds.takeAll()
                switch message.envelope.content {
                case .reply(let reply): return reply
                case .failure(let error): throw error
                default: break
                }
            default: break
            }
            throw unexpected
        } catch let error as WireError {
            throw error
        } catch {
            throw WireError(.internalError, "the opener cannot be asked: \(error)")
        }
    }
}
