// SPDX-License-Identifier: Apache-2.0
// Numbers of user and group names.

internal import Glibc

/// The system's users and groups.
public enum Accounts {
    /// Room for one record; the largest group of a sane system fits.
    private static var bufferByteCount: Int { 64 << 10 }

    /// The number of a user, or nil when there is no such name.
    public static func user(named name: String) -> UInt32? {
        var buffer = [CChar](repeating: 0, count: bufferByteCount)
        var record = unsafe passwd()
        var found: UnsafeMutablePointer<passwd>?
        let status = unsafe getpwnam_r(name, &record, &buffer, buffer.count, &found)
        return unsafe status == 0 && found != nil ? record.pw_uid : nil
    }

    /// The number of a group, or nil when there is no such name.
    public static func group(named name: String) -> UInt32? {
        var buffer = [CChar](repeating: 0, count: bufferByteCount)
        var record = unsafe Glibc.group()
        var found: UnsafeMutablePointer<Glibc.group>?
        let status = unsafe getgrnam_r(name, &record, &buffer, buffer.count, &found)
        return unsafe status == 0 && found != nil ? record.gr_gid : nil
    }
}
