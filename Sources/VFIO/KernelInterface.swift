// SPDX-License-Identifier: Apache-2.0
// What kernel VFIO tells, as values: capability chains, regions, address ranges, PCI configuration
// space (linux/vfio.h of Linux 6.1; PCI Local Bus 3.0, 6.7 and 6.8.2).

/// Numbers of the kernel's interface.
enum KernelVFIONumbers {
    static let regionBAR0: UInt32 = 0
    static let regionConfig: UInt32 = 7
    static let irqMSIX: UInt32 = 2
    static let irqError: UInt32 = 3
    static let irqRequest: UInt32 = 4
    static let deviceFlagReset: UInt32 = 1 << 0
    static let deviceFlagPCI: UInt32 = 1 << 1
    static let irqFlagEventFD: UInt32 = 1 << 0
    static let regionFlagRead: UInt32 = 1 << 0
    static let regionFlagWrite: UInt32 = 1 << 1
    static let regionFlagMmap: UInt32 = 1 << 2
    static let regionFlagCaps: UInt32 = 1 << 3
    static let iommuFlagCaps: UInt32 = 1 << 1
    static let capabilitySparseMmap: UInt16 = 1
    static let capabilityMSIXMappable: UInt16 = 3
    static let capabilityIOVARanges: UInt16 = 1
    /// An answer of the kernel that is longer is cut: no chain needs more.
    static let maxInfoByteCount: UInt32 = 1 << 16
    /// A PCI function has at most 2048 MSI-X vectors (PCI Express Base 5.0, 7.7.2.2).
    static let maxVectorCount: UInt32 = 2048
}

/// A chain of capabilities in an answer of VFIO: {id, version, offset of the next}.
enum CapabilityChain {
    /// Links followed before a chain is taken for a loop: the kernel has six kinds.
    static let maxLinkCount = 32

    /// Where the first capability of a kind begins; nil when there is none.
    static func find(_ id: UInt16, in info: [UInt8], first: UInt32) -> Int? {
        let reader = ByteReader(info)
        var at = Int(first)
        for _ in 0..<maxLinkCount where at != 0 {
            guard let found = reader.u16(at), let next = reader.u32(at + 4) else { return nil }
            if found == id { return at }
            at = Int(next)
        }
        return nil
    }
}

/// A region of a device: a BAR, or the configuration space.
struct DeviceRegion: Equatable {
    /// Bytes that may be mapped: offset in the region and length.
    struct Area: Equatable {
        var offset: UInt64
        var byteCount: UInt64
    }

    /// The length in bytes; 0: the device does not have it.
    var byteCount: UInt64
    /// Where it begins in the device's file.
    var fileOffset: UInt64
    /// What may be mapped; empty: nothing.
    var areas: [Area]

    /// The areas of a sparse mapping that are read at most.
    static let maxAreaCount = 64

    /// Reads struct vfio_region_info with its capabilities; nil when it is too short.
    init?(_ info: [UInt8]) {
        let reader = ByteReader(info)
        guard let flags = reader.u32(4), let chain = reader.u32(12), let size = reader.u64(16),
            let offset = reader.u64(24)
        else { return nil }
        byteCount = size
        fileOffset = offset
        areas = []
        guard flags & KernelVFIONumbers.regionFlagMmap != 0, size > 0 else { return }
        areas = [Area(offset: 0, byteCount: size)]
        guard flags & KernelVFIONumbers.regionFlagCaps != 0,
            let at = CapabilityChain.find(
                KernelVFIONumbers.capabilitySparseMmap, in: info, first: chain)
        else { return }
        areas = []
        let count = Int(min(reader.u32(at + 8) ?? 0, UInt32(Self.maxAreaCount)))
        for index in 0..<count {
            let entry = at + 16 + 16 * index
            guard let offset = reader.u64(entry), let length = reader.u64(entry + 8) else { break }
            areas.append(Area(offset: offset, byteCount: length))
        }
    }

    /// The whole pages of the areas below `limit`, without those from `avoided` on.
    ///
    /// Overlapping, overflowing and empty areas are left out, and what lies past the region's end.
    func mappable(below limit: UInt64, avoiding avoided: Range<UInt64>?) -> [Area] {
        var found: [Area] = []
        for area in areas.prefix(Self.maxAreaCount) {
            let (end, overflow) = area.offset.addingReportingOverflow(area.byteCount)
            guard !overflow, end <= byteCount, area.offset < limit else { continue }
            var last = min(end, limit) & ~0xFFF
            let first = (area.offset + 0xFFF) & ~0xFFF
            if let avoided, avoided.lowerBound < last, avoided.upperBound > first {
                last = min(last, avoided.lowerBound & ~0xFFF)
            }
            guard first < last, !found.contains(where: { $0.overlaps(first..<last) }) else {
                continue
            }
            found.append(Area(offset: first, byteCount: last - first))
        }
        return found
    }
}

extension DeviceRegion.Area {
    /// Whether some byte is in both. The area does not overflow.
    func overlaps(_ range: Range<UInt64>) -> Bool {
        offset < range.upperBound && range.lowerBound < offset + byteCount
    }
}

/// Ranges of I/O virtual addresses that the IOMMU translates.
enum AddressRanges {
    /// Ranges that are read at most: an IOMMU has a handful of holes.
    static let maxCount = 64

    /// Reads struct vfio_iommu_type1_info with its capabilities; nil when the kernel does not say.
    static func parse(_ info: [UInt8]) -> [ClosedRange<UInt64>]? {
        let reader = ByteReader(info)
        guard let flags = reader.u32(4), flags & KernelVFIONumbers.iommuFlagCaps != 0,
            let chain = reader.u32(16),
            let at = CapabilityChain.find(
                KernelVFIONumbers.capabilityIOVARanges, in: info, first: chain),
            let count = reader.u32(at + 8)
        else { return nil }
        var pairs: [UInt64] = []
        for index in 0..<Int(min(count, UInt32(maxCount))) {
            guard let first = reader.u64(at + 16 + 16 * index),
                let last = reader.u64(at + 24 + 16 * index)
            else { break }
            pairs += [first, last]
        }
        return ranges(pairs)
    }

    /// Pairs of first and last address as ranges, rising and apart; nonsense is left out.
    static func ranges(_ pairs: [UInt64]) -> [ClosedRange<UInt64>] {
        var all: [ClosedRange<UInt64>] = []
        for index in stride(from: 0, to: pairs.count - 1, by: 2)
        where pairs[index] < pairs[index + 1] {
            all.append(pairs[index]...pairs[index + 1])
        }
        all.sort { $0.lowerBound < $1.lowerBound }
        var apart: [ClosedRange<UInt64>] = []
        for range in all where apart.last.map({ $0.upperBound < range.lowerBound }) ?? true {
            apart.append(range)
        }
        return apart
    }
}

/// What the driver needs of a function's configuration space.
struct PCIConfiguration: Equatable {
    /// The bytes of BAR0 that the MSI-X table occupies; nil when it is in another BAR.
    var vectorTable: Range<UInt64>?
    /// Vectors of the MSI-X table; nil without MSI-X.
    var vectorCount: Int?

    /// Links followed before the list is taken for a loop: 192 bytes hold 48 capabilities.
    static let maxLinkCount = 48

    /// Reads the first 256 bytes.
    init(_ bytes: [UInt8]) {
        let reader = ByteReader(bytes)
        // Status bit 4: there is a capabilities list.
        guard let status = reader.u16(6), status & 0x10 != 0, let first = reader.u16(0x34)
        else { return }
        var at = Int(first & 0xFC)
        for _ in 0..<Self.maxLinkCount where at >= 0x40 {
            guard let head = reader.u16(at) else { return }
            if head & 0xFF == 0x11, let control = reader.u16(at + 2),
                let table = reader.u32(at + 4)
            {
                let count = UInt64(control & 0x7FF) + 1
                vectorCount = Int(count)
                let offset = UInt64(table & ~7)
                if table & 7 == 0 { vectorTable = offset..<(offset + 16 * count) }
                return
            }
            at = Int(head >> 8) & 0xFC
        }
    }
}
