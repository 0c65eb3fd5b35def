// SPDX-License-Identifier: Apache-2.0
// A pool: bytes that are mapped here, where the device finds them, and who owns which.

public import Linux

/// A stretch of a pool whose addresses are in a row.
public struct PoolRange: Sendable, Equatable {
    /// Its pages, numbered from the start of the mapping.
    public var pages: PageRun
    /// The device's address of the first: physical, or of its IOMMU.
    public var address: UInt64

    /// A stretch.
    public init(pages: PageRun, address: UInt64) {
        self.pages = pages
        self.address = address
    }
}

/// The memory of a pool and its bookkeeping.
@safe
public final class PoolMemory {
    /// Bytes of a page.
    public static let pageByteCount = 4096

    /// The stretches, rising.
    public let ranges: [PoolRange]
    /// Where the pages came to lie.
    public let placement: PoolPlacement
    /// Who owns what.
    public internal(set) var slots: SlotPool
    private let mapping: Mapping

    /// A pool that begins: everything is free. The ranges lie within the mapping. With `node` the
    /// pages are put on a NUMA node, if the kernel does that.
    public init(
        _ mapping: consuming Mapping, ranges: [PoolRange], node: Int? = nil,
        nodes: NodeMemory = .kernel
    ) throws(DMAError) {
        try Self.check(mapping.byteCount, ranges)
        do throws(SlotPoolError) {
            slots = try SlotPool(ranges: ranges.map(\.pages))
        } catch { throw .slots(error) }
        placement = PoolPlacement.place(mapping, on: node, nodes)
        self.ranges = ranges
        self.mapping = mapping
    }

    /// A predecessor's pool: what was in use waits for its owner. Its pages stay where they are,
    /// on `node` or not.
    public init(
        _ mapping: consuming Mapping, ranges: [PoolRange], restoring saved: SavedDMAPool,
        node: Int? = nil, nodes: NodeMemory = .kernel
    ) throws(DMAError) {
        try Self.check(mapping.byteCount, ranges)
        guard ranges.map(\.pages) == saved.ranges else {
            throw .mismatch("it has \(saved.ranges.count) ranges that are not those of the pool")
        }
        do throws(SlotPoolError) {
            slots = try SlotPool(ranges: saved.ranges, saved: saved.slots)
            for entry in saved.shares { try slots.setShare(entry.owner, entry.share) }
        } catch { throw .mismatch(error.description) }
        placement = PoolPlacement.look(mapping, node, nodes)
        self.ranges = ranges
        self.mapping = mapping
    }

    private static func check(_ byteCount: Int, _ ranges: [PoolRange]) throws(DMAError) {
        for range in ranges {
            guard range.pages.first >= 0, range.pages.count > 0,
                range.pages.count <= byteCount / pageByteCount,
                range.pages.first <= byteCount / pageByteCount - range.pages.count,
                range.address % UInt64(pageByteCount) == 0,
                !range.address.addingReportingOverflow(
                    UInt64(range.pages.count * pageByteCount)
                ).overflow
            else { throw .malformed(field: "the range of \(range.pages)") }
        }
    }

    /// The first byte here. Valid while the pool lives.
    public var base: UnsafeMutableRawPointer { unsafe mapping.base }

    /// Bytes of the mapping.
    public var byteCount: Int { mapping.byteCount }

    /// The device's address of a page of the pool.
    func address(ofPage page: Int) -> UInt64? {
        guard let range = ranges.last(where: { $0.pages.first <= page }), page < range.pages.end
        else { return nil }
        return range.address + UInt64((page - range.pages.first) * Self.pageByteCount)
    }

    func clear(_ run: PageRun) {
        unsafe (mapping.base + run.first * Self.pageByteCount).initializeMemory(
            as: UInt8.self, repeating: 0, count: run.count * Self.pageByteCount)
    }
}

/// What is saved of a pool.
public struct SavedDMAPool: Sendable, Equatable {
    /// An owner's share.
    public struct Entry: Sendable, Equatable {
        /// Whose.
        public var owner: String
        /// What.
        public var share: SlotPool.Share

        /// A share of an owner.
        public init(owner: String, share: SlotPool.Share) {
            self.owner = owner
            self.share = share
        }
    }

    /// The ranges of pages.
    public var ranges: [PageRun]
    /// All slots, free ones included.
    public var slots: [SlotPool.Slot]
    /// Quotas and reservations.
    public var shares: [Entry]

    /// A saved pool.
    public init(ranges: [PageRun], slots: [SlotPool.Slot], shares: [Entry] = []) {
        self.ranges = ranges
        self.slots = slots
        self.shares = shares
    }

    init(_ pool: SlotPool) {
        self.init(
            ranges: pool.ranges, slots: pool.slots,
            shares: pool.allShares.map { Entry(owner: $0.owner, share: $0.share) })
    }
}

/// What is saved of all pools. Locked memory is not: it ends with the process.
public struct SavedDMAManager: Sendable, Equatable {
    /// The private pool; nil: there was none.
    public var privatePool: SavedDMAPool?
    /// The shared pool; nil: there was none.
    public var sharedPool: SavedDMAPool?

    /// Saved pools.
    public init(privatePool: SavedDMAPool? = nil, sharedPool: SavedDMAPool? = nil) {
        self.privatePool = privatePool
        self.sharedPool = sharedPool
    }
}
