// SPDX-License-Identifier: Apache-2.0
// On which NUMA node a pool lies: best on the one that its device is at.

public import Linux

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

    /// Has the pages of a mapping lie on a node; what cannot be done is said, and is no error.
    static func place(
        _ mapping: borrowing Mapping, on node: Int?, _ nodes: NodeMemory
    ) -> PoolPlacement {
        guard let node else { return .anywhere }
        do throws(SystemCallError) {
            try nodes.prefer(mapping, node)
        } catch { return .elsewhere(wanted: node, reason: "\(error)") }
        return look(mapping, node, nodes)
    }

    /// Whether a mapping lies on a node, by its first page. The kernel may have had none there.
    static func look(
        _ mapping: borrowing Mapping, _ node: Int?, _ nodes: NodeMemory
    ) -> PoolPlacement {
        guard let node else { return .anywhere }
        if let found = nodes.find(mapping), found != node {
            return .elsewhere(wanted: node, reason: "its pages are on node \(found)")
        }
        return .node(node)
    }
}

/// What puts memory on NUMA nodes: the kernel, or a double that records what it was asked.
public struct NodeMemory: Sendable {
    /// Has all pages of a mapping, and of its file, lie on a node while that has room.
    let prefer: @Sendable (borrowing Mapping, _ node: Int) throws(SystemCallError) -> Void
    /// The node of a mapping's first page; nil: nobody says.
    let find: @Sendable (borrowing Mapping) -> Int?

    /// A double.
    public init(
        prefer:
            @escaping @Sendable (borrowing Mapping, _ node: Int) throws(SystemCallError) -> Void,
        find: @escaping @Sendable (borrowing Mapping) -> Int?
    ) {
        self.prefer = prefer
        self.find = find
    }

    /// mbind(2) and get_mempolicy(2).
    public static let kernel = NodeMemory(
        prefer: { mapping, node throws(SystemCallError) in try mapping.prefer(node: node) },
        find: { $0.node(at: 0) })
}
