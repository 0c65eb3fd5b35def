// SPDX-License-Identifier: Apache-2.0
// Saved values that cannot be: they are neither written nor read, whatever their checksums say.

import TestSupport
import Testing

@testable import SavedState

@Suite("Saved values that cannot be")
struct ValidationTests {
    struct Change: Sendable, CustomTestStringConvertible {
        var field: String
        var apply: @Sendable (inout SavedDevice) -> Void
        var testDescription: String { field }

        init(_ field: String, _ apply: @escaping @Sendable (inout SavedDevice) -> Void) {
            self.field = field
            self.apply = apply
        }
    }

    static let device: [Change] = [
        Change("name") { $0.name = "" },
        Change("name") { $0.name = String(repeating: "x", count: 256) },
        Change("name") { $0.name = "a\0b" },
        Change("address") { $0.address = "" },
        Change("configuration") { $0.configuration = [UInt8](repeating: 1, count: 16385) },
        Change("sessions.opening") { $0.sessions[0].opening = [UInt8](repeating: 1, count: 449) },
        Change("sessions.key") { $0.sessions.append($0.sessions[0]) },
        Change("pool.byte_count") { $0.pool.byteCount = 0 },
        Change("pool.byte_count") { $0.pool.byteCount = .max },
        Change("pool.runs") { $0.pool.runs[0].address = .max },
        Change("pool.runs") { $0.pool.runs[0].byteCount = 0 },
        Change("pool.slots") { $0.pool.slots[0].pageCount = 0 },
        Change("pool.slots") { $0.pool.slots[0].firstPage = .max },
        Change("controller.epoch") { $0.controller.epoch = 0 },
        Change("controller.planned_queue_count") { $0.controller.plannedQueueCount = 0 },
        Change("controller.planned_queue_count") { $0.controller.plannedQueueCount = 65 },
        Change("controller.queue_entries") { $0.controller.queueEntries = 255 },
        Change("controller.queues") { $0.controller.queues.removeLast() },
        Change("controller.queues") {
            $0.controller.plannedQueueCount = 1; $0.addQueue(2)
        },
        Change("controller.queues.id") { $0.controller.queues[1].id = 7 },
        Change("controller.interrupt_count") { $0.controller.interruptCount = 66 },
        Change("controller.namespaces") { $0.controller.namespaces[0].id = 2 },
        Change("controller.namespaces.id") { $0.controller.namespaces[0].id = 0 },
        Change("controller.regions") { $0.controller.regions[0].address = 0 },
        Change("controller.regions") { $0.controller.regions[0].address = 0x8000_0001 },
        Change("controller.regions") { $0.controller.regions[0].byteCount = 0 },
        Change("controller.regions") { $0.controller.regions[0].address = .max & ~4095 },
        Change("controller.pool_page_order") { $0.controller.poolPageOrder = [1, 1] },
        Change("controller.pool_page_order") { $0.controller.poolPageOrder = [1024] },
        Change("controller.pool_page_order") {
            $0.controller.poolPageOrder = [UInt32](0...1024)
        },
        Change("controller.queues.commands.aborted") {
            $0.controller.queues[0].commands[1].purpose = .abort(queueID: 2, commandID: 0)
        },
        Change("controller.queues.commands.aborted") {
            $0.controller.queues[0].commands[1].purpose = .abort(queueID: 0, commandID: 0)
        },
        Change("controller.queues.commands.aborted") {
            $0.controller.queues[0].commands[1].purpose = .abort(queueID: 1, commandID: 1023)
        },
    ]

    static let queue: [Change] = [
        Change("entries") { $0.io.entries = 3 },
        Change("entries") { $0.io.entries = 2048 },
        Change("vector") { $0.io.vector = 65 },
        Change("completion_head") { $0.io.completionHead = 256 },
        Change("doorbell_ordinal") { $0.io.doorbellOrdinal = 4 },
        Change("list_byte_count") { $0.io.listByteCount = 1 << 40 },
        Change("commands") { $0.io.commands[0].slot = 9 },
        Change("commands.slot") { $0.io.commands[0].slot = 254 },
        Change("commands.slot") { $0.io.commands[0].slot = .max },
        Change("commands.sequence") { $0.io.commands[0].sequence = 64 },
        Change("commands.ordinal") { $0.io.commands[0].ordinal = 3 },
        Change("commands.ordinal") { $0.io.commands[0].ordinal = 0x8000_0000 },
        Change("commands.purpose") { $0.io.commands[0].purpose = .eventRequest },
        Change("commands.purpose") { $0.controller.queues[0].commands[0].purpose = .whole },
        Change("commands.block_shift") { $0.io.commands[0].blockShift = 8 },
        Change("commands.block_shift") { $0.io.commands[0].blockShift = 255 },
        Change("commands.request") { $0.io.commands[1].session = 1 },
        Change("commands.request") { $0.io.commands[1].opcode = 2 },
        Change("commands.request") {
            $0.io.commands[1].purpose = .part(request: 5, blocksBefore: 0)
        },
        Change("commands.request") {
            $0.io.commands[1].purpose = .part(request: 4, blocksBefore: 1793)
        },
        Change("commands.request") {
            $0.io.commands[1].purpose = .part(request: 4, blocksBefore: .max)
        },
        Change("requests.index") { $0.io.requests[0].index = 64 },
        Change("requests.index") { $0.io.requests.append($0.io.requests[0]) },
        Change("requests.block_count") { $0.io.requests[0].blockCount = 0 },
        Change("requests.block_count") { $0.io.requests[0].blockCount = .max },
        Change("requests.block_count") { $0.io.requests[0].issuedBlockCount = 2049 },
        Change("requests") { $0.io.requests[0].blockShift = 17 },
        Change("requests") { $0.io.requests[0].status = 0x8000 },
        Change("requests.index") {
            $0.controller.queues[0].requests = $0.io.requests
        },
    ]

    @Test("are not written, and not read", arguments: device)
    func refused(change: Change) throws { try check(change, change.field) }

    @Test("of a queue are not written, and not read", arguments: queue)
    func refusedQueue(change: Change) throws {
        try check(change, "controller.queues.\(change.field)")
    }

    private func check(_ change: Change, _ field: String) throws {
        // Given
        var device = Samples.disk
        change.apply(&device)
        var writer = ProtobufWriter()
        device.write(into: &writer)
        let bytes = try Section.encode(
            kind: 2, writer: "1.0", payload: writer.bytes, name: device.name)
        // When
        let written = #expect(throws: SavedStateError.self) {
            try SavedState.encode(device: device, version: "1.0")
        }
        let read = #expect(throws: SavedStateError.self) { try SavedState.decode(device: bytes) }
        // Then
        #expect(written.flatMap(Self.field) == field)
        #expect(read.flatMap(Self.field) == field)
    }

    private static func field(_ error: SavedStateError) -> String? {
        if case .invalid(_, let field, _) = error { field } else { nil }
    }

    // MARK: Payloads that no version writes

    private func read(_ payload: [UInt8]) -> SavedStateError? {
        do throws(SavedStateError) {
            let bytes = try Section.encode(kind: 2, writer: "1.0", payload: payload, name: "x")
            _ = try SavedState.decode(device: bytes)
            return nil
        } catch { return error }
    }

    @Test("a payload that is not protobuf, or has nothing in it, is refused")
    func notProtobuf() {
        #expect(read([]) != nil)
        #expect(read([0xFF, 0xFF, 0xFF]) != nil)
        // A token of five bytes that has two.
        #expect(read([0x2A, 0x05, 1, 2]) != nil)
        // A group, which no version has.
        #expect(read([0x0B, 0x0C]) != nil)
    }

    @Test("however many messages there are, no more is allocated than their bytes allow")
    func bombs() {
        // Given: sessions, queues, and fields of a later version, all of two bytes.
        let sessions = [[UInt8]](repeating: [0x52, 0], count: 200_000).flatMap { $0 }
        let queues = [[UInt8]](repeating: [0xB2, 1, 0], count: 200_000).flatMap { $0 }
        let later = [[UInt8]](repeating: [0xC0, 0x3E, 0], count: 200_000).flatMap { $0 }
        // Then
        #expect(read(sessions) != nil)
        var controller = ProtobufWriter()
        controller.bytes(8, queues)
        #expect(read(controller.bytes) != nil)
        #expect(read(later) != nil)
    }

    @Test("each field that must be there is missed")
    func missing() throws {
        var writer = ProtobufWriter()
        Samples.idle.write(into: &writer)
        // Tags of transport, token, identity, controller and pool.
        for number in [2, 5, 7, 8, 9] as [UInt32] {
            let rest = try Self.without(number, writer.bytes)
            #expect(read(rest) != nil, "field \(number)")
        }
        #expect(read(writer.bytes) == nil)
    }

    /// A message without one of its fields.
    private static func without(_ number: UInt32, _ bytes: [UInt8]) throws -> [UInt8] {
        var rest: [UInt8] = []
        var at = 0
        func varint() -> Int {
            var (value, shift) = (0, 0)
            while bytes[at] >= 0x80 {
                value |= Int(bytes[at] & 0x7F) << shift
                shift += 7
                at += 1
            }
            value |= Int(bytes[at]) << shift
            at += 1
            return value
        }
        while at < bytes.count {
            let start = at
            let tag = varint()
            let length = varint()
            if tag & 7 == 2 { at += length }
            if tag >> 3 != Int(number) { rest += bytes[start..<at] }
        }
        return rest
    }
}

extension SavedDevice {
    fileprivate var io: SavedQueue {
        get { controller.queues[1] }
        set { controller.queues[1] = newValue }
    }

    fileprivate mutating func addQueue(_ id: UInt32) {
        controller.queues.append(SavedQueue(id: id, entries: 256))
    }
}
