// SPDX-License-Identifier: Apache-2.0
// Small files and directories, read whole within bounds.

internal import CLinux
internal import Glibc

/// Reading of small files. Nothing here blocks on a FIFO or reads without a bound.
public enum Files {
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
}
