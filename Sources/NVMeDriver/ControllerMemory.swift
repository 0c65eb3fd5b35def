// SPDX-License-Identifier: Apache-2.0
// Where a controller's queues, lists and buffers are in its DMA pool.

internal import CMemory
internal import DMA
internal import Linux
internal import NVMeSpec
internal import VFIO

/// The plan of a pool: which slice is what.
struct ControllerMemoryPlan {
    struct Queue {
        var submission: PoolSlice
        var lists: PoolSlice
        var completion: PoolSlice
        var entries: UInt32
        var listByteCount: UInt64
    }

    /// One page of data for admin commands, and one for its neighbour: identify and log pages.
    static let adminBufferByteCount = 8192
    static let adminEntries: UInt32 = 64

    var layout = PoolLayout()
    /// Queue 0 is the admin queue.
    var queues: [Queue] = []
    var adminBuffer: PoolSlice
    /// One page, in the zone that the device only reads: what says that a saved state belongs to
    /// this pool (`PoolSeal`).
    var token: PoolSlice
    var shadow: PoolSlice
    var eventIndex: PoolSlice
    var bounce: PoolSlice
    /// Bounce pages of each I/O queue: engines share nothing.
    var bouncePagesPerQueue: Int

    init(queueCount: Int, entries: UInt32, options: ControllerOptions) {
        bouncePagesPerQueue = max(
            PoolSizing.leastBouncePagesPerQueue,
            options.bouncePoolByteCount / 4096 / max(1, queueCount))
        let listByteCount = PhysicalRegionPages.listByteCount(
            transfer: UInt64(options.maxTransferByteCount))
        queues.append(
            Self.queue(
                &layout, "admin", entries: Self.adminEntries, listByteCount: 4096))
        for index in 0..<queueCount {
            queues.append(
                Self.queue(
                    &layout, "queue \(index + 1)", entries: entries,
                    listByteCount: listByteCount))
        }
        token = layout.reserveDeviceReads(PoolSeal.byteCount, tag: "token")
        adminBuffer = layout.reserveDeviceWrites(
            Self.adminBufferByteCount, tag: "admin data")
        shadow = layout.reserveDeviceWrites(4096, tag: "shadow doorbells")
        eventIndex = layout.reserveDeviceWrites(4096, tag: "event indexes")
        bounce = layout.reserveDeviceWrites(
            bouncePagesPerQueue * 4096 * queueCount, tag: "bounce")
    }

    private static func queue(
        _ layout: inout PoolLayout, _ name: String, entries: UInt32, listByteCount: UInt64
    ) -> Queue {
        Queue(
            submission: layout.reserveDeviceReads(
                Int(entries) * 64, tag: "\(name) submissions"),
            lists: layout.reserveDeviceReads(
                Int(entries) * Int(listByteCount), tag: "\(name) lists"),
            completion: layout.reserveDeviceWrites(
                Int(entries) * 16, tag: "\(name) completions"),
            entries: entries, listByteCount: listByteCount)
    }
}

extension ControllerMemoryPlan {
    /// The plan of a pool that begins. A configured size is shared out: `options` then have what is
    /// left for bounce pages, by which the pool's record tells a successor of it. Throws
    /// `exhausted`, with the least size, when that is too small.
    static func beginning(
        queueCount: Int, entries: UInt32, options: inout ControllerOptions, pageByteCount: Int
    ) throws(DriverError) -> ControllerMemoryPlan {
        if let wanted = options.poolByteCount {
            let sizing = PoolSizing(
                queueCount: queueCount, entries: Int(entries),
                listByteCount: Int(
                    PhysicalRegionPages.listByteCount(
                        transfer: UInt64(options.maxTransferByteCount))))
            guard let fitting = sizing.fitted(to: wanted, pageByteCount: pageByteCount) else {
                let least = sizing.leastByteCount(pageByteCount: pageByteCount)
                throw .exhausted(
                    "Pool= in \(options.deviceName).device (or nvmed.conf) says \(wanted) bytes, "
                        + "and \(queueCount) queues of \(entries) entries with transfers of up to "
                        + "\(options.maxTransferByteCount) bytes need at least \(least): write "
                        + "Pool=auto or a larger size, or a smaller Queues=, QueueDepth= or "
                        + "MaxTransfer=")
            }
            options.bouncePoolByteCount = fitting.bounceByteCount
        }
        return ControllerMemoryPlan(queueCount: queueCount, entries: entries, options: options)
    }
}

/// What a controller is asked to be.
public struct ControllerOptions: Sendable, Equatable {
    /// The device's configured name, for messages.
    public var deviceName: String
    /// I/O queue pairs wanted, 1…64; the controller may grant fewer.
    public var queueCount = 1
    /// Entries of each I/O queue, 4…1024, rounded down to a power of two; the controller may
    /// allow fewer.
    public var queueDepth = 256
    /// The most bytes of one command, a multiple of 4096 up to 32 MiB; the controller may allow
    /// fewer (MDTS).
    public var maxTransferByteCount = 8 << 20
    /// Bytes of the whole pool; nil: what the queues need, and `bouncePoolByteCount`.
    public var poolByteCount: Int?
    /// Bytes for inline and bounced data, of all queues; with `poolByteCount` what that leaves.
    public var bouncePoolByteCount = 16 << 20
    /// The bound on each admin command.
    public var adminTimeoutMilliseconds = 10_000
    /// What the controller needs; nil: what is known of its PCI id.
    public var quirks: Set<Quirk>?

    /// The default options of a device.
    public init(deviceName: String) { self.deviceName = deviceName }

    /// The options with every number within its range.
    var clamped: ControllerOptions {
        var copy = self
        copy.queueCount = min(max(queueCount, 1), 64)
        let depth = min(max(queueDepth, 4), Int(QueuePair.maxEntries))
        copy.queueDepth = 1 << (Int.bitWidth - 1 - depth.leadingZeroBitCount)
        copy.maxTransferByteCount = min(max(maxTransferByteCount, 4096), 32 << 20) & ~4095
        copy.bouncePoolByteCount = min(
            max(bouncePoolByteCount, PoolSizing.leastBouncePagesPerQueue * 4096),
            PoolSizing.bounceByteCountMax)
        copy.adminTimeoutMilliseconds = min(max(adminTimeoutMilliseconds, 10), 600_000)
        return copy
    }

    /// The state area that a controller with these options needs.
    public var stateLayout: StateLayout {
        StateLayout(
            queueCount: clamped.queueCount + 1,
            slotsPerQueue: max(clamped.queueDepth, Int(ControllerMemoryPlan.adminEntries)))
    }
}
