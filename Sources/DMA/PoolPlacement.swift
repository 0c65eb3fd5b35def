// SPDX-License-Identifier: Apache-2.0
// How large a pool is, and on which NUMA node it lies.

internal import Linux

/// Where the pages of a pool came to lie.
public enum PoolPlacement: Sendable, Equatable, CustomStringConvertible {
    /// Nobody asked for a node.
    case anywhere
    /// On this node.
    case node(Int)
    /// Not on the node that was asked for, and why; the pool works all the same.
    case elsewhere(wanted: Int, reason: String)

    /// The placement for inspection.
    public var description: String {
        switch self {
        case .anywhere: "anywhere"
        case .node(let node): "node \(node)"
        case .elsewhere(let wanted, let reason): "not on node \(wanted): \(reason)"
        }
    }

    /// Binds a mapping to a node; what cannot be done is said, and is no error.
    static func bind(_ mapping: borrowing Mapping, to node: Int?) -> PoolPlacement {
        guard let node else { return .anywhere }
        do throws(SystemCallError) {
            try mapping.bind(toNode: node)
        } catch { return .elsewhere(wanted: node, reason: "\(error)") }
        // The kernel may have taken the policy and had no page there.
        if let found = mapping.node(at: 0), found != node {
            return .elsewhere(wanted: node, reason: "its pages are on node \(found)")
        }
        return .node(node)
    }
}

/// How large a pool is: as configured, or by what its devices need.
///
/// An I/O queue pair of E entries takes E × 64 bytes for submissions, E × 16 for completions, E
/// lists of addresses of `listByteCount` bytes each, and its share of the bounce pages. A device
/// adds its admin queue (64 entries, lists of one page) and five pages for the admin data, the
/// doorbells in memory and the pool's token. Everything is rounded up to whole pages, so that this
/// is what `ControllerMemoryPlan` lays out.
public struct PoolSizing: Sendable, Equatable {
    /// I/O queue pairs of each device.
    public var queueCount: Int
    /// Entries of each.
    public var entries: Int
    /// Bytes of the list of addresses of each command.
    public var listByteCount: Int
    /// Bounce pages of each queue.
    public var bouncePagesPerQueue: Int

    /// Pages of a device beside its I/O queues: the admin queue's rings and lists (1 + 64 + 1), the
    /// token, two pages of data, and two of doorbells.
    static let pagesPerDevice = 66 + 1 + 2 + 2

    /// What a device needs.
    public init(queueCount: Int, entries: Int, listByteCount: Int, bouncePagesPerQueue: Int) {
        self.queueCount = min(max(queueCount, 0), 1 << 16)
        self.entries = min(max(entries, 1), 1 << 16)
        self.listByteCount = min(max(listByteCount, 0), 1 << 20)
        self.bouncePagesPerQueue = min(max(bouncePagesPerQueue, 0), 1 << 20)
    }

    /// Pages of one queue pair.
    public var pagesPerQueue: Int {
        Self.pages(entries * 64) + Self.pages(entries * 16) + Self.pages(entries * listByteCount)
            + bouncePagesPerQueue
    }

    /// Pages of one device.
    public var pageCount: Int { Self.pagesPerDevice + queueCount * pagesPerQueue }

    /// The size of a pool for some devices: `configured` bytes when somebody said so, else what all
    /// of them need; in whole pages of the memory that it lies in. nil: more than there can be.
    public static func byteCount(
        configured: Int? = nil, devices: [PoolSizing], pageByteCount: Int
    ) -> Int? {
        let page = max(pageByteCount, PoolFile.smallPageByteCount)
        guard page & (page - 1) == 0, page <= 1 << 30 else { return nil }
        var wanted = 0
        if let configured {
            wanted = configured
        } else {
            for device in devices {
                let (bytes, overflow) = device.pageCount.multipliedReportingOverflow(
                    by: PoolFile.smallPageByteCount)
                guard !overflow, bytes <= PoolFile.byteCountMax else { return nil }
                wanted += bytes
                guard wanted <= PoolFile.byteCountMax else { return nil }
            }
        }
        guard wanted > 0, wanted <= PoolFile.byteCountMax else { return nil }
        return (wanted + page - 1) & ~(page - 1)
    }

    private static func pages(_ byteCount: Int) -> Int { (byteCount + 4095) / 4096 }
}
