// SPDX-License-Identifier: Apache-2.0
// Memory that is contiguous for a device without an IOMMU: huge pages, put in the order of their
// physical addresses.

internal import Linux
internal import VFIO

/// A run of huge pages with rising, adjacent physical addresses, mapped in that order.
struct PhysicalRun: ~Copyable {
    /// The physical address of the first byte.
    let address: UInt64
    /// The memory file; pages that are not part of the run were given back.
    private let fd: OwnedFD
    /// The mapping, adjacent here as well.
    private let memory: Mapping

    /// A memory file and its mapping.
    struct Parts: ~Copyable {
        let fd: OwnedFD
        let memory: Mapping
    }

    private init(address: UInt64, fd: consuming OwnedFD, memory: consuming Mapping) {
        self.address = address
        self.fd = fd
        self.memory = memory
    }

    consuming func takeParts() -> Parts { Parts(fd: fd, memory: memory) }

    /// How much more than needed is taken at most to find a run in.
    private static let attempts = [1, 2, 4]

    static func allocate(
        _ byteCount: Int, _ name: String, _ device: any DeviceBacking
    ) throws(VFIOError) -> PhysicalRun {
        let page = Int(PhysicalMemory.pageByteCount)
        let wanted = (byteCount + page - 1) / page
        for factor in attempts {
            let count = min(wanted * factor, Int(PhysicalMemory.pageCountMax))
            guard count >= wanted else { break }
            let file = try file(name, count * page)
            let addresses =
                try device.physicalAddresses(of: file, byteCount: UInt64(count * page)) ?? []
            guard addresses.count == count, let run = find(wanted, in: addresses) else { continue }
            return try map(file, run, addresses)
        }
        throw .unsupported(
            "no \(wanted) huge pages lie side by side; reserve more when the machine starts "
                + "(hugepages=\(4 * wanted) on the kernel's command line)")
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

    private static func file(_ name: String, _ byteCount: Int) throws(VFIOError) -> OwnedFD {
        do throws(SystemCallError) {
            return try MemFD.create(name: name, byteCount: byteCount, hugePages: true)
        } catch { throw .system(error) }
    }

    private static func map(
        _ file: consuming OwnedFD, _ run: [Int], _ addresses: [UInt64]
    ) throws(VFIOError) -> PhysicalRun {
        let page = Int64(PhysicalMemory.pageByteCount)
        do throws(SystemCallError) {
            let memory = try Mapping(hugePagesOf: file, offsets: run.map { Int64($0) * page })
            memory.excludeFromCoreDumps()
            let used = Set(run)
            for index in addresses.indices where !used.contains(index) {
                try MemFD.punchHole(file, offset: Int64(index) * page, byteCount: page)
            }
            return PhysicalRun(
                address: run.first.map { addresses[$0] } ?? 0, fd: file, memory: memory)
        } catch { throw .system(error) }
    }
}
