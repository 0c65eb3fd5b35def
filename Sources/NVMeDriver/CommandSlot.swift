// SPDX-License-Identifier: Apache-2.0
// A command slot: the driver's only record of a command in flight, and at the same time the log
// that a successor reads.
//
// One cache line of eight 64-bit words in the state area:
//
//   0  LBA
//   1  block count (32) | position (32): of a ring's request, which entry of its submission ring it
//      was; of a part of a larger request with data, how many blocks of that come before it
//   2  offset in the region, bytes; of a part of a larger request without data: how many blocks of
//      that come before it
//   3  token: what the asker calls the request
//   4  session (32) | region (16) | ring (8) | request record, `noRequest` or `probeRequest` (8)
//   5  first owned pool page (32) | owned pages (16) | opcode (8) | flags (8)
//   6  namespace id (32) | CRC-32C of words 0-5, keyed (32)
//   7  state (2) | sequence (6) | 24 bits | CRC-32C of word 6 and of the low half of this word (32)
//
// The 24 bits of a STAGED slot are the low bits of its ordinal: how many commands were pushed on
// the queue before it. Those of a COMPLETING one: completion position modulo 512 (9) | status (15).
//
// Word 7 is written last and by one store, so that a slot is always the old one or the new one. The
// CRC is split so that a change of state costs two CRC steps and no reading of words 0-5; any
// changed bit in the line is still seen. A FREE slot vouches for nothing but its word 7: the
// process may have died while it wrote the words of the next command.

internal import CMemory

/// States of a slot, and where the rest of its state word's low half is.
enum SlotState {
    static let free: UInt64 = 0
    /// The command is written down; the device may or may not have seen it.
    static let staged: UInt64 = 1
    /// The device has answered; the answer is on its way to the client.
    static let completing: UInt64 = 2
    static let mask: UInt64 = 3
    /// State and sequence.
    static let commandMask: UInt64 = 0xFF
    static let sequenceMask: UInt64 = 0xFC
    static let sequenceOne: UInt64 = 4
    /// From the sequence, where it is, to where a command id has it.
    static let sequenceToCommandID: UInt64 = 8
    static let ordinalMask: UInt32 = 0xFF_FFFF
    static let positionMask: UInt32 = 511
}

/// What a slot holds, in memory order.
@safe
struct CommandSlot {
    /// No request record: the command is the whole request.
    static let noRequest: UInt8 = 0xFF
    /// The command is nobody's: an adopter's probe.
    static let probeRequest: UInt8 = 0xFE
    /// Flags: the request's pages are bounce pages of this one command, filled or emptied by the
    /// engine.
    static let flagBounced: UInt8 = 1
    static let flagForceUnitAccess: UInt8 = 2
    static let flagDeallocate: UInt8 = 4
    /// The data is a segment list: region and offset are those of its first byte; the PRP list of
    /// the slot (its first entry also for a transfer of two pages) or the request record has the
    /// rest.
    static let flagSegmented: UInt8 = 8
    /// Of a request record only: the list is one of ranges of blocks.
    static let flagRanges: UInt8 = 16
    /// Of a slot only, that a reset has written as answered: the offset is its completion position,
    /// all of it. More than a round's are answered then, and 9 bits do not tell them apart.
    static let flagPosition: UInt8 = 16
    /// The upper three bits: bytes of a block as a power of two, less 9.
    static let shiftOfFlags: UInt8 = 5

    var lba: UInt64 = 0
    private var blocksAndPosition: UInt64 = 0
    var offset: UInt64 = 0
    var token: UInt64 = 0
    private var owner = UInt64(noRequest) << 56
    private var pagesAndOpcode: UInt64 = 0
    var namespaceID: UInt32 = 0

    @inline(__always)
    init() {}

    /// The command of a request that is one command: the words are the request's own (`IORequest`).
    @inline(__always)
    init(_ request: UnsafePointer<IORequest>) {
        let words = unsafe UnsafeRawPointer(request)
        unsafe lba = nv_load64(words)
        unsafe blocksAndPosition = nv_load64(words + 8)
        unsafe offset = nv_load64(words + 16)
        unsafe token = nv_load64(words + 24)
        unsafe owner = nv_load64(words + 32)
        unsafe pagesAndOpcode = nv_load64(words + 40)
        unsafe namespaceID = nv_load32(words + 48)
    }

    /// The same of a value: what is in registers need not go through memory.
    @inline(__always)
    init(value request: borrowing IORequest) {
        lba = request.lba
        blocksAndPosition = UInt64(request.blockCount) | UInt64(request.position) << 32
        offset = request.offset
        token = request.token
        owner =
            UInt64(request.session) | UInt64(request.shortRegion) << 32
            | UInt64(request.shortRing) << 48 | UInt64(Self.noRequest) << 56
        pagesAndOpcode =
            UInt64(request.firstPage) | UInt64(request.pageCount) << 32
            | UInt64(request.operation) << 48 | UInt64(request.flags) << 56
        namespaceID = request.namespaceID
    }

    @inline(__always)
    var blockCount: UInt32 {
        get { UInt32(truncatingIfNeeded: blocksAndPosition) }
        set { blocksAndPosition = blocksAndPosition & ~0xFFFF_FFFF | UInt64(newValue) }
    }
    @inline(__always)
    var position: UInt32 {
        get { UInt32(truncatingIfNeeded: blocksAndPosition >> 32) }
        set { blocksAndPosition = blocksAndPosition & 0xFFFF_FFFF | UInt64(newValue) << 32 }
    }
    @inline(__always)
    var session: UInt32 {
        get { UInt32(truncatingIfNeeded: owner) }
        set { owner = owner & ~0xFFFF_FFFF | UInt64(newValue) }
    }
    /// The table of regions has fewer than 2^16.
    @inline(__always)
    var region: UInt32 {
        get { UInt32(truncatingIfNeeded: owner >> 32) & 0xFFFF }
        set { owner = owner & ~(0xFFFF << 32) | UInt64(UInt16(clamping: newValue)) << 32 }
    }
    @inline(__always)
    var ring: UInt8 {
        get { UInt8(truncatingIfNeeded: owner >> 48) }
        set { owner = owner & ~(0xFF << 48) | UInt64(newValue) << 48 }
    }
    @inline(__always)
    var request: UInt8 {
        get { UInt8(truncatingIfNeeded: owner >> 56) }
        set { owner = owner & ~(0xFF << 56) | UInt64(newValue) << 56 }
    }
    /// The completion position of the command of a COMPLETING slot, whose state word is given, in a
    /// ring that has published `tail` completions.
    func completionPosition(_ word: UInt64, tail: UInt32) -> UInt32 {
        guard flags & Self.flagPosition == 0 else { return UInt32(truncatingIfNeeded: offset) }
        let position = UInt32(truncatingIfNeeded: word >> 8)
        let ahead = (position &- tail) & SlotState.positionMask
        // Those of one round are few: half of the numbers lie behind the tail.
        return ahead <= SlotState.positionMask / 2
            ? tail &+ ahead : tail &+ ahead &- (SlotState.positionMask + 1)
    }

    /// Whether it is a part of a larger request.
    var isPart: Bool { UInt32(request) < RequestRecords.capacity }
    /// Bytes of a block as a power of two.
    var blockShift: UInt64 { UInt64(flags >> Self.shiftOfFlags) + 9 }
    @inline(__always)
    var firstPage: UInt32 {
        get { UInt32(truncatingIfNeeded: pagesAndOpcode) }
        set { pagesAndOpcode = pagesAndOpcode & ~0xFFFF_FFFF | UInt64(newValue) }
    }
    @inline(__always)
    var pageCount: UInt16 {
        get { UInt16(truncatingIfNeeded: pagesAndOpcode >> 32) }
        set { pagesAndOpcode = pagesAndOpcode & ~(0xFFFF << 32) | UInt64(newValue) << 32 }
    }
    @inline(__always)
    var opcode: UInt8 {
        get { UInt8(truncatingIfNeeded: pagesAndOpcode >> 48) }
        set { pagesAndOpcode = pagesAndOpcode & ~(0xFF << 48) | UInt64(newValue) << 48 }
    }
    @inline(__always)
    var flags: UInt8 {
        get { UInt8(truncatingIfNeeded: pagesAndOpcode >> 56) }
        set { pagesAndOpcode = pagesAndOpcode & ~(0xFF << 56) | UInt64(newValue) << 56 }
    }

    /// Writes words 0-6 and then, last, the STAGED state. `sequence` is where a state word has it.
    @inline(__always)
    func stage(
        at slot: UnsafeMutableRawPointer, key: UInt32, sequence: UInt64, ordinal: UInt32
    ) {
        let crc = unsafe store(at: slot, key: key)
        unsafe Self.stage(
            at: slot, word6: UInt64(namespaceID) | crc << 32, key: key, sequence: sequence,
            ordinal: ordinal)
    }

    /// The same of a request that is one command: each word goes straight from there to here, so
    /// that none has to be kept meanwhile.
    @inline(__always)
    static func stage(
        _ request: UnsafePointer<IORequest>, at slot: UnsafeMutableRawPointer, key: UInt32,
        sequence: UInt64, ordinal: UInt32
    ) {
        let words = unsafe UnsafeRawPointer(request)
        var crc = unsafe copy(words, slot, 0, UInt64(key))
        crc = unsafe copy(words, slot, 8, crc)
        crc = unsafe copy(words, slot, 16, crc)
        crc = unsafe copy(words, slot, 24, crc)
        crc = unsafe copy(words, slot, 32, crc)
        crc = unsafe copy(words, slot, 40, crc)
        unsafe stage(
            at: slot, word6: UInt64(nv_load32(words + 48)) | crc << 32, key: key,
            sequence: sequence, ordinal: ordinal)
    }

    /// The same of a ring's entry, whose words are in registers.
    @inline(__always)
    static func stage(
        _ words: DirectCommand, at slot: UnsafeMutableRawPointer, key: UInt32, sequence: UInt64,
        ordinal: UInt32
    ) {
        unsafe nv_store64(slot, words.lba)
        var crc = Checksum.step(UInt64(key), words.lba)
        unsafe nv_store64(slot + 8, words.blocksAndPosition)
        crc = Checksum.step(crc, words.blocksAndPosition)
        unsafe nv_store64(slot + 16, words.offset)
        crc = Checksum.step(crc, words.offset)
        unsafe nv_store64(slot + 24, words.token)
        crc = Checksum.step(crc, words.token)
        unsafe nv_store64(slot + 32, words.owner)
        crc = Checksum.step(crc, words.owner)
        unsafe nv_store64(slot + 40, words.pagesAndOpcode)
        crc = Checksum.step(crc, words.pagesAndOpcode)
        unsafe stage(
            at: slot, word6: words.namespaceID | crc << 32, key: key, sequence: sequence,
            ordinal: ordinal)
    }

    /// Word 4 of a ring's request that is one command, without its region.
    @inline(__always)
    static func owner(session: UInt32, ring: UInt16) -> UInt64 {
        UInt64(session) | UInt64(UInt8(clamping: ring)) << 48 | UInt64(noRequest) << 56
    }

    /// The flags of word 5 for blocks of so many bytes as a power of two.
    @inline(__always)
    static func flags(blockShift: UInt8) -> UInt64 {
        UInt64((blockShift &- 9) << shiftOfFlags) << 56
    }

    @inline(__always)
    private static func copy(
        _ words: UnsafeRawPointer, _ slot: UnsafeMutableRawPointer, _ offset: Int, _ crc: UInt64
    ) -> UInt64 {
        let word = unsafe nv_load64(words + offset)
        unsafe nv_store64(slot + offset, word)
        return Checksum.step(crc, word)
    }

    @inline(__always)
    private static func stage(
        at slot: UnsafeMutableRawPointer, word6: UInt64, key: UInt32, sequence: UInt64,
        ordinal: UInt32
    ) {
        unsafe nv_store64(slot + 48, word6)
        // The state after the content, for whoever maps this area later.
        nv_dma_wmb()
        CrashPoint.hit(.slotFilled)
        unsafe setState(
            at: slot, word6: word6, key: key,
            low: SlotState.staged | sequence | UInt64(ordinal &<< 8))
        CrashPoint.hit(.slotStaged)
    }

    /// Writes words 0-5; their checksum.
    @inline(__always)
    func store(at base: UnsafeMutableRawPointer, key: UInt32) -> UInt64 {
        unsafe nv_store64(base, lba)
        unsafe nv_store64(base + 8, blocksAndPosition)
        unsafe nv_store64(base + 16, offset)
        unsafe nv_store64(base + 24, token)
        unsafe nv_store64(base + 32, owner)
        unsafe nv_store64(base + 40, pagesAndOpcode)
        var crc = Checksum.step(UInt64(key), lba)
        crc = Checksum.step(crc, blocksAndPosition)
        crc = Checksum.step(crc, offset)
        crc = Checksum.step(crc, token)
        crc = Checksum.step(crc, owner)
        return Checksum.step(crc, pagesAndOpcode)
    }

    /// Dword 12 of the command.
    @inline(__always)
    var dword12: UInt64 { Self.dword12(blockCount: blockCount, flags: flags) }

    /// NLB is zero-based; FUA is bit 30, DEAC of Write Zeroes bit 25 (NVM Command Set 1.0, 3.2).
    /// The flags of a slot are such that one shift puts each there.
    @inline(__always)
    static func dword12(blockCount: UInt32, flags: UInt8) -> UInt64 {
        let fua = UInt64(flags & flagForceUnitAccess) << 29
        let deallocate = UInt64(flags & flagDeallocate) << 23
        return UInt64((blockCount &- 1) & 0xFFFF) | fua | deallocate
    }

    /// Replaces the state word; `low` is its low half. A FREE slot's `word6` is 0.
    @inline(__always)
    static func setState(
        at slot: UnsafeMutableRawPointer, word6: UInt64, key: UInt32, low: UInt64
    ) {
        let crc = Checksum.step(Checksum.step(UInt64(key), word6), low)
        unsafe nv_store64(slot + 56, low | crc << 32)
    }

    /// Reads words 0-6 back.
    @inline(__always)
    init(at slot: UnsafeMutableRawPointer) {
        unsafe lba = nv_load64(slot)
        unsafe blocksAndPosition = nv_load64(slot + 8)
        unsafe offset = nv_load64(slot + 16)
        unsafe token = nv_load64(slot + 24)
        unsafe owner = nv_load64(slot + 32)
        unsafe pagesAndOpcode = nv_load64(slot + 40)
        unsafe namespaceID = nv_load32(slot + 48)
    }

    /// Whether both checksums of a slot hold: what an adopter asks before it believes one.
    static func isIntact(at slot: UnsafeMutableRawPointer, key: UInt32) -> Bool {
        let word7 = unsafe nv_load64(slot + 56)
        let low = word7 & 0xFFFF_FFFF
        guard low & SlotState.mask != SlotState.free else {
            return low <= SlotState.commandMask
                && nv_crc32c_64(nv_crc32c_64(key, 0), low) == UInt32(word7 >> 32)
        }
        var crc = key
        for word in 0..<6 { crc = nv_crc32c_64(crc, unsafe nv_load64(slot + word * 8)) }
        let word6 = unsafe nv_load64(slot + 48)
        return nv_crc32c_64(nv_crc32c_64(key, word6), low) == UInt32(word7 >> 32)
            && crc == UInt32(word6 >> 32) && low & SlotState.mask <= SlotState.completing
    }
}

/// A Read or Write of a ring, as one command: the words of its slot, in registers.
struct DirectCommand {
    let lba: UInt64
    let blocksAndPosition: UInt64
    let offset: UInt64
    let token: UInt64
    let owner: UInt64
    let pagesAndOpcode: UInt64
    let namespaceID: UInt64

    /// Dwords 0 and 1 of the queue entry, without the command id.
    @inline(__always)
    var entryHead: UInt64 { (pagesAndOpcode >> 48) & 0xFF | namespaceID << 32 }

    /// Dword 12: NLB is zero-based, and there is no flag.
    @inline(__always)
    var dword12: UInt64 { (blocksAndPosition &- 1) & 0xFFFF }
}

/// A 32-bit value that vouches for itself: the value in the low half, its keyed CRC-32C in the high
/// half.
enum SealedWord {
    @inline(__always)
    static func seal(_ value: UInt32, key: UInt32) -> UInt64 {
        UInt64(value) | Checksum.step(UInt64(key), UInt64(value)) << 32
    }

    /// The value, or nil when the checksum does not hold.
    static func open(_ word: UInt64, key: UInt32) -> UInt32? {
        let value = UInt32(truncatingIfNeeded: word)
        return seal(value, key: key) == word ? value : nil
    }
}
