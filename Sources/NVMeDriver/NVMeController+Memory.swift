// SPDX-License-Identifier: Apache-2.0
// Memory of clients: made reachable for the device once, then named by region and offset.

internal import DMA
public import Linux
internal import VFIO

/// A client's memory as it is mapped here and for the device. The pages stay as long as the device
/// may use them.
@safe
struct ClientMapping {
    var iova: UInt64
    var byteCount: UInt64
    var base: UnsafeMutableRawPointer
}

extension NVMeController {
    /// Makes a memory file reachable for the device and returns its region.
    ///
    /// The caller has checked the seals: the file cannot shrink. `byteCount` is a multiple of 4096.
    /// With `readOnly` the device is not allowed to write, so that reads into the region fail.
    public func registerMemory(
        _ fd: borrowing OwnedFD, byteCount: Int, session: UInt32, readOnly: Bool
    ) throws(DriverError) -> UInt32 {
        guard byteCount > 0, byteCount & 4095 == 0 else {
            throw .unusable(
                field: "byte_count", value: UInt64(clamping: byteCount),
                rule: "registered memory is a multiple of 4096 bytes")
        }
        let base = unsafe try map(fd, byteCount)
        guard let iova = space.allocate(byteCount: UInt64(byteCount)) else {
            unsafe Mapping.unmap(base, byteCount: byteCount)
            throw .exhausted("no I/O virtual addresses are left")
        }
        let mapping = unsafe ClientMapping(iova: iova, byteCount: UInt64(byteCount), base: base)
        do throws(VFIOError) {
            try device.map(
                unsafe DMAWindow(
                    iova: iova, byteCount: UInt64(byteCount), base: base,
                    access: readOnly ? .deviceReads : .deviceReadsAndWrites),
                fd: fd, offset: 0)
        } catch {
            release(mapping)
            throw .device(error)
        }
        guard
            let region = unsafe regions.insert(
                session: session, iova: iova, byteCount: UInt64(byteCount), base: base)
        else {
            try? unmap(mapping)
            throw .exhausted("all \(StateLayout.regionCapacity) regions of the device are in use")
        }
        clientMappings[region] = mapping
        return region
    }

    /// Takes memory away from the device. No command may point at it any more.
    public func unregisterMemory(_ region: UInt32) throws(DriverError) {
        guard let mapping = clientMappings.removeValue(forKey: region) else { return }
        regions.remove(region)
        try unmap(mapping)
    }

    /// When the device does not confirm, it may still write there: the memory and its address are
    /// then never used again.
    private func unmap(_ mapping: ClientMapping) throws(DriverError) {
        do throws(VFIOError) {
            try device.unmap(iova: mapping.iova, byteCount: mapping.byteCount)
        } catch { throw .device(error) }
        release(mapping)
    }

    private func release(_ mapping: ClientMapping) {
        space.release(mapping.iova)
        unsafe Mapping.unmap(mapping.base, byteCount: Int(mapping.byteCount))
    }

    private func map(
        _ fd: borrowing OwnedFD, _ byteCount: Int
    ) throws(DriverError) -> UnsafeMutableRawPointer {
        do throws(SystemCallError) {
            let mapping = try Mapping(fd, byteCount: byteCount)
            mapping.excludeFromCoreDumps()
            return unsafe mapping.leak()
        } catch { throw .system(error) }
    }
}
