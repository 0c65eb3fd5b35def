// SPDX-License-Identifier: Apache-2.0
// The client end of a ring (Proto/ring.md, "Submitting" and "Completing"): plain memory, no calls.
//
// One module, one struct, because calls across modules do not inline. What is on the hot path here
// calls nothing; the disassembly test holds it to that.

internal import CMemory
internal import CRing

/// Where the data of a request lies: in one piece, or in the pieces that a list names.
public struct RingData: Sendable, Equatable {
    let region: UInt32
    let segmentCount: UInt32
    let offset: UInt64

    /// One piece of a registered region, from a byte offset on.
    @inlinable
    public static func region(_ id: UInt32, offset: UInt64) -> RingData {
        RingData(region: id, segmentCount: 0, offset: offset)
    }

    /// A list of `count` segments (1 to 512), which lies in a registered region at a byte offset
    /// that is a multiple of 8. `IOBuffer.storeSegment` writes one.
    @inlinable
    public static func segments(listRegion id: UInt32, offset: UInt64, count: UInt32) -> RingData {
        RingData(region: id, segmentCount: count, offset: offset)
    }

    @usableFromInline
    init(region: UInt32, segmentCount: UInt32, offset: UInt64) {
        self.region = region
        self.segmentCount = segmentCount
        self.offset = offset
    }
}

/// A request that is done, as it stands in the ring.
public struct RingCompletion: Sendable, Equatable {
    /// The tag that the request was given.
    public var tag: UInt64
    /// The NVMe status field without the phase bit; 0: none.
    public var nvmeStatus: UInt16
    /// 0: it was done. Otherwise an `ErrorCode`'s number.
    public var code: UInt16
    /// Dword 0 of the NVMe completion.
    public var result: UInt32

    /// A completion; without arguments an empty place for one.
    public init(tag: UInt64 = 0, nvmeStatus: UInt16 = 0, code: UInt16 = 0, result: UInt32 = 0) {
        self.tag = tag
        self.nvmeStatus = nvmeStatus
        self.code = code
        self.result = result
    }

    /// Whether the request was done.
    public var isDone: Bool { code == 0 }
}

/// What an entry says, before it is written.
struct RingEntry {
    var opcode: UInt8
    var flags: UInt8 = 0
    var blockCount: UInt32 = 0
    var lba: UInt64 = 0
    var tag: UInt64
    var data = RingData(region: 0, segmentCount: 0, offset: 0)
}

/// Opcodes of entries: those of the NVM command set.
enum RingOpcode {
    static let flush: UInt8 = 0x00
    static let write: UInt8 = 0x01
    static let read: UInt8 = 0x02
    static let compare: UInt8 = 0x05
    static let writeZeroes: UInt8 = 0x08
    static let deallocate: UInt8 = 0x09
    static let verify: UInt8 = 0x0C
}

/// The indexes of the client over the memory of a ring. The memory outlives it.
@safe
struct RingPort: ~Copyable {
    private let base: UnsafeMutableRawPointer
    private let submissions: UnsafeMutableRawPointer
    private let completions: UnsafeMutableRawPointer
    private let submissionMask: UInt32
    private let completionMask: UInt32
    /// Entries written, entries published, and how far the worker was at the last look.
    private var tail: UInt32 = 0
    private var publishedTail: UInt32 = 0
    private var knownHead: UInt32 = 0
    /// Completions taken.
    private var head: UInt32 = 0
    /// The worker's indexes are impossible: nothing more is taken from this ring.
    private(set) var isBroken = false

    /// A port on memory whose layout was checked.
    init(base: UnsafeMutableRawPointer, layout: RingLayout) {
        unsafe self.base = base
        unsafe submissions = base + layout.submissionOffset
        unsafe completions = base + layout.completionOffset
        submissionMask = layout.submissionEntryCount &- 1
        completionMask = layout.completionEntryCount &- 1
        // A ring that was just opened stands at 0; a test may begin elsewhere.
        tail = unsafe nv_load32(base + NV_RING_OFFSET_SUBMISSION_TAIL)
        publishedTail = tail
        knownHead = unsafe nv_load32(base + NV_RING_OFFSET_SUBMISSION_HEAD)
        head = unsafe nv_load32(base + NV_RING_OFFSET_COMPLETION_HEAD)
    }

    // MARK: Submitting

    /// Writes an entry without publishing it; false: there is no room.
    @inline(__always)
    mutating func prepare(_ entry: RingEntry) -> Bool {
        if tail &- knownHead > submissionMask, !findRoom() { return false }
        let place = unsafe submissions + Int(tail & submissionMask) &* NV_RING_SUBMISSION_BYTES
        let indirect =
            entry.data.segmentCount == 0 ? 0 : UInt8(truncatingIfNeeded: NV_RING_FLAG_INDIRECT)
        unsafe nv_store64(
            place,
            UInt64(entry.opcode) | UInt64(entry.flags | indirect) << 8
                | UInt64(entry.blockCount) << 32)
        unsafe nv_store64(place + NV_RING_ENTRY_LBA, entry.lba)
        unsafe nv_store64(place + NV_RING_ENTRY_TAG, entry.tag)
        unsafe nv_store64(
            place + NV_RING_ENTRY_REGION,
            UInt64(entry.data.region) | UInt64(entry.data.segmentCount) << 32)
        unsafe nv_store64(place + NV_RING_ENTRY_OFFSET, entry.data.offset)
        unsafe nv_store64(place + 40, 0)
        unsafe nv_store64(place + 48, 0)
        unsafe nv_store64(place + 56, 0)
        tail = tail &+ 1
        return true
    }

    /// Looks at how far the worker is.
    @inline(__always)
    private mutating func findRoom() -> Bool {
        let seen = unsafe nv_load_acquire32(base + NV_RING_OFFSET_SUBMISSION_HEAD)
        // Between what was seen before and what was published.
        guard publishedTail &- seen <= publishedTail &- knownHead else {
            isBroken = true
            return false
        }
        knownHead = seen
        return tail &- seen <= submissionMask
    }

    /// How many entries can be prepared now.
    var room: Int {
        mutating get {
            _ = findRoom()
            return isBroken ? 0 : Int(submissionMask &+ 1 &- (tail &- knownHead))
        }
    }

    /// Entries written and not published yet.
    var preparedCount: Int { Int(tail &- publishedTail) }

    /// Publishes what was prepared; true: the worker sleeps, and has to be kicked.
    @inline(__always)
    mutating func publish() -> Bool {
        guard tail != publishedTail else { return false }
        unsafe nv_store_release32(base + NV_RING_OFFSET_SUBMISSION_TAIL, tail)
        publishedTail = tail
        return takeSubmissionWake()
    }

    /// Whether the worker sleeps and has to be kicked because of what was stored before.
    @inline(__always)
    private func takeSubmissionWake() -> Bool {
        nv_full_fence()
        let flag = unsafe base + NV_RING_OFFSET_SUBMISSION_NEED_WAKE
        return unsafe nv_load32(flag) == 1 && nv_exchange32(flag, 0) == 1
    }

    /// After `count` completions were taken: whether entries may have waited for their room, and
    /// the worker sleeps.
    @inline(__always)
    func hasToKick(afterTaking count: Int) -> Bool {
        let before = publishedTail &- head &+ UInt32(truncatingIfNeeded: count)
        guard count > 0, before > completionMask &+ 1 else { return false }
        return takeSubmissionWake()
    }

    // MARK: Completing

    /// Takes completions that are there, at most `room.count`.
    @inline(__always)
    mutating func reap(into room: UnsafeMutableBufferPointer<RingCompletion>) -> Int {
        guard let target = room.baseAddress else { return 0 }
        let seen = unsafe nv_load_acquire32(base + NV_RING_OFFSET_COMPLETION_TAIL)
        let waiting = seen &- head
        guard waiting <= completionMask &+ 1, !isBroken else {
            isBroken = true
            return 0
        }
        let count = min(Int(waiting), room.count)
        guard count > 0 else { return 0 }
        for index in 0..<count {
            let place =
                unsafe completions
                + Int((head &+ UInt32(truncatingIfNeeded: index)) & completionMask)
                &* NV_RING_COMPLETION_BYTES
            let rest = unsafe nv_load64(place + NV_RING_COMPLETION_STATUS)
            unsafe target[index].tag = nv_load64(place)
            unsafe target[index].nvmeStatus = UInt16(truncatingIfNeeded: rest)
            unsafe target[index].code = UInt16(truncatingIfNeeded: rest >> 16)
            unsafe target[index].result = UInt32(truncatingIfNeeded: rest >> 32)
        }
        head = head &+ UInt32(truncatingIfNeeded: count)
        unsafe nv_store_release32(base + NV_RING_OFFSET_COMPLETION_HEAD, head)
        return count
    }

    /// Whether completions wait to be taken.
    var hasCompletions: Bool {
        @inline(__always) get {
            unsafe nv_load_acquire32(base + NV_RING_OFFSET_COMPLETION_TAIL) != head && !isBroken
        }
    }

    /// Whether the worker said that the ring is closed, or its session over.
    var isEnded: Bool {
        @inline(__always) get {
            unsafe nv_load_acquire32(base + NV_RING_OFFSET_STATE) != NV_RING_STATE_OPEN
        }
    }

    // MARK: Sleeping

    /// Asks to be woken for the next completion. Look once more before sleeping.
    func armWake() {
        unsafe nv_store32(base + NV_RING_OFFSET_COMPLETION_NEED_WAKE, 1)
        nv_full_fence()
    }

    /// No longer asks.
    func disarmWake() { unsafe nv_store32(base + NV_RING_OFFSET_COMPLETION_NEED_WAKE, 0) }
}
