// SPDX-License-Identifier: Apache-2.0
// Connections that say whatever a test wants, byte by byte.

import Glibc
import Linux
import NVMeClient
import Wire

/// A socket for raw bytes, whose answers are read by the protocol.
final class RawConnection<P: WireProtocol> {
    let channel: Channel<P>

    init(_ fd: consuming OwnedFD) {
        channel = Channel(fd, role: .client, buffer: MessageBuffer())
    }

    /// Sends bytes as one message; false when the other end is gone or does not read.
    @discardableResult
    func send(_ bytes: [UInt8], fds: [CInt] = []) -> Bool {
        let sent = unsafe bytes.withUnsafeBytes { bytes in
            try? unsafe UnixSocket.send(channel.fd, bytes, fds: fds, nonblocking: true)
        }
        return sent == bytes.count
    }

    /// What became of a message.
    enum Answer: Equatable {
        case failed(ErrorCode, field: String?)
        case answered
        case closed
        case nothing
    }

    /// The next answer within twenty seconds.
    func answer() -> Answer {
        guard
            let received = try? channel.receive(
                deadlineNanoseconds: Deadline.after(milliseconds: 20_000))
        else { return .nothing }
        switch consume received {
        case .nothing: return .nothing
        case .closed: return .closed
        case .rejected: return .nothing
        case .message(let message):
            if case .failure(let error) = message.envelope.content {
                return .failed(error.code, field: error.field)
            }
            return .answered
        }
    }

    /// Sends bytes and waits for the answer.
    func ask(_ bytes: [UInt8], fds: [CInt] = []) -> Answer {
        send(bytes, fds: fds) ? answer() : .closed
    }
}

extension RunningService {
    /// A raw connection to the supervisor.
    func rawConnection() throws -> RawConnection<SupervisorProtocol> {
        RawConnection(try UnixSocket.connect(socket, kind: .sequencedPacket))
    }

    /// A raw session.
    func rawSession(_ disk: String) throws -> RawConnection<SessionProtocol> {
        let channel = try rawConnection().channel
        try channel.send(request: .openDisk(name: disk, access: .readWrite))
        let received = try channel.receive(
            deadlineNanoseconds: Deadline.after(milliseconds: 20_000))
        guard case .message(var message) = consume received, let fd = message.fds.take(0) else {
            throw SetUpError("disk \(disk) was not opened")
        }
        return RawConnection(fd)
    }
}

/// Messages as bytes. Tags: field number << 3 | type.
enum Bytes {
    /// version = 1, request_id, then the rest.
    static func envelope(_ id: UInt8, _ rest: [UInt8], version: UInt8 = 1) -> [UInt8] {
        [0x08, version, 0x10, id] + rest
    }

    /// list_devices (field 20), empty.
    static let listDevices: [UInt8] = [0xa2, 0x01, 0x00]
    /// fd_count (field 4) = 1.
    static let oneFD: [UInt8] = [0x20, 0x01]
    /// A body of a field that no version has: 3000, empty.
    static let unknownBody: [UInt8] = [0xc2, 0xbb, 0x01, 0x00]
}
