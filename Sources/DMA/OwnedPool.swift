// SPDX-License-Identifier: Apache-2.0
// A device's pool in the DMA manager: each slice of its plan is a slot with its purpose.

internal import Linux
internal import VFIO

/// The pool of one device. Its one client is the device.
@safe
final class OwnedPool {
    private let manager: DMAManager
    private let client: DMAClient
    private let memory: PoolMemory
    /// The first byte. Valid while this lives.
    let base: UnsafeMutableRawPointer

    private init(_ memory: PoolMemory, owner: String) throws(DMAError) {
        self.memory = memory
        unsafe base = memory.base
        manager = DMAManager(privatePool: memory)
        client = try manager.makeClient(DMAClientParameters(name: Self.name(owner)))
    }

    /// A pool that begins, full of zeroes or about to be. `zones` are the bytes of the two zones,
    /// `addresses` where the device has them.
    convenience init(
        _ mapping: consuming Mapping, _ layout: PoolLayout,
        _ zones: (deviceReads: Int, deviceWrites: Int), _ addresses: (UInt64, UInt64),
        owner: String, source: PoolSource
    ) throws(VFIOError) {
        do throws(DMAError) {
            try self.init(
                PoolMemory(
                    mapping, ranges: Self.ranges(zones, addresses), node: source.node,
                    nodes: source.nodes), owner: owner)
            for entry in layout.entries {
                _ = try client.take(
                    Self.run(entry, zones.deviceReads), tag: Self.tag(entry), isClean: true)
            }
        } catch { throw .unsupported("the pool: \(error)") }
    }

    /// A predecessor's pool. What it had is claimed as the plan has it.
    convenience init(
        adopting mapping: consuming Mapping, _ layout: PoolLayout,
        _ zones: (deviceReads: Int, deviceWrites: Int), _ addresses: (UInt64, UInt64),
        owner: String, source: PoolSource
    ) throws(VFIOError) {
        do throws(DMAError) {
            let ranges = Self.ranges(zones, addresses)
            let planned = try Self.planned(layout, zones, owner)
            try self.init(
                PoolMemory(
                    mapping, ranges: ranges,
                    restoring: SavedDMAPool(ranges: ranges.map(\.pages), slots: planned),
                    node: source.node, nodes: source.nodes), owner: owner)
            for entry in layout.entries {
                _ = try client.attach(Self.run(entry, zones.deviceReads))
            }
        } catch { throw .unsupported("the pool: \(error)") }
    }

    /// What a pool of this layout has.
    private static func planned(
        _ layout: PoolLayout, _ zones: (deviceReads: Int, deviceWrites: Int), _ owner: String
    ) throws(DMAError) -> [SlotPool.Slot] {
        do throws(SlotPoolError) {
            var pool = try SlotPool(ranges: ranges(zones, (0, 0)).map(\.pages))
            for entry in layout.entries {
                try pool.take(run(entry, zones.deviceReads), owner: name(owner), tag: tag(entry))
            }
            return pool.slots
        } catch { throw .slots(error) }
    }

    var slots: [SlotPool.Slot] { memory.slots.slots }
    var losses: [DMALoss] { manager.losses }
    var placement: PoolPlacement { memory.placement }

    private static func ranges(
        _ zones: (deviceReads: Int, deviceWrites: Int), _ addresses: (UInt64, UInt64)
    ) -> [PoolRange] {
        let page = PoolMemory.pageByteCount
        let reads = PageRun(first: 0, count: zones.deviceReads / page)
        let writes = PageRun(first: reads.end, count: zones.deviceWrites / page)
        return [
            PoolRange(pages: reads, address: addresses.0),
            PoolRange(pages: writes, address: addresses.1),
        ]
    }

    private static func run(_ entry: PoolLayout.Entry, _ readBytes: Int) -> PageRun {
        PageRun(
            first: (entry.slice.offset + (entry.deviceWrites ? readBytes : 0))
                / PoolMemory.pageByteCount,
            count: entry.slice.byteCount / PoolMemory.pageByteCount)
    }

    /// Names and tags have bounds, and are never empty.
    private static func name(_ text: String) -> String {
        text.isEmpty ? "device" : clipped(text)
    }
    private static func tag(_ entry: PoolLayout.Entry) -> String {
        entry.tag.isEmpty ? "memory" : clipped(entry.tag)
    }
    private static func clipped(_ text: String) -> String {
        var text = text
        while text.utf8.count > SlotPool.nameByteCountMax { text.removeLast() }
        return text
    }
}
