// SPDX-License-Identifier: Apache-2.0
// Memory of clients: made reachable for the device once, then named by region and offset.

internal import CLinux
internal import DMA
public import Linux
internal import VFIO

/// A client's memory as it is mapped here and for the device. The pages stay as long as the device
/// may use them.
@safe
struct ClientMapping {
    /// The device's address that is taken for it; nil: the device has none, or it is physical.
    var iova: UInt64?
    var byteCount: UInt64
    var base: UnsafeMutableRawPointer
    /// What makes this process survive the end of its pages.
    var guardNumber: CInt

    /// Undoes the mapping in this process.
    func unmap() {
        nv_guard_remove(guardNumber)
        unsafe Mapping.unmap(base, byteCount: Int(byteCount))
    }
}

/// A stretch of a memory file, or of a device node that is memory, to be registered.
public struct ClientMemoryStretch: Sendable, Equatable {
    /// Where it starts in the file, in bytes; a multiple of `pageByteCount`.
    public var offset: UInt64 = 0
    /// Its length in bytes; a multiple of `pageByteCount`.
    public var byteCount: UInt64
    /// Bytes of a page of the file: 4096, or those of a huge page.
    public var pageByteCount: UInt64 = 4096
    /// The device must not write it, so that reads into it fail.
    public var isReadOnly = false
    /// The offsets are physical addresses, and the pages never move: a device without an IOMMU uses
    /// it as it is.
    public var isPhysical = false

    /// The start of an ordinary memory file.
    public init(byteCount: UInt64) { self.byteCount = byteCount }
}

extension NVMeController {
    /// Whether clients' memory is copied: a device without an IOMMU must not be shown memory that
    /// may move or go away under a transfer.
    public var bouncesClientMemory: Bool { device.usesPhysicalAddresses }

    /// Makes the start of a memory file reachable for the device and returns its region.
    ///
    /// The caller has checked the seals: the file cannot shrink. `byteCount` is a multiple of 4096.
    /// With `readOnly` the device is not allowed to write, so that reads into the region fail.
    public func registerMemory(
        _ fd: borrowing OwnedFD, byteCount: Int, session: UInt32, readOnly: Bool
    ) throws(DriverError) -> UInt32 {
        var stretch = ClientMemoryStretch(byteCount: UInt64(clamping: byteCount))
        stretch.isReadOnly = readOnly
        return try registerMemory(fd, stretch, session: session)
    }

    /// Makes memory reachable for the device and returns its region. The caller has checked that
    /// the file cannot shrink, or that the node is the one of the configuration.
    ///
    /// Without an IOMMU the region of a memory file is bounced. `clientID` is what the client calls
    /// it, `number` that of its name in the fd store and `requestID` the request that asks for it,
    /// all for a successor of this process. `store` is called when they are on record, and before
    /// the device sees the memory: it has to put the file into the store.
    public func registerMemory(
        _ fd: borrowing OwnedFD, _ stretch: ClientMemoryStretch, session: UInt32,
        clientID: UInt64 = 0, number: UInt64 = 0, requestID: UInt64 = 0,
        store: () throws(DriverError) -> Void = { () throws(DriverError) in }
    ) throws(DriverError) -> UInt32 {
        try Self.check(stretch)
        guard !stretch.isPhysical || device.usesPhysicalAddresses else {
            throw .unusable(
                field: "the memory's offset", value: stretch.offset,
                rule: "physical addresses mean nothing to a device behind an IOMMU")
        }
        guard let index = regions.nextFree(where: { state.regionContent($0) == .free }) else {
            throw .exhausted(
                "all \(StateLayout.regionCapacity) regions of the device are in use")
        }
        var mapping = try map(fd, stretch)
        var flags: RegionFlags = stretch.isReadOnly ? .readOnly : []
        if stretch.isPhysical {
            // The device has it already.
        } else if bouncesClientMemory {
            flags.insert(.bounced)
        } else {
            try take(&mapping, stretch)
        }
        var record = RegionRecord(
            state: .mapping, iova: mapping.iova ?? 0, stretch: stretch, session: session,
            flags: flags, clientID: clientID)
        record.number = number
        record.registerRequestID = requestID
        state.setRegion(index, record)
        CrashPoint.hit(.memoryRecorded)
        do throws(DriverError) {
            try store()
            CrashPoint.hit(.memoryMapping)
            try show(mapping, stretch, fd)
        } catch {
            release(mapping)
            state.clearRegion(index)
            throw error
        }
        CrashPoint.hit(.memoryMapped)
        let region = unsafe regions.insert(
            session: session, iova: mapping.iova ?? stretch.offset,
            byteCount: stretch.byteCount, base: mapping.base, flags: flags,
            guardNumber: mapping.guardNumber, at: index)
        guard region == index else { throw .exhausted("the table of regions is damaged") }
        record.state = .mapped
        state.setRegion(index, record)
        clientMappings[index] = mapping
        CrashPoint.hit(.memoryReady)
        return index
    }

    static func check(_ stretch: ClientMemoryStretch) throws(DriverError) {
        let page = stretch.pageByteCount
        guard page >= 4096, page <= 1 << 30, page & (page - 1) == 0 else {
            throw .unusable(
                field: "the memory's page size", value: page,
                rule: "pages of 4096 bytes to 1 GiB are known")
        }
        guard stretch.byteCount > 0, stretch.byteCount & (page - 1) == 0,
            stretch.byteCount <= 1 << 46
        else {
            throw .unusable(
                field: "byte_count", value: stretch.byteCount,
                rule: "registered memory is a multiple of \(page) bytes, the size of its pages")
        }
        guard stretch.offset & (page - 1) == 0, stretch.offset <= 1 << 46 else {
            throw .unusable(
                field: "the memory's offset", value: stretch.offset,
                rule: "registered memory starts at a multiple of \(page) bytes")
        }
    }

    /// Whether this process met a page of a region that is gone: the session that registered it is
    /// to be ended.
    public func hasFaulted(region: UInt32) -> Bool { regions.view.hasFaulted(region) }

    /// Where this process has bytes of a region, for reading segment lists that lie in it; nil when
    /// they are not all within a region of that session. Ask `hasFaulted` after having read.
    public func localBytes(
        region: UInt32, offset: UInt64, byteCount: UInt64, session: UInt32
    ) -> UnsafeMutableRawPointer? {
        unsafe regions.view.localBytes(
            region: region, offset: offset, byteCount: byteCount, session: session)
    }

    /// Notes the request that gives memory back, when commands still use it: a successor answers
    /// it.
    public func willUnregister(_ region: UInt32, requestID: UInt64) {
        guard var record = state.region(region) else { return }
        record.unregisterRequestID = requestID
        state.setRegion(region, record)
        CrashPoint.hit(.memoryEnding)
    }

    /// Takes memory away from the device. No command may point at it any more.
    ///
    /// With `keepsRecord` its record stays, UNMAPPING, until `forgetRegion`: as long as somebody
    /// waits for an answer.
    public func unregisterMemory(
        _ region: UInt32, keepsRecord: Bool = false
    ) throws(DriverError) {
        guard let mapping = clientMappings.removeValue(forKey: region) else { return }
        regions.remove(region)
        if var record = state.region(region) {
            record.state = .unmapping
            state.setRegion(region, record)
        }
        CrashPoint.hit(.memoryUnmapping)
        try unmap(mapping)
        CrashPoint.hit(.memoryUnmapped)
        if !keepsRecord { forgetRegion(region) }
    }

    /// Nothing is on record any more of a region that the device does not see.
    public func forgetRegion(_ region: UInt32) {
        guard clientMappings[region] == nil else { return }
        state.clearRegion(region)
        CrashPoint.hit(.memoryFreed)
    }

    /// When the device does not confirm, it may still write there: the memory and its address are
    /// then never used again.
    private func unmap(_ mapping: ClientMapping) throws(DriverError) {
        if let iova = mapping.iova {
            do throws(VFIOError) {
                try device.unmap(iova: iova, byteCount: mapping.byteCount)
            } catch { throw .device(error) }
        }
        release(mapping)
    }

    private func release(_ mapping: ClientMapping) {
        if let iova = mapping.iova { space.release(iova) }
        mapping.unmap()
    }

    /// Takes addresses of the device for memory.
    private func take(
        _ mapping: inout ClientMapping, _ stretch: ClientMemoryStretch
    ) throws(DriverError) {
        // Aligned like its pages, so that the IOMMU can use large ones too.
        guard
            let iova = space.allocate(
                byteCount: stretch.byteCount, alignment: stretch.pageByteCount)
        else {
            release(mapping)
            throw .exhausted("no I/O virtual addresses are left")
        }
        mapping.iova = iova
    }

    /// Has the device map memory that it has addresses for.
    func show(
        _ mapping: ClientMapping, _ stretch: ClientMemoryStretch, _ fd: borrowing OwnedFD
    ) throws(DriverError) {
        guard let iova = mapping.iova else { return }
        do throws(VFIOError) {
            try device.map(
                unsafe DMAWindow(
                    iova: iova, byteCount: stretch.byteCount, base: mapping.base,
                    access: stretch.isReadOnly ? .deviceReads : .deviceReadsAndWrites),
                fd: fd, offset: stretch.offset)
        } catch { throw .device(error) }
    }

    /// Maps memory here and guards it: its owner can take pages out of it.
    func map(
        _ fd: borrowing OwnedFD, _ stretch: ClientMemoryStretch
    ) throws(DriverError) -> ClientMapping {
        let base: UnsafeMutableRawPointer
        do throws(SystemCallError) {
            let mapping = try Mapping(
                fd, offset: Int64(stretch.offset), byteCount: Int(stretch.byteCount))
            mapping.excludeFromCoreDumps()
            unsafe base = mapping.leak()
        } catch { throw .system(error) }
        let number = unsafe nv_guard_add(
            base, Int(stretch.byteCount), Int(stretch.pageByteCount))
        let mapping = unsafe ClientMapping(
            iova: nil, byteCount: stretch.byteCount, base: base, guardNumber: number)
        guard number >= 0 else {
            mapping.unmap()
            throw .exhausted("this process guards as many mappings as it can")
        }
        return mapping
    }
}
