// SPDX-License-Identifier: Apache-2.0
// A host in the test: memory shared with a controller in the same process, queues, commands.

import CMemory
import Glibc
import Linux
import NVMeSpec

@testable import NVMeEmulator

/// Drives a `Controller` without any transport.
final class Host {
    /// Where the memory appears to the controller.
    static let iova: UInt64 = 0x10_0000
    static let byteCount = 16 << 20
    /// Offsets into the memory.
    static let shadow = 0x2000
    static let eventIndexes = 0x3000
    static let data = 0x40_000
    static let lists = 0xC0_0000

    let controller: Controller
    let file: OwnedFD
    let memory: MemoryWindow
    private var queues: [UInt16: HostQueue] = [:]
    private var nextCommandID: UInt16 = 0
    var usesShadow = false

    init(_ configure: (inout EmulatorOptions) throws -> Void = { _ in }) throws {
        var options = EmulatorOptions()
        options.namespaces = [try NamespaceOptions(parsing: "memory=4M")]
        options.ioQueueCount = 4
        options.vectorCount = 5
        try configure(&options)
        controller = try Controller(options: options)
        file = try MemFD.create(name: "host", byteCount: Self.byteCount, seals: [])
        let mapping = try Mapping(file, byteCount: Self.byteCount)
        memory = unsafe MemoryWindow(base: mapping.leak(), byteCount: Self.byteCount)
        try controller.memory.add(
            address: Self.iova, byteCount: UInt64(Self.byteCount), fd: file.raw, offset: 0,
            isReadable: true, isWritable: true)
    }

    // MARK: Registers

    func read32(_ offset: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: controller.register(offset & ~7) >> ((offset & 4) * 8))
    }

    var status: ControllerStatus { ControllerStatus(rawValue: read32(RegisterOffset.csts)) }

    func write(_ offset: UInt64, _ value: UInt64, byteCount: Int = 4) {
        _ = controller.writeRegisters(offset: offset, value: value, byteCount: byteCount)
    }

    /// Sets up the admin queues (16 entries) and writes CC.
    func enable(configuration: UInt32 = 0x0046_0001, attributes: UInt32 = 0x000F_000F) {
        write(RegisterOffset.aqa, UInt64(attributes))
        write(RegisterOffset.asq, Self.iova, byteCount: 8)
        write(RegisterOffset.acq, Self.iova + 0x1000, byteCount: 8)
        queues = [0: HostQueue(submission: 0, completion: 0x1000, entryCount: 16)]
        write(RegisterOffset.cc, UInt64(configuration))
    }

    // MARK: Commands

    /// Puts a command into a queue without ringing; returns its id.
    @discardableResult
    func place(_ entry: SubmissionEntry, on id: UInt16) -> UInt16 {
        guard var queue = queues[id] else { return 0 }
        nextCommandID &+= 1
        let at = queue.submission + Int(queue.tail) * 64
        let head = UInt64(entry.opcode) | UInt64(entry.flags) << 8 | UInt64(nextCommandID) << 16
        memory.store64(at, head | UInt64(entry.namespaceID) << 32)
        memory.store64(at + 24, entry.prp1)
        memory.store64(at + 32, entry.prp2)
        memory.store64(at + 40, UInt64(entry.cdw10) | UInt64(entry.cdw11) << 32)
        memory.store64(at + 48, UInt64(entry.cdw12) | UInt64(entry.cdw13) << 32)
        queue.tail = (queue.tail + 1) % queue.entryCount
        queues[id] = queue
        return nextCommandID
    }

    /// Tells the controller the tail; true when a doorbell had to be rung.
    @discardableResult
    func ring(_ id: UInt16) -> Bool {
        guard var queue = queues[id] else { return false }
        let old = queue.rung
        queue.rung = queue.tail
        queues[id] = queue
        guard usesShadow, id > 0 else {
            write(RegisterOffset.doorbells + UInt64(id) * 8, UInt64(queue.tail))
            return true
        }
        memory.store32(Self.shadow + Int(id) * 8, queue.tail)
        nv_full_fence()
        let eventIndex = UInt16(truncatingIfNeeded: eventIndex(id))
        let new = UInt16(truncatingIfNeeded: queue.tail)
        let mustRing = new &- eventIndex &- 1 < new &- UInt16(truncatingIfNeeded: old)
        if mustRing { write(RegisterOffset.doorbells + UInt64(id) * 8, UInt64(queue.tail)) }
        return mustRing
    }

    func eventIndex(_ id: UInt16) -> UInt32 { memory.load32(Self.eventIndexes + Int(id) * 8) }

    @discardableResult
    func submit(_ entry: SubmissionEntry, on id: UInt16 = 0) -> UInt16 {
        let commandID = place(entry, on: id)
        ring(id)
        return commandID
    }

    /// Lets the controller work until it has nothing to do.
    func run() {
        for _ in 0..<10_000 where !controller.pass() { return }
    }

    /// The completion at the head of a queue, if there is one.
    func peek(_ id: UInt16 = 0) -> CompletionEntry? {
        guard let queue = queues[id] else { return nil }
        let at = queue.completion + Int(queue.head) * 16
        let entry = CompletionEntry(word0: memory.load64(at), word1: memory.load64(at + 8))
        return entry.phase == queue.phase ? entry : nil
    }

    /// Takes a completion and gives its place back.
    func take(_ id: UInt16 = 0) -> CompletionEntry? {
        guard let entry = peek(id), var queue = queues[id] else { return nil }
        queue.head = (queue.head + 1) % queue.entryCount
        if queue.head == 0 { queue.phase.toggle() }
        queues[id] = queue
        if usesShadow, id > 0 {
            memory.store32(Self.shadow + Int(id) * 8 + 4, queue.head)
        } else {
            write(RegisterOffset.doorbells + UInt64(id) * 8 + 4, UInt64(queue.head))
        }
        return entry
    }

    /// Executes one command and returns its completion.
    func execute(_ entry: SubmissionEntry, on id: UInt16 = 0) -> CompletionEntry? {
        submit(entry, on: id)
        run()
        return take(id)
    }

    func status(of entry: SubmissionEntry, on id: UInt16 = 0) -> Status? {
        execute(entry, on: id)?.status
    }

    /// Creates I/O queue pair 1 with shadow doorbells if asked for.
    func createQueues(entryCount: UInt32 = 64, shadow: Bool = false) {
        if shadow {
            _ = execute(
                .doorbellBufferConfig(
                    shadowDoorbells: Self.iova + UInt64(Self.shadow),
                    eventIndexes: Self.iova + UInt64(Self.eventIndexes)))
            usesShadow = true
        }
        _ = execute(
            .createIOCompletionQueue(
                queueID: 1, entryCount: entryCount, address: Self.iova + 0x8000,
                interruptVector: 1))
        _ = execute(
            .createIOSubmissionQueue(
                queueID: 1, entryCount: entryCount, address: Self.iova + 0x4000,
                completionQueueID: 1))
        queues[1] = HostQueue(submission: 0x4000, completion: 0x8000, entryCount: entryCount)
    }

    /// A host with a ready controller and queue pair 1.
    static func ready(
        shadow: Bool = false, entryCount: UInt32 = 64,
        _ configure: (inout EmulatorOptions) throws -> Void = { _ in }
    ) throws -> Host {
        let host = try Host(configure)
        host.enable()
        host.createQueues(entryCount: entryCount, shadow: shadow)
        return host
    }

    // MARK: Data

    func bytes(_ offset: Int, _ count: Int) -> [UInt8] {
        unsafe Array(UnsafeRawBufferPointer(start: memory.base + offset, count: count))
    }

    func fill(_ offset: Int, _ content: [UInt8]) {
        let target = memory.slice(offset, content.count)
        unsafe content.withUnsafeBytes { source in
            guard let base = source.baseAddress else { return }
            unsafe target.base.copyMemory(from: base, byteCount: source.count)
        }
    }

    /// The data buffer.
    var dataAddress: UInt64 { Self.iova + UInt64(Self.data) }

    /// Points a command at `count` bytes of the data buffer, `offset` into it, with a PRP list
    /// where needed.
    func pointing(_ entry: SubmissionEntry, offset: Int = 0, count: Int) -> SubmissionEntry {
        var entry = entry
        entry.prp1 = dataAddress + UInt64(offset)
        let first = 4096 - offset % 4096
        guard count > first else { return entry }
        let next = dataAddress + UInt64(offset + first)
        guard count - first > 4096 else {
            entry.prp2 = next
            return entry
        }
        // 511 entries a page, then the address of the next page.
        var left = (count - first + 4095) / 4096
        var page = next
        var at = Self.lists
        entry.prp2 = Self.iova + UInt64(at)
        while left > 512 {
            for index in 0..<511 { memory.store64(at + index * 8, page + UInt64(index) * 4096) }
            page += 511 * 4096
            memory.store64(at + 4088, Self.iova + UInt64(at) + 4096)
            at += 4096
            left -= 511
        }
        for index in 0..<left { memory.store64(at + index * 8, page + UInt64(index) * 4096) }
        return entry
    }
}

/// The host's side of a queue pair.
private struct HostQueue {
    var submission: Int
    var completion: Int
    var entryCount: UInt32
    var tail: UInt32 = 0
    var rung: UInt32 = 0
    var head: UInt32 = 0
    var phase = true
}

/// A reproducible source of numbers (xorshift).
struct Random {
    private var state: UInt64

    init(seed: UInt64) { state = seed == 0 ? 1 : seed }

    mutating func next(below limit: UInt64) -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state % limit
    }

    mutating func bytes(_ count: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count + 7)
        while bytes.count < count {
            var word = next(below: .max)
            unsafe withUnsafeBytes(of: &word) { unsafe bytes.append(contentsOf: $0) }
        }
        bytes.removeLast(bytes.count - count)
        return bytes
    }
}

/// Lets time pass until a point of CLOCK_MONOTONIC.
///
/// Delays that tests ask for are so long that a loaded machine, which may take a thread's processor
/// away at any instruction, does not make them pass before the test has looked.
func waitUntil(_ nanoseconds: UInt64) {
    var due = timespec(
        tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
    while unsafe clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, nil) == EINTR {}
}
