// SPDX-License-Identifier: Apache-2.0
// The vfio-user server: every command, its errors, and clients that break the rules.

import CLinux
import Linux
import Testing

@testable import NVMeEmulator

@Suite("The vfio-user server")
struct ServerTests {
    @Test("the version is agreed on, and nothing else is answered before")
    func version() throws {
        let client = try RawClient()
        #expect(try client.request(4, RawClient.words(16, 0, 0, 0))?.error == 22)
        let reply = try client.request(1, [0, 0, 9, 0] + RawClient.capabilities)

        #expect(reply?.flags == 1)
        #expect(reply?.body.prefix(4) == [0, 0, 1, 0])
        #expect(reply?.body.last == 0)
        let json = JSONParser.parse(Array(reply?.body.dropFirst(4).dropLast() ?? []))
        #expect(json?["capabilities"]?["max_msg_fds"]?.unsigned == 16)
        #expect(json?["capabilities"]?["max_data_xfer_size"]?.unsigned == 1 << 20)
        #expect(try client.request(1, [0, 0, 1, 0])?.error == 22)
    }

    @Test(
        "versions that cannot be are refused",
        arguments: [
            [], [0, 0], [1, 0, 0, 0], [0, 0, 1, 0] + Array("{}".utf8),
            [0, 0, 1, 0] + Array("{\0".utf8), [0, 0, 1, 0] + Array("[]\0".utf8),
            [0, 0, 1, 0] + Array("{\"capabilities\":{\"max_data_xfer_size\":0}}\0".utf8),
        ] as [[UInt8]])
    func badVersion(body: [UInt8]) throws {
        let client = try RawClient()
        let reply = try client.request(1, body)

        #expect(reply?.flags == 0x21)
        #expect(reply?.error == 22)
        #expect(reply?.body == [])
        #expect(try client.request(1, [0, 0, 0, 0])?.error == 0)
    }

    @Test("the device is a PCI device with nine regions and five kinds of interrupts")
    func deviceInfo() throws {
        let client = try RawClient.negotiated()
        let reply = try client.request(4, RawClient.words(16, 0, 0, 0))

        #expect(reply?.body == RawClient.words(16, 3, 9, 5))
        #expect(try client.request(4, RawClient.words(8))?.error == 22)
        #expect(try client.request(4, [])?.error == 22)
    }

    @Test("regions tell their size; the doorbells can be mapped when that is asked for")
    func regionInfo() throws {
        func info(_ client: RawClient, _ index: UInt32, _ argsz: UInt32) throws -> RawReply? {
            try client.request(5, RawClient.words(argsz, 0, index, 0, 0, 0, 0, 0))
        }
        let plain = try RawClient.negotiated()
        #expect(
            try info(plain, 0, 32)?.body == RawClient.words(32, 3, 0, 0, 16384, 0, 0, 0))
        #expect(try info(plain, 1, 32)?.body == RawClient.words(32, 0, 1, 0, 0, 0, 0, 0))
        #expect(try info(plain, 7, 32)?.body == RawClient.words(32, 3, 7, 0, 4096, 0, 0, 0))
        #expect(try info(plain, 9, 32)?.error == 22)
        #expect(plain.receivedFDs.isEmpty)

        let mapped = try RawClient.negotiated { $0.doorbells = .mapped }
        #expect(
            try info(mapped, 0, 32)?.body == RawClient.words(64, 11, 0, 0, 16384, 0, 0, 0))
        #expect(
            try info(mapped, 0, 64)?.body
                == RawClient.words(
                    64, 15, 0, 32, 16384, 0, 0, 0,  // READ WRITE MMAP CAPS
                    0x1_0001, 0, 1, 0, 0x1000, 0, 0x1000, 0))
        #expect(mapped.receivedFDs.count == 2)

        let odd = try RawClient.negotiated {
            $0.doorbells = .mapped
            $0.unalignedSparseAreas = true
        }
        #expect(
            try info(odd, 0, 4096)?.body.suffix(16)
                == RawClient.words(0x1008, 0, 0x0FF0, 0)[...])
    }

    @Test("interrupts tell their number")
    func irqInfo() throws {
        let client = try RawClient.negotiated()
        #expect(
            try client.request(7, RawClient.words(16, 0, 2, 0))?.body
                == RawClient.words(16, 3, 2, 3))
        #expect(
            try client.request(7, RawClient.words(16, 0, 0, 0))?.body
                == RawClient.words(16, 7, 0, 1))
        #expect(try client.request(7, RawClient.words(16, 0, 5, 0))?.error == 22)
        #expect(
            try client.request(6, RawClient.words(16, 0, 0, 0))?.body
                == RawClient.words(16, 0, 0, 0))
    }

    @Test("configuration space answers sizing and walks to MSI-X")
    func configSpace() throws {
        let client = try RawClient.negotiated()
        #expect(try client.read32(0, region: 7) == 0x4E56_1234)
        #expect(try client.read32(8, region: 7) == 0x0108_0201)
        #expect(try client.write(0x10, [0xFF, 0xFF, 0xFF, 0xFF], region: 7) == 0)
        #expect(try client.read32(0x10, region: 7) == 0xFFFF_C004)
        let first = try #require(try client.read32(0x34, region: 7)) & 0xFF
        let second = try #require(try client.read32(UInt64(first), region: 7)) >> 8 & 0xFF
        let third = try #require(try client.read32(UInt64(second), region: 7)) >> 8 & 0xFF
        #expect(try client.read32(UInt64(third), region: 7) == 0x0002_0011)
        #expect(!client.device.controller.isBusMaster)
        #expect(try client.write(4, [0x06, 0x00], region: 7) == 0)
        #expect(client.device.controller.isBusMaster)
    }

    @Test("registers are read and written, within their region only")
    func regionAccess() throws {
        let client = try RawClient.negotiated()
        #expect(try client.read32(8) == 0x0002_0000)
        #expect(try client.write(0x24, [0x0F, 0, 0x0F, 0]) == 0)
        #expect(try client.read32(0x24) == 0x000F_000F)
        #expect(try client.write(0x24, [1]) == 22)
        #expect(try client.request(9, RawClient.access(16384, 0, 4))?.error == 22)
        #expect(try client.request(9, RawClient.access(16380, 0, 8))?.error == 22)
        #expect(try client.request(9, RawClient.access(UInt64.max, 0, 4))?.error == 22)
        #expect(try client.request(9, RawClient.access(0, 3, 4))?.error == 22)
        #expect(try client.request(9, RawClient.access(0, 0, 0))?.error == 22)
        #expect(try client.request(9, RawClient.access(0, 0, 0xFFFF_FFFF))?.error == 22)
        #expect(try client.request(10, RawClient.access(0, 0, 8) + [1])?.error == 22)
        #expect(try client.request(9, [1, 2, 3])?.error == 22)
    }

    @Test("several writes come in one message")
    func writeMulti() throws {
        let client = try RawClient.negotiated()
        let write = RawClient.access(0x24, 0, 4) + [0x07, 0, 0x07, 0, 0, 0, 0, 0]
        let reply = try client.request(15, [2, 0, 0, 0, 0, 0, 0, 0] + write + write)

        #expect(reply?.body == [2, 0, 0, 0, 0, 0, 0, 0])
        #expect(try client.read32(0x24) == 0x0007_0007)
        #expect(try client.request(15, [2, 0, 0, 0, 0, 0, 0, 0] + write)?.error == 22)
        #expect(try client.request(15, Array(repeating: 0xFF, count: 8))?.error == 22)
    }

    @Test("a command that wants no reply gets none")
    func noReply() throws {
        let client = try RawClient.negotiated()
        client.send(
            RawClient.message(
                10, RawClient.access(0x24, 0, 4) + [1, 0, 1, 0], id: 5, flags: 0x10))
        client.send(RawClient.message(99, [], id: 6, flags: 0x10))
        try client.serve()

        #expect(client.next() == nil)
        #expect(try client.read32(0x24) == 0x0001_0001)
    }

    @Test("memory is mapped, refused and unmapped as it should be")
    func dma() throws {
        let client = try RawClient.negotiated()
        let file = try MemFD.create(name: "dma", byteCount: 65536)
        func map(_ address: UInt64, _ size: UInt64, _ flags: UInt32 = 3) throws -> UInt32? {
            try client.request(
                2, RawClient.map(address, size, flags: flags), fds: [file.raw])?.error
        }
        #expect(try map(0x10000, 65536) == 0)
        #expect(try map(0x10000, 65536) == 17)
        #expect(try map(0x20000, 1 << 40) == 22)
        #expect(try map(0x20001, 4096) == 22)
        #expect(try map(0x20000, 0) == 22)
        #expect(try map(0x20000, 4096, 0) == 22)
        #expect(try map(UInt64.max & ~4095, 8192) == 22)
        #expect(
            try client.request(2, RawClient.map(0x30000, 4096), fds: [file.raw, file.raw])?.error
                == 22)
        #expect(try client.request(3, RawClient.unmap(0x10000, 4096))?.error == 2)
        let entry = RawClient.unmap(0x10000, 65536)
        #expect(try client.request(3, entry)?.body == entry)
        #expect(try client.request(3, entry)?.error == 2)
        #expect(try map(0x10000, 65536) == 0)
        #expect(try client.request(3, RawClient.unmap(0, 0, flags: 2))?.error == 0)
        #expect(client.device.controller.memory.count == 0)
        #expect(try client.request(3, RawClient.unmap(0, 0, flags: 1))?.error == 95)
        #expect(try client.request(2, [1, 2])?.error == 22)
    }

    @Test("a descriptor that cannot be mapped is refused")
    func unmappableDescriptor() throws {
        let client = try RawClient.negotiated()
        let event = try EventFD()
        let reply = try client.request(2, RawClient.map(0x1000, 4096), fds: [event.fd.raw])

        #expect(reply?.flags == 0x21)
        #expect(client.device.controller.memory.count == 0)
    }

    @Test("interrupts are connected, masked, triggered and let go")
    func setIRQs() throws {
        let client = try RawClient.negotiated()
        let events = [nv_eventfd(), nv_eventfd()]
        defer { for fd in events { _ = nv_close(fd) } }
        func set(
            _ flags: UInt32, _ start: UInt32, _ count: UInt32, _ extra: [UInt8] = [],
            fds: [CInt] = []
        )
            throws -> UInt32?
        {
            try client.request(
                8, RawClient.words(20, flags, 2, start, count) + extra, fds: fds)?.error
        }
        #expect(try set(36, 0, 2, fds: events) == 0)
        #expect(try set(33, 1, 1) == 0)
        #expect(nv_eventfd_drain(events[1]) == 1)
        #expect(try set(34, 0, 2, [1, 0]) == 0)
        #expect(nv_eventfd_drain(events[0]) == 1)
        #expect(nv_eventfd_drain(events[1]) == 0)
        #expect(try set(9, 0, 1) == 0)
        #expect(try set(33, 0, 1) == 0)
        #expect(nv_eventfd_drain(events[0]) == 0)
        #expect(try set(17, 0, 1) == 0)
        #expect(nv_eventfd_drain(events[0]) == 1)
        #expect(try set(36, 0, 1) == 0)
        #expect(try set(33, 0, 2) == 0)
        #expect(nv_eventfd_drain(events[0]) == 0)
        #expect(nv_eventfd_drain(events[1]) == 1)
        #expect(try set(33, 0, 0) == 0)
        #expect(!client.device.controller.interrupts.messages.isConnected)
    }

    @Test(
        "SET_IRQS that contradicts itself is refused",
        arguments: [
            [20, 36, 2, 3, 1], [20, 36, 2, 0, 4], [20, 36, 2, 0xFFFF_FFFF, 2], [20, 36, 5, 0, 1],
            [20, 36, 1, 0, 1], [20, 32, 2, 0, 1], [20, 4, 2, 0, 1], [20, 39, 2, 0, 1],
            [20, 57, 2, 0, 1], [20, 34, 2, 0, 2], [8, 33, 2, 0, 1], [20, 36, 2, 0, 0],
            [20, 9, 2, 0, 0], [20, 12, 2, 0, 1], [20, 97, 2, 0, 1],
        ] as [[UInt32]])
    func badIRQs(values: [UInt32]) throws {
        let client = try RawClient.negotiated()
        var body = ByteWriter()
        for value in values { body.u32(value) }
        let reply = try client.request(8, body.bytes)

        #expect(reply?.flags == 0x21)
    }

    @Test("descriptors where none belong are refused and closed")
    func surplusDescriptors() throws {
        let client = try RawClient.negotiated()
        let witness: OwnedFD
        do {
            let pair = try UnixSocket.pair(kind: .stream, nonblocking: true)
            witness = try pair.first.duplicate()
            let first = try client.request(
                4, RawClient.words(16, 0, 0, 0), fds: [pair.second.raw])
            let second = try client.request(
                8, RawClient.words(20, 33, 2, 0, 1), fds: [pair.second.raw])
            #expect(first?.error == 22)
            #expect(second?.error == 22)
        }
        // The end of the stream: nobody has the other side any more.
        var byte: UInt8 = 0
        #expect(unsafe nv_read(witness.raw, &byte, 1) == 0)
    }

    @Test("DEVICE_RESET begins anew and keeps memory and interrupts")
    func deviceReset() throws {
        let client = try RawClient.negotiated()
        let file = try MemFD.create(name: "dma", byteCount: 4096)
        #expect(
            try client.request(2, RawClient.map(0x1000, 4096), fds: [file.raw])?.error == 0)
        #expect(try client.write(0x24, [1, 0, 1, 0]) == 0)
        #expect(try client.request(13, [])?.error == 0)
        #expect(try client.read32(0x24) == 0)
        #expect(client.device.controller.memory.count == 1)
        #expect(client.device.controller.counters.deviceResets == 1)
    }

    @Test("the end of a connection leaves nothing behind")
    func disconnect() throws {
        let client = try RawClient.negotiated()
        let file = try MemFD.create(name: "dma", byteCount: 4096)
        let event = try EventFD()
        _ = try client.request(2, RawClient.map(0x1000, 4096), fds: [file.raw])
        _ = try client.request(8, RawClient.words(20, 36, 2, 0, 1), fds: [event.fd.raw])
        UnixSocket.shutdown(client.socket)
        #expect(throws: StreamEnd.closed) { try client.serve() }
        client.session.end()

        #expect(client.device.controller.memory.count == 0)
        #expect(!client.device.controller.interrupts.messages.isConnected)
    }

    @Test(
        "unknown and misdirected commands are refused",
        arguments: [0, 11, 12, 14, 16, 17, 999] as [UInt16])
    func unknownCommand(command: UInt16) throws {
        let client = try RawClient.negotiated()
        #expect(try client.request(command, [])?.flags == 0x21)
        #expect(try client.read32(8) == 0x0002_0000)
    }

    @Test(
        "messages of impossible size end the connection",
        arguments: [0, 15, 0x10_0041, 0xFFFF_FFFF] as [UInt32])
    func impossibleSize(size: UInt32) throws {
        let client = try RawClient.negotiated()
        client.send(RawClient.message(4, [], size: size))

        #expect(throws: StreamEnd.self) { try client.serve() }
    }

    @Test("a message may arrive byte by byte")
    func slowSender() throws {
        let client = try RawClient.negotiated()
        for byte in RawClient.message(9, RawClient.access(8, 0, 4), id: 42) {
            #expect(client.next() == nil)
            client.send([byte])
            try client.serve()
        }
        let reply = client.next()
        #expect(reply?.id == 42)
        #expect(reply?.body.suffix(4) == [0, 0, 2, 0])
    }

    @Test("many messages may arrive at once, each with its own descriptor")
    func manyMessages() throws {
        let client = try RawClient.negotiated()
        let file = try MemFD.create(name: "dma", byteCount: 4096)
        for index in 0..<20 {
            let body = RawClient.map(UInt64(index + 1) * 4096, 4096)
            client.send(RawClient.message(2, body, id: UInt16(index)), fds: [file.raw])
            client.send(RawClient.message(9, RawClient.access(8, 0, 4), id: 1000))
        }
        try client.serve()

        #expect(client.device.controller.memory.count == 20)
        #expect(client.device.controller.counters.messageErrors == 0)
    }

    @Test("a client that does not read is not read from")
    func deafClient() throws {
        let client = try RawClient.negotiated()
        let message = RawClient.message(9, RawClient.access(0, 7, 4096))
        var sent = 0
        while sent < 10_000, client.send(message) {
            sent += 1
            _ = try client.session.handleMessages()
        }
        #expect(sent < 10_000)
        #expect(client.session.stream.isCongested)
        var replies = 0
        while client.next() != nil {
            replies += 1
            _ = try client.session.handleMessages()
        }
        #expect(replies >= sent - 1)
    }

    @Test("replies in pieces are whole in the end")
    func shortReplies() throws {
        let client = try RawClient.negotiated { $0.shortReplies = true }
        let reply = try client.request(9, RawClient.access(0, 7, 256))

        #expect(reply?.body.count == 272)
        #expect(reply?.body[16..<20].elementsEqual([0x34, 0x12, 0x56, 0x4E]) == true)
    }

    @Test("delayed replies come when their time has come")
    func delayedReplies() throws {
        let client = try RawClient.negotiated { $0.replyDelayMilliseconds = 500 }
        let due = try #require(client.session.stream.nextDeadline)
        #expect(client.next() == nil)
        waitUntil(due)
        try client.serve()
        #expect(client.next()?.command == 1)
    }

    @Test(
        "random bytes never do more than end the connection",
        arguments: [21, 22, 23, 24] as [UInt64])
    func randomBytes(seed: UInt64) throws {
        var random = Random(seed: seed)
        for _ in 0..<50 {
            let client = try RawClient.negotiated()
            client.send(random.bytes(Int(1 + random.next(below: 4096))))
            try? client.serve()
            client.session.end()
            #expect(client.device.controller.memory.count == 0, "seed \(seed)")
        }
    }

    @Test(
        "commands with random bodies are answered, each one",
        arguments: [31, 32, 33, 34] as [UInt64])
    func randomCommands(seed: UInt64) throws {
        var random = Random(seed: seed)
        let client = try RawClient.negotiated()
        for _ in 0..<2000 {
            let command = UInt16(2 + random.next(below: 15))
            var body = random.bytes(Int(random.next(below: 64)))
            // Small numbers reach further than large ones.
            for index in body.indices where random.next(below: 4) != 0 { body[index] = 0 }
            let reply = try client.request(command, body)
            #expect(reply?.command == command, "seed \(seed)")
            _ = client.device.controller.pass()
        }
    }
}
