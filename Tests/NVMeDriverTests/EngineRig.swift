// SPDX-License-Identifier: Apache-2.0
// An engine over plain memory, with the test as its device.

import CMemory
import DMA
import Linux
import NVMeSpec

@testable import NVMeDriver

/// Memory that lives as long as its owner.
@safe
private final class Mappings {
    private var all: [(address: UInt, byteCount: Int)] = []

    func add(_ byteCount: Int) throws -> UnsafeMutableRawPointer {
        let base = unsafe try Mapping(anonymous: byteCount).leak()
        all.append((UInt(bitPattern: base), byteCount))
        return unsafe base
    }

    deinit {
        for (address, byteCount) in all {
            if let base = unsafe UnsafeMutableRawPointer(bitPattern: address) {
                unsafe Mapping.unmap(base, byteCount: byteCount)
            }
        }
    }
}

/// An engine whose device is the test: it reads the submission queue and writes the completion
/// queue.
@safe
final class EngineRig {
    static let regionIOVA: UInt64 = 0x7000_0000
    static let bounceIOVA: UInt64 = 0x5000_0000
    static let listsIOVA: UInt64 = 0x3000_0000
    static let session: UInt32 = 7

    let enginePointer: UnsafeMutablePointer<Engine>
    var engine: Engine {
        _read { yield unsafe enginePointer.pointee }
        _modify { yield unsafe &enginePointer.pointee }
    }
    var regions: RegionTable
    let region: UInt32
    let entries: UInt32
    /// Memory of a client, 16 MiB.
    let clientMemory: UnsafeMutableRawPointer
    let bounceMemory: UnsafeMutableRawPointer
    let state: UnsafeMutableRawPointer
    let layout: StateLayout
    private let submission: UnsafeMutableRawPointer
    private let completion: UnsafeMutableRawPointer
    private let lists: UnsafeMutableRawPointer
    private let doorbells: UnsafeMutableRawPointer
    let listByteCount: UInt64
    private let mappings: Mappings
    private var taken: UInt32 = 0
    private var posted: UInt32 = 0
    private var phase: UInt64 = 1

    init(entries: UInt32 = 16, maxTransferByteCount: UInt64 = 8 << 20) throws {
        self.entries = entries
        let mappings = Mappings()
        self.mappings = mappings
        let memory = { (byteCount: Int) throws -> UnsafeMutableRawPointer in
            unsafe try mappings.add(byteCount)
        }
        layout = StateLayout(queueCount: 2, slotsPerQueue: Int(entries))
        listByteCount = PhysicalRegionPages.listByteCount(transfer: maxTransferByteCount)
        unsafe submission = try memory(Int(entries) * 64)
        unsafe completion = try memory(Int(entries) * 16)
        unsafe lists = try memory(Int(entries) * Int(listByteCount))
        unsafe doorbells = try memory(4096)
        unsafe state = try memory(layout.byteCount)
        unsafe clientMemory = try memory(16 << 20)
        unsafe bounceMemory = try memory(1 << 20)
        regions = try RegionTable()
        unsafe regions.setBouncePages(
            iova: Self.bounceIOVA, byteCount: 1 << 20, base: bounceMemory)
        region = try requireValue(
            unsafe regions.insert(
                session: Self.session, iova: Self.regionIOVA, byteCount: 16 << 20,
                base: clientMemory))
        let queue = unsafe QueuePair(
            queueID: 1, entries: entries, epoch: 1,
            memory: QueueMemory(
                submission: submission, completion: completion, prpLists: lists,
                prpListsIOVA: Self.listsIOVA, prpListByteCount: listByteCount,
                slots: state + layout.slotsOffset(1, epoch: 1),
                indexLine: state + layout.queueIndexOffset(1),
                scratch: try memory(QueueMemory.scratchByteCount(entries: entries)),
                submissionDoorbell: doorbells, completionDoorbell: doorbells + 4,
                submissionDoorbellOffset: 0x1008, completionDoorbellOffset: 0x100C, shadow: nil),
            doorbellsAreMapped: true)
        let bouncePages = try PageAllocator(pageCount: 256)
        unsafe enginePointer = .allocate(capacity: 1)
        unsafe enginePointer.initialize(
            to: Engine(
                queue: queue, regions: regions.view,
                requests: unsafe RequestRecords(
                    records: state + layout.requestsOffset(1, epoch: 1),
                    lists: state + layout.segmentListsOffset(1, epoch: 1), queue: 1, epoch: 1),
                bouncePages: bouncePages, firstBouncePage: 0))
    }

    deinit {
        unsafe enginePointer.deinitialize(count: 1)
        unsafe enginePointer.deallocate()
    }

    // MARK: The device's side

    /// The doorbell values that the device sees.
    var submissionTail: UInt32 { unsafe nv_load32(doorbells) }
    var completionHead: UInt32 { unsafe nv_load32(doorbells + 4) }

    /// The commands up to the doorbell that were not taken yet.
    func takeCommands() -> [SubmissionEntry] {
        var commands: [SubmissionEntry] = []
        while taken != submissionTail {
            let entry = unsafe submission + Int(taken) * 64
            commands.append(unsafe entry.loadUnaligned(as: SubmissionEntry.self))
            taken = (taken + 1) % entries
        }
        return commands
    }

    /// Posts a completion entry as the device would; every field can be made wrong.
    func post(
        commandID: UInt16, status: Status = Status(rawValue: 0), queueID: UInt16 = 1,
        head: UInt16? = nil, result: UInt32 = 0
    ) {
        let entry = unsafe completion + Int(posted) * 16
        unsafe nv_store64(entry, UInt64(result))
        let word =
            UInt64(head ?? UInt16(taken)) | UInt64(queueID) << 16 | UInt64(commandID) << 32
            | phase << 48 | UInt64(status.rawValue) << 49
        unsafe nv_store64(entry + 8, word)
        posted = (posted + 1) % entries
        if posted == 0 { phase ^= 1 }
    }

    /// Takes every command and answers it with success.
    func serveAll() -> [SubmissionEntry] {
        let commands = takeCommands()
        for command in commands { post(commandID: command.commandID) }
        return commands
    }

    /// The device addresses of the pages that a command's PRP entries name, following the lists.
    func pages(of command: SubmissionEntry, byteCount: UInt64) -> [UInt64] {
        var pages = [command.prp1]
        let offset = command.prp1 % 4096
        let count = Int((offset + byteCount + 4095) / 4096)
        guard count > 1 else { return pages }
        guard count > 2 else { return pages + [command.prp2] }
        var list = command.prp2
        var index = 0
        while pages.count < count {
            let entry = unsafe nv_load64(lists + Int(list - Self.listsIOVA) + index * 8)
            if index == 511, count - pages.count > 1 {
                list = entry
                index = 0
                continue
            }
            pages.append(entry)
            index += 1
        }
        return pages
    }

    // MARK: The client's side

    func read(lba: UInt64 = 0, blocks: UInt32 = 8, offset: UInt64 = 0, token: UInt64 = 1)
        -> IORequest
    {
        request(IOOperation.read, lba: lba, blocks: blocks, offset: offset, token: token)
    }

    func request(
        _ operation: UInt8, lba: UInt64 = 0, blocks: UInt32 = 8, offset: UInt64 = 0,
        token: UInt64 = 1
    ) -> IORequest {
        var request = IORequest(
            operation: operation, namespaceID: 1, session: Self.session, token: token)
        request.lba = lba
        request.blockCount = blocks
        request.maxBlocksPerCommand = 256
        request.region = region
        request.offset = offset
        return request
    }

    func submit(_ request: IORequest) -> SubmitResult { engine.submit(request) }

    func submit(_ request: IORequest, _ segments: [DataSegment]) -> SubmitResult {
        unsafe segments.withUnsafeBufferPointer { list in
            guard let base = list.baseAddress else { return .invalid }
            return unsafe engine.submit(request, segments: base, count: list.count)
        }
    }
    func ring() { engine.ring() }
    var isIdle: Bool { engine.isIdle }
    var requestsInUse: UInt32 { engine.requests.activeCount + engine.requests.doneCount }
    func recordIsIntact(_ index: UInt32) -> Bool { engine.requests.isIntact(index) }
    var fault: QueueFault { engine.fault }
    var failed: UInt64 { engine.failed }
    var freePageCount: Int { engine.freePageCount }
    func takePages(byteCount: Int) -> Int? { engine.takePages(byteCount: byteCount) }
    func releasePages(first: Int, count: Int) { engine.releasePages(first: first, count: count) }
    var hasAnswer: Bool { engine.hasAnswer }

    /// Reaps everything and retires it.
    func reap() -> [IOCompletion] {
        var completions = [IOCompletion](repeating: IOCompletion(), count: 64)
        let count = unsafe completions.withUnsafeMutableBufferPointer { buffer in
            unsafe buffer.baseAddress.map { unsafe engine.reap(into: $0, capacity: 64) } ?? 0
        }
        engine.retire()
        return Array(completions[0..<count])
    }

    /// The state byte of every slot, from the state area.
    var slotStates: [UInt8] {
        (0..<Int(entries - 2)).map {
            unsafe nv_load8(state + layout.slotsOffset(1, epoch: 1) + $0 * 64 + 56) & 3
        }
    }

    func slotIsIntact(_ index: Int) -> Bool {
        unsafe CommandSlot.isIntact(
            at: state + layout.slotsOffset(1, epoch: 1) + index * 64,
            key: Checksum.key(Checksum.slotKind, queue: 1, epoch: 1) &+ UInt32(index))
    }

    /// The tail that the state area tells a successor.
    var loggedTail: UInt32? {
        let key = Checksum.key(Checksum.indexKind, queue: 1, epoch: 1)
        return SealedWord.open(unsafe nv_load64(state + layout.queueIndexOffset(1)), key: key)
    }
}

struct Missing: Error {}

func requireValue<Value>(_ value: Value?) throws -> Value {
    guard let value else { throw Missing() }
    return value
}
