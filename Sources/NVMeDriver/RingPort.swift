// SPDX-License-Identifier: Apache-2.0
// The worker's end of a ring (Proto/ring.md): takes entries, posts completions.
//
// Everything in the ring's memory is the client's to change at any moment. So every word is read
// once, checked, and then used; positions are kept here and the memory only gets copies; and what
// no correct client does sets `fault`, after which the memory is not looked at again. The worst
// that any content can do is to end this ring's session.

internal import CLinux
internal import CMemory
internal import CRing

/// What no correct client does.
public enum RingFault: UInt8, Sendable, CustomStringConvertible {
    /// Nothing is wrong.
    case none
    /// `submission_tail` is further ahead than the ring is long, or ran backwards.
    case submissionTail
    /// `completion_head` ran backwards or past `completion_tail`.
    case completionHead
    /// An opcode that is not on the list.
    case opcode
    /// A flag, or a reserved byte, that has to be 0.
    case reserved
    /// A region that the session has not registered, or may not be written.
    case region
    /// Bytes that do not lie within their region.
    case range
    /// A segment list that does not add up.
    case segments
    /// Memory of the ring, or of a region, was taken away.
    case memory

    /// The fault in words, for the client's author.
    public var description: String {
        switch self {
        case .none: "none"
        case .submissionTail:
            "submission_tail ran backwards or more than submission_entry_count ahead"
        case .completionHead: "completion_head ran backwards or past completion_tail"
        case .opcode: "an entry's opcode is not one of 00h, 01h, 02h, 05h, 08h, 09h, 0Ch"
        case .reserved: "an entry has a flag or a reserved byte set"
        case .region: "an entry names a region that is not registered, or is read-only"
        case .range: "an entry's bytes do not lie within its region"
        case .segments: "a segment list does not add up to the entry's blocks"
        case .memory: "memory of the ring or of a region was punched away"
        }
    }
}

/// What a namespace and a session allow: the control thread's copy for the data thread.
public struct RingRules: Sendable, Equatable {
    /// The namespace id.
    public var namespaceID: UInt32
    /// Bytes of a block as a power of two.
    public var blockShift: UInt8
    /// Blocks of the namespace; 0 when it is gone.
    public var blockCount: UInt64
    /// The most blocks of one command with data.
    public var maxTransferBlocks: UInt32
    /// The most blocks of one request with data.
    public var maxRequestBlocks: UInt32
    /// The most blocks of one Write Zeroes; 0: not supported.
    public var maxWriteZeroesBlocks: UInt32
    /// The most blocks of one Deallocate; 0: not supported.
    public var maxDeallocateBlocks: UInt32
    /// The most blocks of one Verify; 0: not supported.
    public var maxVerifyBlocks: UInt32
    /// Compare is supported.
    public var canCompare: Bool
    /// Flush has to go to the device.
    public var hasVolatileWriteCache: Bool
    /// Write Zeroes may ask for deallocation.
    public var writeZeroesMayDeallocate: Bool
    /// The session may write, and the namespace is not protected.
    public var isWritable: Bool

    /// The rules of a namespace that a session has open.
    public init(_ namespace: NamespaceInfo?, isWritable: Bool, maxRequestByteCount: UInt64) {
        let shift = namespace?.blockShift ?? 9
        namespaceID = namespace?.namespaceID ?? 0
        blockShift = shift
        blockCount = namespace?.blockCount ?? 0
        maxTransferBlocks = namespace?.maxTransferBlocks ?? 1
        maxRequestBlocks = UInt32(clamping: maxRequestByteCount >> UInt64(shift))
        maxWriteZeroesBlocks = namespace?.maxWriteZeroesBlocks ?? 0
        maxDeallocateBlocks = namespace?.maxDeallocateBlocks ?? 0
        maxVerifyBlocks = namespace?.maxVerifyBlocks ?? 0
        canCompare = namespace?.canCompare ?? false
        hasVolatileWriteCache = namespace?.hasVolatileWriteCache ?? false
        writeZeroesMayDeallocate = namespace?.writeZeroesMayDeallocate ?? false
        self.isWritable = isWritable && namespace?.isWriteProtected == false
    }
}

/// Regions of a session as ring entries name them: 64 words, each 0 or a region of the driver's
/// table. Written by the control thread, read by data threads.
@safe
public struct SessionRegions: @unchecked Sendable {
    /// A bit beside the region: the device may not write it.
    static let readOnly: UInt32 = 1 << 31
    let words: UnsafeMutablePointer<UInt32>

    /// An empty table.
    public init() {
        unsafe words = .allocate(capacity: Int(NV_RING_REGIONS))
        unsafe words.initialize(repeating: 0, count: Int(NV_RING_REGIONS))
    }

    /// Lets entries name a region; ids that cannot be named are left out.
    public func set(_ id: UInt64, driverRegion: UInt32, isReadOnly: Bool) {
        guard id < UInt64(NV_RING_REGIONS) else { return }
        unsafe nv_store_release32(
            words + Int(id), driverRegion | (isReadOnly ? Self.readOnly : 0))
    }

    /// No entry can name the region any more.
    public func remove(_ id: UInt64) {
        guard id < UInt64(NV_RING_REGIONS) else { return }
        unsafe nv_store_release32(words + Int(id), 0)
    }

    /// No ring may use the table any more.
    public func deallocate() { unsafe words.deallocate() }

    /// The region of the driver's table, or 0.
    @inline(__always)
    func driverRegion(_ id: UInt32, isWritten: Bool) -> UInt32 {
        guard id < UInt32(NV_RING_REGIONS) else { return 0 }
        let word = unsafe nv_load32(words + Int(id))
        return word & Self.readOnly == 0 ? word : isWritten ? 0 : word & ~Self.readOnly
    }
}

/// Where the indexes of a ring stand when it is taken over: a new one starts at 0.
struct RingPositions {
    /// Entries taken.
    var submissionHead: UInt32 = 0
    /// Completions published.
    var completionTail: UInt32 = 0
    /// Completions that the client is known to have taken.
    var completionHead: UInt32 = 0
    /// Requests with the engine.
    var inFlight: UInt32 = 0
}

/// One open ring.
@safe
struct RingPort: ~Copyable {
    // What each round touches, first.
    let base: UnsafeMutableRawPointer
    private let submissions: UnsafeMutableRawPointer
    private let completions: UnsafeMutableRawPointer
    private let submissionEntries: UInt32
    private let completionEntries: UInt32
    /// Entries taken.
    private(set) var submissionHead: UInt32
    /// Where a successor reads what was taken and completed.
    var log: TwinPositions
    /// The highest `submission_tail` that was believed.
    private var knownTail: UInt32
    /// Where the engine has how many completions there are, those written since the last
    /// publication included.
    private let tail: UnsafeMutablePointer<UInt32>
    /// Completions published.
    var publishedTail: UInt32
    /// The highest `completion_head` that was believed.
    private var acknowledged: UInt32
    /// At adoption: what is with the engine, counted from there.
    var adoptedInFlight: UInt32
    let session: UInt32
    /// Its index in the data queue and 1: what commands carry.
    let number: UInt16
    /// Entries are not taken: the session waits, or the ring is being closed.
    var isHeld = false
    private(set) var fault: RingFault = .none
    let regions: SessionRegions
    var rules: RingRules
    /// The worker's end of the `wake` socket; owned by the control thread.
    let wakeFD: CInt
    /// Room for the segment list of one entry; all rings of a queue share it.
    let segments: UnsafeMutablePointer<DataSegment>
    /// What the session may do in a second.
    let gate: IOGate
    private let isLimited: Bool
    /// Bytes of the request that was submitted last; nil: the last entry was none.
    private var lastByteCount: UInt64?
    private(set) var wakes: UInt64 = 0
    /// Where it is counted.
    let statistics: StatisticsBlock
    /// The client was asked for a kick.
    private var wantsKick = false
    /// The first entry waits for the limits, and was counted.
    private var isWaiting = false

    /// A ring over memory that `RingMemory` made. Everything outlives it.
    init(
        base: UnsafeMutableRawPointer, shape: RingShape, session: UInt32, number: UInt16,
        regions: SessionRegions, rules: RingRules, wakeFD: CInt, gate: IOGate,
        segments: UnsafeMutablePointer<DataSegment>, tail: UnsafeMutablePointer<UInt32>,
        log: TwinPositions, positions: RingPositions = RingPositions(),
        statistics: StatisticsBlock = .nowhere
    ) {
        self.statistics = statistics
        self.log = log
        adoptedInFlight = positions.inFlight
        unsafe self.tail = tail
        unsafe self.segments = segments
        self.gate = gate
        isLimited = gate.isLimited
        unsafe self.base = base
        unsafe submissions = base + shape.submissionOffset
        unsafe completions = base + shape.completionOffset
        submissionEntries = shape.submissionEntries
        completionEntries = shape.completionEntries
        submissionHead = positions.submissionHead
        knownTail = positions.submissionHead
        publishedTail = positions.completionTail
        acknowledged = positions.completionHead
        self.session = session
        self.number = number
        self.regions = regions
        self.rules = rules
        self.wakeFD = wakeFD
    }

    /// Completions that there are, written or published.
    var completionTail: UInt32 {
        @inline(__always) get { unsafe tail.pointee }
        @inline(__always) nonmutating set { unsafe tail.pointee = newValue }
    }

    /// Requests with the engine, between two rounds: each that was taken has one completion.
    var inFlight: UInt32 { submissionHead &- completionTail }

    // MARK: Down

    /// Entries that may be taken now: published, with room for their completions.
    @inline(__always)
    mutating func takeable() -> UInt32 {
        let tail = unsafe nv_load_acquire32(base + Int(NV_RING_OFFSET_SUBMISSION_TAIL))
        let available = tail &- submissionHead
        guard available != 0 else {
            return knownTail == submissionHead ? 0 : refuse(.submissionTail)
        }
        guard fault == .none, !isHeld else { return 0 }
        guard available <= submissionEntries, available >= knownTail &- submissionHead else {
            return refuse(.submissionTail)
        }
        knownTail = tail
        // Taken and not acknowledged: with the engine, or a completion that the client has not
        // read.
        let outstanding = submissionHead &- acknowledged
        let room = completionEntries &- outstanding
        if room >= available { return available }
        return learnRoom(available)
    }

    /// The completions that the client has taken make room.
    @inline(never)
    private mutating func learnRoom(_ available: UInt32) -> UInt32 {
        let head = unsafe nv_load_acquire32(base + Int(NV_RING_OFFSET_COMPLETION_HEAD))
        guard head &- acknowledged <= publishedTail &- acknowledged else {
            return refuse(.completionHead)
        }
        acknowledged = head
        return min(available, completionEntries &- (submissionHead &- acknowledged))
    }

    private mutating func refuse(_ fault: RingFault) -> UInt32 {
        if self.fault == .none { self.fault = fault }
        return 0
    }

    /// Takes at most `limit` of the entries that `takeable` counted. Returns how many: fewer when
    /// the engine is full, the session has had what it may, or the client is at fault.
    @inline(__always)
    mutating func take(
        _ limit: UInt32, _ engine: UnsafeMutablePointer<Engine>, nowNanoseconds: UInt64
    ) -> UInt32 {
        guard isLimited else { return unsafe takeSome(limit, engine) }
        return unsafe takeLimited(limit, engine, nowNanoseconds)
    }

    /// The same of a session with limits, entry by entry.
    @inline(never)
    private mutating func takeLimited(
        _ limit: UInt32, _ engine: UnsafeMutablePointer<Engine>, _ nowNanoseconds: UInt64
    ) -> UInt32 {
        var taken: UInt32 = 0
        while taken < limit, mayTake(nowNanoseconds) {
            lastByteCount = nil
            guard unsafe takeSome(1, engine) == 1 else { break }
            taken = taken &+ 1
            guard let byteCount = lastByteCount else { continue }
            gate.charge(nowNanoseconds: nowNanoseconds, byteCount: byteCount)
        }
        return taken
    }

    /// Takes entries. What nearly all of them are is done here, without anything going through
    /// memory but the words of the slot and of the queue entry; and counted for all at the end.
    @inline(__always)
    private mutating func takeSome(
        _ limit: UInt32, _ engine: UnsafeMutablePointer<Engine>
    ) -> UInt32 {
        let direct = DirectRules(rules, session: session, ring: number)
        var taken: UInt32 = 0
        var others: UInt32 = 0
        var readBlocks: UInt64 = 0
        var writtenBlocks: UInt64 = 0
        while taken < limit {
            let position = submissionHead &+ taken
            let index = position & (submissionEntries &- 1)
            let entry = unsafe submissions + Int(index) &* 64
            // Each word once; nothing of the entry is read again.
            let head = unsafe nv_load64(entry)
            let lba = unsafe nv_load64(entry + Int(NV_RING_ENTRY_LBA))
            let tag = unsafe nv_load64(entry + Int(NV_RING_ENTRY_TAG))
            let place = unsafe nv_load64(entry + Int(NV_RING_ENTRY_REGION))
            let offset = unsafe nv_load64(entry + Int(NV_RING_ENTRY_OFFSET))
            let reserved =
                unsafe nv_load64(entry + 40) | nv_load64(entry + 48) | nv_load64(entry + 56)
            let blocks = head >> 32
            // Read, or Write where that is allowed, without flags, in one piece of a region, of
            // blocks that exist and that fit into one command.
            if UInt32(truncatingIfNeeded: head) &- direct.firstOperation < direct.operationCount,
                place < UInt64(NV_RING_REGIONS), reserved == 0, offset & 3 == 0,
                blocks &- 1 < direct.maxBlockCount, lba < direct.diskBlockCount,
                blocks <= direct.diskBlockCount &- lba,
                let address = unsafe engine.pointee.regions.registeredAddress(
                    regions.words[Int(truncatingIfNeeded: place)], offset: offset,
                    byteCount: blocks &<< direct.blockShift, session: session)
            {
                guard let slot = unsafe engine.pointee.queue.nextFreeSlot() else { break }
                let words = DirectCommand(
                    lba: lba, blocksAndPosition: blocks | UInt64(position) << 32, offset: offset,
                    token: tag, owner: direct.owner | address.region << 32,
                    pagesAndOpcode: direct.flags | head << 48, namespaceID: direct.namespaceID)
                unsafe engine.pointee.push(slot, words, address.start, blocks &<< direct.blockShift)
                if UInt8(truncatingIfNeeded: head) == IOOperation.read {
                    readBlocks = readBlocks &+ blocks
                } else {
                    writtenBlocks = writtenBlocks &+ blocks
                }
            } else {
                others = others &+ 1
                let copy = Entry(
                    head: head, lba: lba, tag: tag, place: place, offset: offset,
                    reserved: reserved, position: position)
                guard unsafe takeOther(copy, engine) else {
                    others = others &- 1
                    break
                }
            }
            taken = taken &+ 1
        }
        submissionHead = submissionHead &+ taken
        CrashPoint.hit(.ringTaken)
        unsafe nv_store_release32(base + Int(NV_RING_OFFSET_SUBMISSION_HEAD), submissionHead)
        let count = taken &- others
        guard count > 0 else { return taken }
        unsafe engine.pointee.countSubmitted(UInt64(count))
        let (read, written) = (
            readBlocks &<< direct.blockShift, writtenBlocks &<< direct.blockShift
        )
        statistics.submitted(UInt64(count), bytesRead: read, bytesWritten: written)
        if isLimited { lastByteCount = read &+ written }
        return taken
    }

    /// Whether the session's limits allow another request.
    @inline(never)
    private mutating func mayTake(_ nowNanoseconds: UInt64) -> Bool {
        let isOpen = gate.isOpen(nowNanoseconds: nowNanoseconds)
        if !isOpen, !isWaiting { statistics.add(.limited) }
        isWaiting = !isOpen
        return isOpen
    }

    // MARK: Up

    /// Where the next completion goes; it is taken.
    @inline(__always)
    private func takePosition() -> UInt32 {
        let position = completionTail
        completionTail = position &+ 1
        return position
    }

    /// Writes down that a request of one command was answered, and then its completion, which goes
    /// from the slot to the ring. True when it succeeded.
    @inline(__always)
    mutating func complete(
        _ answer: QueuePair.Answer, _ engine: UnsafeMutablePointer<Engine>
    ) -> Bool {
        let position = takePosition()
        unsafe engine.pointee.queue.setCompleting(answer, position: position)
        let slot = unsafe engine.pointee.queue.slots + Int(answer.slot) &* 64
        let what = unsafe nv_load64(slot + 40) >> 48
        let age = unsafe engine.pointee.queue.age(answer.slot)
        let token = unsafe nv_load64(slot + 24)
        // Bit 8 is the lowest of the flags: bounced.
        let kind = (what & 0x1FF) | UInt64(answer.status) << 16
        guard kind == UInt64(IOOperation.read) || kind == UInt64(IOOperation.write) else {
            completeOther(
                token, UInt8(truncatingIfNeeded: what), answer.status, answer.result, age,
                isBounced: what & 0x100 != 0, at: position)
            return answer.status == 0
        }
        write(at: position, tag: token, rest: UInt64(answer.result) << 32)
        statistics.count(isRead: kind == UInt64(IOOperation.read), age: age)
        return true
    }

    /// Writes the completion of a request that the engine has ended just now: it has taken the
    /// position.
    mutating func post(_ completion: UnsafePointer<IOCompletion>) {
        unsafe completeOther(
            completion.pointee.token, completion.pointee.operation, completion.pointee.status,
            completion.pointee.result, completion.pointee.age,
            isBounced: completion.pointee.isBounced, at: completionTail &- 1)
    }

    @inline(never)
    private mutating func completeOther(
        _ tag: UInt64, _ operation: UInt8, _ status: UInt16, _ result: UInt32, _ age: UInt32,
        isBounced: Bool, at position: UInt32
    ) {
        let code = status == 0 ? 0 : RingCode.of(status)
        write(at: position, tag: tag, status: status, code: code, result: result)
        statistics.completed(operation: operation, age: age, failed: status != 0)
        if isBounced { statistics.add(.bounced) }
    }

    func write(at position: UInt32, tag: UInt64, status: UInt16, code: UInt16, result: UInt32) {
        write(
            at: position, tag: tag,
            rest: UInt64(status) | UInt64(code) << 16 | UInt64(result) << 32)
    }

    @inline(__always)
    private func write(at position: UInt32, tag: UInt64, rest: UInt64) {
        let entry = unsafe completions + Int(position & (completionEntries &- 1)) &* 16
        unsafe nv_store64(entry, tag)
        unsafe nv_store64(entry + 8, rest)
        CrashPoint.hit(.ringEntryPosted)
    }

    /// Makes what was written visible, and wakes the client when it sleeps.
    @inline(__always)
    mutating func publish() {
        guard publishedTail != completionTail else { return }
        publishedTail = completionTail
        // Both at once: what was taken up to here is in a slot, in a record, or completed.
        log.write(head: submissionHead, tail: completionTail)
        CrashPoint.hit(.ringPositionsLogged)
        unsafe nv_store_release32(base + Int(NV_RING_OFFSET_COMPLETION_TAIL), completionTail)
        CrashPoint.hit(.ringTailPublished)
        // The tail is visible before `need_wake` is read; the client writes `need_wake` and then
        // looks at the tail, so that one of the two sees the other.
        nv_full_fence()
        if unsafe nv_load32(base + Int(NV_RING_OFFSET_COMPLETION_NEED_WAKE)) != 0 { wake() }
    }

    /// Wakes the client once for each time that it asked.
    @inline(never)
    mutating func wake() {
        guard unsafe nv_exchange32(base + Int(NV_RING_OFFSET_COMPLETION_NEED_WAKE), 0) != 0 else {
            return
        }
        wakes = wakes &+ 1
        statistics.add(.wakes)
        // When the socket is full, the client has wakes to read.
        _ = nv_send_wake(wakeFD)
        CrashPoint.hit(.ringWoken)
    }

    // MARK: Sleep

    /// Asks the client for a kick with its next entry.
    mutating func askForKick() {
        wantsKick = true
        unsafe nv_store_seq32(base + Int(NV_RING_OFFSET_SUBMISSION_NEED_WAKE), 1)
    }

    /// The worker looks by itself.
    mutating func withdraw() {
        // Whoever took it back has kicked.
        if wantsKick, unsafe nv_load32(base + Int(NV_RING_OFFSET_SUBMISSION_NEED_WAKE)) == 0 {
            statistics.add(.kicks)
        }
        wantsKick = false
        unsafe nv_store32(base + Int(NV_RING_OFFSET_SUBMISSION_NEED_WAKE), 0)
    }

    /// Tells the client that nothing will happen in the ring any more.
    mutating func end() {
        unsafe nv_store_seq32(
            base + Int(NV_RING_OFFSET_STATE), UInt32(NV_RING_STATE_ENDED))
        wake()
    }

    mutating func setFault(_ fault: RingFault) { _ = refuse(fault) }

    /// A request is with the engine that `takeSome` has not counted.
    mutating func countStarted(_ request: IORequest) {
        let byteCount = UInt64(request.blockCount) &<< UInt64(request.blockShift)
        statistics.submitted(operation: request.operation, byteCount: byteCount)
        lastByteCount = byteCount
    }

    /// When the session may do more; nil: now.
    func nextAdmission(nowNanoseconds: UInt64) -> UInt64? {
        guard isLimited, !gate.isOpen(nowNanoseconds: nowNanoseconds) else { return nil }
        return gate.nextAdmission(nowNanoseconds: nowNanoseconds)
    }
}

/// What the entries of one round are held to, and what their commands have in common.
private struct DirectRules {
    /// Operations that are taken directly, and may have no flag: Read, or Write and Read.
    let firstOperation: UInt32
    let operationCount: UInt32
    /// The most blocks of a request that is one command.
    let maxBlockCount: UInt64
    let diskBlockCount: UInt64
    let blockShift: UInt64
    let owner: UInt64
    let flags: UInt64
    let namespaceID: UInt64

    @inline(__always)
    init(_ rules: borrowing RingRules, session: UInt32, ring: UInt16) {
        // Write is 1 and Read is 2.
        firstOperation = UInt32(rules.isWritable ? IOOperation.write : IOOperation.read)
        operationCount = rules.isWritable ? 2 : 1
        maxBlockCount = UInt64(min(rules.maxRequestBlocks, rules.maxTransferBlocks, 0x1_0000))
        diskBlockCount = rules.blockCount
        blockShift = UInt64(rules.blockShift)
        owner = CommandSlot.owner(session: session, ring: ring)
        flags = CommandSlot.flags(blockShift: rules.blockShift)
        namespaceID = UInt64(rules.namespaceID)
    }
}

extension RingPort {
    /// An entry that was copied.
    struct Entry {
        var head: UInt64
        var lba: UInt64
        var tag: UInt64
        var place: UInt64
        var offset: UInt64
        var reserved: UInt64
        var position: UInt32

        var operation: UInt8 { UInt8(truncatingIfNeeded: head) }
        var flags: UInt8 { UInt8(truncatingIfNeeded: head >> 8) }
        var blockCount: UInt32 { UInt32(truncatingIfNeeded: head >> 32) }
        var region: UInt32 { UInt32(truncatingIfNeeded: place) }
        var segmentCount: UInt32 { UInt32(truncatingIfNeeded: place >> 32) }
    }
}
