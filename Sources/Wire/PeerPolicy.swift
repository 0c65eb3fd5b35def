// SPDX-License-Identifier: Apache-2.0
// Who may do something, by the kernel's word on who is at the other end.

public import Linux

/// Users and groups that are admitted. Root always is.
public struct PeerPolicy: Sendable, Hashable {
    /// Admitted user ids.
    public var users: [UInt32]
    /// Admitted group ids, primary or supplementary.
    public var groups: [UInt32]

    /// Admits the given users and groups, and root.
    public init(users: [UInt32] = [], groups: [UInt32] = []) {
        self.users = users
        self.groups = groups
    }

    /// Whether the peer is admitted.
    public func admits(_ peer: PeerCredentials) -> Bool {
        peer.uid == 0 || users.contains(peer.uid) || groups.contains(peer.gid)
            || peer.groups.contains { groups.contains($0) }
    }
}
