// SPDX-License-Identifier: Apache-2.0
// A vfio-user connection that outlives the process that made it: a server of bytes, with whatever
// the predecessor left on the stream.

import Glibc
import Linux
import Testing

@testable import VFIO

/// The server's end of a connection. What the device will ask is answered before it asks: ids are
/// its generation and a count.
private final class ScriptedServer {
    static let generation: UInt64 = 5
    /// A flag of a message's header.
    static let isReply: UInt32 = 1

    let end: OwnedFD
    private var device: OwnedFD?
    let log: VFIOUserLog
    let memory: Mapping
    private var answered: UInt16 = 0

    init() throws {
        let pair = try UnixSocket.pair(kind: .stream, nonblocking: true)
        let end = try pair.first.duplicate()
        let device = try pair.second.duplicate()
        let log = try VFIOUserLog()
        let memory = try Mapping(anonymous: 8192)
        self.end = end
        self.device = consume device
        self.log = log
        self.memory = memory
    }

    func send(_ id: UInt16, _ command: UInt16, flags: UInt32, _ body: [UInt8]) throws {
        let message =
            little(UInt64(id), 2) + little(UInt64(command), 2)
            + little(UInt64(16 + body.count), 4) + little(UInt64(flags), 4) + little(0, 4) + body
        try send(message)
    }

    func send(_ bytes: [UInt8]) throws {
        _ = try unsafe bytes.withUnsafeBytes { try unsafe UnixSocket.send(end, $0) }
    }

    /// Answers the device's next request.
    func answer(_ command: UInt16, _ body: [UInt8]) throws {
        answered += 1
        try send(UInt16(Self.generation) << 10 | answered, command, flags: Self.isReply, body)
    }

    /// Answers all that an adoption asks; the command register as given.
    func answerAdoption(command: UInt64 = 0x0406) throws {
        try answer(4, fourWords(2, 9, 5))
        try answer(5, regionInfo(flags: 3, size: 0x4000))
        try answer(7, fourWords(9, 2, 33))
        try answer(9, little(4, 8) + little(7, 4) + little(4, 4) + little(command, 4))
    }

    /// The device, with a window of 4096 bytes at 0x10000, and one that it only reads behind it.
    func adopt() throws -> VFIOUserDevice {
        guard let socket = device.take() else { throw VFIOError.gone("adopted already") }
        let adopted = try VFIOUserDevice(
            adopting: socket, log: log.fd.duplicate(), name: "d", generation: Self.generation)
        try adopted.adoptWindow(
            unsafe DMAWindow(
                iova: 0x10000, byteCount: 4096, base: memory.base, access: .deviceReadsAndWrites))
        try adopted.adoptWindow(
            unsafe DMAWindow(
                iova: 0x11000, byteCount: 4096, base: memory.base + 4096, access: .deviceReads))
        return adopted
    }

    /// What came from the device: id and command of each message, and its length.
    func received() throws -> [[Int]] {
        var bytes = [UInt8](repeating: 0, count: 1 << 20)
        let raw = end.raw
        let count = unsafe recv(raw, &bytes, bytes.count, Int32(MSG_DONTWAIT))
        var messages: [[Int]] = []
        var at = 0
        while at + 16 <= count {
            let reader = ByteReader(bytes[at..<(at + 16)])
            let size = Int(reader.u32(4) ?? 16)
            messages.append([Int(reader.u16(0) ?? 0), Int(reader.u16(2) ?? 0), size])
            at += max(size, 16)
        }
        return messages
    }

    func byte(_ offset: Int) -> UInt8 {
        unsafe memory.base.load(fromByteOffset: offset, as: UInt8.self)
    }
}

/// The body of DMA_READ and, with bytes, DMA_WRITE.
private func transfer(_ address: UInt64, _ count: UInt64, _ bytes: [UInt8] = []) -> [UInt8] {
    little(address, 8) + little(count, 8) + bytes
}

@Suite("A vfio-user connection that goes on in another process")
struct VFIOUserAdoptionTests {
    @Test("it is asked what it has, and not greeted: no VERSION, no DMA_MAP, no SET_IRQS")
    func questions() throws {
        let server = try ScriptedServer()
        let device = try server.adopt()
        #expect(try server.received() == [])
        try server.answerAdoption()
        try device.checkAdoptable()
        #expect(device.vectorCount == 33)
        // Generation 5 in the upper six bits.
        #expect(
            try server.received() == [
                [0x1401, 4, 32], [0x1402, 5, 48], [0x1403, 7, 32], [0x1404, 9, 32],
            ])
    }

    @Test("the answer to a predecessor's question is not taken for one to ours")
    func stale() throws {
        let server = try ScriptedServer()
        let device = try server.adopt()
        // Given: the answer to a predecessor's register read, with the same count.
        try server.send(0x1001, 4, flags: 1, fourWords(2, 1, 1))
        try server.answerAdoption()
        // When, Then
        try device.checkAdoptable()
        #expect(device.vectorCount == 33)
    }

    @Test("a device that was reset meanwhile is not adopted")
    func wasReset() throws {
        let server = try ScriptedServer()
        let device = try server.adopt()
        try server.answerAdoption(command: 0x0402)
        let error = #expect(throws: VFIOError.self) { try device.checkAdoptable() }
        #expect("\(try #require(error))".contains("0x402"))
    }

    @Test("what the server asked of the dead is answered by the living, from their windows")
    func pendingRead() throws {
        let server = try ScriptedServer()
        let device = try server.adopt()
        try server.send(77, 11, flags: 0, transfer(0x10000, 512))
        try server.send(78, 11, flags: 0, transfer(0x20000, 512))
        try server.answerAdoption()
        try device.checkAdoptable()
        let answers = try server.received().filter { $0[1] == 11 }
        // A copy, and an error without one.
        #expect(answers == [[77, 11, 16 + 16 + 512], [78, 11, 16]])
    }

    @Test("a write of the server's that was not carried out is carried out")
    func pendingWrite() throws {
        let server = try ScriptedServer()
        let device = try server.adopt()
        try server.send(77, 12, flags: 0, transfer(0x10008, 4, [1, 2, 3, 4]))
        try server.answerAdoption()
        try device.checkAdoptable()
        #expect((8..<12).map { server.byte($0) } == [1, 2, 3, 4])
        #expect(try server.received().contains([77, 12, 32]))
    }

    @Test("a write that the dead one had carried out is answered once more and not written again")
    func writtenAlready() throws {
        let server = try ScriptedServer()
        // Given: it died between the write and taking the message off the stream.
        #expect(server.log.begin(77, address: 0x10008, count: 4))
        server.log.isWritten()
        try server.send(77, 12, flags: 0, transfer(0x10008, 4, [1, 2, 3, 4]))
        try server.send(78, 12, flags: 0, transfer(0x10010, 4, [5, 6, 7, 8]))
        try server.answerAdoption()
        // When
        let device = try server.adopt()
        try device.checkAdoptable()
        // Then
        #expect((8..<12).map { server.byte($0) } == [0, 0, 0, 0])
        #expect((16..<20).map { server.byte($0) } == [5, 6, 7, 8])
        #expect(try server.received().filter { $0[1] == 12 } == [[77, 12, 32], [78, 12, 32]])
    }

    @Test("a log that speaks of a message that is off the stream is forgotten with the next one")
    func finishedWrite() throws {
        let server = try ScriptedServer()
        #expect(server.log.begin(77, address: 0x10008, count: 4))
        server.log.isWritten()
        try server.answerAdoption()
        let device = try server.adopt()
        try device.checkAdoptable()
        // The server's ids may come again.
        try server.send(77, 12, flags: 0, transfer(0x10008, 4, [1, 2, 3, 4]))
        _ = try device.handleEvents()
        #expect((8..<12).map { server.byte($0) } == [1, 2, 3, 4])
    }

    @Test("the device may not write what it may only read, nor move more than it was told")
    func refused() throws {
        let server = try ScriptedServer()
        try server.answerAdoption()
        let device = try server.adopt()
        try device.checkAdoptable()
        _ = try server.received()
        try server.send(1, 12, flags: 0, transfer(0x11000, 4, [1, 2, 3, 4]))
        try server.send(2, 11, flags: 0, transfer(0x10000, 16_385))
        try server.send(3, 11, flags: 0, transfer(0x10FFF, 2))
        try server.send(4, 11, flags: 0, transfer(UInt64.max, UInt64.max))
        try server.send(5, 99, flags: 0, [])
        _ = try device.handleEvents()
        #expect(
            try server.received()
                == [[1, 12, 16], [2, 11, 16], [3, 11, 16], [4, 11, 16], [5, 99, 16]])
        #expect(server.byte(4096) == 0)
    }

    @Test("doorbells go out whole while the server asks for memory")
    func doorbells() throws {
        let server = try ScriptedServer()
        try server.answerAdoption()
        let device = try server.adopt()
        try device.checkAdoptable()
        _ = try server.received()
        // Given: a server that reads nothing, and many doorbells.
        for value in 0..<100 as Range<UInt32> {
            try device.writeDoorbell(offset: 0x1000, value: value)
        }
        try server.send(77, 11, flags: 0, transfer(0x10000, 512))
        let doorbells = try server.received()
        #expect(doorbells.count == 100)
        #expect(doorbells.allSatisfy { $0[1] == 10 && $0[2] == 36 })
        // Then
        _ = try device.handleEvents()
        #expect(try server.received() == [[77, 11, 16 + 16 + 512]])
    }

    @Test("who died in the middle of a message that came in pieces leaves a stream of no use")
    func midMessage() throws {
        let server = try ScriptedServer()
        try server.answerAdoption()
        let device = try server.adopt()
        try device.checkAdoptable()
        #expect(!server.log.isInMessage)
        let message: [UInt8] = [77, 0, 11, 0, 32, 0, 0, 0] + [UInt8](repeating: 0, count: 8)
        try server.send(message + [0, 0, 1])
        _ = try device.handleEvents()
        #expect(server.log.isInMessage)

        let pair = try UnixSocket.pair(kind: .stream, nonblocking: true)
        let successor = try VFIOUserDevice(
            adopting: pair.first.duplicate(), log: server.log.fd.duplicate(), name: "d",
            generation: 6)
        #expect(throws: VFIOError.self) { try successor.checkAdoptable() }

        try server.send([0, 0, 0, 0, 0] + little(512, 8))
        _ = try device.handleEvents()
        #expect(!server.log.isInMessage)
    }

    @Test("a log of another size is none")
    func badLog() throws {
        let pair = try UnixSocket.pair(kind: .stream, nonblocking: true)
        let log = try MemFD.create(name: "log", byteCount: 8192)
        #expect(throws: VFIOError.self) {
            _ = try VFIOUserDevice(
                adopting: pair.first.duplicate(), log: log.duplicate(), name: "d", generation: 1)
        }
    }

    @Test("a server that died meanwhile is gone")
    func serverDied() throws {
        let server = try ScriptedServer()
        let device = try server.adopt()
        UnixSocket.shutdown(server.end)
        let error = #expect(throws: VFIOError.self) { try device.checkAdoptable() }
        #expect("\(try #require(error))".contains("gone"))
    }

    @Test("an ended connection is ended for whoever else holds it")
    func disconnected() throws {
        let server = try ScriptedServer()
        let device = try server.adopt()
        let held = try OwnedFD.duplicate(ofRaw: device.kept[0].raw)
        device.disconnect()
        var byte: UInt8 = 0
        let raw = server.end.raw
        #expect(unsafe recv(raw, &byte, 1, Int32(MSG_DONTWAIT)) == 0)
        #expect(held.raw >= 0)
        #expect(throws: VFIOError.self) { try device.readRegister(offset: 0, byteCount: 4) }
    }
}
