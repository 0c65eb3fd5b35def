// SPDX-License-Identifier: Apache-2.0
// A data queue whose device and whose clients are the test: clients write raw ring memory.

import CMemory
import CRing
import Glibc
import Linux
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeDriver

/// A submission entry as a client writes it, right or wrong.
struct RawEntry {
    /// The eight words of the entry.
    var words: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)

    init(
        _ opcode: UInt8, flags: UInt8 = 0, blocks: UInt32 = 1, lba: UInt64 = 0, tag: UInt64 = 0,
        region: UInt32 = 0, segments: UInt32 = 0, offset: UInt64 = 0
    ) {
        words = (
            UInt64(opcode) | UInt64(flags) << 8 | UInt64(blocks) << 32, lba, tag,
            UInt64(region) | UInt64(segments) << 32, offset, 0, 0, 0
        )
    }

    static func read(
        lba: UInt64 = 0, blocks: UInt32 = 1, tag: UInt64 = 0, region: UInt32 = 0, offset: UInt64 = 0
    ) -> RawEntry {
        RawEntry(
            IOOperation.read, blocks: blocks, lba: lba, tag: tag, region: region, offset: offset)
    }

    static func flush(tag: UInt64 = 0) -> RawEntry {
        RawEntry(IOOperation.flush, blocks: 0, tag: tag)
    }

    /// The entry of an operation that is in order.
    static func good(_ operation: UInt8, tag: UInt64 = 0) -> RawEntry {
        RawEntry(operation, blocks: operation == IOOperation.flush ? 0 : 1, tag: tag)
    }

    /// Its 64 bytes.
    var bytes: [UInt8] {
        get { unsafe withUnsafeBytes(of: words) { unsafe Array($0) } }
        set {
            unsafe withUnsafeMutableBytes(of: &words) {
                unsafe $0.copyBytes(from: newValue)
            }
        }
    }
}

/// A completion as a client reads it.
struct RawCompletion: Equatable {
    var tag: UInt64
    var status: UInt16 = 0
    var code: UInt16 = 0
    var result: UInt32 = 0
}

/// A client: its own mapping of the ring's memory, and nothing else.
@safe
final class RingClient {
    let index: Int
    let session: UInt32
    let shape: RingShape
    let fd: OwnedFD
    let base: UnsafeMutableRawPointer
    private let mapping: Mapping
    private let worker: RingMemory
    let regions: SessionRegions
    /// The client's end of `wake`.
    let wake: OwnedFD
    private let wakeOfWorker: OwnedFD
    var tail: UInt32
    var head: UInt32

    fileprivate init(
        _ rig: QueueRig, shape: RingShape, session: UInt32, rules: RingRules, start: UInt32
    ) throws {
        let memory = try RingMemory(shape: shape, ringID: 0)
        let regions = SessionRegions()
        let pair = try UnixSocket.pair(kind: .sequencedPacket, nonblocking: true)
        fd = try memory.fd.duplicate()
        mapping = try Mapping(fd, byteCount: shape.byteCount)
        unsafe base = mapping.base
        wake = try pair.first.duplicate()
        wakeOfWorker = try pair.second.duplicate()
        for offset in [
            NV_RING_OFFSET_SUBMISSION_TAIL, NV_RING_OFFSET_COMPLETION_HEAD,
            NV_RING_OFFSET_SUBMISSION_HEAD, NV_RING_OFFSET_COMPLETION_TAIL,
        ] { unsafe nv_store32(base + Int(offset), start) }
        index = try requireValue(
            unsafe rig.queue.pointee.add(
                base: memory.mapping.base, shape: shape, session: session, regions: regions,
                rules: rules, wakeFD: wakeOfWorker.raw, gate: rig.limiter.gate,
                positions: RingPositions(
                    submissionHead: start, completionTail: start, completionHead: start)))
        worker = memory
        tail = start
        head = start
        self.shape = shape
        self.session = session
        self.regions = regions
    }

    deinit { regions.deallocate() }

    func word<Offset: BinaryInteger>(_ offset: Offset) -> UInt32 {
        unsafe nv_load_acquire32(base + Int(offset))
    }

    func set<Offset: BinaryInteger>(_ offset: Offset, _ value: UInt32) {
        unsafe nv_store_seq32(base + Int(offset), value)
    }

    var submissionHead: UInt32 { word(NV_RING_OFFSET_SUBMISSION_HEAD) }
    var completionTail: UInt32 { word(NV_RING_OFFSET_COMPLETION_TAIL) }
    var room: UInt32 { shape.submissionEntries &- (tail &- submissionHead) }

    /// The place of an entry.
    func place(_ index: UInt32) -> UnsafeMutableRawPointer {
        unsafe base + shape.submissionOffset
            + Int(index & (shape.submissionEntries - 1)) * Int(NV_RING_SUBMISSION_BYTES)
    }

    /// Writes an entry without publishing it.
    func write(_ entry: RawEntry) {
        unsafe place(tail).storeBytes(of: entry.words, as: type(of: entry.words))
        tail &+= 1
    }

    func publish() { set(NV_RING_OFFSET_SUBMISSION_TAIL, tail) }

    func submit(_ entries: RawEntry...) {
        for entry in entries { write(entry) }
        publish()
    }

    /// The completions that are there, without telling that they were taken.
    func look() -> [RawCompletion] {
        var found: [RawCompletion] = []
        var at = head
        // A hostile client may have written the worker's index itself.
        while at != completionTail, found.count < Int(shape.completionEntries) {
            let entry =
                unsafe base + shape.completionOffset
                + Int(at & (shape.completionEntries - 1)) * Int(NV_RING_COMPLETION_BYTES)
            let word = unsafe nv_load64(entry + 8)
            found.append(
                RawCompletion(
                    tag: unsafe nv_load64(entry), status: UInt16(truncatingIfNeeded: word),
                    code: UInt16(truncatingIfNeeded: word >> 16),
                    result: UInt32(truncatingIfNeeded: word >> 32)))
            at &+= 1
        }
        return found
    }

    /// Takes the completions that are there.
    func reap() -> [RawCompletion] {
        let found = look()
        head &+= UInt32(found.count)
        set(NV_RING_OFFSET_COMPLETION_HEAD, head)
        return found
    }
}

/// A data queue over an engine whose device is the test.
@safe
final class QueueRig {
    static let blockCount: UInt64 = 1 << 30
    static let regionByteCount: UInt64 = 16 << 20

    let device: EngineRig
    let queue: UnsafeMutablePointer<DataQueue>
    private(set) var clients: [RingClient] = []
    /// Of no session: nothing is limited.
    let limiter: IOLimiter

    init(entries: UInt32 = 64) throws {
        device = try EngineRig(entries: entries)
        limiter = IOLimiter(requestsPerSecond: 0, bytesPerSecond: 0)
        unsafe queue = .allocate(capacity: 1)
        unsafe queue.initialize(
            to: DataQueue(engine: device.enginePointer, timeoutMilliseconds: 10_000))
    }

    deinit {
        unsafe queue.deinitialize(count: 1)
        unsafe queue.deallocate()
    }

    /// What a disk without limits of note allows.
    static func rules(_ change: (inout RingRules) -> Void = { _ in }) -> RingRules {
        var namespace = NamespaceInfo(namespaceID: 1, refusal: "")
        namespace.refusal = nil
        namespace.blockCount = blockCount
        namespace.maxTransferBlocks = 256
        namespace.maxWriteZeroesBlocks = 65536
        namespace.maxDeallocateBlocks = 65536
        namespace.maxVerifyBlocks = 65536
        namespace.canCompare = true
        namespace.hasVolatileWriteCache = true
        namespace.writeZeroesMayDeallocate = true
        var rules = RingRules(namespace, isWritable: true, maxRequestByteCount: 64 << 20)
        change(&rules)
        return rules
    }

    /// A ring of the rig's session, whose region 0 is the client's 16 MiB.
    func open(
        _ submissions: UInt32 = 32, _ completions: UInt32 = 32, rules: RingRules = QueueRig.rules(),
        start: UInt32 = 0
    ) throws -> RingClient {
        let client = try RingClient(
            self,
            shape: try requireValue(
                RingShape(submissionEntries: submissions, completionEntries: completions)),
            session: EngineRig.session, rules: rules, start: start)
        client.regions.set(0, driverRegion: device.region, isReadOnly: false)
        clients.append(client)
        return client
    }

    /// A ring of a session of its own, whose region 0 is 64 KiB of the client memory.
    func openStranger(
        _ number: Int, _ submissions: UInt32 = 32, _ completions: UInt32 = 32
    ) throws -> RingClient {
        let session = 100 + UInt32(number)
        let client = try RingClient(
            self,
            shape: try requireValue(
                RingShape(submissionEntries: submissions, completionEntries: completions)),
            session: session, rules: QueueRig.rules(), start: 0)
        let region = try requireValue(
            unsafe device.regions.insert(
                session: session, iova: Self.iova(ofStranger: number), byteCount: 65536,
                base: device.clientMemory + number * 65536))
        client.regions.set(0, driverRegion: region, isReadOnly: false)
        clients.append(client)
        return client
    }

    static func iova(ofStranger number: Int) -> UInt64 {
        0x9000_0000 + UInt64(number) * 0x10_0000
    }

    func fault(_ client: RingClient) -> RingFault {
        unsafe queue.pointee.ring(client.index)?.pointee.fault ?? .none
    }

    func inFlight(_ client: RingClient) -> UInt32 {
        unsafe queue.pointee.ring(client.index)?.pointee.inFlight ?? 0
    }

    func hold(_ client: RingClient, _ on: Bool) {
        unsafe queue.pointee.ring(client.index)?.pointee.isHeld = on
    }

    func close(_ client: RingClient) {
        unsafe queue.pointee.remove(client.index)
        clients.removeAll { $0 === client }
    }

    // MARK: Rounds

    @discardableResult
    func take() -> Bool { unsafe queue.pointee.take() }
    @discardableResult
    func reap() -> Bool { unsafe queue.pointee.reap() }
    func notices() -> DataNotices { unsafe queue.pointee.takeNotices() }
    func prepareToSleep() -> Bool { unsafe queue.pointee.prepareToSleep() }

    /// Takes what there is; the commands that the device sees, each checked against the memory
    /// that its asker has.
    func commands(sourceLocation: SourceLocation = #_sourceLocation) -> [SubmissionEntry] {
        take()
        reap()
        let commands = device.takeCommands()
        for command in commands {
            #expect(isWithinMemory(command), sourceLocation: sourceLocation)
        }
        return commands
    }

    /// Answers commands with success, and posts what they completed.
    func answer(_ commands: [SubmissionEntry]) {
        for command in commands { device.post(commandID: command.commandID) }
        reap()
    }

    /// Rounds until nothing is left to do; how many commands there were.
    @discardableResult
    func settle(sourceLocation: SourceLocation = #_sourceLocation) -> Int {
        var count = 0
        for _ in 0..<100_000 {
            let commands = commands(sourceLocation: sourceLocation)
            answer(commands)
            count += commands.count
            if commands.isEmpty { return count }
        }
        Issue.record("the queue does not come to rest", sourceLocation: sourceLocation)
        return count
    }

    /// Whether every page that a command names belongs to a client or to the bounce pages.
    func isWithinMemory(_ command: SubmissionEntry) -> Bool {
        guard Engine.movesData(command.opcode) else { return true }
        let byteCount = UInt64(command.blockCount) * 512
        let stranger = (0..<64).map { (Self.iova(ofStranger: $0), UInt64(65536)) }
        let allowed =
            [
                (EngineRig.regionIOVA, Self.regionByteCount), (EngineRig.bounceIOVA, 1 << 20),
            ] + stranger
        let pages = device.pages(of: command, byteCount: byteCount)
        let end = pages.count == 1 ? command.prp1 + byteCount : (pages.last ?? 0) + 1
        return allowed.contains { start, length in
            pages.allSatisfy { $0 >= start && $0 - start < length } && end - start <= length
        }
    }
}

/// A thread that does one thing over and over until it is stopped.
@safe
final class RacingThread {
    /// Word 0: stop; word 1: turns, up to the first; word 2: over.
    private let words: UnsafeMutablePointer<UInt32>

    /// Starts the thread and waits for its first turn.
    init(seed: UInt64, _ body: @escaping @Sendable (inout SplitMix64) -> Void) throws {
        unsafe words = .allocate(capacity: 3)
        unsafe words.initialize(repeating: 0, count: 3)
        let address = unsafe UInt(bitPattern: words)
        try BackgroundThread.start {
            guard let words = unsafe UnsafeMutablePointer<UInt32>(bitPattern: address) else {
                return
            }
            var random = SplitMix64(state: seed)
            while unsafe nv_load_acquire32(words) == 0 {
                body(&random)
                unsafe nv_store_release32(words + 1, 1)
            }
            unsafe nv_store_release32(words + 2, 1)
        }
        while unsafe nv_load_acquire32(words + 1) == 0 { sched_yield() }
    }

    /// Stops the thread; returns when it has ended.
    func stop() {
        unsafe nv_store_release32(words, 1)
        while unsafe nv_load_acquire32(words + 2) == 0 { sched_yield() }
        unsafe words.deallocate()
    }
}
