// SPDX-License-Identifier: Apache-2.0
// One I/O queue pair with the rings that it serves: entries in, commands out, completions back.
//
// Failure model. A ring's content is a client's (RingPort), a queue's is the device's (QueuePair);
// both end in a notice to the control thread, which ends a session or takes the device out of
// service. Order on the way up: slot COMPLETING, entry, ring tail, {cqHead, phase}, slot FREE,
// doorbell (DESIGN, section 5).

internal import CLinux
internal import CMemory

/// What a data queue has to tell the control thread.
public struct DataNotices: OptionSet, Sendable {
    /// The bits.
    public let rawValue: UInt32
    /// Wraps bits.
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// A ring's client has broken the protocol.
    public static let ringFault = DataNotices(rawValue: 1)
    /// The device has broken the rules of the queue.
    public static let queueFault = DataNotices(rawValue: 2)
    /// A command has not been answered in time.
    public static let overdue = DataNotices(rawValue: 4)
    /// Requests have ended, and the control thread wanted to know.
    public static let progress = DataNotices(rawValue: 8)
    /// A doorbell could not be written.
    public static let doorbellFailed = DataNotices(rawValue: 16)
    /// The first command since the start has been completed.
    public static let fruit = DataNotices(rawValue: 32)
    /// A page of somebody's registered memory was found to be gone.
    public static let memoryFault = DataNotices(rawValue: 64)
}

/// A queue pair and its rings. One owner at a time: the data thread, or the control thread inside
/// `DataThread.exclusive`.
@safe
struct DataQueue: ~Copyable {
    /// Rings that one queue pair serves.
    static let ringCapacity = 64
    /// Entries taken from one ring before the others have their turn, and before the device and the
    /// client hear of them: few enough that a client with 32 requests prepares some while others
    /// are worked on, many enough that a doorbell and a fence are shared by many.
    static let share: UInt32 = 16
    /// Answers taken from the queue before what they complete is published.
    static let reapCapacity = 64

    let engine: UnsafeMutablePointer<Engine>
    let rings: UnsafeMutablePointer<RingPort>
    let segments: UnsafeMutablePointer<DataSegment>
    /// A bit for each ring that is open.
    var open: UInt64 = 0
    /// A bit for each ring with completions that are not published.
    private var touched: UInt64 = 0
    /// A bit for each ring whose fault the control thread was told.
    private var told: UInt64 = 0
    /// The ring whose turn is first.
    private var turn: UInt64 = 0
    /// The clock has been read in this round.
    private var hasTick = false
    /// CLOCK_MONOTONIC of this round, once it was read.
    private var nowNanoseconds: UInt64 = 0
    /// When a ring that waits for its limits may go on; nil: none waits.
    private(set) var nextAdmission: UInt64?
    private(set) var notices: DataNotices = []
    /// The control thread wants to hear of progress.
    var wantsProgress = false
    private var isFruitful = false
    /// The worker's generation, for the mark that says that it was worth it.
    var generation: UInt32 = 0
    /// Memory faults of the engine that were told.
    private var seenMemoryFaults: UInt64 = 0
    /// Where the queue pair itself is counted.
    var statistics: StatisticsBlock
    /// Where those count who have no block.
    let unread = StatisticsBlock.allocated()
    /// Where those write their positions whom no successor takes over.
    private let unlogged: UnsafeMutableRawPointer
    /// Nothing is taken from any ring.
    var isFrozen = false
    /// Commands that were submitted before this tick and are not answered are overdue.
    private var lastLook: UInt32 = 0
    private let timeoutTicks: UInt32

    init(engine: UnsafeMutablePointer<Engine>, timeoutMilliseconds: UInt32) {
        unsafe self.engine = engine
        timeoutTicks = Tick.count(milliseconds: timeoutMilliseconds)
        statistics = unread
        unsafe rings = .allocate(capacity: Self.ringCapacity)
        unsafe unlogged = .allocate(byteCount: TwinPositions.byteCount, alignment: 64)
        unsafe unlogged.initializeMemory(
            as: UInt8.self, repeating: 0, count: TwinPositions.byteCount)
        unsafe segments = .allocate(capacity: Engine.maxSegments)
        unsafe segments.initialize(
            repeating: DataSegment(region: 0, offset: 0, byteCount: 0),
            count: Engine.maxSegments)
    }

    deinit {
        unsafe forEachRing { unsafe $0.deinitialize(count: 1) }
        unsafe rings.deallocate()
        unsafe unlogged.deallocate()
        unsafe segments.deallocate()
        unread.deallocate()
    }

    // MARK: Down

    /// Takes entries of every ring in turn and tells the device. True when there were any.
    ///
    /// When the device has less room than all want, the ring that got less than its share is the
    /// first next time; the first itself waits for all others then, so that neither much nor little
    /// room favours anyone.
    @inline(__always)
    mutating func take() -> Bool {
        var worked = false
        var isCut = false
        // A rotation of the set: the ring whose turn it is becomes bit 0.
        var left = isFrozen ? 0 : open &>> turn | open &<< (64 &- turn)
        let first = turn
        while left != 0 {
            let index = Int((UInt64(left.trailingZeroBitCount) &+ first) & 63)
            left &= left &- 1
            let ready = unsafe rings[index].takeable()
            if ready > 0 {
                readClock()
                let asked = min(ready, Self.share)
                let taken = unsafe rings[index].take(
                    asked, engine, nowNanoseconds: nowNanoseconds)
                if taken < asked, !isCut, worked || taken > 0 {
                    isCut = true
                    turn = UInt64(truncatingIfNeeded: index &+ (worked ? 0 : 1)) & 63
                }
                worked = worked || taken > 0
                // Entries that the device does not see are answered at once.
                touched |= 1 &<< UInt64(truncatingIfNeeded: index)
            }
            if unsafe rings[index].fault != .none { noteFault(index) }
        }
        unsafe engine.pointee.ring()
        return worked
    }

    /// Tells the control thread about a ring's fault, once: the ring stays until its last request
    /// has ended.
    @inline(never)
    private mutating func noteFault(_ index: Int) {
        let bit: UInt64 = 1 &<< UInt64(truncatingIfNeeded: index)
        guard told & bit == 0 else { return }
        told |= bit
        notices.insert(.ringFault)
    }

    @inline(__always)
    private mutating func readClock() {
        guard !hasTick else { return }
        hasTick = true
        nowNanoseconds = nv_monotonic_ns()
        unsafe engine.pointee.tick = Tick.of(nanoseconds: nowNanoseconds)
    }

    // MARK: Up

    /// Takes answers of the device, posts and publishes them. True when there were any.
    @inline(__always)
    mutating func reap() -> Bool {
        let isAnswered = unsafe engine.pointee.hasAnswer
        if isAnswered {
            readClock()
            if !isFruitful { noteFruit() }
            post()
        }
        publish()
        if isAnswered {
            // Also when no request is complete: commands of larger ones have made room for more.
            unsafe engine.pointee.retire()
            if wantsProgress { notices.insert(.progress) }
        }
        if unsafe engine.pointee.fault != .none { notices.insert(.queueFault) }
        if unsafe engine.pointee.memoryFaults != seenMemoryFaults { noteMemoryFault() }
        hasTick = false
        return isAnswered
    }

    @inline(never)
    private mutating func noteMemoryFault() {
        seenMemoryFaults = unsafe engine.pointee.memoryFaults
        notices.insert(.memoryFault)
    }

    @inline(never)
    private mutating func noteFruit() {
        isFruitful = true
        // The control thread may die before it hears of it.
        unsafe engine.pointee.queue.publishFruit(generation: generation)
        notices.insert(.fruit)
    }

    /// Takes answers, and posts what they complete.
    @inline(__always)
    private mutating func post() {
        let open = open
        var touched = touched
        var count = 0
        var completed: UInt64 = 0
        while count < Self.reapCapacity, let answer = unsafe engine.pointee.queue.next() {
            count = count &+ 1
            let who = unsafe nv_load64(engine.pointee.queue.slots + (Int(answer.slot) &* 64 &+ 32))
            // The ring's number, behind which is what tells a request of one command.
            let index = who >> 48 &- (UInt64(CommandSlot.noRequest) << 8 | 1)
            let bit: UInt64 = 1 &<< index
            guard index < UInt64(Self.ringCapacity), open & bit != 0 else {
                noteOther(answer, who)
                continue
            }
            touched |= bit
            completed = completed &+ 1
            let port = unsafe rings + Int(truncatingIfNeeded: index)
            let isDone = unsafe port.pointee.complete(answer, engine)
            if !isDone { unsafe engine.pointee.countFailed() }
        }
        self.touched |= touched
        unsafe engine.pointee.countCompleted(completed)
    }

    /// The answer to a command that is part of a larger request, or of nobody any more.
    @inline(never)
    private mutating func noteOther(_ answer: QueuePair.Answer, _ who: UInt64) {
        var completion = IOCompletion()
        guard unsafe engine.pointee.end(answer, who, &completion) else { return }
        let index = Int(completion.ring) - 1
        unsafe engine.pointee.countCompleted(1)
        guard let ring = unsafe ring(index) else { return }
        unsafe withUnsafePointer(to: completion) { unsafe ring.pointee.post($0) }
        touched |= 1 &<< UInt64(truncatingIfNeeded: index)
    }

    @inline(__always)
    private mutating func publish() {
        while touched != 0 {
            let index = touched.trailingZeroBitCount
            touched &= touched &- 1
            unsafe rings[index].publish()
        }
    }

    // MARK: Sleep

    /// Asks every client for a kick, and looks once more. False when there is something to do.
    @inline(never)
    mutating func prepareToSleep() -> Bool {
        unsafe forEachRing { unsafe $0.pointee.askForKick() }
        nv_full_fence()
        nextAdmission = nil
        var isReady = unsafe engine.pointee.hasAnswer
        let hasRoom = unsafe engine.pointee.queue.nextFreeSlot() != nil
        if hasRoom, !isFrozen {
            let now = nv_monotonic_ns()
            var next = UInt64.max
            unsafe forEachRing { ring in
                guard unsafe ring.pointee.takeable() > 0 else { return }
                if let later = unsafe ring.pointee.nextAdmission(nowNanoseconds: now) {
                    next = min(next, later)
                } else {
                    isReady = true
                }
            }
            if next < .max { nextAdmission = next }
        }
        if hasNewFault() { isReady = true }
        if isReady { wake() }
        return !isReady
    }

    /// Whether a ring broke the protocol and nobody knows: a client can do so just before the sleep
    /// and then never kick.
    private mutating func hasNewFault() -> Bool {
        var left = open & ~told
        while left != 0 {
            let index = left.trailingZeroBitCount
            left &= left &- 1
            if unsafe rings[index].fault != .none { noteFault(index) }
        }
        return notices.contains(.ringFault)
    }

    /// Looks by itself from now on.
    @inline(never)
    mutating func wake() { unsafe forEachRing { unsafe $0.pointee.withdraw() } }

    func forEachRing(_ body: (UnsafeMutablePointer<RingPort>) -> Void) {
        var left = open
        while left != 0 {
            unsafe body(rings + left.trailingZeroBitCount)
            left &= left &- 1
        }
    }

    /// Notices since the last call.
    mutating func takeNotices() -> DataNotices {
        defer { notices = [] }
        return notices
    }

    /// Looks for commands that were not answered in time, no more often than `interval` ticks.
    @inline(never)
    mutating func lookForOverdue(_ now: UInt32, interval: UInt32) {
        guard now &- lastLook >= interval else { return }
        lastLook = now
        guard unsafe engine.pointee.inFlight > 0 else { return }
        var isLate = false
        unsafe engine.pointee.queue.forEachOlder(than: now &- timeoutTicks) { _, _ in
            isLate = true
        }
        if isLate { notices.insert(.overdue) }
    }

    /// Whether anything is with the device.
    var isIdle: Bool { unsafe engine.pointee.isIdle }

    // MARK: Rings

    /// The place that a new ring would get; nil when all are in use.
    var nextFree: Int? {
        let index = (~open).trailingZeroBitCount
        return index < Self.ringCapacity ? index : nil
    }

    /// Opens a ring at a free place, or at the next one; nil when there is none. `log` is where a
    /// successor reads its positions.
    mutating func add(
        at place: Int? = nil, base: UnsafeMutableRawPointer, shape: RingShape, session: UInt32,
        regions: SessionRegions, rules: RingRules, wakeFD: CInt, gate: IOGate,
        log: TwinPositions? = nil, positions: RingPositions = RingPositions(),
        statistics: StatisticsBlock? = nil
    ) -> Int? {
        guard let index = place ?? nextFree, index >= 0, index < Self.ringCapacity,
            open & 1 << UInt64(index) == 0
        else { return nil }
        unsafe engine.pointee.completionTails[index + 1] = positions.completionTail
        unsafe (rings + index).initialize(
            to: RingPort(
                base: base, shape: shape, session: session, number: UInt16(index + 1),
                regions: regions, rules: rules, wakeFD: wakeFD, gate: gate,
                segments: segments, tail: engine.pointee.completionTails + (index + 1),
                log: log ?? TwinPositions(base: unlogged, key: 0),
                positions: positions, statistics: statistics ?? unread))
        open |= 1 << UInt64(index)
        return index
    }

    /// Closes a ring that has nothing with the engine.
    mutating func remove(_ index: Int) {
        guard let ring = unsafe ring(index) else { return }
        unsafe ring.pointee.end()
        open &= ~(1 << UInt64(index))
        touched &= open
        told &= open
        unsafe ring.deinitialize(count: 1)
    }

    /// An open ring.
    func ring(_ index: Int) -> UnsafeMutablePointer<RingPort>? {
        guard index >= 0, index < Self.ringCapacity, open & (1 << UInt64(index)) != 0 else {
            return nil
        }
        return unsafe rings + index
    }

    /// How many rings are open.
    var ringCount: Int { open.nonzeroBitCount }
}
