// SPDX-License-Identifier: Apache-2.0
// Mapping memory for a device of kernel VFIO, whichever interface it was opened through.

internal import CLinux
internal import Glibc
public import Linux

extension VFIODescriptors {
    /// What the descriptors are called in the fd store.
    var kept: [(name: String, raw: CInt)] {
        var all = [(name: "vfio-device", raw: device.raw)]
        if interface == .iommufd {
            all.append(("\(KernelVFIO.iommufdPrefix)\(addressSpace)", memory.raw))
        } else {
            all.append(("vfio-container", memory.raw))
            if let group = rawGroup { all.append(("vfio-group", group)) }
        }
        return all
    }

    func map(_ window: DMAWindow) throws(VFIOError) {
        let writes: CInt = window.access == .deviceReads ? 0 : 1
        switch interface {
        case .type1:
            try KernelVFIO.call(
                "VFIO_IOMMU_MAP_DMA of \(window.byteCount) bytes",
                nv_vfio_map_dma(
                    memory.raw, UInt64(window.base), window.iova, window.byteCount, writes))
        case .iommufd:
            try KernelVFIO.call(
                "IOMMU_IOAS_MAP of \(window.byteCount) bytes",
                nv_iommufd_map(
                    memory.raw, addressSpace, UInt64(window.base), window.iova, window.byteCount,
                    writes))
        case .noiommu:
            throw .unsupported(
                "without an IOMMU a client's memory cannot be shown to the device: it may move "
                    + "under a transfer; send the data in messages")
        }
    }

    func unmap(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        let unmapped: Int64
        switch interface {
        case .type1: unmapped = nv_vfio_unmap_dma(memory.raw, iova, byteCount)
        case .iommufd: unmapped = nv_iommufd_unmap(memory.raw, addressSpace, iova, byteCount)
        case .noiommu: return
        }
        guard unmapped >= 0 else {
            throw .system(
                SystemCallError("unmapping \(byteCount) bytes", errno: CInt(clamping: -unmapped)))
        }
        guard unmapped == Int64(clamping: byteCount) else {
            throw .protocolViolation(
                operation: "unmapping", detail: "\(unmapped) bytes instead of \(byteCount)")
        }
    }

    func unmapAll() throws(VFIOError) {
        switch interface {
        case .type1: try KernelVFIO.call("VFIO_IOMMU_UNMAP_DMA", nv_vfio_unmap_all(memory.raw))
        case .iommufd:
            let unmapped = nv_iommufd_unmap(memory.raw, addressSpace, 0, .max)
            // ENOENT: nothing was mapped.
            guard unmapped < 0, unmapped != -Int64(ENOENT) else { return }
            throw .system(
                SystemCallError("IOMMU_IOAS_UNMAP", errno: CInt(clamping: -unmapped)))
        case .noiommu: break
        }
    }

    /// Where memory may be mapped.
    func ranges() throws(VFIOError) -> [ClosedRange<UInt64>] {
        let whole: [ClosedRange<UInt64>] = [0...((1 << 39) - 1)]
        switch interface {
        case .type1:
            // A kernel that does not say has an IOMMU of 39 bits or more.
            let info = try KernelVFIO.info(memory.raw, NV_VFIO_IOMMU_INFO, index: nil)
            return AddressRanges.parse(info) ?? whole
        case .iommufd:
            var pairs = [UInt64](repeating: 0, count: 2 * AddressRanges.maxCount)
            let count = try KernelVFIO.call(
                "IOMMU_IOAS_IOVA_RANGES",
                unsafe nv_iommufd_ranges(
                    memory.raw, addressSpace, &pairs, UInt32(AddressRanges.maxCount)))
            return AddressRanges.ranges(Array(pairs.prefix(2 * Int(count))))
        case .noiommu: return whole
        }
    }
}

extension KernelVFIO {
    /// An iommufd is stored under this and the id of its address space.
    public static let iommufdPrefix = "iommufd-"

    /// Which interface a container belongs to whose IOMMU was set: a container without an IOMMU has
    /// no other extension than that.
    public static func interface(ofContainer fd: borrowing OwnedFD) -> VFIOInterface {
        nv_vfio_has_extension(fd.raw, NV_VFIO_NOIOMMU) > 0 ? .noiommu : .type1
    }

    /// The answer to an info request, as long as the kernel wants it, within a bound.
    static func info(
        _ fd: CInt, _ what: some BinaryInteger, index: UInt32?
    ) throws(VFIOError) -> [UInt8] {
        var wanted: UInt32 = 32
        // The first answer says how long the whole is; capabilities do not change meanwhile.
        for _ in 0..<3 {
            var writer = ByteWriter()
            writer.u64(0)
            writer.u32(index ?? 0)
            var bytes = writer.bytes
            bytes += [UInt8](repeating: 0, count: Int(wanted) - bytes.count)
            try call("VFIO info", unsafe nv_vfio_info(fd, CInt(what), &bytes, wanted))
            let needed = ByteReader(bytes).u32(0) ?? 0
            guard needed > wanted, wanted < KernelVFIONumbers.maxInfoByteCount else { return bytes }
            wanted = min(needed, KernelVFIONumbers.maxInfoByteCount)
        }
        throw .unsupported("the kernel's answer grows each time it is asked for")
    }
}
