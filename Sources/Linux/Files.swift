// SPDX-License-Identifier: Apache-2.0
// Small files and directories, read whole within bounds.

internal import CLinux
internal import Glibc

/// Reading of small files. Nothing here blocks on a FIFO or reads without a bound.
public enum Files {
    /// O_PATH, which Swift does not import.
    private static let openPath: CInt = 0x20_0000

    /// The number of a character device (st_rdev), which is not opened for use; nil: the path names
    /// none.
    public static func characterDevice(_ path: String) -> UInt64? {
        guard let fd = try? OwnedFD.open(path, flags: openPath) else { return nil }
        let number = nv_character_device(fd.raw)
        return number > 0 ? UInt64(number) : nil
    }

    /// The names in a directory, sorted, without those that begin with a dot; at most `limit + 1`.
    public static func list(
        _ directory: String, limit: Int
    ) throws(SystemCallError) -> [String] {
        guard let stream = unsafe opendir(directory) else {
            throw SystemCallError("opendir \(directory)", errno: errno)
        }
        defer { _ = unsafe closedir(stream) }
        var names: [String] = []
        while names.count <= limit, let entry = unsafe readdir(stream) {
            let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) {
                unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if !name.hasPrefix(".") { names.append(name) }
        }
        return names.sorted()
    }

    /// The bytes of a file, at most `limit + 1` of them, so that a caller can tell "too large".
    public static func read(_ path: String, limit: Int) throws(SystemCallError) -> [UInt8] {
        let fd = try OwnedFD.open(path, flags: O_RDONLY | O_NONBLOCK)
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: min(max(limit, 0) + 1, 16384))
        while bytes.count <= limit {
            let count = try checked("read \(path)", unsafe nv_read(fd.raw, &chunk, chunk.count))
            if count == 0 { break }
            bytes += chunk.prefix(min(count, limit + 1 - bytes.count))
        }
        return bytes
    }

    /// What a symbolic link says; nil when the path is none or cannot be read.
    public static func target(ofLink link: String) -> String? {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = unsafe readlink(link, &buffer, buffer.count)
        guard count > 0, count < buffer.count else { return nil }
        return String(decoding: buffer[0..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// Whether there is something of this name; links are followed. It may be something that may
    /// not be opened: access(2) would say that a node is not there which DeviceAllow= forbids.
    public static func exists(_ path: String) -> Bool {
        var status = stat()
        return unsafe stat(path, &status) == 0
    }

    /// The number of a device node: `b259:0` of a block device, `c10:196` of another; nil when the
    /// path is no node. Links are followed.
    public static func deviceNumber(_ path: String) -> String? {
        var status = stat()
        guard unsafe stat(path, &status) == 0 else { return nil }
        let kind = status.st_mode & S_IFMT
        guard kind == S_IFBLK || kind == S_IFCHR else { return nil }
        // How the C library packs the two numbers (makedev(3)).
        let number = UInt64(status.st_rdev)
        let major = number >> 8 & 0xFFF | number >> 32 & ~0xFFF
        let minor = number & 0xFF | number >> 12 & ~0xFF
        return "\(kind == S_IFBLK ? "b" : "c")\(UInt32(truncatingIfNeeded: major)):"
            + "\(UInt32(truncatingIfNeeded: minor))"
    }

    /// Opens a block device so that nobody else can mount it, swap to it or build on it meanwhile.
    /// EBUSY: somebody does already.
    public static func claim(blockDevice path: String) throws(SystemCallError) -> OwnedFD {
        try OwnedFD.open(path, flags: O_RDONLY | O_EXCL | O_NONBLOCK)
    }
}
