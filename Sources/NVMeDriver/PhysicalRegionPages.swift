// SPDX-License-Identifier: Apache-2.0
// Physical Region Page entries and lists (NVM Express Base Specification 2.0, 4.1.1).

internal import CMemory

/// Builds PRP entries over a stretch of I/O virtual addresses without gaps.
@safe
struct PhysicalRegionPages {
    static let pageByteCount: UInt64 = 4096
    static let entriesPerPage: UInt64 = 512

    /// How many bytes of list a transfer of `byteCount` bytes needs at worst, whole pages, at least
    /// one (which also serves for the ranges of Dataset Management).
    static func listByteCount(transfer byteCount: UInt64) -> UInt64 {
        // One page more than the bytes fill, when the first starts in the middle; less the one in
        // PRP1.
        let entries = (byteCount + pageByteCount - 1) / pageByteCount
        // Every page but the last gives one entry to the chain.
        let pages = (entries + entriesPerPage - 3) / (entriesPerPage - 1)
        return max(1, pages) * pageByteCount
    }

    /// PRP2 for a transfer of `byteCount` bytes from `address`, after the list, if one is needed,
    /// was written at `list`, whose device address is `listIOVA`.
    @inline(__always)
    static func second(
        address: UInt64, byteCount: UInt64, list: UnsafeMutableRawPointer, listIOVA: UInt64
    ) -> UInt64 {
        let offset = address & (pageByteCount &- 1)
        let next = (address &- offset) &+ pageByteCount
        let end = offset &+ byteCount
        if end <= pageByteCount { return 0 }
        if end <= 2 &* pageByteCount { return next }
        unsafe write(
            next, count: (end &- 1) / pageByteCount, list: list, listIOVA: listIOVA)
        return listIOVA
    }

    /// Writes `count` entries; a full page's last entry points to the next page. Not inlined: small
    /// transfers need no list, and its registers are better used for them.
    @inline(never)
    static func write(
        _ first: UInt64, count: UInt64, list: UnsafeMutableRawPointer, listIOVA: UInt64
    ) {
        var entry = unsafe list
        var page = listIOVA
        var slot: UInt64 = 0
        var address = first
        var left = count
        while left > 0 {
            if slot == entriesPerPage &- 1, left > 1 {
                page = page &+ pageByteCount
                unsafe nv_store64(entry, page)
                unsafe entry = entry + 8
                slot = 0
                continue
            }
            unsafe nv_store64(entry, address)
            unsafe entry = entry + 8
            address = address &+ pageByteCount
            slot = slot &+ 1
            left = left &- 1
        }
    }
}
