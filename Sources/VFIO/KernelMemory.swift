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

    func map(_ window: DMAWindow, _ kernel: any KernelCalls) throws(VFIOError) {
        let writes = window.access == .deviceReadsAndWrites
        switch interface {
        case .type1:
            try KernelVFIO.call(
                "VFIO_IOMMU_MAP_DMA of \(window.byteCount) bytes",
                kernel.request(
                    memory.raw,
                    .map(
                        base: window.base, iova: window.iova, byteCount: window.byteCount,
                        deviceWrites: writes)))
        case .iommufd:
            try KernelVFIO.call(
                "IOMMU_IOAS_MAP of \(window.byteCount) bytes",
                kernel.request(
                    memory.raw,
                    .mapSpace(
                        addressSpace, base: window.base, iova: window.iova,
                        byteCount: window.byteCount, deviceWrites: writes)))
        case .noiommu:
            throw .unsupported(
                "without an IOMMU a client's memory cannot be shown to the device: it may move "
                    + "under a transfer; send the data in messages")
        }
    }

    func unmap(
        iova: UInt64, byteCount: UInt64, _ kernel: any KernelCalls, orNothing: Bool = false
    ) throws(VFIOError) {
        let request: VFIORequest
        switch interface {
        case .type1: request = .unmap(iova: iova, byteCount: byteCount)
        case .iommufd: request = .unmapSpace(addressSpace, iova: iova, byteCount: byteCount)
        case .noiommu: return
        }
        let answer = kernel.request(memory.raw, request)
        // Nothing is mapped there: type 1 says 0 bytes, an iommufd ENOENT.
        if orNothing, answer == 0 || answer == -Int64(ENOENT) { return }
        let unmapped = try KernelVFIO.call("unmapping \(byteCount) bytes", answer)
        guard unmapped == Int64(clamping: byteCount) else {
            throw .protocolViolation(
                operation: "unmapping", detail: "\(unmapped) bytes instead of \(byteCount)")
        }
    }

    func unmapAll(_ kernel: any KernelCalls) throws(VFIOError) {
        switch interface {
        case .type1:
            try KernelVFIO.call("VFIO_IOMMU_UNMAP_DMA", kernel.request(memory.raw, .unmapAll))
        case .iommufd:
            let unmapped = kernel.request(
                memory.raw, .unmapSpace(addressSpace, iova: 0, byteCount: .max))
            // ENOENT: nothing was mapped.
            guard unmapped != -Int64(ENOENT) else { return }
            try KernelVFIO.call("IOMMU_IOAS_UNMAP", unmapped)
        case .noiommu: break
        }
    }

    /// Where memory may be mapped.
    func ranges(_ kernel: any KernelCalls) throws(VFIOError) -> [ClosedRange<UInt64>] {
        let whole: [ClosedRange<UInt64>] = [0...((1 << 39) - 1)]
        switch interface {
        case .type1:
            // A kernel that does not say has an IOMMU of 39 bits or more.
            return AddressRanges.parse(try kernel.information(memory.raw, .translation)) ?? whole
        case .iommufd:
            var pairs = [UInt64](repeating: 0, count: 2 * AddressRanges.maxCount)
            let count = try KernelVFIO.call(
                "IOMMU_IOAS_IOVA_RANGES",
                Int64(kernel.addressRanges(memory.raw, space: addressSpace, &pairs)))
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
}

extension KernelCalls {
    /// The answer to a question, as long as the kernel wants it, within a bound.
    func information(_ fd: CInt, _ what: VFIOInformation) throws(VFIOError) -> [UInt8] {
        var wanted: UInt32 = 32
        // The first answer says how long the whole is; capabilities do not change meanwhile.
        for _ in 0..<3 {
            var writer = ByteWriter()
            writer.u32(wanted)
            writer.u32(0)
            writer.u32(what.index)
            var bytes = writer.bytes
            bytes += [UInt8](repeating: 0, count: Int(wanted) - bytes.count)
            try KernelVFIO.call("VFIO info", Int64(ask(fd, what, &bytes)))
            let needed = ByteReader(bytes).u32(0) ?? 0
            guard needed > wanted, wanted < KernelVFIONumbers.maxInfoByteCount else { return bytes }
            wanted = min(needed, KernelVFIONumbers.maxInfoByteCount)
        }
        throw .unsupported("the kernel's answer grows each time it is asked for")
    }
}
