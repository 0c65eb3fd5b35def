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

/// Builds the PRP entries of one command over stretches of device memory that follow each other in
/// the data. Nothing is read ahead: a list is written while its stretches are being looked up.
@safe
struct PhysicalRegionPageBuilder {
    /// PRP1: the first byte. 0 before the first stretch.
    private(set) var first: UInt64 = 0
    /// The device's address behind the last stretch.
    private var end: UInt64 = 0
    /// Where the next entry of the list goes.
    private var entry: UnsafeMutableRawPointer
    private let list: UnsafeMutableRawPointer
    private let listIOVA: UInt64
    /// The device address of the list page that is being filled.
    private var pageIOVA: UInt64
    private var roomInPage = PhysicalRegionPages.entriesPerPage
    private var entryCount: UInt32 = 0

    /// Nothing yet; the list, if one is needed, will be at `list`, whose device address is
    /// `listIOVA`. It must have room for all bytes that will be added
    /// (`PhysicalRegionPages.listByteCount`).
    @inline(__always)
    init(list: UnsafeMutableRawPointer, listIOVA: UInt64) {
        unsafe self.list = list
        unsafe entry = list
        self.listIOVA = listIOVA
        pageIOVA = listIOVA
    }

    /// Adds a stretch; false, and the command is not to be used, when PRP entries cannot express
    /// it: the first address is not dword aligned, or the stretch does not begin and the one before
    /// it not end at a page boundary.
    @inline(__always)
    mutating func add(_ address: UInt64, byteCount: UInt64) -> Bool {
        let mask = PhysicalRegionPages.pageByteCount &- 1
        var page = (address &+ mask) & ~mask
        if first == 0 {
            guard address & 3 == 0 else { return false }
            first = address
            page = (address &+ PhysicalRegionPages.pageByteCount) & ~mask
        } else {
            guard Self.continues(end, address) else { return false }
        }
        end = address &+ byteCount
        while page < end {
            append(page)
            page = page &+ PhysicalRegionPages.pageByteCount
        }
        return true
    }

    /// Whether a command may go on at `address` after a stretch that ended at `end`.
    @inline(__always)
    static func continues(_ end: UInt64, _ address: UInt64) -> Bool {
        address == end || (address | end) & (PhysicalRegionPages.pageByteCount &- 1) == 0
    }

    @inline(__always)
    private mutating func append(_ page: UInt64) {
        if roomInPage == 0 {
            // The last entry of a full page gives way to the address of the next page.
            let last = unsafe nv_load64(entry - 8)
            pageIOVA = pageIOVA &+ PhysicalRegionPages.pageByteCount
            unsafe nv_store64(entry - 8, pageIOVA)
            unsafe nv_store64(entry, last)
            unsafe entry = entry + 8
            roomInPage = PhysicalRegionPages.entriesPerPage &- 1
        }
        unsafe nv_store64(entry, page)
        unsafe entry = entry + 8
        roomInPage = roomInPage &- 1
        entryCount = entryCount &+ 1
    }

    /// PRP2: nothing, the second page, or the list.
    @inline(__always)
    var second: UInt64 {
        switch entryCount {
        case 0: 0
        case 1: unsafe nv_load64(list)
        default: listIOVA
        }
    }
}
