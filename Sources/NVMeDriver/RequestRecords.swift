// SPDX-License-Identifier: Apache-2.0
// Request records: requests that became several commands. In the state area, like the slots.
//
// One cache line of eight 64-bit words:
//
//   0  first LBA
//   1  block count (32) | region (16) | ring (16)
//   2  offset in the region, bytes; with a segment list: segments (32) | CRC-32C of the list (32)
//   3  token
//   4  session (32) | namespace id (32)
//   5  first owned pool page (32) | owned pages (16) | opcode (8) | flags (8)
//   6  blocks issued (32) | first error status (16) | block shift (8) | state (8)
//   7  most blocks of a command (32) | CRC-32C of words 0-6, keyed (32)
//
// Word 6 changes with every command issued; the children in flight are counted in private memory
// and recounted from the slots by a successor.
//
// The segment list of a record lies elsewhere in the state area. It is written before the record
// and does not change while the record is in use; how far its commands have gone follows from the
// blocks issued.

internal import CMemory
internal import Linux

/// The records of one queue, and the order in which their commands are issued.
@safe
struct RequestRecords: ~Copyable {
    static let capacity = UInt32(StateLayout.requestsPerQueue)
    static let stateFree: UInt64 = 0
    static let stateActive: UInt64 = 1
    static let stateDone: UInt64 = 2

    private let records: UnsafeMutableRawPointer
    private let lists: UnsafeMutableRawPointer
    private let key: UInt32
    private let listKey: UInt32
    /// Private: commands in flight of each record.
    private var children: InlineArray<64, UInt32> = InlineArray(repeating: 0)
    /// Private: when each was accepted.
    private var ticks: InlineArray<64, UInt32> = InlineArray(repeating: 0)
    /// Private: where in its segment list the next command of each starts.
    private var places: InlineArray<64, SegmentPlace> = InlineArray(repeating: SegmentPlace())
    private(set) var activeCount: UInt32 = 0
    private(set) var doneCount: UInt32 = 0
    /// Where the turn is.
    private var turn: UInt32 = 0

    /// Records and their lists, in the state area.
    init(
        records: UnsafeMutableRawPointer, lists: UnsafeMutableRawPointer, queue: UInt32,
        epoch: UInt32
    ) {
        unsafe self.records = records
        unsafe self.lists = lists
        key = Checksum.key(Checksum.requestKind, queue: queue, epoch: epoch)
        listKey = Checksum.key(Checksum.segmentsKind, queue: queue, epoch: epoch)
        for index in 0..<Self.capacity {
            let record = unsafe records + Int(index) * 64
            unsafe nv_store64(record + 48, Self.stateFree)
            unsafe seal(record, index)
        }
    }

    /// All records free: the queue that their commands went to is gone.
    mutating func forgetAll() {
        for index in 0..<Self.capacity {
            let record = unsafe records + Int(index) * 64
            unsafe nv_store64(record + 48, Self.stateFree)
            unsafe seal(record, index)
            children[Int(index)] = 0
        }
        activeCount = 0
        doneCount = 0
    }

    /// Whether any record is in use.
    @inline(__always)
    var hasWork: Bool { activeCount &+ doneCount > 0 }

    /// A copy of a record.
    struct Record {
        var command = CommandSlot()
        var issued: UInt32 = 0
        var status: UInt16 = 0
        var blockShift: UInt8 = 0
        var state: UInt64 = 0
        var maxBlocksPerCommand: UInt32 = 0
        var children: UInt32 = 0
    }

    /// Writes a record with its segment list down; nil when all are in use. `count` is 1 to
    /// `Engine.maxSegments`, and the segments were checked.
    mutating func insert(
        _ command: CommandSlot, segments: UnsafePointer<DataSegment>, count: UInt32,
        blockShift: UInt8, maxBlocks: UInt32, tick: UInt32
    ) -> UInt32? {
        for index in 0..<Self.capacity {
            guard unsafe nv_load8(records + Int(index) * 64 + 55) == Self.stateFree else {
                continue
            }
            let source = unsafe UnsafeRawPointer(segments)
            let list = unsafe lists + Int(index) * StateLayout.segmentListByteCount
            for word in 0..<(Int(count) * 2) {
                unsafe nv_store64(list + word * 8, nv_load64(source + word * 8))
            }
            places[Int(index)] = SegmentPlace()
            var command = command
            command.offset =
                UInt64(count) | UInt64(unsafe Self.crc(list, count, listKey &+ index)) << 32
            // The first free record is this one.
            return insert(command, blockShift: blockShift, maxBlocks: maxBlocks, tick: tick)
        }
        return nil
    }

    private static func crc(
        _ list: UnsafeMutableRawPointer, _ count: UInt32, _ key: UInt32
    ) -> UInt32 {
        var crc = key
        for word in 0..<(Int(count) * 2) {
            crc = nv_crc32c_64(crc, unsafe nv_load64(list + word * 8))
        }
        return crc
    }

    /// The segment list of a record that has one.
    func segments(_ index: UInt32) -> SegmentList {
        let number = Int(index & (Self.capacity - 1))
        let count = min(unsafe nv_load32(records + number * 64 + 16), UInt32(Engine.maxSegments))
        return unsafe SegmentList(
            base: lists + number * StateLayout.segmentListByteCount, count: count)
    }

    /// Where the next command of a record with a segment list starts.
    func place(_ index: UInt32) -> SegmentPlace { places[Int(index & (Self.capacity - 1))] }

    /// Sets where the next command starts; together with `willIssue`.
    mutating func setPlace(_ index: UInt32, _ place: SegmentPlace) {
        places[Int(index & (Self.capacity - 1))] = place
    }

    /// Whether the checksums of a record, and of its segment list if it has one, hold: what an
    /// adopter asks before it believes them.
    func isIntact(_ index: UInt32) -> Bool {
        let number = index & (Self.capacity - 1)
        let record = unsafe records + Int(number) * 64
        guard unsafe nv_load32(record + 60) == checksum(record, number) else { return false }
        let isActive = unsafe nv_load8(record + 55) == Self.stateActive
        guard isActive, unsafe nv_load8(record + 47) & CommandSlot.flagSegmented != 0 else {
            return true
        }
        let count = unsafe nv_load32(record + 16)
        guard count >= 1, count <= UInt32(Engine.maxSegments) else { return false }
        let list = unsafe lists + Int(number) * StateLayout.segmentListByteCount
        return unsafe Self.crc(list, count, listKey &+ number) == nv_load32(record + 20)
    }

    /// Writes a record down; nil when all are in use.
    mutating func insert(
        _ command: CommandSlot, blockShift: UInt8, maxBlocks: UInt32, tick: UInt32
    ) -> UInt32? {
        for index in 0..<Self.capacity {
            let record = unsafe records + Int(index) * 64
            guard unsafe nv_load64(record + 48) >> 56 == Self.stateFree else { continue }
            unsafe nv_store64(record, command.lba)
            unsafe nv_store64(
                record + 8,
                UInt64(command.blockCount) | UInt64(command.region & 0xFFFF) << 32
                    | UInt64(command.ring) << 48)
            unsafe nv_store64(record + 16, command.offset)
            unsafe nv_store64(record + 24, command.token)
            unsafe nv_store64(
                record + 32, UInt64(command.session) | UInt64(command.namespaceID) << 32)
            let pages = UInt64(command.firstPage) | UInt64(command.pageCount) << 32
            unsafe nv_store64(
                record + 40, pages | UInt64(command.opcode) << 48 | UInt64(command.flags) << 56)
            unsafe nv_store64(record + 48, Self.stateActive << 56 | UInt64(blockShift) << 48)
            unsafe nv_store32(record + 56, maxBlocks)
            unsafe seal(record, index)
            children[Int(index)] = 0
            ticks[Int(index)] = tick
            activeCount &+= 1
            return index
        }
        return nil
    }

    /// When a record was accepted.
    func tick(_ index: UInt32) -> UInt32 { ticks[Int(index & (Self.capacity - 1))] }

    func load(_ index: UInt32) -> Record {
        let record = unsafe records + Int(index & (Self.capacity - 1)) * 64
        var copy = Record()
        copy.command.lba = unsafe nv_load64(record)
        copy.command.blockCount = unsafe nv_load32(record + 8)
        copy.command.region = UInt32(unsafe nv_load16(record + 12))
        copy.command.ring = unsafe nv_load16(record + 14)
        copy.command.offset = unsafe nv_load64(record + 16)
        copy.command.token = unsafe nv_load64(record + 24)
        copy.command.session = unsafe nv_load32(record + 32)
        copy.command.namespaceID = unsafe nv_load32(record + 36)
        copy.command.firstPage = unsafe nv_load32(record + 40)
        copy.command.pageCount = unsafe nv_load16(record + 44)
        copy.command.opcode = unsafe nv_load8(record + 46)
        copy.command.flags = unsafe nv_load8(record + 47)
        copy.issued = unsafe nv_load32(record + 48)
        copy.status = unsafe nv_load16(record + 52)
        copy.blockShift = unsafe nv_load8(record + 54)
        copy.state = UInt64(unsafe nv_load8(record + 55))
        copy.maxBlocksPerCommand = unsafe nv_load32(record + 56)
        copy.children = children[Int(index & (Self.capacity - 1))]
        return copy
    }

    /// Writes down that one more command of `blocks` blocks goes out. Before its slot is staged.
    mutating func willIssue(_ index: UInt32, blocks: UInt32) {
        let record = unsafe records + Int(index) * 64
        unsafe nv_store32(record + 48, nv_load32(record + 48) &+ blocks)
        unsafe seal(record, index)
        children[Int(index)] &+= 1
    }

    /// One command of the request ended. The first error stays, and stops the issuing of more.
    mutating func childEnded(_ index: UInt32, status: UInt16) {
        children[Int(index)] &-= 1
        let record = unsafe records + Int(index) * 64
        guard status != 0, unsafe nv_load16(record + 52) == 0 else { return }
        unsafe nv_store16(record + 52, status)
        unsafe seal(record, index)
    }

    /// Issues no more commands of a request; it ends with `status` when those in flight have.
    mutating func stopIssuing(session: UInt32, token: UInt64, status: UInt16) {
        for index in 0..<Self.capacity {
            let record = load(index)
            guard record.state == Self.stateActive, record.command.session == session,
                record.command.token == token, record.children > 0, record.status == 0
            else { continue }
            let address = unsafe records + Int(index) * 64
            unsafe nv_store16(address + 52, status)
            unsafe seal(address, index)
        }
    }

    mutating func markDone(_ index: UInt32) {
        let record = unsafe records + Int(index) * 64
        unsafe nv_store8(record + 55, UInt8(Self.stateDone))
        unsafe seal(record, index)
        activeCount &-= 1
        doneCount &+= 1
    }

    /// Frees the records whose completions were delivered.
    mutating func retire() {
        guard doneCount > 0 else { return }
        for index in 0..<Self.capacity {
            let record = unsafe records + Int(index) * 64
            guard unsafe nv_load8(record + 55) == Self.stateDone else { continue }
            unsafe nv_store8(record + 55, UInt8(Self.stateFree))
            unsafe seal(record, index)
        }
        doneCount = 0
    }

    /// The next record in turn that has commands left to issue and room for one more, or nil.
    /// `passedOver` has the bits of records that cannot go on now.
    mutating func nextToIssue(passedOver: UInt64) -> UInt32? {
        for step in 0..<Self.capacity {
            let index = (turn &+ step) & (Self.capacity &- 1)
            let record = load(index)
            guard record.state == Self.stateActive, record.status == 0,
                record.issued < record.command.blockCount,
                passedOver & 1 &<< UInt64(index) == 0,
                record.children < Engine.maxChildrenInFlight
            else { continue }
            turn = index &+ 1
            return index
        }
        return nil
    }

    private func seal(_ record: UnsafeMutableRawPointer, _ index: UInt32) {
        unsafe nv_store32(record + 60, checksum(record, index))
    }

    private func checksum(_ record: UnsafeMutableRawPointer, _ index: UInt32) -> UInt32 {
        var crc = key &+ index
        for word in 0..<7 { crc = nv_crc32c_64(crc, unsafe nv_load64(record + word * 8)) }
        return nv_crc32c_64(crc, UInt64(unsafe nv_load32(record + 56)))
    }
}
