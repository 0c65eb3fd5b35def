// SPDX-License-Identifier: Apache-2.0
// Files that are there as a whole or not at all, whatever stops the machine or the process.

internal import CLinux
internal import Glibc

/// Files that replace others in one step and are on the disk afterwards.
public enum DurableFile {
    /// Writes a file anew and waits until its bytes are on the disk. It is not to be found after a
    /// crash until ``replace(_:by:)`` has put it into its place.
    public static func prepare(
        _ path: String, _ bytes: [UInt8], mode: UInt32 = 0o600
    ) throws(SystemCallError) {
        // What was left there may belong to somebody else, or be a link.
        Program.removeFile(path)
        let fd = try OwnedFD.open(
            path, flags: O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode: mode)
        var written = 0
        while written < bytes.count {
            let count = unsafe bytes.withUnsafeBytes { buffer in
                unsafe nv_write(
                    fd.raw, buffer.baseAddress.unsafelyUnwrapped + written, buffer.count - written)
            }
            guard try checked("write \(path)", count) > 0 else {
                throw SystemCallError("write \(path)", errno: EIO)
            }
            written += count
        }
        try sync(fd, path)
    }

    /// Puts a prepared file into the place of another, or of none, and waits until the directory
    /// says so on the disk. When this fails it may have happened.
    public static func replace(
        _ path: String, by prepared: String
    ) throws(SystemCallError) {
        guard unsafe rename(prepared, path) == 0 else {
            throw SystemCallError("rename \(prepared) \(path)", errno: errno)
        }
        try syncDirectory(of: path)
    }

    /// Removes a file, if it is there, and waits until the directory says so on the disk.
    public static func remove(_ path: String) throws(SystemCallError) {
        guard unsafe unlink(path) == 0 || errno == ENOENT else {
            throw SystemCallError("unlink \(path)", errno: errno)
        }
        try syncDirectory(of: path)
    }

    /// Makes a directory unless it is there; the one above it must be.
    public static func makeDirectory(
        _ path: String, mode: UInt32 = 0o700
    ) throws(SystemCallError) {
        guard unsafe mkdir(path, mode) == 0 || errno == EEXIST else {
            throw SystemCallError("mkdir \(path)", errno: errno)
        }
    }

    private static func syncDirectory(of path: String) throws(SystemCallError) {
        let end = path.lastIndex(of: "/") ?? path.startIndex
        let directory = end == path.startIndex ? "/" : String(path[..<end])
        let fd = try OwnedFD.open(directory, flags: O_RDONLY | O_DIRECTORY)
        try sync(fd, directory)
    }

    private static func sync(_ fd: borrowing OwnedFD, _ path: String) throws(SystemCallError) {
        guard fsync(fd.raw) == 0 else { throw SystemCallError("fsync \(path)", errno: errno) }
    }
}

/// Memory files that carry bytes from one process to another and cannot change any more.
public enum SealedFile {
    private static let seals: Seals = [.seal, .shrink, .grow, .write]

    /// A memory file with these bytes, sealed.
    public static func make(
        name: String, _ bytes: [UInt8]
    ) throws(SystemCallError) -> OwnedFD {
        let fd = try MemFD.create(name: name, byteCount: bytes.count, seals: [])
        if !bytes.isEmpty {
            let count = unsafe bytes.withUnsafeBytes { buffer in
                unsafe nv_pwrite(
                    fd.raw, buffer.baseAddress.unsafelyUnwrapped, buffer.count, 0)
            }
            guard try checked("pwrite \(name)", count) == bytes.count else {
                throw SystemCallError("pwrite \(name)", errno: EIO)
            }
        }
        try MemFD.addSeals(fd, seals)
        return fd
    }

    /// The bytes of a sealed file that somebody else made. Throws EINVAL when it can change, EFBIG
    /// when it has more than `limit` bytes.
    public static func read(
        _ fd: borrowing OwnedFD, limit: Int
    ) throws(SystemCallError) -> [UInt8] {
        guard try MemFD.seals(of: fd).isSuperset(of: [.shrink, .grow, .write]) else {
            throw SystemCallError("F_GET_SEALS", errno: EINVAL)
        }
        let byteCount = try MemFD.byteCount(of: fd)
        guard byteCount <= limit else { throw SystemCallError("fstat", errno: EFBIG) }
        var bytes = [UInt8](repeating: 0, count: byteCount)
        var have = 0
        while have < byteCount {
            let count = unsafe bytes.withUnsafeMutableBytes { buffer in
                unsafe nv_pread(
                    fd.raw, buffer.baseAddress.unsafelyUnwrapped + have, byteCount - have,
                    Int64(have))
            }
            guard try checked("pread", count) > 0 else {
                throw SystemCallError("pread", errno: EIO)
            }
            have += count
        }
        return bytes
    }
}
