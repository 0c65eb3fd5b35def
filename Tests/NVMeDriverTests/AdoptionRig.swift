// SPDX-License-Identifier: Apache-2.0
// A controller on an emulator process whose driver dies as by SIGKILL, and successors of it.

import CMemory
import Glibc
import Linux
import NVMeSpec
import TestSupport
import VFIO

@testable import NVMeDriver

/// An emulator process and the controller that is in use. A driver that "died" is kept and never
/// touched again: nothing of it is cleaned up, as after SIGKILL, and what the kernel would keep
/// (the socket, the memory files) is given to the next one by duplicates.
@safe
final class AdoptionRig {
    static let regionByteCount = 8 << 20
    static let session: UInt32 = 7
    let emulator: EmulatorProcess
    let queues: Int
    private(set) var controller: NVMeController
    private var dead: [NVMeController] = []
    private var device: VFIOUserDevice
    private let options: ControllerOptions
    let client: OwnedFD
    private let memory: Mapping
    private(set) var region: UInt32 = 0
    private var generation: UInt64 = 1

    init(
        _ arguments: [String] = [], queues: Int = 1, depth: Int = 64, quirks: Set<Quirk>? = nil,
        adminTimeoutMilliseconds: Int = 10_000
    ) throws {
        self.queues = queues
        emulator = try EmulatorProcess(["--namespace", "memory=16M"] + arguments)
        var options = ControllerOptions(deviceName: "test")
        options.queueCount = queues
        options.queueDepth = depth
        options.quirks = quirks
        options.adminTimeoutMilliseconds = adminTimeoutMilliseconds
        options.bouncePoolByteCount = 1 << 20
        options.maxTransferByteCount = 1 << 20
        self.options = options
        device = try VFIOUserDevice(path: emulator.socket, name: "test", generation: 1)
        controller = try NVMeController(
            device: device, options: options,
            state: try StateArea.create(layout: options.stateLayout))
        client = try MemFD.create(name: "client", byteCount: Self.regionByteCount)
        memory = try Mapping(client, byteCount: Self.regionByteCount)
        try controller.start()
        region = try controller.registerMemory(
            client, ClientMemoryStretch(byteCount: UInt64(Self.regionByteCount)),
            session: Self.session, clientID: 3, number: 1)
    }

    deinit { for controller in dead { withExtendedLifetime(controller) {} } }

    static func duplicate(_ raw: CInt) -> OwnedFD { OwnedFD(adopting: dup(raw)) }

    /// What is in the fd store, as the last driver left it.
    func inheritance(
        pool: Bool = true, memory: Bool = true, interrupts: Bool = true
    ) -> Inheritance {
        let last = dead.last ?? controller
        let (poolFD, irqs, client) = (last.poolFD ?? -1, last.interruptDescriptors, client.raw)
        return Inheritance(
            pool: { pool && poolFD >= 0 ? Self.duplicate(poolFD) : nil },
            interrupt: {
                interrupts && irqs.indices.contains($0) ? Self.duplicate(irqs[$0]) : nil
            },
            memory: { _, record in memory && record.number == 1 ? Self.duplicate(client) : nil })
    }

    /// The driver dies; a successor exists, which has adopted nothing yet. In between a bit of the
    /// state area changes.
    func crash(_ flip: Flip? = nil) throws {
        try change(flip)
        try succeed(try StateArea.adopt(Self.duplicate(controller.state.fd.raw)))
    }

    /// The driver is over; a successor exists, with a state area that may be another.
    func succeed(_ state: consuming StateArea) throws {
        let kept = device.kept
        generation += 1
        device = try VFIOUserDevice(
            adopting: Self.duplicate(kept[0].raw), log: Self.duplicate(kept[1].raw), name: "test",
            generation: generation)
        let successor = try NVMeController(device: device, options: options, state: state)
        dead.append(controller)
        controller = successor
    }

    /// The successor was refused and is gone; what it found is as its predecessor left it.
    func discardSuccessor(_ flip: Flip) throws {
        controller = try requireValue(dead.popLast())
        try change(flip)
    }

    /// Changes a bit of the state area.
    func change(_ flip: Flip?) throws {
        guard let flip else { return }
        let state = Self.duplicate(controller.state.fd.raw)
        let bytes = try Mapping(state, byteCount: try MemFD.byteCount(of: state))
        let byte = unsafe bytes.base + flip.offset
        unsafe nv_store8(byte, nv_load8(byte) ^ flip.mask)
    }

    /// The successor is not used any more; the next one follows the driver before it.
    func forgetSuccessor() throws { controller = try requireValue(dead.popLast()) }

    /// What the present configuration asks a state area to have room for.
    var stateLayout: StateLayout { options.stateLayout }

    /// Registers the client's memory with the driver that there is now.
    func registerAgain() throws {
        region = try controller.registerMemory(
            client, ClientMemoryStretch(byteCount: UInt64(Self.regionByteCount)),
            session: Self.session, clientID: 3, number: 1)
    }

    func crashAndAdopt() throws {
        try crash()
        try controller.adopt(inheritance())
    }

    // MARK: I/O

    func fill(at offset: Int, byteCount: Int, seed: UInt64) {
        var random = SplitMix64(state: seed)
        for position in stride(from: offset, to: offset + byteCount, by: 8) {
            unsafe memory.base.storeBytes(
                of: random.next(), toByteOffset: position, as: UInt64.self)
        }
    }

    func equal(_ first: Int, _ second: Int, byteCount: Int) -> Bool {
        unsafe memcmp(memory.base + first, memory.base + second, byteCount) == 0
    }

    func request(
        _ operation: UInt8, lba: UInt64, byteCount: Int, offset: Int, token: UInt64
    ) throws -> IORequest {
        var request = IORequest(
            operation: operation, namespaceID: 1, session: Self.session, token: token)
        request.lba = lba
        request.blockShift = 9
        request.blockCount = UInt32(byteCount >> 9)
        request.maxBlocksPerCommand =
            try requireValue(controller.namespaces[1]).maxTransferBlocks
        request.region = region
        request.offset = UInt64(offset)
        return request
    }

    /// Submits, and tells the device unless `ring` is false.
    func submit(
        _ operation: UInt8, lba: UInt64, byteCount: Int = 4096, offset: Int = 0, token: UInt64,
        queue: Int = 0, ring: Bool = true, namespaceID: UInt32 = 1
    ) throws {
        var request = try request(
            operation, lba: lba, byteCount: byteCount, offset: offset, token: token)
        request.namespaceID = namespaceID
        let result = unsafe controller.engine(queue).pointee.submit(request)
        guard result == .accepted else { throw TestFailure("not accepted: \(result)") }
        if ring { try self.ring(queue) }
    }

    func ring(_ queue: Int = 0) throws {
        unsafe controller.engine(queue).pointee.ring()
        try controller.writePendingDoorbells(queue)
    }

    /// Statuses by token of what a queue completes, until there are `count`; those that a
    /// predecessor may have delivered first.
    func complete(_ count: Int, queue: Int = 0, retire: Bool = true) throws -> [UInt64: UInt16] {
        var found: [UInt64: UInt16] = [:]
        let engine = unsafe controller.engine(queue)
        if controller.wasAdopted || controller.state.epoch > 1 {
            unsafe engine.pointee.recover { found[$0.token] = $0.status }
            unsafe engine.pointee.retire()
            try controller.writePendingDoorbells(queue)
        }
        let deadline = MonotonicClock.nowNanoseconds + 20_000_000_000
        var completion = IOCompletion()
        while found.count < count {
            if unsafe engine.pointee.reap(into: &completion, capacity: 1) == 1 {
                found[completion.token] = completion.status
                continue
            }
            if retire {
                unsafe engine.pointee.retire()
                try controller.writePendingDoorbells(queue)
            }
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw TestFailure("\(found.count) of \(count) requests completed")
            }
            try device.wait(interrupt: controller.interrupt(queue), milliseconds: 5)
        }
        if retire {
            unsafe engine.pointee.retire()
            try controller.writePendingDoorbells(queue)
        }
        return found
    }

    // MARK: What the emulator counted

    /// What must not change by an adoption: resets, queues, admin commands and identifies.
    func controlPlane() throws -> [String] {
        let stats = try emulator.command("stats")
        let names = [
            "controllerResets", "deviceResets", "enables", "submissionQueuesCreated",
            "completionQueuesCreated", "submissionQueuesDeleted", "dmaMaps", "dmaUnmaps",
        ]
        return names.map { "\($0) \(Self.number($0, stats))" }
            + [Self.object("adminCommands", stats), Self.object("identifies", stats)]
    }

    func counter(_ name: String) throws -> Int { Self.number(name, try emulator.command("stats")) }

    private static func number(_ name: String, _ json: String) -> Int {
        Int(after("\"\(name)\":", json).prefix { $0.isNumber }) ?? -1
    }

    private static func object(_ name: String, _ json: String) -> String {
        name + " " + after("\"\(name)\":", json).prefix { $0 != "}" }
    }

    private static func after(_ pattern: String, _ text: String) -> Substring {
        var rest = Substring(text)
        while !rest.isEmpty {
            if rest.hasPrefix(pattern) {
                return rest.dropFirst(pattern.count).drop { $0 == " " }
            }
            rest = rest.dropFirst()
        }
        return rest
    }
}

/// Bits of a byte of the state area.
struct Flip {
    var offset: Int
    var mask: UInt8
}

struct TestFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}
