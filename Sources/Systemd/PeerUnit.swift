// SPDX-License-Identifier: Apache-2.0
// Which unit the process at the other end of a socket belongs to (sd-login(3), systemd 252).

internal import CSystemd
internal import Glibc
public import Linux

extension UnixSocket {
    /// The systemd unit of the process that connected: `nvmed-worker@ssd0.service`; nil when it is
    /// in none, or has ended.
    public static func peerUnit(of fd: borrowing OwnedFD) -> String? {
        var name: UnsafeMutablePointer<CChar>?
        guard unsafe sd_peer_get_unit(fd.raw, &name) >= 0, let name = unsafe name else {
            return nil
        }
        defer { unsafe free(name) }
        return unsafe String(cString: name)
    }
}
