// SPDX-License-Identifier: Apache-2.0
// A data queue with everything that outlives its process in one piece of memory, so that a test can
// copy it at any crash point and go on in the copy with a successor.

import CMemory
import CRing
import DMA
import Glibc
import Linux
import NVMeSpec
import TestSupport

@testable import NVMeDriver

/// Where things are in the memory of a world.
private enum Place {
    static let submission = 0
    static let completion = 4096
    static let doorbells = 8192
    static let indexLine = 12288
    static let ringLog = 12288 + 256
    static let slots = 16384
    static let records = 20480
    static let prpLists = 28672
    static let client = prpLists + Int(CrashWorld.entries) * CrashWorld.listByteCount
    static let bounce = client + CrashWorld.clientByteCount
    static let ring = bounce + CrashWorld.bouncePages * 4096
    static let lists = ring + 12288
    /// Lists of the first records only: no scenario has more at one time.
    static let copied = lists + 4 * StateLayout.segmentListByteCount
    static let end = lists + StateLayout.requestsPerQueue * StateLayout.segmentListByteCount
}

/// A command that the device has and has not answered.
struct DeviceCommand {
    var entry: SubmissionEntry
    /// For each block, where its data is.
    var blocks: [(lba: UInt64, offset: Int)]
}

/// A request that a client has made, and what must become of it.
struct Expectation {
    var tag: UInt64
    var code: UInt16 = 0
    /// Blocks that the device must have done something to, once.
    var blocks: Range<UInt64> = 0..<0
    var isFlush = false
    /// Of a Read: where its data comes.
    var offset: Int?
}

/// A queue, its device and its client. The device and the client are the test, and live on when
/// the queue's process dies.
@safe
final class CrashWorld {
    static let entries: UInt32 = 16
    static let listByteCount = 4096
    static let clientByteCount = 128 * 1024
    static let bouncePages = 16
    static let session: UInt32 = 7
    static let clientIOVA: UInt64 = 0x7000_0000
    static let bounceIOVA: UInt64 = 0x5000_0000
    static let listsIOVA: UInt64 = 0x3000_0000
    static let shape = RingShape(submissionEntries: 16, completionEntries: 16)
    /// Blocks of the disk; the first ones are nobody's but a probe's.
    static let blockCount: UInt64 = 1 << 20

    let base: UnsafeMutableRawPointer
    private let memory: Mapping
    private let scratch: Mapping
    private var table: RegionTable
    let region: UInt32
    let regions = SessionRegions()
    let limiter = IOLimiter(requestsPerSecond: 0, bytesPerSecond: 0)
    private(set) var queue: UnsafeMutablePointer<DataQueue>?
    private let engine: UnsafeMutablePointer<Engine>
    private var isMade = false

    // The device.
    private var taken: UInt32 = 0
    private var posted: UInt32 = 0
    private var phase: UInt64 = 1
    private(set) var outstanding: [DeviceCommand] = []
    /// What was done to each block, how often; and Flushes.
    private(set) var done: [UInt64: Int] = [:]
    private(set) var flushes = 0
    private(set) var probes = 0
    /// Blocks whose data was not the client's.
    private(set) var wrongData: [UInt64] = []

    // The client.
    var tail: UInt32 = 0
    private var head: UInt32 = 0
    /// Completions of the ring, in order: tag and code.
    private(set) var received: [(tag: UInt64, code: UInt16)] = []
    /// Completions of requests without a ring.
    var delivered: [(token: UInt64, status: UInt16)] = []
    /// What was asked for: by messages, or by entries that the client's tail covers.
    private(set) var expected: [Expectation] = []
    private var unpublished: [Expectation] = []
    /// Requests come by messages, not through the ring.
    var hasMessages = false
    /// Such a request is being submitted, and perhaps is not.
    var submitting: IORequest?
    var submittingRanges: [BlockSpan] = []

    /// A world with a queue that nobody has used.
    init() throws {
        memory = try Mapping(anonymous: Place.end)
        scratch = try Mapping(anonymous: 4096)
        unsafe base = memory.base
        table = try RegionTable()
        unsafe engine = .allocate(capacity: 1)
        region = unsafe try Self.fill(&table, base)
        regions.set(0, driverRegion: region, isReadOnly: false)
    }

    /// The world as it is when the queue's process dies now.
    init(copying other: CrashWorld) throws {
        memory = try Mapping(anonymous: Place.end)
        scratch = try Mapping(anonymous: 4096)
        unsafe base = memory.base
        unsafe memcpy(base, other.base, Place.copied)
        table = try RegionTable()
        unsafe engine = .allocate(capacity: 1)
        region = unsafe try Self.fill(&table, base)
        regions.set(0, driverRegion: region, isReadOnly: false)
        taken = other.taken
        posted = other.posted
        phase = other.phase
        outstanding = other.outstanding
        done = other.done
        flushes = other.flushes
        probes = other.probes
        wrongData = other.wrongData
        tail = other.tail
        head = other.head
        received = other.received
        delivered = other.delivered
        expected = other.expected
        hasMessages = other.hasMessages
        submitting = other.submitting
        submittingRanges = other.submittingRanges
    }

    deinit {
        if let queue = unsafe queue {
            unsafe queue.deinitialize(count: 1)
            unsafe queue.deallocate()
        }
        if isMade { unsafe engine.deinitialize(count: 1) }
        unsafe engine.deallocate()
        regions.deallocate()
    }

    private static func fill(
        _ table: inout RegionTable, _ base: UnsafeMutableRawPointer
    ) throws -> UInt32 {
        unsafe table.setBouncePages(
            iova: bounceIOVA, byteCount: UInt64(bouncePages * 4096), base: base + Place.bounce)
        return try requireValue(
            unsafe table.insert(
                session: session, iova: clientIOVA, byteCount: UInt64(clientByteCount),
                base: base + Place.client))
    }

    // MARK: The process

    private var queueMemory: QueueMemory {
        unsafe QueueMemory(
            submission: base + Place.submission, completion: base + Place.completion,
            prpLists: base + Place.prpLists, prpListsIOVA: Self.listsIOVA,
            prpListByteCount: UInt64(Self.listByteCount), slots: base + Place.slots,
            indexLine: base + Place.indexLine, scratch: scratch.base,
            submissionDoorbell: base + Place.doorbells,
            completionDoorbell: base + Place.doorbells + 4, submissionDoorbellOffset: 0,
            completionDoorbellOffset: 0, shadow: nil)
    }

    private func records(isNew: Bool) -> RequestRecords {
        let (records, lists) = unsafe (base + Place.records, base + Place.lists)
        return isNew
            ? unsafe RequestRecords(records: records, lists: lists, queue: 1, epoch: 1)
            : unsafe RequestRecords(at: records, lists: lists, queue: 1, epoch: 1)
    }

    private var log: TwinPositions { unsafe TwinPositions(base: base + Place.ringLog, key: 3) }

    static let rules = QueueRig.rules {
        $0.maxTransferBlocks = 32
        $0.maxWriteZeroesBlocks = 32
        $0.blockCount = blockCount
    }

    /// The first process: a new queue with a new ring.
    func start() throws {
        unsafe engine.initialize(
            to: Engine(
                queue: QueuePair(
                    queueID: 1, entries: Self.entries, epoch: 1, memory: queueMemory,
                    doorbellsAreMapped: true),
                regions: table.view, requests: records(isNew: true),
                bouncePages: try PageAllocator(pageCount: Self.bouncePages), firstBouncePage: 0))
        isMade = true
        makeQueue()
        let index = unsafe queue?.pointee.add(
            base: base + Place.ring, shape: try requireValue(Self.shape), session: Self.session,
            regions: regions, rules: Self.rules, wakeFD: -1, gate: limiter.gate, log: log)
        guard index == 0 else { throw Missing() }
    }

    private func makeQueue() {
        let made = UnsafeMutablePointer<DataQueue>.allocate(capacity: 1)
        unsafe made.initialize(to: DataQueue(engine: engine, timeoutMilliseconds: 10_000))
        unsafe queue = made
    }

    /// A successor's. Throws `notAdoptable`.
    @discardableResult
    func adopt() throws -> AdoptedDoorbell {
        let pair = try QueuePair.adopt(
            queueMemory, queueID: 1, entries: Self.entries, epoch: 1, doorbellsAreMapped: true)
        unsafe engine.initialize(
            to: try Engine.adopt(
                queue: pair, regions: table.view, requests: records(isNew: false),
                bouncePages: try PageAllocator(pageCount: Self.bouncePages), firstBouncePage: 0,
                tick: 5))
        isMade = true
        let doorbell = unsafe engine.pointee.ringAdopted(namespaceID: 1, blockShift: 9)
        makeQueue()
        var known: (head: UInt32, tail: UInt32) = (0, 0)
        if unsafe nv_load64(base + Place.ringLog + 16) != 0 {
            guard
                let found = unsafe TwinPositions.read(at: base + Place.ringLog, key: 3)
            else { throw DriverError.notAdoptable("the ring's positions") }
            known = found
        }
        let isAdopted = unsafe queue?.pointee.adopt(
            at: 0, base: base + Place.ring, shape: try requireValue(Self.shape),
            session: Self.session, regions: regions, rules: Self.rules, wakeFD: -1,
            gate: limiter.gate, log: log, known: known)
        guard isAdopted == true else { throw DriverError.notAdoptable("the ring") }
        let isRecovered = unsafe queue?.pointee.recover { deliver($0) }
        guard isRecovered == true else { throw DriverError.notAdoptable("completions") }
        submitAgain()
        return doorbell
    }

    /// The message of a request whose submission the predecessor did not come to the end of is
    /// still there.
    private func submitAgain() {
        guard let request = submitting else { return }
        var isKnown = delivered.contains { $0.token == request.token }
        unsafe engine.pointee.forEachRequest {
            if $0.ring == 0, $0.token == request.token { isKnown = true }
        }
        if !isKnown { submit(request, submittingRanges) }
        submitting = nil
    }

    func submit(_ request: IORequest, _ ranges: [BlockSpan] = []) {
        submitting = request
        submittingRanges = ranges
        let result =
            ranges.isEmpty
            ? unsafe engine.pointee.submit(request)
            : unsafe ranges.withUnsafeBufferPointer { list in
                guard let first = list.baseAddress else { return .invalid }
                return unsafe engine.pointee.submit(request, ranges: first, count: list.count)
            }
        precondition(result == .accepted, "\(request.operation) was not accepted")
        submitting = nil
    }

    func take() { _ = unsafe queue?.pointee.take() }

    /// One round up.
    func reap() {
        guard hasMessages else {
            _ = unsafe queue?.pointee.reap()
            return
        }
        // As the control thread does it.
        var completions = [IOCompletion](repeating: IOCompletion(), count: 8)
        let count = unsafe completions.withUnsafeMutableBufferPointer { buffer in
            unsafe buffer.baseAddress.map {
                unsafe engine.pointee.reap(into: $0, capacity: 8)
            } ?? 0
        }
        for completion in completions.prefix(count) { deliver(completion) }
        unsafe engine.pointee.retire()
    }

    func ringDoorbell() { unsafe engine.pointee.ring() }

    private func deliver(_ completion: IOCompletion) {
        guard completion.session == Self.session else { return }
        delivered.append((completion.token, completion.status))
    }

    var isIdle: Bool { unsafe engine.pointee.isIdle }
    var fault: QueueFault { unsafe engine.pointee.fault }
    var freePageCount: Int { unsafe engine.pointee.freePageCount }
    var freeSlotCount: UInt32 { unsafe engine.pointee.queue.freeCount }
    /// What a successor trusts: indexes, slots, records.
    static let logged: [Range<Int>] = [
        Place.indexLine..<(Place.indexLine + 32), Place.ringLog..<(Place.ringLog + 24),
        Place.slots..<(Place.slots + 15 * 64), Place.records..<(Place.records + 3 * 128),
        Place.lists..<(Place.lists + 64),
    ]

    func flip(_ byte: Int, _ bits: UInt8) {
        unsafe nv_store8(base + byte, nv_load8(base + byte) ^ bits)
    }
}

// MARK: The device

extension CrashWorld {
    /// Takes the commands that the doorbell shows.
    func takeCommands() {
        let doorbell = unsafe nv_load32(base + Place.doorbells)
        while taken != doorbell {
            let address = unsafe base + Place.submission + Int(taken) * 64
            let entry = unsafe address.loadUnaligned(as: SubmissionEntry.self)
            outstanding.append(DeviceCommand(entry: entry, blocks: blocks(of: entry)))
            taken = (taken + 1) % Self.entries
        }
    }

    private func blocks(of entry: SubmissionEntry) -> [(lba: UInt64, offset: Int)] {
        guard Engine.movesData(entry.opcode) else { return [] }
        let count = Int(entry.blockCount)
        var pages = [entry.prp1]
        let needed = Int(entry.prp1 % 4096) + count * 512
        let pageCount = (needed + 4095) / 4096
        if pageCount == 2 { pages.append(entry.prp2) }
        if pageCount > 2 {
            let list = unsafe base + Place.prpLists + Int(entry.prp2 - Self.listsIOVA)
            for index in 0..<(pageCount - 1) { pages.append(unsafe nv_load64(list + index * 8)) }
        }
        return (0..<count).map { block in
            let place = Int(entry.prp1 % 4096) + block * 512
            let page = pages[place / 4096] & ~4095
            return (entry.lba + UInt64(block), offset(page + UInt64(place % 4096)))
        }
    }

    private func offset(_ address: UInt64) -> Int {
        address >= Self.clientIOVA
            ? Place.client + Int(address - Self.clientIOVA)
            : Place.bounce + Int(address - Self.bounceIOVA)
    }

    /// Does and answers one of the commands that it has.
    func answer(_ index: Int, status: UInt16 = 0) {
        let command = outstanding.remove(at: index)
        let entry = command.entry
        if entry.opcode == IOOperation.flush { flushes += 1 }
        if entry.opcode == IOOperation.read, entry.lba == 0 { probes += 1 }
        if status == 0 { execute(command) }
        let place = unsafe base + Place.completion + Int(posted) * 16
        unsafe nv_store64(place, 0)
        let word =
            UInt64(taken) | 1 << 16 | UInt64(entry.commandID) << 32 | phase << 48
            | UInt64(status) << 49
        unsafe nv_store64(place + 8, word)
        posted = (posted + 1) % Self.entries
        if posted == 0 { phase ^= 1 }
    }

    private func execute(_ command: DeviceCommand) {
        let entry = command.entry
        switch entry.opcode {
        case IOOperation.read, IOOperation.write:
            for (lba, offset) in command.blocks where lba != 0 {
                done[lba, default: 0] += 1
                let byte = UInt8(truncatingIfNeeded: lba &* 37 &+ 11)
                if entry.opcode == IOOperation.read {
                    unsafe memset(base + offset, Int32(byte), 512)
                } else if unsafe nv_load8(base + offset) != byte
                    || nv_load8(base + offset + 511) != byte
                {
                    wrongData.append(lba)
                }
            }
        case IOOperation.writeZeroes, IOOperation.verify:
            for block in 0..<UInt64(entry.blockCount) { done[entry.lba + block, default: 0] += 1 }
        case IOOperation.deallocate:
            let list = unsafe base + Place.prpLists + Int(entry.prp1 - Self.listsIOVA)
            let (count, lba) = unsafe (nv_load32(list + 4), nv_load64(list + 8))
            for block in 0..<UInt64(count) { done[lba + block, default: 0] += 1 }
        default: break
        }
    }
}

// MARK: The client

extension CrashWorld {
    /// What a block holds, once it was written or read.
    static func pattern(_ lba: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: lba &* 37 &+ 11) }

    func fillMemory(_ offset: Int, lba: UInt64, blocks: Int) {
        for block in 0..<blocks {
            let byte = Self.pattern(lba + UInt64(block))
            unsafe memset(base + Place.client + offset + block * 512, Int32(byte), 512)
        }
    }

    func memoryHas(_ offset: Int, lba: UInt64, blocks: Int) -> Bool {
        (0..<blocks).allSatisfy { block in
            let byte = Self.pattern(lba + UInt64(block))
            let place = unsafe base + Place.client + offset + block * 512
            return unsafe nv_load8(place) == byte && nv_load8(place + 511) == byte
        }
    }

    func putSegments(_ offset: Int, _ segments: [(offset: Int, byteCount: Int)]) {
        for (index, segment) in segments.enumerated() {
            let place = unsafe base + Place.client + offset + index * 16
            unsafe nv_store64(place, UInt64(segment.offset))
            unsafe nv_store64(place + 8, UInt64(segment.byteCount) << 32)
        }
    }

    func expect(_ expectation: Expectation) { expected.append(expectation) }

    func submitToRing(_ entry: RawEntry, _ expectation: Expectation) {
        unpublished.append(expectation)
        let place =
            unsafe base + Place.ring + (Self.shape?.submissionOffset ?? 0) + Int(tail & 15) * 64
        unsafe place.storeBytes(of: entry.words, as: type(of: entry.words))
        tail &+= 1
    }

    func publishTail() {
        expected += unpublished
        unpublished = []
        unsafe nv_store_release32(
            base + Place.ring + Int(NV_RING_OFFSET_SUBMISSION_TAIL), tail)
    }

    func receive() {
        let ring = unsafe base + Place.ring
        let end = unsafe nv_load_acquire32(ring + Int(NV_RING_OFFSET_COMPLETION_TAIL))
        while head != end, received.count < 1000 {
            let place =
                unsafe ring + (Self.shape?.completionOffset ?? 0) + Int(head & 15) * 16
            let word = unsafe nv_load64(place + 8)
            received.append((unsafe nv_load64(place), UInt16(truncatingIfNeeded: word >> 16)))
            head &+= 1
        }
        unsafe nv_store_release32(ring + Int(NV_RING_OFFSET_COMPLETION_HEAD), head)
    }

    /// Rounds until nothing is left to do.
    func finish(_ random: inout SplitMix64) -> Bool {
        for _ in 0..<200 {
            take()
            takeCommands()
            while !outstanding.isEmpty {
                answer(Int(random.next() % UInt64(outstanding.count)))
                if random.next() % 3 == 0 { break }
            }
            reap()
            receive()
            let doorbell = unsafe nv_load32(base + Place.doorbells)
            let ringHead = unsafe queue?.pointee.ring(0)?.pointee.submissionHead
            if isIdle, outstanding.isEmpty, taken == doorbell, ringHead == tail {
                return fault == .none
            }
        }
        return false
    }
}
