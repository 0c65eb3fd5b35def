// SPDX-License-Identifier: Apache-2.0
// Shared memory: memory files and mappings of files.

internal import CLinux
internal import Glibc

/// Seals of a memory file (fcntl F_ADD_SEALS).
public struct Seals: OptionSet, Sendable {
    /// The bits as the kernel has them.
    public let rawValue: CInt
    /// Wraps the kernel's bits.
    public init(rawValue: CInt) { self.rawValue = rawValue }
    /// No more seals may be added.
    public static let seal = Seals(rawValue: NV_SEAL_SEAL)
    /// The file cannot become smaller.
    public static let shrink = Seals(rawValue: NV_SEAL_SHRINK)
    /// The file cannot become larger.
    public static let grow = Seals(rawValue: NV_SEAL_GROW)
    /// No new descriptor or mapping can write.
    public static let futureWrite = Seals(rawValue: 0x10)
    /// Nobody can write, not even through an existing mapping.
    public static let write = Seals(rawValue: NV_SEAL_WRITE)
}

/// Operations on memory files (memfd_create).
public enum MemFD {
    /// Creates a memory file of a fixed size.
    public static func create(
        name: String, byteCount: Int, seals: Seals = [.shrink, .grow], hugePages: Bool = false
    ) throws(SystemCallError) -> OwnedFD {
        let fd = OwnedFD(
            adopting: try checked(
                "memfd_create \(name)", unsafe nv_memfd_create(name, hugePages ? 1 : 0)))
        try checked("ftruncate \(name)", nv_ftruncate(fd.raw, Int64(byteCount)))
        if !seals.isEmpty {
            try checked("F_ADD_SEALS \(name)", nv_memfd_add_seals(fd.raw, seals.rawValue))
        }
        return fd
    }

    /// Adds seals; what is mapped already stays as it is.
    public static func addSeals(
        _ fd: borrowing OwnedFD, _ seals: Seals
    ) throws(SystemCallError) {
        try checked("F_ADD_SEALS", nv_memfd_add_seals(fd.raw, seals.rawValue))
    }

    /// Gives the pages of a stretch of a file back; it reads as zeroes from then on.
    public static func punchHole(
        _ fd: borrowing OwnedFD, offset: Int64, byteCount: Int64
    ) throws(SystemCallError) {
        try checked("fallocate", nv_punch_hole(fd.raw, offset, byteCount))
    }

    /// The seals of a memory file; throws EINVAL for a file that cannot have any.
    public static func seals(of fd: borrowing OwnedFD) throws(SystemCallError) -> Seals {
        Seals(rawValue: try checked("F_GET_SEALS", nv_memfd_get_seals(fd.raw)))
    }

    /// The size of a file in bytes.
    public static func byteCount(of fd: borrowing OwnedFD) throws(SystemCallError) -> Int {
        Int(try checked("fstat", nv_file_size(fd.raw)))
    }

    /// Whether the descriptor may both read and write.
    public static func isReadWrite(_ fd: borrowing OwnedFD) -> Bool {
        let flags = fcntl(fd.raw, F_GETFL)
        return flags >= 0 && flags & O_ACCMODE == O_RDWR
    }

    /// Bytes of a page of a file of huge pages; nil when its pages are ordinary ones.
    public static func hugePageByteCount(
        of fd: borrowing OwnedFD
    ) throws(SystemCallError) -> UInt64? {
        let size = try checked("fstatfs", nv_huge_page_size(fd.raw))
        return size > 0 ? UInt64(size) : nil
    }

    /// Whether the file lives in ordinary shared memory (tmpfs), as a memory file without huge
    /// pages does.
    public static func isShmem(_ fd: borrowing OwnedFD) throws(SystemCallError) -> Bool {
        try checked("fstatfs", nv_is_shmem(fd.raw)) == 1
    }
}

/// A mapping of memory, undone when its owner lets go of it.
@safe
public struct Mapping: ~Copyable, @unchecked Sendable {
    /// The first byte. Valid as long as the mapping lives.
    public let base: UnsafeMutableRawPointer
    /// The length in bytes.
    public let byteCount: Int

    /// Maps part of a file, shared with everybody else who maps it.
    public init(
        _ fd: borrowing OwnedFD, offset: Int64 = 0, byteCount: Int, writable: Bool = true
    ) throws(SystemCallError) {
        try self.init(rawFD: fd.raw, offset: offset, byteCount: byteCount, writable: writable)
    }

    /// Maps part of a file that somebody else owns.
    public init(
        rawFD: CInt, offset: Int64 = 0, byteCount: Int, writable: Bool = true
    ) throws(SystemCallError) {
        var error: CInt = 0
        guard byteCount > 0,
            let base = unsafe nv_map_shared(rawFD, offset, byteCount, writable ? 1 : 0, &error)
        else { throw SystemCallError("mmap \(byteCount) bytes", errno: error < 0 ? -error : 22) }
        unsafe self.base = base
        self.byteCount = byteCount
    }

    /// Maps zeroed memory that only this process has.
    public init(anonymous byteCount: Int) throws(SystemCallError) {
        var error: CInt = 0
        guard byteCount > 0, let base = unsafe nv_map_anonymous(byteCount, &error)
        else { throw SystemCallError("mmap \(byteCount) bytes", errno: error < 0 ? -error : 22) }
        unsafe self.base = base
        self.byteCount = byteCount
    }

    /// Maps huge pages of 2 MiB of a file, in the given order, one after the other.
    public init(
        hugePagesOf fd: borrowing OwnedFD, offsets: [Int64]
    ) throws(SystemCallError) {
        var error: CInt = 0
        guard !offsets.isEmpty,
            let base = unsafe nv_map_huge_pages(fd.raw, offsets, offsets.count, &error)
        else {
            throw SystemCallError(
                "mmap \(offsets.count) huge pages", errno: error < 0 ? -error : 22)
        }
        unsafe self.base = base
        byteCount = offsets.count << 21
    }

    deinit { _ = unsafe nv_unmap(base, byteCount) }

    /// Says that the bytes are used in random order, so that a fault reads no neighbours.
    public borrowing func adviseRandomAccess() {
        _ = unsafe nv_advise_random(base, byteCount)
    }

    /// Leaves the bytes out of core dumps.
    public borrowing func excludeFromCoreDumps() {
        _ = unsafe nv_dont_dump(base, byteCount)
    }

    /// Keeps the bytes in memory. ENOMEM, EPERM: more than this process may lock.
    public borrowing func lock() throws(SystemCallError) {
        try checked("mlock \(byteCount) bytes", unsafe nv_lock_memory(base, byteCount))
    }

    /// Puts the pages on a NUMA node while it has room, also those that are there already. Of
    /// shared memory this holds for whoever makes a page of it.
    public borrowing func prefer(node: Int) throws(SystemCallError) {
        try checked(
            "mbind to node \(node)", unsafe nv_prefer_node(base, byteCount, CInt(clamping: node)))
    }

    /// The NUMA node that the page at an offset lies on, which is made when it is not there yet;
    /// nil: the kernel does not say.
    public borrowing func node(at offset: Int) -> Int? {
        guard offset >= 0, offset < byteCount else { return nil }
        let node = unsafe nv_node_of_page(base + offset)
        return node >= 0 ? Int(node) : nil
    }

    /// Gives the mapping up without undoing it: it stays for the life of the process.
    public consuming func leak() -> UnsafeMutableRawPointer {
        let base = unsafe self.base
        discard self
        return unsafe base
    }
}

extension Mapping {
    /// Undoes a mapping that was leaked.
    public static func unmap(_ base: UnsafeMutableRawPointer, byteCount: Int) {
        _ = unsafe nv_unmap(base, byteCount)
    }
}
