// SPDX-License-Identifier: Apache-2.0
// The NUMA nodes of the machine as sysfs has them: which a PCI function is at, and which processors
// are.

internal import CLinux

/// The nodes of this machine, or of a tree that a test made.
public struct MachineNodes: Sendable {
    private let sysfs: String

    /// The most nodes of a machine, and the most processors (NR_CPUS of the largest kernels).
    private static let nodeCountMax = 1024
    private static let processorCountMax = 8192

    /// The nodes that the sysfs at this path knows.
    public init(sysfs: String = "/sys") { self.sysfs = sysfs }

    /// The node that a PCI function is at; nil: the machine does not say, or there is but one.
    public func node(of address: PCIAddress) -> Int? {
        guard let text = line("bus/pci/devices/\(address)/numa_node"), let node = Int(text),
            (0..<Self.nodeCountMax).contains(node)
        else { return nil }
        return node
    }

    /// The processors of a node, rising; empty: it has none, or is not there.
    public func processors(of node: Int) -> [UInt32] {
        guard (0..<Self.nodeCountMax).contains(node),
            let text = line("devices/system/node/node\(node)/cpulist")
        else { return [] }
        var found: [UInt32] = []
        for part in text.split(separator: ",") {
            let ends = part.split(separator: "-", omittingEmptySubsequences: false)
            guard ends.count <= 2, let first = ends.first.flatMap({ UInt32($0) }),
                let last = ends.last.flatMap({ UInt32($0) }), first <= last,
                last < UInt32(Self.processorCountMax), found.last.map({ $0 < first }) ?? true
            else { return [] }
            found.append(contentsOf: first...last)
        }
        return found
    }

    private func line(_ path: String) -> String? {
        guard let bytes = try? Files.read("\(sysfs)/\(path)", limit: 65_536) else { return nil }
        return String(decoding: bytes.prefix { $0 != 10 }, as: UTF8.self)
    }
}

/// The processors that a thread runs on.
public enum ProcessorAffinity {
    /// Keeps the calling thread on these processors, as far as it may run on them anyway; true:
    /// there are others that it may run on no more. Nothing happens when it may on none of these.
    @discardableResult
    public static func prefer(_ processors: [UInt32]) throws(SystemCallError) -> Bool {
        try checked(
            "sched_setaffinity", unsafe nv_prefer_processors(processors, processors.count)) == 1
    }
}
