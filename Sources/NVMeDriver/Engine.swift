// SPDX-License-Identifier: Apache-2.0
// The engine of one I/O queue pair: requests in, commands out, completions back.
//
// A request of one command is the command: its slot names the asker, and nothing else is written. A
// request of several has one request record; its commands are issued as slots become free, several
// requests in turn, so that a large one does not shut out the others.

internal import CMemory
internal import DMA

/// The data path of one queue pair. One owner, one thread.
///
/// The order of calls: `submit` any number of times, `ring`; `reap`, deliver the completions,
/// `retire`. After each `ring` and `retire`, `pendingDoorbells` says whether the owner must write a
/// doorbell by message.
@safe
public struct Engine: ~Copyable {
    /// Commands of one request that may be in flight at one time.
    static let maxChildrenInFlight: UInt32 = 32
    /// The most bytes of one bounced command.
    static let maxBounceByteCount: UInt64 = 128 * 1024

    var queue: QueuePair
    let regions: RegionView
    var requests: RequestRecords
    var bouncePages: PageAllocator
    /// For each ring, by its number: where its next completion goes. Number 0 is that of requests
    /// without a ring, whose positions mean nothing.
    let completionTails: UnsafeMutablePointer<UInt32>
    /// As many as a slot can name.
    private static let ringNumbers = 256
    /// Where this engine's share of the bounce pages starts; page numbers are those of the whole
    /// pool everywhere else.
    let firstBouncePage: Int
    /// Faults of the process that were known at the last look.
    var seenFaults: UInt64 = 0
    /// A bit for each request record of which a command went through bounce pages: only for the
    /// statistics.
    var bouncedRecords: UInt64 = 0
    /// 1 or 0 in turn: who gets an odd slot (see `pumpHalf`).
    var pumpTurn: UInt32 = 0
    /// Requests accepted since the engine was made.
    public private(set) var submitted: UInt64 = 0
    /// Requests completed since the engine was made.
    public private(set) var completed: UInt64 = 0
    /// Requests completed with a status other than success.
    public private(set) var failed: UInt64 = 0
    /// Copies during which a page of somebody's registered memory was found to be gone: when this
    /// moves, ask `hasFaulted` for the regions of the sessions.
    public private(set) var memoryFaults: UInt64 = 0

    init(
        queue: consuming QueuePair, regions: RegionView, requests: consuming RequestRecords,
        bouncePages: consuming PageAllocator, firstBouncePage: Int
    ) {
        self.firstBouncePage = firstBouncePage
        self.queue = queue
        self.regions = regions
        self.requests = requests
        self.bouncePages = bouncePages
        unsafe completionTails = .allocate(capacity: Self.ringNumbers)
        unsafe completionTails.initialize(repeating: 0, count: Self.ringNumbers)
    }

    deinit { unsafe completionTails.deallocate() }

    // MARK: Down

    /// Takes requests in order until one is not accepted. Returns how many were; `result` says why
    /// it stopped.
    public mutating func submit(
        batch: UnsafeBufferPointer<IORequest>, result: inout SubmitResult
    ) -> Int {
        var index = 0
        let count = batch.count
        result = .accepted
        guard let base = batch.baseAddress else { return 0 }
        while index < count {
            let outcome = unsafe submitOne(base + index)
            if outcome != .accepted {
                result = outcome
                return index
            }
            index = index &+ 1
        }
        return index
    }

    /// Takes one request.
    public mutating func submit(_ request: IORequest) -> SubmitResult {
        var request = request
        return unsafe withUnsafePointer(to: &request) { unsafe submitOne($0) }
    }

    @inline(__always)
    mutating func submitOne(_ request: UnsafePointer<IORequest>) -> SubmitResult {
        guard let slot = queue.nextFreeSlot() else { return .full }
        let blocks = unsafe request.pointee.blockCount
        let operation = unsafe request.pointee.operation
        // Commands that move data and fit into one command: nearly all there are.
        guard Self.movesData(operation), unsafe blocks <= request.pointee.maxBlocksPerCommand,
            unsafe request.pointee.offset & 3 == 0
        else { return unsafe submitOther(request, slot) }
        let byteCount = unsafe UInt64(blocks) &<< UInt64(request.pointee.blockShift)
        let address = unsafe regions.deviceAddress(
            region: request.pointee.region, offset: request.pointee.offset, byteCount: byteCount,
            session: request.pointee.session)
        guard address != 0, blocks != 0 else { return unsafe submitOther(request, slot) }
        let prp2 = unsafe PhysicalRegionPages.second(
            address: address, byteCount: byteCount, list: queue.list(slot),
            listIOVA: queue.listIOVA(slot))
        unsafe queue.push(slot, request, prp1: address, prp2: prp2)
        submitted = submitted &+ 1
        return .accepted
    }

    /// Pushes a ring's Read or Write of bytes that are contiguous for the device, without counting
    /// it.
    @inline(__always)
    mutating func push(
        _ slot: UInt32, _ words: DirectCommand, _ address: UInt64, _ byteCount: UInt64
    ) {
        let prp2 = unsafe PhysicalRegionPages.second(
            address: address, byteCount: byteCount, list: queue.list(slot),
            listIOVA: queue.listIOVA(slot))
        queue.push(slot, words, prp1: address, prp2: prp2)
    }

    /// Read, Write and Compare.
    @inline(__always)
    static func movesData(_ operation: UInt8) -> Bool {
        operation == IOOperation.read || operation == IOOperation.write
            || operation == IOOperation.compare
    }

    /// Pushes Read, Write or Compare of bytes that are contiguous for the device.
    @inline(__always)
    mutating func pushData(
        _ slot: UInt32, _ command: CommandSlot, address: UInt64, byteCount: UInt64
    ) {
        let prp2 = unsafe PhysicalRegionPages.second(
            address: address, byteCount: byteCount, list: queue.list(slot),
            listIOVA: queue.listIOVA(slot))
        queue.push(
            slot, command, prp1: address, prp2: prp2, dword10And11: command.lba,
            dword12And13: command.dword12)
    }

    /// Tells the device about everything submitted since the last call.
    public mutating func ring() { queue.ring() }

    // MARK: Up

    /// Takes answers of the device until none is left or `capacity` completions are filled. Returns
    /// their number.
    ///
    /// Deliver them, then call `retire`. When the device broke the rules, `fault` says how, and no
    /// more answers are taken.
    public mutating func reap(
        into completions: UnsafeMutablePointer<IOCompletion>, capacity: Int
    ) -> Int {
        var count = 0
        while count < capacity, let answer = queue.next() {
            let who = unsafe nv_load64(queue.slots + (Int(answer.slot) &* 64 &+ 32))
            if unsafe end(answer, who, completions + count) { count = count &+ 1 }
        }
        completed = completed &+ UInt64(truncatingIfNeeded: count)
        return count
    }

    /// Writes down that a command was answered; `who` is the slot's word that says whose it was.
    /// True when its request is complete, and `completion` filled.
    @inline(__always)
    mutating func end(
        _ answer: QueuePair.Answer, _ who: UInt64,
        _ completion: UnsafeMutablePointer<IOCompletion>
    ) -> Bool {
        guard UInt8(truncatingIfNeeded: who >> 56) == CommandSlot.noRequest else {
            return unsafe childEnded(answer, completion)
        }
        let slot = unsafe queue.slots + Int(answer.slot) &* 64
        let ring = UInt8(truncatingIfNeeded: who >> 48)
        queue.setCompleting(answer, position: takePosition(ring))
        let out = UnsafeMutableRawPointer(completion)
        unsafe nv_store64(out, nv_load64(slot + 24))
        unsafe nv_store64(out + 8, who & 0xFFFF_FFFF | UInt64(answer.result) << 32)
        unsafe nv_store64(out + 16, nv_load64(slot + 40))
        unsafe nv_store32(out + 24, UInt32(answer.status) | UInt32(ring) << 16)
        unsafe nv_store32(out + 28, queue.age(answer.slot))
        if answer.status != 0 { failed = failed &+ 1 }
        return true
    }

    /// Where the next completion of a ring goes; it is taken.
    @inline(__always)
    mutating func takePosition(_ ring: UInt8) -> UInt32 {
        let position = unsafe completionTails[Int(ring)]
        unsafe completionTails[Int(ring)] = position &+ 1
        return position
    }

    static func fill(
        _ completion: UnsafeMutablePointer<IOCompletion>, _ command: CommandSlot, _ status: UInt16
    ) {
        unsafe completion.pointee.token = command.token
        unsafe completion.pointee.session = command.session
        unsafe completion.pointee.firstPage = command.firstPage
        unsafe completion.pointee.pageCount = command.pageCount
        unsafe completion.pointee.status = status
        unsafe completion.pointee.ring = UInt16(command.ring)
        unsafe completion.pointee.result = 0
        unsafe completion.pointee.operation = command.opcode
        unsafe completion.pointee.flags = command.flags
    }

    /// Frees what the delivered completions held, and goes on with requests of several commands.
    /// Rings the doorbells.
    public mutating func retire() {
        queue.retire()
        if requests.hasWork {
            requests.retire()
            pumpHalf()
            queue.ring()
        }
    }

    @inline(__always)
    mutating func countSubmitted(_ count: UInt64 = 1) { submitted = submitted &+ count }
    @inline(__always)
    mutating func countCompleted(_ count: UInt64) { completed = completed &+ count }
    mutating func countFailed() { failed = failed &+ 1 }
    mutating func countMemoryFaults() { memoryFaults = memoryFaults &+ 1 }

    // MARK: State

    /// Whether the device has broken the rules of the queues.
    public var fault: QueueFault { queue.fault }
    /// The upper half of the completion entry at fault.
    public var faultyEntry: UInt64 { queue.faultyEntry }
    /// Whether an answer waits.
    public var hasAnswer: Bool {
        // A call would pass the engine by value, all of it.
        @inline(__always) get { queue.hasAnswer() }
    }
    /// Commands in flight.
    public var inFlight: Int { Int(queue.inFlight) }
    /// Commands that may be in flight at one time.
    public var capacity: Int { Int(queue.slotCount) }
    /// Whether a doorbell must be written by message.
    public var hasPendingDoorbells: Bool {
        @inline(__always) get { queue.pendingDoorbells != 0 }
    }
    /// Writes of doorbell registers and of shadow doorbells so far.
    public var doorbellCounts: (register: UInt64, shadow: UInt64) {
        (queue.doorbellWrites, queue.shadowWrites)
    }
    /// The owner's coarse clock: each command is stamped with the value at its submission.
    public var tick: UInt32 {
        get { queue.tick }
        set { queue.tick = newValue }
    }
    /// Whether this process met a page of a region that is gone: a hole was punched into memory
    /// that cannot get it back. The session that registered it is to be ended.
    public func hasFaulted(region: UInt32) -> Bool { regions.hasFaulted(region) }
    /// Whether anything is unfinished.
    public var isIdle: Bool { queue.inFlight == 0 && !requests.hasWork }
}
