// SPDX-License-Identifier: Apache-2.0
// Saved state for the tests: values that have everything, and random ones.

import TestSupport

@testable import SavedState

enum Samples {
    /// A page that begins with these bytes.
    static func page(_ bytes: [UInt8]) -> [UInt8] {
        bytes + [UInt8](repeating: 0, count: 4096 - bytes.count)
    }

    static let host = SavedHost(
        machineID: "0123456789abcdef0123456789abcdef",
        bootID: "11111111-2222-3333-4444-555555555555", version: "1.0",
        savedAtRealtimeNanoseconds: 1_800_000_000_000_000_000, generation: 3)

    static let token =
        SaveToken(bytes: Array(1...16)) ?? SaveToken.random()

    static var adminQueue: SavedQueue {
        var queue = SavedQueue(id: 0, entries: 64)
        queue.submissionAddress = 0x10_0000
        queue.completionAddress = 0x20_0000
        queue.listsAddress = 0x10_1000
        queue.listByteCount = 4096
        queue.tailOrdinal = 40
        queue.doorbellOrdinal = 40
        queue.completionHead = 35
        var log = SavedCommand(slot: 2, sequence: 0, ordinal: 37, purpose: .health, opcode: 0x02)
        log.namespaceID = 0xFFFF_FFFF
        log.lba = 0x7F_8002
        queue.commands = [
            SavedCommand(slot: 0, sequence: 3, ordinal: 30, purpose: .eventRequest, opcode: 0x0C),
            SavedCommand(
                slot: 1, sequence: 1, ordinal: 38, purpose: .abort(queueID: 1, commandID: 5),
                opcode: 0x08),
            log,
            SavedCommand(slot: 3, sequence: 0, ordinal: 36, purpose: .abandoned, opcode: 0x06),
            SavedCommand(slot: 62, sequence: 0, ordinal: 39, purpose: .probe, opcode: 0x0A),
        ]
        return queue
    }

    static var ioQueue: SavedQueue {
        var queue = SavedQueue(id: 1, entries: 256)
        queue.vector = 1
        queue.submissionAddress = 0x11_0000
        queue.completionAddress = 0x21_0000
        queue.listsAddress = 0x12_0000
        queue.listByteCount = 8192
        queue.tailOrdinal = 3
        queue.doorbellOrdinal = 3
        queue.completionHead = 255
        queue.phase = false
        var whole = SavedCommand(
            slot: 5, sequence: 63, ordinal: 0xFFFF_FFFF, purpose: .whole, opcode: 0x02)
        whole.namespaceID = 1
        whole.lba = 0x1_0000_0000
        whole.blockCount = 8
        whole.blockShift = 12
        whole.session = 0x107
        whole.firstPage = 16
        whole.pageCount = 8
        var part = SavedCommand(
            slot: 9, sequence: 0, ordinal: 2, purpose: .part(request: 4, blocksBefore: 256),
            opcode: 0x01)
        part.namespaceID = 1
        part.lba = 0x2100
        part.blockCount = 256
        part.session = 0x107
        var request = SavedRequest(index: 4, opcode: 0x01, blockCount: 2048)
        request.namespaceID = 1
        request.session = 0x107
        request.issuedBlockCount = 512
        request.status = 0x0286
        queue.commands = [whole, part]
        queue.requests = [request]
        return queue
    }

    static var controller: SavedController {
        var controller = SavedController(generation: 12, epoch: 2)
        controller.lastNumber = 77
        controller.configuration = 0x0046_0001
        controller.adminQueueAttributes = 0x003F_003F
        controller.adminSubmissionAddress = 0x10_0000
        controller.adminCompletionAddress = 0x20_0000
        controller.poolReadsAddress = 0x10_0000
        controller.poolWritesAddress = 0x20_0000
        controller.poolByteCount = 0x40_0000
        controller.plannedQueueCount = 2
        controller.queueEntries = 256
        controller.maxTransferByteCount = 1 << 20
        controller.bounceByteCount = 1 << 20
        controller.interruptCount = 2
        controller.hasShadowDoorbells = true
        controller.pendingEvents = 0x0201_0001_0003
        controller.identifyController = page([0xF4, 0x1A, 0xF4, 0x1A] + Array("NVMED0001".utf8))
        controller.commandSetLimits = page([])
        controller.namespaces = [
            SavedNamespace(
                id: 1,
                content: .pages(identify: page([0, 0x10]), descriptors: page([2, 16, 0, 0, 0xAA]))),
            SavedNamespace(id: 2, content: .pages(identify: page([8]), descriptors: nil)),
            SavedNamespace(id: 9, content: .refused("its blocks have metadata")),
        ]
        controller.queues = [adminQueue, ioQueue]
        controller.regions = [SavedRegion(address: 0x8000_0000, byteCount: 65536, session: 0x107)]
        controller.poolPageOrder = [3, 4, 0]
        return controller
    }

    /// A device that has everything that there is.
    static var disk: SavedDevice {
        SavedDevice(
            name: "disk0", transport: .vfioUser, address: "/run/disk0.sock",
            configuration: [8, 1, 16, 1], token: token, generation: 5,
            identity: SavedIdentity(
                vendorID: 0x1AF4, deviceID: nil, serial: "NVMED0001", model: "nvmed emulator",
                firmware: "1", controllerID: 0),
            controller: controller,
            pool: SavedPool(
                backing: .hugetlb, path: "/dev/hugepages/nvmed/disk0", byteCount: 0x40_0000,
                offset: 0x20_0000, runs: [SavedRun(address: 0x1_4000_0000, byteCount: 0x40_0000)],
                slots: [
                    SavedSlot(
                        firstPage: 0, pageCount: 1024, owner: "disk0", tag: "pool", state: 1)
                ]),
            sessions: [SavedSession(key: 0x107, id: 42, opening: [8, 1, 16, 1])])
    }

    /// The same, with what version 1 has had since controllers tell their PCI ids.
    static var identified: SavedDevice {
        var device = disk
        device.identity.deviceID = 0x4E56
        device.identity.pciVendorID = 0x1234
        return device
    }

    /// A device with nothing under way.
    static var idle: SavedDevice {
        var device = disk
        device.name = "0000:01:00.0"
        device.transport = .pci
        device.address = "0000:01:00.0"
        device.configuration = []
        device.identity.deviceID = 0
        device.sessions = []
        device.pool = SavedPool(backing: .memfd, path: "", byteCount: 0x40_0000)
        device.controller.commandSetLimits = nil
        device.controller.namespaces = []
        device.controller.regions = []
        device.controller.poolPageOrder = []
        device.controller.queues[0].commands = []
        device.controller.queues[1].commands = []
        device.controller.queues[1].requests = []
        return device
    }
}

/// Random devices, all of which are valid.
struct RandomDevices {
    var random: SplitMix64

    init(seed: UInt64) { random = SplitMix64(state: seed) }

    private mutating func number(_ range: ClosedRange<UInt64>) -> UInt64 {
        range.lowerBound + random.next() % (range.upperBound - range.lowerBound + 1)
    }

    private mutating func bytes(_ most: Int) -> [UInt8] {
        (0..<number(0...UInt64(most))).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    private mutating func text() -> String { String(random.next(), radix: 36) }

    mutating func next() -> SavedDevice {
        var device = Samples.disk
        device.name = text()
        device.address = text()
        device.configuration = bytes(200)
        device.token =
            SaveToken(bytes: (0..<16).map { _ in UInt8(truncatingIfNeeded: random.next()) })
            ?? Samples.token
        device.generation = random.next()
        device.identity.serial = text()
        device.identity.deviceID = random.next() & 1 == 0 ? nil : UInt32(number(0...0xFFFF))
        device.identity.pciVendorID = random.next() & 1 == 0 ? nil : UInt32(number(0...0xFFFF))
        device.controller.generation = random.next()
        device.controller.epoch = UInt32(number(1...0xFFFF_FFFF))
        device.controller.pendingEvents = random.next()
        device.controller.identifyController = Samples.page(bytes(4096))
        device.controller.namespaces = (0..<UInt32(number(0...8))).map { index in
            SavedNamespace(
                id: index + 1,
                content: .pages(
                    identify: Samples.page(bytes(400)),
                    descriptors: random.next() & 1 == 0 ? nil : Samples.page(bytes(64))))
        }
        device.controller.poolPageOrder = (0..<UInt32(number(0...4))).map { 1023 - $0 * 7 }
        let count = UInt32(number(1...8))
        device.controller.plannedQueueCount = count
        device.controller.queues = [Samples.adminQueue] + (1...count).map { queue($0) }
        device.controller.queues[0].commands.removeAll {
            if case .abort = $0.purpose { true } else { false }
        }
        return device
    }

    private mutating func queue(_ id: UInt32) -> SavedQueue {
        var queue = SavedQueue(id: id, entries: 1 << UInt32(number(2...10)))
        queue.vector = UInt32(number(0...64))
        queue.tailOrdinal = UInt32(truncatingIfNeeded: random.next())
        queue.doorbellOrdinal = queue.tailOrdinal
        queue.completionHead = UInt32(number(0...UInt64(queue.entries - 1)))
        queue.phase = random.next() & 1 == 0
        queue.submissionAddress = random.next()
        for slot in 0..<queue.slotCount where random.next() % 3 == 0 {
            var command = SavedCommand(
                slot: slot, sequence: UInt32(number(0...63)),
                ordinal: queue.tailOrdinal &- UInt32(number(1...1000)), purpose: .whole,
                opcode: UInt8(number(0...255)))
            command.lba = random.next()
            command.blockCount = UInt32(number(0...65536))
            command.blockShift = UInt8(number(9...16))
            command.session = UInt32(truncatingIfNeeded: random.next())
            command.firstPage = UInt32(number(0...65535))
            command.pageCount = UInt16(number(0...32))
            queue.commands.append(command)
        }
        return queue
    }
}
