// SPDX-License-Identifier: Apache-2.0
// Where memory lies physically, for devices without an IOMMU
// (Documentation/admin-guide/mm/pagemap.rst).

internal import CLinux
internal import CMemory
internal import Glibc
public import Linux

/// Physical addresses of memory that cannot move: files of huge pages.
public enum PhysicalMemory {
    /// The size of a huge page, which never moves while it is in use.
    public static let pageByteCount: UInt64 = 2 << 20
    /// The most pages of one file: 2 GiB.
    public static let pageCountMax: UInt64 = 1024

    /// The physical address of every huge page of a stretch of a file that cannot shrink. Pages
    /// that the file does not have yet it has afterwards.
    ///
    /// Needs CAP_SYS_ADMIN: without it the kernel tells zeroes, which is an error here.
    public static func addresses(
        of fd: borrowing OwnedFD, offset: UInt64 = 0, byteCount: UInt64
    ) throws(VFIOError) -> [UInt64] {
        guard byteCount > 0, byteCount % pageByteCount == 0,
            byteCount / pageByteCount <= pageCountMax, offset % pageByteCount == 0,
            offset / pageByteCount <= pageCountMax
        else {
            throw .unsupported(
                "\(byteCount) bytes at \(offset) are not 1 to \(pageCountMax) huge pages")
        }
        do {
            guard nv_is_hugetlb(fd.raw) == 1 else {
                throw VFIOError.unsupported("memory that is not of huge pages may move")
            }
            guard try MemFD.seals(of: fd).contains(.shrink) || isRootsFile(fd),
                try MemFD.byteCount(of: fd) >= Int(offset + byteCount)
            else { throw VFIOError.unsupported("the memory file can shrink, or is shorter") }
            let mapping = try Mapping(fd, offset: Int64(offset), byteCount: Int(byteCount))
            return try read(mapping, Int(byteCount / pageByteCount))
        } catch let error as VFIOError {
            throw error
        } catch let error as SystemCallError where error.errno == ENOMEM {
            throw .unsupported(
                "\(byteCount / pageByteCount) huge pages of 2 MiB are needed and not free; raise "
                    + "vm.nr_hugepages")
        } catch let error as SystemCallError {
            throw .system(error)
        } catch { throw .unsupported("\(error)") }
    }

    /// A file with a name, on a hugetlbfs, can have no seals. It is for root to see to it that
    /// nobody shortens it: a pool that outlives its worker.
    private static func isRootsFile(_ fd: borrowing OwnedFD) -> Bool {
        var facts = stat()
        guard unsafe fstat(fd.raw, &facts) == 0, facts.st_mode & S_IFMT == S_IFREG else {
            return false
        }
        return facts.st_nlink > 0 && facts.st_uid == 0 && facts.st_mode & 0o022 == 0
    }

    /// An entry of /proc/self/pagemap for the first small page of each huge page.
    private static func read(_ mapping: borrowing Mapping, _ count: Int) throws -> [UInt64] {
        let file = try OwnedFD.open("/proc/self/pagemap", flags: O_RDONLY)
        var found: [UInt64] = []
        for index in 0..<count {
            let page = unsafe mapping.base + index * Int(pageByteCount)
            // Present before it is looked up; a plain load would be left out.
            _ = unsafe nv_load64(page)
            var entry: UInt64 = 0
            let position = Int64(UInt(bitPattern: page) / 4096 * 8)
            let got = unsafe nv_pread(file.raw, &entry, 8, position)
            // Bit 63: present; bits 54:0: the page frame.
            let frame = entry & ((1 << 55) - 1)
            guard got == 8, entry >> 63 == 1 else {
                throw VFIOError.unsupported("a huge page has no place in memory")
            }
            guard frame != 0 else {
                throw VFIOError.unsupported(
                    "the kernel does not tell where memory lies; the opener needs CAP_SYS_ADMIN")
            }
            found.append(frame << 12)
        }
        return found
    }
}
