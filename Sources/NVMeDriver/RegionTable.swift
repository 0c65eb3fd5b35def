// SPDX-License-Identifier: Apache-2.0
// Memory that commands may point at: the bounce pages, and what clients registered. Read by the hot
// path.

internal import CMemory
public import Linux

/// The table of regions of a device. Written by the control thread, read by every engine.
///
/// Entry 0 is the device's own bounce pages. A client can name only regions of its own session.
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

    /// Enters memory that this process has at `base` and the device at `iova`; nil when the table
    /// is full.
    public mutating func insert(
        session: UInt32, iova: UInt64, byteCount: UInt64, base: UnsafeMutableRawPointer
    ) -> UInt32? {
        for index in 1..<capacity where unsafe nv_load64(entry(index) + 8) == 0 {
            unsafe set(index, session: session, iova: iova, byteCount: byteCount, base: base)
            return index
        }
        return nil
    }

    mutating func setBouncePages(iova: UInt64, byteCount: UInt64, base: UnsafeMutableRawPointer) {
        unsafe set(
            Self.bounceRegion, session: Self.anySession, iova: iova, byteCount: byteCount,
            base: base)
    }

    /// Takes a region out. No command may point at it any more.
    public mutating func remove(_ index: UInt32) {
        guard index > 0, index < capacity else { return }
        unsafe nv_store64(entry(index) + 8, 0)
    }

    private mutating func set(
        _ index: UInt32, session: UInt32, iova: UInt64, byteCount: UInt64,
        base: UnsafeMutableRawPointer
    ) {
        let entry = unsafe entry(index)
        unsafe nv_store64(entry, iova)
        unsafe nv_store64(entry + 16, UInt64(UInt(bitPattern: base)))
        unsafe nv_store32(entry + 24, session)
        // The length last: it makes the entry valid.
        unsafe nv_store_release64(entry + 8, byteCount)
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

    /// The device's address of bytes in a region, or 0 when they are not all within a region of
    /// that session. (No region starts at address 0.)
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

    /// Where this process has bytes that `deviceAddress` accepted.
    func localAddress(region: UInt32, offset: UInt64) -> UnsafeMutableRawPointer? {
        guard region < capacity else { return nil }
        let entry = unsafe base + Int(region) &* 32
        let start = UInt(truncatingIfNeeded: unsafe nv_load64(entry + 16))
        return unsafe UnsafeMutableRawPointer(bitPattern: start &+ UInt(offset))
    }
}
