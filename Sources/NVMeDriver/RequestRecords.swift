// SPDX-License-Identifier: Apache-2.0
// Request records: requests that became several commands. In the state area, like the slots.
//
// Sixteen 64-bit words. The first eight are written once for each request:
//
//   0  first LBA; with a list of ranges: blocks of all of them
//   1  block count (32) | position (32): which entry of its ring it was
//   2  offset in the region, bytes; with a list: its entries (32) | CRC-32C of it (32)
//   3  token
//   4  session (32) | region (16) | ring (8) | `noRequest` (8)
//   5  first owned pool page (32) | owned pages (16) | opcode (8) | flags (8)
//   6  namespace id (32) | most blocks of a command (32)
//   7  0 (32) | CRC-32C of words 0-6, keyed (32)
//
// The others change, and are a `TwinRecord` of two words, so that who dies while writing leaves the
// old ones or the new ones:
//
//   0  blocks issued
//   1  state (8) | first error status (16) | 0 (8) | completion position (32)
//
// The commands of a request (its parts) in flight are counted in private memory, and recounted from
// the slots by a successor. A part's slot is staged before the record says that it was issued; the
// successor takes the further of the two.
//
// A list lies elsewhere in the state area: segments, or ranges {LBA, blocks}, 16 bytes each. It is
// written before the record and does not change while the record is in use; how far its commands
// have gone follows from the blocks issued.

internal import CMemory
internal import Linux

/// Blocks of a namespace: an entry of a list of ranges.
public struct BlockSpan: Sendable, Equatable {
    /// The first block.
    public var lba: UInt64
    /// How many, 1 or more.
    public var blockCount: UInt64

    /// Some blocks.
    public init(lba: UInt64, blockCount: UInt64) {
        self.lba = lba
        self.blockCount = blockCount
    }
}

/// The records of one queue, and the order in which their commands are issued.
@safe
struct RequestRecords: ~Copyable {
    static let capacity = UInt32(StateLayout.requestsPerQueue)
    static let stateFree: UInt64 = 0
    static let stateActive: UInt64 = 1
    static let stateDone: UInt64 = 2
    private static let byteCount = StateLayout.requestByteCount
    /// Where the words that change are, and their selector.
    private static let progressOffset = 64
    private static let selectorOffset = 96

    private let records: UnsafeMutableRawPointer
    private let lists: UnsafeMutableRawPointer
    private let key: UInt32
    private let progressKey: UInt32
    private let listKey: UInt32
    /// Private: commands in flight of each record.
    var children: InlineArray<64, UInt32> = InlineArray(repeating: 0)
    /// Private: when each was accepted.
    private var ticks: InlineArray<64, UInt32> = InlineArray(repeating: 0)
    /// Private: where in its list the next command of each starts.
    private var places: InlineArray<64, ListPlace> = InlineArray(repeating: ListPlace())
    var activeCount: UInt32 = 0
    var doneCount: UInt32 = 0
    /// Where the turn is.
    private var turn: UInt32 = 0

    /// Records and their lists, in the state area; all free.
    init(
        records: UnsafeMutableRawPointer, lists: UnsafeMutableRawPointer, queue: UInt32,
        epoch: UInt32
    ) {
        unsafe self.init(at: records, lists: lists, queue: queue, epoch: epoch)
        forgetAll()
    }

    /// The same as a predecessor left them: nothing is counted yet.
    init(
        at records: UnsafeMutableRawPointer, lists: UnsafeMutableRawPointer, queue: UInt32,
        epoch: UInt32
    ) {
        unsafe self.records = records
        unsafe self.lists = lists
        key = Checksum.key(Checksum.requestKind, queue: queue, epoch: epoch)
        progressKey = Checksum.key(Checksum.progressKind, queue: queue, epoch: epoch)
        listKey = Checksum.key(Checksum.segmentsKind, queue: queue, epoch: epoch)
    }

    /// All records free: the queue that their commands went to is gone.
    mutating func forgetAll() {
        for index in 0..<Self.capacity {
            setProgress(index, Progress())
            children[Int(index)] = 0
        }
        activeCount = 0
        doneCount = 0
    }

    /// Whether any record is in use.
    @inline(__always)
    var hasWork: Bool { activeCount &+ doneCount > 0 }

    private func base(_ index: UInt32) -> UnsafeMutableRawPointer {
        unsafe records + Int(index & (Self.capacity - 1)) * Self.byteCount
    }

    private func list(_ index: UInt32) -> UnsafeMutableRawPointer {
        unsafe lists + Int(index & (Self.capacity - 1)) * StateLayout.segmentListByteCount
    }

    // MARK: What changes

    /// The words of a record that change.
    struct Progress {
        var issued: UInt64 = 0
        var state: UInt64 = stateFree
        var position: UInt32 = 0
        var status: UInt16 = 0

        init() {}

        init(_ issued: UInt64, _ word: UInt64) {
            self.issued = issued
            state = word & 0xFF
            status = UInt16(truncatingIfNeeded: word >> 8)
            position = UInt32(truncatingIfNeeded: word >> 32)
        }

        var word: UInt64 { state | UInt64(status) << 8 | UInt64(position) << 32 }
    }

    func progress(_ index: UInt32) -> Progress {
        let record = unsafe base(index)
        let sequence = unsafe nv_load32(record + Self.selectorOffset)
        let copy = unsafe record + Self.progressOffset + Int(sequence & 1) * 16
        return unsafe Progress(nv_load64(copy), nv_load64(copy + 8))
    }

    private func setProgress(_ index: UInt32, _ progress: Progress) {
        let record = unsafe base(index)
        // 0 is what a record has that was never written.
        let sequence = max(unsafe nv_load32(record + Self.selectorOffset) &+ 1, 1)
        let copy = unsafe record + Self.progressOffset + Int(sequence & 1) * 16
        unsafe nv_store64(copy, progress.issued)
        unsafe nv_store64(copy + 8, progress.word)
        nv_dma_wmb()
        CrashPoint.hit(.twinFilled)
        unsafe nv_store64(record + Self.selectorOffset, progressSeal(index, sequence))
        CrashPoint.hit(.twinSealed)
    }

    private func progressSeal(_ index: UInt32, _ sequence: UInt32) -> UInt64 {
        let copy = unsafe base(index) + Self.progressOffset + Int(sequence & 1) * 16
        var crc = nv_crc32c_64(progressKey &+ index, UInt64(sequence))
        crc = nv_crc32c_64(crc, unsafe nv_load64(copy))
        crc = nv_crc32c_64(crc, unsafe nv_load64(copy + 8))
        return UInt64(sequence) | UInt64(crc) << 32
    }

    private func isInUse(_ index: UInt32) -> Bool { progress(index).state != Self.stateFree }

    // MARK: A record

    /// A copy of a record.
    struct Record {
        var command = CommandSlot()
        var progress = Progress()
        var maxBlocksPerCommand: UInt32 = 0
        var children: UInt32 = 0

        var issued: UInt64 { progress.issued }
        var status: UInt16 { progress.status }
        var state: UInt64 { progress.state }
        var blockShift: UInt64 { command.blockShift }
        var hasRanges: Bool { command.flags & CommandSlot.flagRanges != 0 }
        var isSegmented: Bool { command.flags & CommandSlot.flagSegmented != 0 }
        /// Blocks of the whole request.
        var total: UInt64 { hasRanges ? command.lba : UInt64(command.blockCount) }
        /// Blocks that may be issued still, at most as many as one command takes.
        var nextBlockCount: UInt32 {
            UInt32(truncatingIfNeeded: min(total &- issued, UInt64(maxBlocksPerCommand)))
        }
        /// Whether no command of it will be issued any more.
        var isIssued: Bool { issued >= total || status != 0 }
    }

    func load(_ index: UInt32) -> Record {
        let record = unsafe base(index)
        var copy = Record()
        unsafe copy.command = CommandSlot(at: record)
        copy.maxBlocksPerCommand = unsafe nv_load32(record + 52)
        copy.progress = progress(index)
        copy.children = children[Int(index & (Self.capacity - 1))]
        return copy
    }

    /// Writes a record with its list down; nil when all are in use. `count` is 1 to
    /// `Engine.maxSegments`, an entry 16 bytes, and the entries were checked.
    mutating func insert(
        _ command: CommandSlot, list source: UnsafeRawPointer, count: UInt32, maxBlocks: UInt32,
        tick: UInt32
    ) -> UInt32? {
        for index in 0..<Self.capacity where !isInUse(index) {
            let list = unsafe list(index)
            for word in 0..<(Int(count) * 2) {
                unsafe nv_store64(list + word * 8, nv_load64(source + word * 8))
            }
            places[Int(index)] = ListPlace()
            var command = command
            command.offset = UInt64(count) | UInt64(listChecksum(index, count)) << 32
            // The first free record is this one.
            return insert(command, maxBlocks: maxBlocks, tick: tick)
        }
        return nil
    }

    /// Writes a record down; nil when all are in use.
    mutating func insert(_ command: CommandSlot, maxBlocks: UInt32, tick: UInt32) -> UInt32? {
        for index in 0..<Self.capacity where !isInUse(index) {
            let record = unsafe base(index)
            let crc = unsafe command.store(at: record, key: key &+ index)
            let word = UInt64(command.namespaceID) | UInt64(maxBlocks) << 32
            unsafe nv_store64(record + 48, word)
            unsafe nv_store64(record + 56, Checksum.step(crc, word) << 32)
            var progress = Progress()
            progress.state = Self.stateActive
            setProgress(index, progress)
            CrashPoint.hit(.recordSealed)
            children[Int(index)] = 0
            ticks[Int(index)] = tick
            activeCount &+= 1
            return index
        }
        return nil
    }

    private func listChecksum(_ index: UInt32, _ count: UInt32) -> UInt32 {
        let list = unsafe list(index)
        var crc = listKey &+ index
        for word in 0..<(Int(count) * 2) {
            crc = nv_crc32c_64(crc, unsafe nv_load64(list + word * 8))
        }
        return crc
    }

    /// Entries of the list of a record that has one.
    func listCount(_ index: UInt32) -> UInt32 {
        min(unsafe nv_load32(base(index) + 16), UInt32(Engine.maxSegments))
    }

    /// The segment list of a record that has one.
    func segments(_ index: UInt32) -> SegmentList {
        unsafe SegmentList(base: list(index), count: listCount(index))
    }

    /// The range at a place of a record's list, without what lies before the place; nil behind the
    /// last one.
    func range(_ index: UInt32, _ place: ListPlace) -> BlockSpan? {
        guard place.index < listCount(index) else { return nil }
        let entry = unsafe list(index) + Int(place.index) * 16
        return unsafe BlockSpan(
            lba: nv_load64(entry) &+ place.offset,
            blockCount: nv_load64(entry + 8) &- place.offset)
    }

    /// Where the next command of a record with a list starts.
    func place(_ index: UInt32) -> ListPlace { places[Int(index & (Self.capacity - 1))] }

    /// Sets where the next command starts; together with `didIssue`.
    mutating func setPlace(_ index: UInt32, _ place: ListPlace) {
        places[Int(index & (Self.capacity - 1))] = place
    }

    /// When a record was accepted.
    func tick(_ index: UInt32) -> UInt32 { ticks[Int(index & (Self.capacity - 1))] }

    mutating func setTick(_ index: UInt32, _ tick: UInt32) {
        ticks[Int(index & (Self.capacity - 1))] = tick
    }

    // MARK: Steps

    /// Writes down that one more command of `blocks` blocks is in its slot.
    mutating func didIssue(_ index: UInt32, blocks: UInt32) {
        CrashPoint.hit(.childIssued)
        var progress = progress(index)
        progress.issued &+= UInt64(blocks)
        setProgress(index, progress)
        children[Int(index & (Self.capacity - 1))] &+= 1
    }

    /// The commands in flight go at least so far: what an adopter found in the slots.
    mutating func raiseIssued(_ index: UInt32, to issued: UInt64) {
        var progress = progress(index)
        guard issued > progress.issued else { return }
        progress.issued = issued
        setProgress(index, progress)
    }

    /// One command of the request ended. The first error stays, and stops the issuing of more.
    mutating func childEnded(_ index: UInt32, status: UInt16) {
        children[Int(index & (Self.capacity - 1))] &-= 1
        setStatus(index, status)
        CrashPoint.hit(.childCounted)
    }

    /// Notes an error; the first one stays.
    mutating func setStatus(_ index: UInt32, _ status: UInt16) {
        var progress = progress(index)
        guard status != 0, progress.status == 0 else { return }
        progress.status = status
        setProgress(index, progress)
    }

    /// Issues no more commands of a request; it ends with `status` when those in flight have.
    mutating func stopIssuing(session: UInt32, token: UInt64, status: UInt16) {
        for index in 0..<Self.capacity {
            let record = load(index)
            guard record.state == Self.stateActive, record.command.session == session,
                record.command.token == token, record.children > 0
            else { continue }
            setStatus(index, status)
        }
    }

    /// The request has ended; `position` is where in its ring the completion goes.
    mutating func markDone(_ index: UInt32, position: UInt32) {
        var progress = progress(index)
        progress.state = Self.stateDone
        progress.position = position
        setProgress(index, progress)
        CrashPoint.hit(.recordDone)
        activeCount &-= 1
        doneCount &+= 1
    }

    /// Frees the records whose completions were delivered.
    mutating func retire() {
        guard doneCount > 0 else { return }
        for index in 0..<Self.capacity where progress(index).state == Self.stateDone {
            setProgress(index, Progress())
            CrashPoint.hit(.recordFreed)
        }
        doneCount = 0
    }

    /// The next record in turn that has commands left to issue and room for one more, or nil.
    /// `passedOver` has the bits of records that cannot go on now.
    mutating func nextToIssue(passedOver: UInt64) -> UInt32? {
        guard activeCount > 0 else { return nil }
        for step in 0..<Self.capacity {
            let index = (turn &+ step) & (Self.capacity &- 1)
            guard progress(index).state == Self.stateActive, passedOver & 1 &<< UInt64(index) == 0
            else { continue }
            let record = load(index)
            guard !record.isIssued, record.children < Engine.maxChildrenInFlight else { continue }
            turn = index &+ 1
            return index
        }
        return nil
    }

    // MARK: Trust

    /// Whether the checksums of a record, and of its list if it has one, hold: what an adopter asks
    /// before it believes them.
    func isIntact(_ index: UInt32) -> Bool {
        let record = unsafe base(index)
        let selector = unsafe nv_load64(record + Self.selectorOffset)
        guard selector != 0,
            progressSeal(index, UInt32(truncatingIfNeeded: selector)) == selector
        else { return false }
        guard isInUse(index) else { return true }
        var crc = key &+ index
        for word in 0..<7 { crc = nv_crc32c_64(crc, unsafe nv_load64(record + word * 8)) }
        guard unsafe nv_load64(record + 56) == UInt64(crc) << 32 else { return false }
        let flags = unsafe nv_load8(record + 47)
        guard flags & (CommandSlot.flagSegmented | CommandSlot.flagRanges) != 0 else {
            return true
        }
        let count = unsafe nv_load32(record + 16)
        guard count >= 1, count <= UInt32(Engine.maxSegments) else { return false }
        return unsafe nv_load32(record + 20) == listChecksum(index, count)
    }
}
