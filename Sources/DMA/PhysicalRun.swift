// SPDX-License-Identifier: Apache-2.0
// Memory that is contiguous for a device without an IOMMU: huge pages, put in the order of their
// physical addresses.

internal import Linux
internal import VFIO

/// A run of huge pages with rising, adjacent physical addresses, mapped in that order.
struct PhysicalRun: ~Copyable {
    /// The physical address of the first byte.
    let address: UInt64
    /// Which pages of the file these are, in the order of their addresses.
    let order: [UInt32]
    /// The memory file; pages that are not part of the run were given back.
    private let fd: OwnedFD
    private let lock: OwnedFD?
    /// The mapping, adjacent here as well.
    private let memory: Mapping

    /// A memory file and its mapping.
    struct Parts: ~Copyable {
        let fd: OwnedFD
        let lock: OwnedFD?
        let memory: Mapping
    }

    private init(
        address: UInt64, order: [UInt32], file: consuming PoolFile, memory: consuming Mapping
    ) {
        self.address = address
        self.order = order
        let parts = file.takeParts()
        fd = parts.fd
        lock = parts.lock
        self.memory = memory
    }

    consuming func takeParts() -> Parts { Parts(fd: fd, lock: lock, memory: memory) }

    /// How much more than needed is taken, for a moment, to find a run in: processors that reserve
    /// huge pages side by side when the machine starts leave them interleaved.
    private static let attempts = [1, 2, 4, 8, 16]

    static func allocate(
        _ byteCount: Int, _ device: any DeviceBacking, _ source: PoolSource
    ) throws(VFIOError) -> PhysicalRun {
        let page = Int(PhysicalMemory.pageByteCount)
        let wanted = (byteCount + page - 1) / page
        for factor in attempts {
            let count = min(wanted * factor, Int(PhysicalMemory.pageCountMax))
            guard count >= wanted else { break }
            do throws(VFIOError) {
                if let run = try attempt(wanted, of: count, device, source) { return run }
            } catch {
                // So many are not free; what matters is that those that are do not suffice.
                guard factor > 1 else { throw error }
                break
            }
        }
        throw .unsupported(
            "no \(wanted) huge pages lie side by side; reserve more when the machine starts "
                + "(hugepages=\(4 * wanted) on the kernel's command line)")
    }

    /// Takes `count` pages; nil: no run of them is `wanted` pages long.
    private static func attempt(
        _ wanted: Int, of count: Int, _ device: any DeviceBacking, _ source: PoolSource
    ) throws(VFIOError) -> PhysicalRun? {
        let byteCount = count * Int(PhysicalMemory.pageByteCount)
        let file = try source.makeHuge(byteCount)
        let addresses =
            try device.physicalAddresses(of: file.fd, offset: 0, byteCount: UInt64(byteCount))
            ?? []
        guard addresses.count == count, let run = find(wanted, in: addresses) else { return nil }
        return try map(file, run, addresses)
    }

    /// The indexes of `count` pages with adjacent addresses, in the order of these; nil: there is
    /// no such run.
    static func find(_ count: Int, in addresses: [UInt64]) -> [Int]? {
        let order = addresses.indices.sorted { addresses[$0] < addresses[$1] }
        var run: [Int] = []
        for index in order {
            if let last = run.last,
                addresses[last].addingReportingOverflow(PhysicalMemory.pageByteCount)
                    .partialValue != addresses[index]
            {
                run = []
            }
            run.append(index)
            if run.count == count { return run }
        }
        return nil
    }

    private static func map(
        _ file: consuming PoolFile, _ run: [Int], _ addresses: [UInt64]
    ) throws(VFIOError) -> PhysicalRun {
        let page = Int64(PhysicalMemory.pageByteCount)
        do throws(SystemCallError) {
            let memory = try Mapping(hugePagesOf: file.fd, offsets: run.map { Int64($0) * page })
            memory.excludeFromCoreDumps()
            if !file.isClean {
                unsafe memory.base.initializeMemory(
                    as: UInt8.self, repeating: 0, count: memory.byteCount)
            }
            let used = Set(run)
            for index in addresses.indices where !used.contains(index) {
                try MemFD.punchHole(file.fd, offset: Int64(index) * page, byteCount: page)
            }
            // A file that was larger in another life.
            let end = Int64(addresses.count) * page
            if Int64(file.byteCount) > end {
                try MemFD.punchHole(
                    file.fd, offset: end, byteCount: Int64(file.byteCount) - end)
            }
            return PhysicalRun(
                address: run.first.map { addresses[$0] } ?? 0,
                order: run.map { UInt32(clamping: $0) }, file: file, memory: memory)
        } catch { throw .system(error) }
    }

    // MARK: A predecessor's

    /// Stretches of a file whose addresses are asked for one by one: a run that is in more pieces
    /// than this is not looked up again.
    private static let maxStretchCount = 64

    /// Maps a run that a predecessor made, of which nothing is changed: these pages of its file, in
    /// this order. With `checking` they are looked up, and have to be where they were. Throws
    /// `unsupported` when the file is not that of such a run.
    static func adopt(
        _ file: consuming PoolFile, _ order: [UInt32], at address: UInt64,
        checking device: (any DeviceBacking)?
    ) throws(VFIOError) -> PhysicalRun {
        let page = PhysicalMemory.pageByteCount
        guard !order.isEmpty, order.count <= Int(PhysicalMemory.pageCountMax),
            Set(order).count == order.count, let last = order.max(),
            UInt64(last) < PhysicalMemory.pageCountMax
        else { throw .unsupported("the order of the pool's \(order.count) pages makes no sense") }
        let size = (try? MemFD.byteCount(of: file.fd)) ?? -1
        guard (try? MemFD.hugePageByteCount(of: file.fd)) == page,
            UInt64(clamping: size) >= (UInt64(last) + 1) * page
        else { throw .unsupported("the pool's file of \(size) bytes does not have those pages") }
        if let device { try check(file.fd, order, at: address, device) }
        do throws(SystemCallError) {
            let memory = try Mapping(
                hugePagesOf: file.fd, offsets: order.map { Int64($0) * Int64(page) })
            memory.excludeFromCoreDumps()
            return PhysicalRun(address: address, order: order, file: file, memory: memory)
        } catch { throw .system(error) }
    }

    /// Looks up where the pages are. Others of the file, which were given back, are not touched:
    /// they would be made again.
    private static func check(
        _ file: borrowing OwnedFD, _ order: [UInt32], at address: UInt64,
        _ device: any DeviceBacking
    ) throws(VFIOError) {
        let page = PhysicalMemory.pageByteCount
        let stretches = stretches(of: order)
        guard stretches.count <= maxStretchCount else {
            throw .unsupported("the pool's pages are in \(stretches.count) pieces of its file")
        }
        var found: [UInt32: UInt64] = [:]
        for stretch in stretches {
            let addresses = try device.physicalAddresses(
                of: file, offset: UInt64(stretch.lowerBound) * page,
                byteCount: UInt64(stretch.count) * page)
            for (index, address) in zip(stretch, addresses ?? []) { found[index] = address }
        }
        for (position, index) in order.enumerated() {
            let expected = address &+ UInt64(position) &* page
            guard found[index] == expected else {
                let place = found[index].map { "at 0x\(String($0, radix: 16))" } ?? "nowhere"
                throw .unsupported(
                    "page \(index) of the pool's file is \(place), not at "
                        + "0x\(String(expected, radix: 16)) any more")
            }
        }
    }

    /// Pages that are side by side in the file.
    static func stretches(of order: [UInt32]) -> [Range<UInt32>] {
        var all: [Range<UInt32>] = []
        for index in order.sorted() {
            if let last = all.last, last.upperBound == index {
                all[all.count - 1] = last.lowerBound..<(index &+ 1)
            } else {
                all.append(index..<(index &+ 1))
            }
        }
        return all
    }
}
