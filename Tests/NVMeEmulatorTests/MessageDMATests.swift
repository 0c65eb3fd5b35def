// SPDX-License-Identifier: Apache-2.0
// DMA by message: the server asks the client for its memory, and takes in whatever else arrives.

import Linux
import NVMeSpec
import Testing

@testable import NVMeEmulator

@Suite("DMA by message")
struct MessageDMATests {
    /// A client whose controller is ready, its admin queues in memory that only messages reach.
    private func ready() throws -> RawClient {
        let client = try RawClient.negotiated { $0.dmaByMessage = true }
        let file = try MemFD.create(name: "dma", byteCount: 65536)
        _ = try client.request(2, RawClient.map(0x10000, 65536), fds: [file.raw])
        _ = try client.write(0x24, [3, 0, 3, 0])
        _ = try client.write(0x28, [0, 0, 1, 0])
        _ = try client.write(0x30, [0, 0x10, 1, 0])
        _ = try client.write(0x14, [1, 0, 0x46, 0])
        #expect(try client.read32(0x1C) == 1)
        return client
    }

    /// The reply to the server's DMA command number `id`.
    private func reply(_ id: UInt16, _ command: UInt16, _ address: UInt64, _ data: [UInt8])
        -> [UInt8]
    {
        var writer = ByteWriter()
        writer.u64(address)
        writer.u64(UInt64(data.count))
        writer.raw(data)
        return RawClient.message(command, writer.bytes, id: id, flags: 1)
    }

    /// Get Features, Arbitration, with command id 9.
    private var command: [UInt8] {
        var entry = [UInt8](repeating: 0, count: 64)
        entry[0] = 0x0A
        entry[2] = 9
        entry[40] = 1
        return entry
    }

    @Test("a command is fetched by DMA_READ and completed by DMA_WRITE")
    func exchange() throws {
        let client = try ready()
        client.send(reply(1, 11, 0x10000, command))
        client.send(reply(2, 12, 0x11000, []))
        client.device.controller.doorbells.store32(0, 1)
        #expect(client.device.controller.pass())

        let read = client.next()
        #expect(read?.command == 11)
        #expect(read?.body == RawClient.words(0x10000, 0, 64, 0))
        let write = client.next()
        #expect(write?.command == 12)
        #expect(write?.body.prefix(16) == RawClient.words(0x11000, 0, 16, 0)[...])
        // Command id 9, success, phase 1.
        #expect(write?.body.suffix(4) == [9, 0, 1, 0])
    }

    @Test("what arrives meanwhile is answered, at once if harmless, afterwards if not")
    func meanwhile() throws {
        let client = try ready()
        client.send(RawClient.message(9, RawClient.access(8, 0, 4), id: 70))
        client.send(RawClient.message(13, [], id: 71))
        client.send(RawClient.message(9, RawClient.access(0x24, 0, 4), id: 72))
        client.send(reply(1, 11, 0x10000, command))
        client.send(reply(2, 12, 0x11000, []))
        client.device.controller.doorbells.store32(0, 1)
        #expect(client.device.controller.pass())
        #expect(client.device.controller.csts.rdy)

        #expect(client.next()?.command == 11)
        #expect(client.next()?.id == 70)
        #expect(client.next()?.command == 12)
        #expect(client.next() == nil)
        try client.serve()
        #expect(client.next()?.id == 71)
        let last = client.next()
        #expect(last?.id == 72)
        // The read came after the reset.
        #expect(last?.body.suffix(4) == [0, 0, 0, 0])
    }

    @Test("an error in the reply is fatal for a queue")
    func refused() throws {
        let client = try ready()
        client.send(RawClient.message(11, [], id: 1, flags: 0x21))
        client.device.controller.doorbells.store32(0, 1)
        _ = client.device.controller.pass()

        #expect(client.device.controller.csts.cfs)
    }

    @Test("a reply of the wrong size is an error", arguments: [0, 63, 65])
    func wrongSize(count: Int) throws {
        let client = try ready()
        client.send(reply(1, 11, 0x10000, Array(repeating: 0, count: count)))
        client.device.controller.doorbells.store32(0, 1)
        _ = client.device.controller.pass()

        #expect(client.device.controller.csts.cfs)
    }

    @Test("a connection that ends meanwhile ends the session")
    func endOfConnection() throws {
        let client = try ready()
        UnixSocket.shutdown(client.socket)
        client.device.controller.doorbells.store32(0, 1)
        _ = client.device.controller.pass()

        #expect(client.device.controller.csts.cfs)
        #expect(throws: StreamEnd.self) { try client.serve() }
    }

    @Test("shadow doorbells are not offered, because they cannot be polled")
    func noShadow() throws {
        let client = try ready()
        var entry = command
        entry[0] = 0x7C
        client.send(reply(1, 11, 0x10000, entry))
        client.send(reply(2, 12, 0x11000, []))
        client.device.controller.doorbells.store32(0, 1)
        _ = client.device.controller.pass()
        _ = client.next()

        // Invalid Command Opcode, phase 1.
        #expect(client.next()?.body.suffix(2) == [3, 0])
    }
}
