// SPDX-License-Identifier: Apache-2.0
// How large a device's pool is: what its queues need, and what of a configured size is left for
// bounce pages.

/// How large the pool of a device is.
///
/// An I/O queue pair of E entries takes E × 64 bytes for submissions, E × 16 for completions, E
/// lists of addresses of `listByteCount` bytes each, and its share of the bounce pages. A device
/// adds its admin queue (64 entries, lists of one page) and five pages for the admin data, the
/// doorbells in memory and the pool's token. Everything is rounded up to whole pages, so that this
/// is what `ControllerMemoryPlan` lays out.
public struct PoolSizing: Sendable, Equatable {
    /// I/O queue pairs of the device.
    public let queueCount: Int
    /// Entries of each.
    public let entries: Int
    /// Bytes of the list of addresses of each command.
    public let listByteCount: Int
    /// Bounce pages of each queue.
    public let bouncePagesPerQueue: Int

    /// Fewer would make commands wait for each other's.
    public static let leastBouncePagesPerQueue = 64
    /// The most bytes of bounce pages of a device: more are of no use to anybody.
    public static let bounceByteCountMax = 1 << 30
    private static let page = PoolFile.smallPageByteCount
    /// Of the admin queue: submissions, a list for each entry; and the token.
    private static let otherReadsPages = 1 + 64 + 1
    /// Of the admin queue: completions; two pages of data, and two of doorbells.
    private static let otherWritesPages = 1 + 2 + 2

    /// What a device needs; numbers that make no sense become those that do.
    public init(
        queueCount: Int, entries: Int, listByteCount: Int,
        bouncePagesPerQueue: Int = leastBouncePagesPerQueue
    ) {
        self.queueCount = min(max(queueCount, 1), 1 << 16)
        self.entries = min(max(entries, 1), 1 << 16)
        self.listByteCount = min(max(listByteCount, 0), 1 << 20)
        self.bouncePagesPerQueue = min(
            max(bouncePagesPerQueue, Self.leastBouncePagesPerQueue),
            max(
                Self.bounceByteCountMax / Self.page / self.queueCount,
                Self.leastBouncePagesPerQueue))
    }

    /// Pages of the zone that the device only reads.
    var deviceReadsPages: Int {
        Self.otherReadsPages
            + queueCount * (Self.pages(entries * 64) + Self.pages(entries * listByteCount))
    }

    /// Pages of the zone that the device writes too.
    var deviceWritesPages: Int {
        Self.otherWritesPages + queueCount * (Self.pages(entries * 16) + bouncePagesPerQueue)
    }

    /// Bytes of all bounce pages.
    public var bounceByteCount: Int { bouncePagesPerQueue * Self.page * queueCount }

    /// Bytes of the pool in memory with pages of this size: each zone has whole ones.
    public func byteCount(pageByteCount: Int) -> Int {
        Self.roundUp(deviceReadsPages * Self.page, pageByteCount)
            + Self.roundUp(deviceWritesPages * Self.page, pageByteCount)
    }

    /// The least that a pool for these queues may have.
    public func leastByteCount(pageByteCount: Int) -> Int {
        PoolSizing(queueCount: queueCount, entries: entries, listByteCount: listByteCount)
            .byteCount(pageByteCount: pageByteCount)
    }

    /// The same with as many bounce pages as fit a pool of `byteCount` bytes; nil: not even the
    /// fewest do.
    public func fitted(to byteCount: Int, pageByteCount: Int) -> PoolSizing? {
        let least = leastByteCount(pageByteCount: pageByteCount)
        guard byteCount >= least, byteCount <= PoolFile.byteCountMax else { return nil }
        let whole = byteCount - byteCount % max(pageByteCount, Self.page)
        let writes = whole - Self.roundUp(deviceReadsPages * Self.page, pageByteCount)
        let others = Self.otherWritesPages + queueCount * Self.pages(entries * 16)
        return PoolSizing(
            queueCount: queueCount, entries: entries, listByteCount: listByteCount,
            bouncePagesPerQueue: (writes / Self.page - others) / queueCount)
    }

    private static func pages(_ byteCount: Int) -> Int { (byteCount + page - 1) / page }

    /// `multiple` is a power of two, as sizes of pages are.
    private static func roundUp(_ value: Int, _ multiple: Int) -> Int {
        let multiple = max(multiple, page)
        return (value + multiple - 1) & ~(multiple - 1)
    }
}
