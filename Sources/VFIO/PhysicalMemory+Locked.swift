// SPDX-License-Identifier: Apache-2.0
// Where locked pages lie now (Documentation/admin-guide/mm/pagemap.rst).

internal import CLinux
internal import CMemory
internal import Glibc
public import Linux

extension PhysicalMemory {
    /// The most small pages that are looked up at once: 1 GiB.
    public static let lockedPageCountMax = 1 << 18

    /// The physical address of every page of 4096 bytes of a mapping that is locked.
    ///
    /// Locked memory stays in memory, but the kernel may still move it elsewhere (compaction): for
    /// a device without an IOMMU only huge pages will do. Needs CAP_SYS_ADMIN: without it the
    /// kernel tells zeroes, which is an error here.
    public static func addresses(
        ofLocked mapping: borrowing Mapping
    ) throws(VFIOError) -> [UInt64] {
        let count = mapping.byteCount / 4096
        guard count > 0, count <= lockedPageCountMax else {
            throw .unsupported("\(count) locked pages are not 1 to \(lockedPageCountMax)")
        }
        var entries = [UInt64](repeating: 0, count: count)
        do throws(SystemCallError) {
            let file = try OwnedFD.open("/proc/self/pagemap", flags: O_RDONLY)
            let position = Int64(unsafe UInt(bitPattern: mapping.base) / 4096 * 8)
            let got = try checked(
                "read /proc/self/pagemap", unsafe nv_pread(file.raw, &entries, count * 8, position))
            guard got == count * 8 else {
                throw SystemCallError("read /proc/self/pagemap", errno: EIO)
            }
        } catch { throw .system(error) }
        var found: [UInt64] = []
        for entry in entries {
            // Bit 63: present; bits 54:0: the page frame.
            let frame = entry & ((1 << 55) - 1)
            guard entry >> 63 == 1 else {
                throw .unsupported("a locked page has no place in memory")
            }
            guard frame != 0 else {
                throw .unsupported(
                    "the kernel does not tell where memory lies; that needs CAP_SYS_ADMIN")
            }
            found.append(frame << 12)
        }
        return found
    }
}
