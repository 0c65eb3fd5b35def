// SPDX-License-Identifier: Apache-2.0
// A command slot: the driver's only record of a command in flight, and at the same time the log
// that a successor reads.
//
// One cache line of eight 64-bit words in the state area:
//
//   0  LBA
//   1  block count (32) | region (32)
//   2  offset in the region, bytes
//   3  token: the position in a completion ring, or a request id
//   4  session (32) | request record, or `noRequest` (16) | ring (16)
//   5  first owned pool page (32) | owned pages (16) | opcode (8) | flags (8)
//   6  namespace id (32) | CRC-32C of words 0-5, keyed (32)
//   7  state (8) | sequence (8) | status (16) |
//      CRC-32C of word 6 and of the low half of this word (32)
//
// Word 7 is written last and by one store, so that a slot is always the old one or the new one. The
// CRC is split so that a change of state costs two CRC steps and no reading of words 0-5; any
// changed bit in the line is still seen.

internal import CMemory

/// States of a slot.
enum SlotState {
    static let free: UInt64 = 0
    /// The command is written down; the device may or may not have seen it.
    static let staged: UInt64 = 1
    /// The device has answered; the answer is on its way to the client.
    static let completing: UInt64 = 2
}

/// What a slot holds, in memory order.
@safe
struct CommandSlot {
    /// No request record: the command is the whole request.
    static let noRequest: UInt16 = .max
    /// Flags: the request's pages are bounce pages of this one command, filled or emptied by the
    /// engine.
    static let flagBounced: UInt8 = 1
    static let flagForceUnitAccess: UInt8 = 2
    static let flagDeallocate: UInt8 = 4
    /// The data is a segment list: region and offset are those of its first byte; the PRP list of
    /// the slot (its first entry also for a transfer of two pages) or the request record has the
    /// rest.
    static let flagSegmented: UInt8 = 8

    var lba: UInt64 = 0
    private var blocksAndRegion: UInt64 = 0
    var offset: UInt64 = 0
    var token: UInt64 = 0
    private var sessionRequestRing = UInt64(noRequest) << 32
    private var pagesAndOpcode: UInt64 = 0
    var namespaceID: UInt32 = 0

    @inline(__always)
    init() {}

    /// The command of a request that is one command: the words are the request's own (`IORequest`).
    @inline(__always)
    init(_ request: UnsafePointer<IORequest>) {
        let words = unsafe UnsafeRawPointer(request)
        unsafe lba = nv_load64(words)
        unsafe blocksAndRegion = nv_load64(words + 8)
        unsafe offset = nv_load64(words + 16)
        unsafe token = nv_load64(words + 24)
        unsafe sessionRequestRing =
            UInt64(nv_load32(words + 32)) | UInt64(Self.noRequest) << 32
            | UInt64(nv_load16(words + 54)) << 48
        unsafe pagesAndOpcode = nv_load64(words + 40)
        unsafe namespaceID = nv_load32(words + 36)
    }

    /// The same of a value: what is in registers need not go through memory.
    @inline(__always)
    init(value request: borrowing IORequest) {
        lba = request.lba
        blocksAndRegion = UInt64(request.blockCount) | UInt64(request.region) << 32
        offset = request.offset
        token = request.token
        sessionRequestRing =
            UInt64(request.session) | UInt64(Self.noRequest) << 32 | UInt64(request.ring) << 48
        pagesAndOpcode =
            UInt64(request.firstPage) | UInt64(request.pageCount) << 32
            | UInt64(request.operation) << 48 | UInt64(request.flags) << 56
        namespaceID = request.namespaceID
    }

    @inline(__always)
    var blockCount: UInt32 {
        get { UInt32(truncatingIfNeeded: blocksAndRegion) }
        set { blocksAndRegion = blocksAndRegion & ~0xFFFF_FFFF | UInt64(newValue) }
    }
    @inline(__always)
    var region: UInt32 {
        get { UInt32(truncatingIfNeeded: blocksAndRegion >> 32) }
        set { blocksAndRegion = blocksAndRegion & 0xFFFF_FFFF | UInt64(newValue) << 32 }
    }
    @inline(__always)
    var session: UInt32 {
        get { UInt32(truncatingIfNeeded: sessionRequestRing) }
        set { sessionRequestRing = sessionRequestRing & ~0xFFFF_FFFF | UInt64(newValue) }
    }
    @inline(__always)
    var request: UInt16 {
        get { UInt16(truncatingIfNeeded: sessionRequestRing >> 32) }
        set { sessionRequestRing = sessionRequestRing & ~(0xFFFF << 32) | UInt64(newValue) << 32 }
    }
    @inline(__always)
    var ring: UInt16 {
        get { UInt16(truncatingIfNeeded: sessionRequestRing >> 48) }
        set { sessionRequestRing = sessionRequestRing & ~(0xFFFF << 48) | UInt64(newValue) << 48 }
    }
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

    /// Writes words 0-6 and then, last, the STAGED state.
    @inline(__always)
    func stage(at slot: UnsafeMutableRawPointer, key: UInt32, sequence: UInt64) {
        unsafe nv_store64(slot, lba)
        unsafe nv_store64(slot + 8, blocksAndRegion)
        unsafe nv_store64(slot + 16, offset)
        unsafe nv_store64(slot + 24, token)
        unsafe nv_store64(slot + 32, sessionRequestRing)
        unsafe nv_store64(slot + 40, pagesAndOpcode)
        var crc = Checksum.step(UInt64(key), lba)
        crc = Checksum.step(crc, blocksAndRegion)
        crc = Checksum.step(crc, offset)
        crc = Checksum.step(crc, token)
        crc = Checksum.step(crc, sessionRequestRing)
        crc = Checksum.step(crc, pagesAndOpcode)
        let word6 = UInt64(namespaceID) | crc << 32
        unsafe nv_store64(slot + 48, word6)
        // The state after the content, for whoever maps this area later.
        nv_dma_wmb()
        unsafe Self.setState(
            at: slot, word6: word6, key: key, low: SlotState.staged | sequence << 8)
    }

    /// Replaces the state word; `low` is its low half.
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
        unsafe blocksAndRegion = nv_load64(slot + 8)
        unsafe offset = nv_load64(slot + 16)
        unsafe token = nv_load64(slot + 24)
        unsafe sessionRequestRing = nv_load64(slot + 32)
        unsafe pagesAndOpcode = nv_load64(slot + 40)
        unsafe namespaceID = nv_load32(slot + 48)
    }

    /// Whether both checksums of a slot hold: what an adopter asks before it believes one.
    static func isIntact(at slot: UnsafeMutableRawPointer, key: UInt32) -> Bool {
        var crc = key
        for word in 0..<6 { crc = nv_crc32c_64(crc, unsafe nv_load64(slot + word * 8)) }
        let word6 = unsafe nv_load64(slot + 48)
        let word7 = unsafe nv_load64(slot + 56)
        let final = nv_crc32c_64(nv_crc32c_64(key, word6), word7 & 0xFFFF_FFFF)
        let low = word7 & 0xFF
        // A free slot vouches for its state only: its other words are those of the last command.
        return final == UInt32(word7 >> 32)
            && (low == SlotState.free || crc == UInt32(word6 >> 32))
            && low <= SlotState.completing
    }
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
