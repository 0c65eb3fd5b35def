// SPDX-License-Identifier: Apache-2.0
// Which file a descriptor is of.

internal import Glibc

/// A file as such, whatever descriptor it is reached by: its device and its number there
/// (stat(2)).
public struct FileIdentity: Sendable, Hashable {
    private let device: UInt64
    private let inode: UInt64

    /// The file of an open descriptor; nil when the kernel does not say.
    public init?(_ raw: CInt) {
        var status = stat()
        guard unsafe fstat(raw, &status) == 0 else { return nil }
        device = UInt64(status.st_dev)
        inode = UInt64(status.st_ino)
    }
}
