// SPDX-License-Identifier: Apache-2.0
// What the state area says of clients' memory: which part of the device's address space it has, and
// how far mapping it had come.
//
// One cache line of eight 64-bit words, sealed by the last:
//
//   0  the device's address
//   1  length, bytes
//   2  offset in the client's file, bytes
//   3  session (32) | flags of the region (16) | state (16)
//   4  the client's id of the region
//   5  bytes of a page of the file
//   6  0
//   7  CRC-32C of words 0-6, keyed by the region's index
//
// Order: MAPPING → the device maps it → MAPPED → the client is answered; UNMAPPING → the device
// unmaps it → FREE. A successor takes off the device what is neither MAPPED nor FREE.

internal import CMemory

/// How far the mapping of a region had come.
enum RegionState: UInt16, Sendable {
    /// The record says nothing.
    case free = 0
    /// The device may or may not have it.
    case mapping = 1
    /// The device has it.
    case mapped = 2
    /// The device may or may not have it any more.
    case unmapping = 3
}

/// The record of a region.
struct RegionRecord: Equatable, Sendable {
    var state: RegionState
    /// The device's address; 0: it has none (bounced).
    var iova: UInt64
    var stretch: ClientMemoryStretch
    var session: UInt32
    var flags: RegionFlags
    /// What the client calls the region.
    var clientID: UInt64
}

extension StateArea {
    /// Writes down what is known of a region.
    func setRegion(_ index: UInt32, _ record: RegionRecord) {
        guard index < UInt32(StateLayout.regionCapacity) else { return }
        let line = unsafe regionRecord(index)
        // The seal first: whoever finds the line half written must not believe it.
        unsafe nv_store64(line + 56, 0)
        nv_dma_wmb()
        unsafe nv_store64(line, record.iova)
        unsafe nv_store64(line + 8, record.stretch.byteCount)
        unsafe nv_store64(line + 16, record.stretch.offset)
        unsafe nv_store64(
            line + 24,
            UInt64(record.session) | UInt64(record.flags.rawValue) << 32
                | UInt64(record.state.rawValue) << 48)
        unsafe nv_store64(line + 32, record.clientID)
        unsafe nv_store64(line + 40, record.stretch.pageByteCount)
        unsafe nv_store64(line + 48, record.stretch.isPhysical ? 1 : 0)
        nv_dma_wmb()
        unsafe nv_store64(line + 56, Self.seal(line, index))
    }

    /// The record of a region; nil when it is free or damaged.
    func region(_ index: UInt32) -> RegionRecord? {
        guard index < UInt32(StateLayout.regionCapacity) else { return nil }
        let line = unsafe regionRecord(index)
        guard unsafe nv_load64(line + 56) == Self.seal(line, index) else { return nil }
        let word = unsafe nv_load64(line + 24)
        guard let state = RegionState(rawValue: UInt16(truncatingIfNeeded: word >> 48)),
            state != .free
        else { return nil }
        let flags = RegionFlags(rawValue: UInt16(truncatingIfNeeded: word >> 32))
        var stretch = ClientMemoryStretch(byteCount: unsafe nv_load64(line + 8))
        stretch.offset = unsafe nv_load64(line + 16)
        stretch.pageByteCount = unsafe nv_load64(line + 40)
        stretch.isReadOnly = flags.contains(.readOnly)
        stretch.isPhysical = unsafe nv_load64(line + 48) & 1 != 0
        return RegionRecord(
            state: state, iova: unsafe nv_load64(line), stretch: stretch,
            session: UInt32(truncatingIfNeeded: word), flags: flags,
            clientID: unsafe nv_load64(line + 32))
    }

    /// Says nothing of a region any more.
    func clearRegion(_ index: UInt32) {
        guard index < UInt32(StateLayout.regionCapacity) else { return }
        unsafe nv_store64(regionRecord(index) + 56, 0)
    }

    /// Says nothing of any region: the device was started afresh and has none.
    func clearRegions() {
        for index in 0..<UInt32(StateLayout.regionCapacity) { clearRegion(index) }
    }

    private func regionRecord(_ index: UInt32) -> UnsafeMutableRawPointer {
        unsafe address(StateLayout.regionsOffset + Int(index) * StateLayout.recordByteCount)
    }

    private static func seal(_ line: UnsafeMutableRawPointer, _ index: UInt32) -> UInt64 {
        var crc = Checksum.key(Checksum.regionKind, queue: index, epoch: 0)
        for word in 0..<7 { crc = nv_crc32c_64(crc, unsafe nv_load64(line + word * 8)) }
        // Never 0: that is what an empty line has.
        return UInt64(crc) | 1 << 32
    }
}
