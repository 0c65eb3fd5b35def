// SPDX-License-Identifier: Apache-2.0
// Runs of pages out of a fixed number of pages: the bounce buffers of a device.

public import Linux

/// Hands out runs of adjacent pages; a bit a page, next fit.
///
/// Used for every inline and every bounced transfer: nothing is allocated after it was made.
@safe
public struct PageAllocator: ~Copyable {
    /// How many pages there are.
    public let pageCount: Int
    /// How many are free.
    public private(set) var freeCount: Int
    private var next = 0
    private let bits: Mapping

    /// All pages free.
    public init(pageCount: Int) throws(SystemCallError) {
        self.pageCount = pageCount
        freeCount = pageCount
        bits = try Mapping(anonymous: max(1, (pageCount + 7) / 8))
    }

    /// The first page of a run of `count` free pages, now taken; nil when there is no such run.
    public mutating func allocate(_ count: Int) -> Int? {
        guard count > 0, count <= freeCount else { return nil }
        if let start = find(count, from: next, to: pageCount) ?? find(count, from: 0, to: pageCount)
        {
            set(start, count, taken: true)
            freeCount -= count
            next = start + count == pageCount ? 0 : start + count
            return start
        }
        return nil
    }

    /// Takes a run that is known to be in use; false (and nothing changes) when some of it is
    /// taken.
    public mutating func claim(_ first: Int, _ count: Int) -> Bool {
        guard first >= 0, count > 0, count <= pageCount, first <= pageCount - count else {
            return false
        }
        for page in first..<(first + count) where isTaken(page) { return false }
        set(first, count, taken: true)
        freeCount -= count
        return true
    }

    /// Gives a run back; false (and nothing changes) when some of it is not taken.
    @discardableResult
    public mutating func release(_ first: Int, _ count: Int) -> Bool {
        guard first >= 0, count > 0, first <= pageCount - count else { return false }
        for page in first..<(first + count) where !isTaken(page) { return false }
        set(first, count, taken: false)
        freeCount += count
        return true
    }

    private func find(_ count: Int, from: Int, to: Int) -> Int? {
        var run = 0
        var page = from
        while page < to {
            run = isTaken(page) ? 0 : run + 1
            page += 1
            if run == count { return page - count }
        }
        return nil
    }

    private func isTaken(_ page: Int) -> Bool {
        let byte = unsafe bits.base.load(fromByteOffset: page >> 3, as: UInt8.self)
        return byte & (1 << UInt8(page & 7)) != 0
    }

    private mutating func set(_ first: Int, _ count: Int, taken: Bool) {
        for page in first..<(first + count) {
            let mask: UInt8 = 1 << UInt8(page & 7)
            let old = unsafe bits.base.load(fromByteOffset: page >> 3, as: UInt8.self)
            unsafe bits.base.storeBytes(
                of: taken ? old | mask : old & ~mask, toByteOffset: page >> 3, as: UInt8.self)
        }
    }
}
