// SPDX-License-Identifier: Apache-2.0
// Files that are opened because of what they are: without symbolic links, and looked at through
// the descriptor.

internal import CLinux
internal import Glibc

/// What a file is, as its descriptor says: nothing of it can be exchanged afterwards.
public struct FileFacts: Sendable, Equatable {
    /// What kind of file.
    public enum Kind: Sendable, Equatable {
        /// Bytes.
        case regular
        /// A directory.
        case directory
        /// A node of a character device.
        case characterDevice
        /// Something else.
        case other
    }

    /// What kind of file.
    public let kind: Kind
    /// The permission bits, with those of set-id and sticky.
    public let permissions: UInt32
    /// The user who owns it.
    public let owner: UInt32
    /// How many names it has.
    public let linkCount: UInt32
    /// Its length in bytes.
    public let byteCount: Int
    /// The number of the device, when it is a node.
    public let deviceNumber: UInt64
    /// It lies on a tmpfs.
    public let isTmpfs: Bool
    /// Bytes of a page, when it lies on a hugetlbfs.
    public let hugePageByteCount: Int?

    /// The facts of an open descriptor.
    public init(_ fd: borrowing OwnedFD) throws(SystemCallError) {
        var facts = nv_file_facts()
        try checked("fstat", unsafe nv_describe_file(fd.raw, &facts))
        switch facts.mode & S_IFMT {
        case S_IFREG: kind = .regular
        case S_IFDIR: kind = .directory
        case S_IFCHR: kind = .characterDevice
        default: kind = .other
        }
        permissions = facts.mode & 0o7777
        owner = facts.uid
        linkCount = facts.links
        byteCount = Int(facts.size)
        deviceNumber = facts.device
        isTmpfs = facts.file_system == NV_TMPFS
        hugePageByteCount =
            facts.file_system == NV_HUGETLBFS ? Int(clamping: facts.block_size) : nil
    }

    /// Whether nobody but root and this process's user could have put it there, or can change it.
    public var isTrusted: Bool {
        let others: UInt32 = 0o022
        let sticky: UInt32 = 0o1000
        // In a sticky directory others can add names, but neither take nor rename ours.
        let isClosed =
            permissions & others == 0 || (kind == .directory && permissions & sticky != 0)
        return (owner == 0 || owner == geteuid()) && isClosed
    }

    /// Whether it is root's or this process's user's, and closed to everybody else.
    public var isPrivate: Bool { (owner == 0 || owner == geteuid()) && permissions & 0o077 == 0 }
}

/// Opening of files by paths on which others may have an influence.
public enum TrustedFile {
    private static let openPath: CInt = 0x20_0000

    /// Opens a directory as a place for names; no part of the path may be a symbolic link (ELOOP).
    public static func directory(_ path: String) throws(SystemCallError) -> OwnedFD {
        OwnedFD(
            adopting: try checked(
                "open \(path)",
                unsafe nv_open_no_links(-1, path, openPath | O_DIRECTORY, 0)))
    }

    /// Opens a file for reading, and by default for writing; never waits for the other end of a
    /// FIFO.
    public static func open(
        _ name: String, in directory: borrowing OwnedFD, writable: Bool = true
    ) throws(SystemCallError) -> OwnedFD {
        let flags = (writable ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_NONBLOCK
        return OwnedFD(
            adopting: try checked(
                "open \(name)", unsafe nv_open_no_links(directory.raw, name, flags, 0)))
    }

    /// Makes a file that must not be there (EEXIST), for its owner only.
    public static func create(
        _ name: String, in directory: borrowing OwnedFD
    ) throws(SystemCallError) -> OwnedFD {
        OwnedFD(
            adopting: try checked(
                "create \(name)",
                unsafe nv_open_no_links(
                    directory.raw, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)))
    }

    /// Makes a directory for its owner only; one that is there already stays.
    public static func makeDirectory(
        _ name: String, in directory: borrowing OwnedFD
    ) throws(SystemCallError) {
        let result = unsafe nv_mkdir_at(directory.raw, name, 0o700)
        if result == -EEXIST { return }
        try checked("mkdir \(name)", result)
    }

    /// Takes a name away; one that is not there is no error.
    public static func remove(
        _ name: String, in directory: borrowing OwnedFD
    ) throws(SystemCallError) {
        let result = unsafe nv_unlink_at(directory.raw, name)
        if result == -ENOENT { return }
        try checked("unlink \(name)", result)
    }

    /// Locks an open file against everybody else who asks for the lock; it lasts as long as the
    /// open file, with whoever has a descriptor of it: who is handed one may ask again. False:
    /// somebody else has had it for so long.
    public static func lock(
        _ fd: borrowing OwnedFD, withinMilliseconds milliseconds: Int32 = 0
    ) throws(SystemCallError) -> Bool {
        let result = nv_lock_open_file(fd.raw, milliseconds)
        if result == -EAGAIN { return false }
        try checked("flock", result)
        return true
    }

    /// Takes memory for the first bytes of a file, which becomes longer when it has to be, and
    /// never shorter (ENOSPC, ENOMEM: there is not enough).
    public static func reserve(
        _ fd: borrowing OwnedFD, byteCount: Int
    ) throws(SystemCallError) {
        try checked("fallocate", nv_reserve_range(fd.raw, 0, Int64(byteCount)))
    }
}
