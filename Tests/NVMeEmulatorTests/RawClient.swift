// SPDX-License-Identifier: Apache-2.0
// A vfio-user client made of raw bytes, at the other end of a socket pair.

import CLinux
import Linux

@testable import NVMeEmulator

/// A reply as it came.
struct RawReply: Equatable {
    var id: UInt16
    var command: UInt16
    var flags: UInt32
    var error: UInt32
    var body: [UInt8]
}

/// Speaks to a `VFIOUserSession` in the same thread.
final class RawClient {
    let device: ServedDevice
    let session: VFIOUserSession
    let socket: OwnedFD
    private var nextID: UInt16 = 100
    private var received: [UInt8] = []
    private(set) var receivedFDs: [CInt] = []

    convenience init(_ configure: (inout EmulatorOptions) throws -> Void = { _ in }) throws {
        var options = EmulatorOptions()
        options.namespaces = [try NamespaceOptions(parsing: "memory=1M")]
        options.ioQueueCount = 2
        options.vectorCount = 3
        try configure(&options)
        try self.init(device: ServedDevice(options: options))
    }

    /// The next client of a device.
    init(device: ServedDevice) throws {
        self.device = device
        let pair = try UnixSocket.pair(kind: .stream, nonblocking: true)
        socket = try pair.first.duplicate()
        session = VFIOUserSession(device: device, fd: try pair.second.duplicate())
    }

    deinit { for fd in receivedFDs { _ = nv_close(fd) } }

    /// Puts bytes on the socket; false when it takes no more.
    @discardableResult
    func send(_ bytes: [UInt8], fds: [CInt] = []) -> Bool {
        unsafe bytes.withUnsafeBytes {
            unsafe nv_send_message(
                socket.raw, $0.baseAddress, $0.count, nil, 0, fds, CInt(fds.count), 1)
                == $0.count
        }
    }

    static func message(
        _ command: UInt16, _ body: [UInt8], id: UInt16 = 1, flags: UInt32 = 0, size: UInt32? = nil
    ) -> [UInt8] {
        var writer = ByteWriter()
        writer.u16(id)
        writer.u16(command)
        writer.u32(size ?? UInt32(16 + body.count))
        writer.u32(flags)
        writer.u32(0)
        writer.raw(body)
        return writer.bytes
    }

    /// Lets the server handle what was sent.
    func serve() throws(StreamEnd) {
        for _ in 0..<1000 {
            let isBusy = try session.handleMessages()
            guard isBusy || session.stream.wantsWritable else { return }
        }
    }

    private func collect() {
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            var info = nv_message_info()
            var fds = [CInt](repeating: -1, count: 16)
            let count = unsafe buffer.withUnsafeMutableBytes {
                unsafe nv_receive_message(socket.raw, $0.baseAddress, $0.count, &fds, &info, 0, 1)
            }
            receivedFDs += fds[0..<Int(info.fd_count)]
            guard count > 0 else { return }
            received += buffer[0..<count]
        }
    }

    /// The next message that the server sent.
    func next() -> RawReply? {
        collect()
        let reader = ByteReader(received[...])
        guard let header = MessageHeader(reader), received.count >= Int(header.byteCount) else {
            return nil
        }
        let body = Array(received[16..<Int(header.byteCount)])
        received.removeFirst(Int(header.byteCount))
        return RawReply(
            id: header.id, command: header.command, flags: header.flags, error: header.error,
            body: body)
    }

    /// Sends a command and returns the reply.
    func request(_ command: UInt16, _ body: [UInt8], fds: [CInt] = []) throws -> RawReply? {
        nextID &+= 1
        send(Self.message(command, body, id: nextID), fds: fds)
        try serve()
        let reply = next()
        return reply?.id == nextID ? reply : nil
    }

    static let capabilities = Array("{\"capabilities\":{\"max_msg_fds\":8}}\0".utf8)

    /// A client that has agreed on the version.
    static func negotiated(
        _ configure: (inout EmulatorOptions) throws -> Void = { _ in }
    ) throws -> RawClient {
        let client = try RawClient(configure)
        _ = try client.request(1, [0, 0, 1, 0] + capabilities)
        return client
    }

    /// Goes, and is followed by another client of the same device.
    func successor() throws -> RawClient {
        session.end()
        let client = try RawClient(device: device)
        _ = try client.request(1, [0, 0, 1, 0] + Self.capabilities)
        return client
    }

    static func words(_ values: UInt32...) -> [UInt8] {
        var writer = ByteWriter()
        for value in values { writer.u32(value) }
        return writer.bytes
    }

    static func access(_ offset: UInt64, _ region: UInt32, _ count: UInt32) -> [UInt8] {
        var writer = ByteWriter()
        writer.u64(offset)
        writer.u32(region)
        writer.u32(count)
        return writer.bytes
    }

    static func map(
        _ address: UInt64, _ size: UInt64, offset: UInt64 = 0, flags: UInt32 = 3
    ) -> [UInt8] {
        var writer = ByteWriter()
        writer.u32(32)
        writer.u32(flags)
        writer.u64(offset)
        writer.u64(address)
        writer.u64(size)
        return writer.bytes
    }

    static func unmap(_ address: UInt64, _ size: UInt64, flags: UInt32 = 0) -> [UInt8] {
        var writer = ByteWriter()
        writer.u32(24)
        writer.u32(flags)
        writer.u64(address)
        writer.u64(size)
        return writer.bytes
    }

    func read32(_ offset: UInt64, region: UInt32 = 0) throws -> UInt32? {
        let reply = try request(9, Self.access(offset, region, 4))
        return reply.flatMap { ByteReader($0.body[...]).u32(16) }
    }

    func write(_ offset: UInt64, _ value: [UInt8], region: UInt32 = 0) throws -> UInt32? {
        let body = Self.access(offset, region, UInt32(value.count)) + value
        return try request(10, body)?.error
    }
}
