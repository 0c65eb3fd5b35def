// SPDX-License-Identifier: Apache-2.0
// Every call that this module makes of the kernel for VFIO and sysfs, in one place, so that a test
// can stand in the kernel's (linux/vfio.h, linux/iommufd.h of Linux 6.1 and later).

internal import CLinux
internal import Glibc
internal import Linux

/// A request of VFIO or of an iommufd that is answered by a number.
enum VFIORequest: Equatable, Sendable {
    // Of a container.
    case version
    case hasExtension(UInt64)
    case setIOMMU(UInt64)
    case map(base: UInt, iova: UInt64, byteCount: UInt64, deviceWrites: Bool)
    case unmap(iova: UInt64, byteCount: UInt64)
    case unmapAll
    // Of a group.
    case groupFlags
    case setContainer(CInt)
    case deviceFD(String)
    // Of a device.
    case bindIOMMUFD(CInt)
    case attach(space: UInt32)
    case setInterrupts(index: UInt32, eventFDs: [CInt])
    case reset
    case hotResetInformation
    // Of an iommufd. `allocateSpace` is answered with the id, `unmapSpace` with the bytes.
    case allocateSpace
    case mapSpace(UInt32, base: UInt, iova: UInt64, byteCount: UInt64, deviceWrites: Bool)
    case unmapSpace(UInt32, iova: UInt64, byteCount: UInt64)
}

/// A question that is answered by a structure with capabilities behind it.
enum VFIOInformation: Equatable, Sendable {
    case device
    case region(UInt32)
    case interrupt(UInt32)
    case translation

    var number: CInt {
        switch self {
        case .device: CInt(NV_VFIO_DEVICE_INFO)
        case .region: CInt(NV_VFIO_REGION_INFO)
        case .interrupt: CInt(NV_VFIO_IRQ_INFO)
        case .translation: CInt(NV_VFIO_IOMMU_INFO)
        }
    }

    /// What the question is about, at byte 8 of the structure.
    var index: UInt32 {
        switch self {
        case .region(let index), .interrupt(let index): index
        case .device, .translation: 0
        }
    }
}

/// The kernel as this module uses it. Numbers are results, or an error's number negated.
protocol KernelCalls: Sendable {
    /// Does a request.
    func request(_ fd: CInt, _ request: VFIORequest) -> Int64

    /// Asks; `bytes` has the question in it and gets the answer, as far as it fits.
    func ask(_ fd: CInt, _ what: VFIOInformation, _ bytes: inout [UInt8]) -> CInt

    /// The address ranges of an address space as pairs of first and last, as many as fit.
    func addressRanges(_ fd: CInt, space: UInt32, _ pairs: inout [UInt64]) -> CInt

    /// Reads from a device's file.
    func read(_ fd: CInt, _ bytes: inout [UInt8], at position: Int64) -> Int

    /// Writes to a device's file.
    func write(_ fd: CInt, _ bytes: [UInt8], at position: Int64) -> Int

    /// Maps a part of a device's file.
    func map(
        _ fd: borrowing OwnedFD, at position: Int64, byteCount: Int
    ) throws(SystemCallError) -> Mapping

    /// Opens a device node for reading and writing.
    func open(_ path: String) throws(SystemCallError) -> OwnedFD

    /// Writes a file of sysfs.
    func write(_ path: String, _ text: String) throws(SystemCallError)

    /// Whether a path exists.
    func exists(_ path: String) -> Bool

    /// The first name in a directory; nil when there is none.
    func firstName(in directory: String) -> String?

    /// What a link says; nil when there is none.
    func target(ofLink path: String) -> String?
}

/// The kernel of this machine.
struct RunningKernel: KernelCalls {
    func request(_ fd: CInt, _ request: VFIORequest) -> Int64 {
        switch request {
        case .version: Int64(nv_vfio_api_version(fd))
        case .hasExtension(let number): Int64(nv_vfio_has_extension(fd, number))
        case .setIOMMU(let type): Int64(nv_vfio_set_iommu(fd, type))
        case .map(let base, let iova, let byteCount, let writes):
            Int64(nv_vfio_map_dma(fd, UInt64(base), iova, byteCount, writes ? 1 : 0))
        case .unmap(let iova, let byteCount): nv_vfio_unmap_dma(fd, iova, byteCount)
        case .unmapAll: Int64(nv_vfio_unmap_all(fd))
        case .groupFlags: Int64(nv_vfio_group_flags(fd))
        case .setContainer(let container): Int64(nv_vfio_set_container(fd, container))
        case .deviceFD(let name): unsafe Int64(nv_vfio_device_fd(fd, name))
        case .bindIOMMUFD(let iommufd): Int64(nv_vfio_bind_iommufd(fd, iommufd))
        case .attach(let space): Int64(nv_vfio_attach_ioas(fd, space))
        case .setInterrupts(let index, let eventFDs):
            unsafe Int64(
                nv_vfio_set_irqs(
                    fd, index, eventFDs.isEmpty ? nil : eventFDs, UInt32(clamping: eventFDs.count)))
        case .reset: Int64(nv_vfio_reset(fd))
        case .hotResetInformation: Int64(nv_vfio_hot_reset_possible(fd))
        case .allocateSpace: allocateSpace(fd)
        case .mapSpace(let space, let base, let iova, let byteCount, let writes):
            Int64(nv_iommufd_map(fd, space, UInt64(base), iova, byteCount, writes ? 1 : 0))
        case .unmapSpace(let space, let iova, let byteCount):
            nv_iommufd_unmap(fd, space, iova, byteCount)
        }
    }

    private func allocateSpace(_ fd: CInt) -> Int64 {
        var space: UInt32 = 0
        let result = unsafe nv_iommufd_alloc_ioas(fd, &space)
        return result < 0 ? Int64(result) : Int64(space)
    }

    func ask(_ fd: CInt, _ what: VFIOInformation, _ bytes: inout [UInt8]) -> CInt {
        unsafe nv_vfio_info(fd, what.number, &bytes, UInt32(clamping: bytes.count))
    }

    func addressRanges(_ fd: CInt, space: UInt32, _ pairs: inout [UInt64]) -> CInt {
        unsafe nv_iommufd_ranges(fd, space, &pairs, UInt32(clamping: pairs.count / 2))
    }

    func read(_ fd: CInt, _ bytes: inout [UInt8], at position: Int64) -> Int {
        unsafe Int(nv_pread(fd, &bytes, bytes.count, position))
    }

    func write(_ fd: CInt, _ bytes: [UInt8], at position: Int64) -> Int {
        unsafe Int(nv_pwrite(fd, bytes, bytes.count, position))
    }

    func map(
        _ fd: borrowing OwnedFD, at position: Int64, byteCount: Int
    ) throws(SystemCallError) -> Mapping {
        try Mapping(fd, offset: position, byteCount: byteCount)
    }

    func open(_ path: String) throws(SystemCallError) -> OwnedFD {
        try OwnedFD.open(path, flags: O_RDWR)
    }

    func write(_ path: String, _ text: String) throws(SystemCallError) {
        let fd = try OwnedFD.open(path, flags: O_WRONLY)
        let bytes = Array(text.utf8)
        try checked("write \(path)", unsafe nv_write(fd.raw, bytes, bytes.count))
    }

    func exists(_ path: String) -> Bool { Files.exists(path) }

    func firstName(in directory: String) -> String? {
        (try? Files.list(directory, limit: 1))?.first
    }

    func target(ofLink path: String) -> String? { Files.target(ofLink: path) }
}
