// SPDX-License-Identifier: Apache-2.0
// What the configuration asks for, in the terms the supervisor works with.

internal import Linux
internal import Wire

/// By what a disk finds its namespace.
enum DiskTarget: Sendable, Equatable {
    /// A namespace of a named device.
    case namespace(device: String, nsid: UInt32)
    /// The only namespace, or the one with a given id, of the controller with this serial number.
    case serial(String, nsid: UInt32?)
    /// 16 bytes.
    case nguid([UInt8])
    /// 8 bytes.
    case eui64([UInt8])
    /// 16 bytes.
    case uuid([UInt8])

    /// For messages.
    var text: String {
        switch self {
        case .namespace(let device, let nsid): "namespace \(nsid) of device \(device)"
        case .serial(let serial, let nsid):
            nsid.map { "namespace \($0) of the controller with serial \(serial)" }
                ?? "the namespace of the controller with serial \(serial)"
        case .nguid(let bytes): "the namespace with NGUID \(hex(bytes))"
        case .eui64(let bytes): "the namespace with EUI64 \(hex(bytes))"
        case .uuid(let bytes): "the namespace with UUID \(hex(bytes))"
        }
    }

    private func hex(_ bytes: [UInt8]) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }
}

/// A disk that clients may open.
struct DiskPlan: Sendable, Equatable {
    /// The configured name.
    var name: String
    /// Where it is.
    var target: DiskTarget
    /// The most that a client may do.
    var access: AccessMode
    /// Several clients may write.
    var isShared: Bool
    /// Who may open it.
    var policy: Policy
}

/// Everything the configuration asks for.
struct Plan: Sendable, Equatable {
    /// Devices by name.
    var devices: [String: DeviceConfig] = [:]
    /// Disks by name.
    var disks: [String: DiskPlan] = [:]
    /// What is odd but not wrong.
    var warnings: [String] = []
}

/// Who may open a disk.
struct Policy: Sendable, Equatable {
    /// These users; nil: not said.
    var users: Set<UInt32>?
    /// Members of these groups; nil: not said.
    var groups: Set<UInt32>?

    /// Whether a peer may open the disk.
    ///
    /// When neither users nor groups are said: root and the supervisor's own user. When they are,
    /// exactly those, so that root needs to be named too.
    func admits(_ peer: PeerCredentials, ownUID: UInt32) -> Bool {
        guard users != nil || groups != nil else { return Self.isOperator(peer, ownUID: ownUID) }
        if let users, users.contains(peer.uid) { return true }
        guard let groups else { return false }
        return groups.contains(peer.gid) || peer.groups.contains { groups.contains($0) }
    }

    /// Whether a peer may change what others have: root and the supervisor's own user.
    static func isOperator(_ peer: PeerCredentials, ownUID: UInt32) -> Bool {
        peer.uid == 0 || peer.uid == ownUID
    }
}
