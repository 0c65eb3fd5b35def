// SPDX-License-Identifier: Apache-2.0
// On which NUMA node a pool lies.

internal import Linux

/// Where the pages of a pool came to lie.
public enum PoolPlacement: Sendable, Equatable, CustomStringConvertible {
    /// Nobody asked for a node.
    case anywhere
    /// On this node.
    case node(Int)
    /// Not on the node that was asked for, and why; the pool works all the same.
    case elsewhere(wanted: Int, reason: String)

    /// The placement for inspection.
    public var description: String {
        switch self {
        case .anywhere: "anywhere"
        case .node(let node): "node \(node)"
        case .elsewhere(let wanted, let reason): "not on node \(wanted): \(reason)"
        }
    }

    /// Binds a mapping to a node; what cannot be done is said, and is no error.
    static func bind(_ mapping: borrowing Mapping, to node: Int?) -> PoolPlacement {
        guard let node else { return .anywhere }
        do throws(SystemCallError) {
            try mapping.bind(toNode: node)
        } catch { return .elsewhere(wanted: node, reason: "\(error)") }
        // The kernel may have taken the policy and had no page there.
        if let found = mapping.node(at: 0), found != node {
            return .elsewhere(wanted: node, reason: "its pages are on node \(found)")
        }
        return .node(node)
    }
}
