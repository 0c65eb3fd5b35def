// SPDX-License-Identifier: Apache-2.0
// Memory that commands may point at: the bounce pages, and what clients registered. Read by the hot
// path.

internal import CLinux
internal import CMemory
public import Linux

/// What is special about a region.
public struct RegionFlags: OptionSet, Sendable {
    /// The bits as the table has them.
    public let rawValue: UInt16
    /// Wraps the table's bits.
    public init(rawValue: UInt16) { self.rawValue = rawValue }
    /// The device has no address for it: every command on it goes through bounce pages.
    public static let bounced = RegionFlags(rawValue: 1)
    /// The device must not write it.
    public static let readOnly = RegionFlags(rawValue: 2)
}

/// The table of regions of a device. Written by the control thread, read by every engine.
///
/// Entry 0 is the device's own bounce pages. A client can name only regions of its own session.
///
/// An entry has four 64-bit words:
///
///   0  the device's address; of a bounced region: its length
///   1  its length; of a bounced region: 0, so that the hot path, which looks no further, gets no
///      address for any byte of it
///   2  where this process has it; 0: the entry is free
///   3  session (32) | number of its guard and 1, or 0 (16) | flags (16)
@safe
public struct RegionTable: ~Copyable, @unchecked Sendable {
    /// The region of the bounce pages.
    public static let bounceRegion: UInt32 = 0
    /// The session that owns the bounce pages: any session's request may use pages of it that were
    /// taken for it.
    static let anySession: UInt32 = .max
    private static let entryByteCount = 32

    let capacity: UInt32
    private let memory: Mapping

    /// An empty table.
    public init() throws(SystemCallError) {
        capacity = UInt32(StateLayout.regionCapacity)
        memory = try Mapping(anonymous: StateLayout.regionCapacity * Self.entryByteCount)
    }

    /// Enters memory that this process has at `base` and the device at `iova` (which is ignored
    /// for a bounced region); nil when the table is full. `guardNumber` is that of `nv_guard_add`,
    /// or negative. `place`: where it must be, which must be free; nil: anywhere.
    public mutating func insert(
        session: UInt32, iova: UInt64, byteCount: UInt64, base: UnsafeMutableRawPointer,
        flags: RegionFlags = [], guardNumber: CInt = -1, at place: UInt32? = nil
    ) -> UInt32? {
        guard let index = nextFree(where: { place == nil || place == $0 }) else { return nil }
        unsafe set(
            index, session: session, iova: iova, byteCount: byteCount, base: base, flags: flags,
            guardNumber: guardNumber)
        return index
    }

    /// The first free region that is acceptable; nil when there is none.
    func nextFree(where isAcceptable: (UInt32) -> Bool) -> UInt32? {
        (1..<capacity).first { unsafe nv_load64(entry($0) + 16) == 0 && isAcceptable($0) }
    }

    mutating func setBouncePages(iova: UInt64, byteCount: UInt64, base: UnsafeMutableRawPointer) {
        unsafe set(
            Self.bounceRegion, session: Self.anySession, iova: iova, byteCount: byteCount,
            base: base, flags: [], guardNumber: -1)
    }

    /// Takes a region out. No command may point at it any more.
    public mutating func remove(_ index: UInt32) {
        guard index > 0, index < capacity else { return }
        let entry = unsafe entry(index)
        unsafe nv_store64(entry + 8, 0)
        unsafe nv_store64(entry, 0)
        unsafe nv_store64(entry + 24, 0)
        unsafe nv_store64(entry + 16, 0)
    }

    private mutating func set(
        _ index: UInt32, session: UInt32, iova: UInt64, byteCount: UInt64,
        base: UnsafeMutableRawPointer, flags: RegionFlags, guardNumber: CInt
    ) {
        let entry = unsafe entry(index)
        let isBounced = flags.contains(.bounced)
        unsafe nv_store64(entry, isBounced ? byteCount : iova)
        unsafe nv_store64(entry + 16, UInt64(UInt(bitPattern: base)))
        unsafe nv_store32(entry + 24, session)
        unsafe nv_store16(entry + 28, UInt16(clamping: guardNumber &+ 1))
        unsafe nv_store16(entry + 30, flags.rawValue)
        // The length last: it makes the entry valid.
        unsafe nv_store_release64(entry + 8, isBounced ? 0 : byteCount)
    }

    private func entry(_ index: UInt32) -> UnsafeMutableRawPointer {
        unsafe memory.base + Int(index) * Self.entryByteCount
    }

    /// A reader for the hot path; valid while the table lives.
    var view: RegionView { unsafe RegionView(base: memory.base, capacity: capacity) }
}

/// What an engine sees of the region table.
@safe
struct RegionView {
    fileprivate let base: UnsafeMutableRawPointer
    fileprivate let capacity: UInt32

    fileprivate init(base: UnsafeMutableRawPointer, capacity: UInt32) {
        unsafe self.base = base
        self.capacity = capacity
    }

    /// The device's address of bytes (1 or more) in a region, or 0 when they are not all within a
    /// region of that session that the device can reach. (No region starts at address 0.)
    @inline(__always)
    func deviceAddress(
        region: UInt32, offset: UInt64, byteCount: UInt64, session: UInt32
    ) -> UInt64 {
        guard region < capacity else { return 0 }
        let entry = unsafe base + Int(region) &* 32
        let length = unsafe nv_load64(entry + 8)
        let owner = unsafe nv_load32(entry + 24)
        guard offset <= length, byteCount <= length &- offset,
            owner == session || owner == RegionTable.anySession
        else { return 0 }
        return unsafe nv_load64(entry) &+ offset
    }

    /// The region that a session's word names, and the device's address of bytes (1 or more) in it;
    /// nil when the word is 0 or has a flag, or not all bytes are within a region of that session
    /// that the device can reach.
    @inline(__always)
    func registeredAddress(
        _ word: UInt32, offset: UInt64, byteCount: UInt64, session: UInt32
    ) -> (region: UInt64, start: UInt64)? {
        guard word &- 1 < UInt32(StateLayout.regionCapacity) &- 1 else { return nil }
        let entry = unsafe base + Int(word) &* 32
        let length = unsafe nv_load64(entry + 8)
        guard offset <= length, byteCount <= length &- offset,
            unsafe nv_load32(entry + 24) == session
        else { return nil }
        return (UInt64(word), unsafe nv_load64(entry) &+ offset)
    }

    /// Where this process has bytes that `deviceAddress` accepted.
    func localAddress(region: UInt32, offset: UInt64) -> UnsafeMutableRawPointer? {
        guard region < capacity else { return nil }
        let entry = unsafe base + Int(region) &* 32
        let start = UInt(truncatingIfNeeded: unsafe nv_load64(entry + 16))
        return unsafe UnsafeMutableRawPointer(bitPattern: start &+ UInt(offset))
    }

    /// Where this process has bytes of a region, bounced or not; nil when they are not all within a
    /// region of that session.
    func localBytes(
        region: UInt32, offset: UInt64, byteCount: UInt64, session: UInt32
    ) -> UnsafeMutableRawPointer? {
        guard region < capacity else { return nil }
        let entry = unsafe base + Int(region) &* 32
        let length = unsafe nv_load64(flags(region).contains(.bounced) ? entry : entry + 8)
        let owner = unsafe nv_load32(entry + 24)
        guard offset <= length, byteCount <= length &- offset,
            owner == session || owner == RegionTable.anySession
        else { return nil }
        return unsafe localAddress(region: region, offset: offset)
    }

    /// The session that registered a region.
    func owner(_ region: UInt32) -> UInt32 {
        region < capacity ? unsafe nv_load32(base + Int(region) &* 32 + 24) : 0
    }

    /// What is special about a region; nothing about one that does not exist.
    func flags(_ region: UInt32) -> RegionFlags {
        guard region < capacity else { return [] }
        return RegionFlags(rawValue: unsafe nv_load16(base + Int(region) &* 32 + 30))
    }

    /// Whether this process met a page of the region that was not there any more: what it read
    /// since is not the client's memory, and what it wrote never reached it.
    func hasFaulted(_ region: UInt32) -> Bool {
        guard region < capacity else { return false }
        let number = CInt(unsafe nv_load16(base + Int(region) &* 32 + 28)) &- 1
        return nv_guard_faults(number) != 0
    }
}
