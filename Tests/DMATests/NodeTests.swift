// SPDX-License-Identifier: Apache-2.0
// Pools on NUMA nodes: a double is asked, because most machines have but one.

import Glibc
import Linux
import TestSupport
import Testing

@testable import DMA

/// Nodes that are only written down.
private final class RecordingNodes: @unchecked Sendable {
    /// What was asked for: a node, for so many bytes.
    private(set) var asked: [[Int]] = []
    /// Where all memory is.
    var found: Int?
    var refusal: SystemCallError?

    var memory: NodeMemory {
        NodeMemory(
            prefer: { mapping, node throws(SystemCallError) in
                self.asked.append([node, mapping.byteCount])
                if let refusal = self.refusal { throw refusal }
            },
            find: { _ in self.found })
    }
}

@Suite("Pools on NUMA nodes")
struct NodeTests {
    private let nodes = RecordingNodes()
    private let ranges = [PoolRange(pages: PageRun(first: 0, count: 4), address: 0)]

    private func placement(node: Int?) throws -> PoolPlacement {
        try PoolMemory(Mapping(anonymous: 16384), ranges: ranges, node: node, nodes: nodes.memory)
            .placement
    }

    @Test("a pool lies on its device's node, or says why it does not; without one nobody is asked")
    func placement() throws {
        // When
        let none = try placement(node: nil)
        nodes.found = 1
        let there = try placement(node: 1)
        nodes.found = 0
        let full = try placement(node: 1)
        nodes.found = nil
        let unknown = try placement(node: 2)
        nodes.refusal = SystemCallError("mbind to node 3", errno: EINVAL)
        let refused = try placement(node: 3)
        // Then
        #expect(none == .anywhere)
        #expect(there == .node(1))
        #expect(full == .elsewhere(wanted: 1, reason: "its pages are on node 0"))
        #expect(unknown == .node(2))
        #expect(refused.description.hasPrefix("not on node 3: mbind to node 3: "))
        #expect(nodes.asked == [[1, 16384], [1, 16384], [2, 16384], [3, 16384]])
    }

    @Test("pages of a file and of memory are asked for on the node before they are made")
    func beforePagesAreMade() throws {
        // Given
        let directory = try MemoryDirectory()
        // When
        for (place, byteCount) in [
            (directory.place(), 10_000), (directory.place(), 20_000), (.memory, 5000),
        ] {
            _ = try PoolFile.create(place, byteCount: byteCount, node: 1, nodes: nodes.memory)
        }
        _ = try PoolFile.create(.memory, byteCount: 5000, nodes: nodes.memory)
        // Then
        #expect(nodes.asked == [[1, 12_288], [1, 20_480], [1, 8192]])
    }

    @Test("a source hands the node on, to itself and to whoever opens files for it")
    func source() throws {
        // Given
        var layout = PoolLayout()
        _ = layout.reserveDeviceReads(4096)
        var told: [Int?] = []
        let provided = PoolSource(PoolPlace(.file, path: "/x"), node: 1, nodes: nodes.memory) {
            _, byteCount, node throws(PoolFileError) in
            told.append(node)
            return try PoolFile.create(.memory, byteCount: byteCount)
        }
        // When
        _ = try provided.make(layout)
        _ = try PoolSource(.memory, node: 2, nodes: nodes.memory).make(layout)
        // Then
        #expect(told == [1])
        #expect(nodes.asked == [[2, 8192]])
    }

    @Test("a predecessor's pool is looked at, and not moved")
    func adopted() throws {
        // Given
        nodes.found = 0
        let pool = try SlotPool(ranges: ranges.map(\.pages))
        // When
        let memory = try PoolMemory(
            Mapping(anonymous: 16384), ranges: ranges,
            restoring: SavedDMAPool(ranges: pool.ranges, slots: pool.slots), node: 1,
            nodes: nodes.memory)
        // Then
        #expect(
            memory.placement == .elsewhere(wanted: 1, reason: "its pages are on node 0"))
        #expect(nodes.asked.isEmpty)
    }

    @Test("the kernel puts memory on node 0, which every machine has, or says that it does not")
    func kernel() throws {
        // Given
        let file = try PoolFile.create(.memory, byteCount: 16384, node: 0)
        // When
        let placement = try PoolMemory(
            Mapping(file.fd, byteCount: 16384), ranges: ranges, node: 0
        ).placement
        // Then
        print("node 0: \(placement)")
        #expect(placement != .anywhere)
    }
}

/// A sysfs with these files.
private func machine(_ files: [String: String]) throws -> (TemporaryDirectory, MachineNodes) {
    let root = try TemporaryDirectory()
    for (path, text) in files { try TestFiles.write(text, to: "\(root.path)/\(path)") }
    return (root, MachineNodes(sysfs: root.path))
}

@Suite("Nodes of a machine")
struct MachineNodesTests {
    @Test(
        "the node of a function is a number that can be one",
        arguments: [
            ("1\n", 1), ("0\n", 0), ("-1\n", nil), ("", nil), ("x\n", nil), ("1024\n", nil),
            ("99999999999999999999\n", nil),
        ] as [(String, Int?)])
    func node(text: String, expected: Int?) throws {
        let (root, nodes) = try machine(["bus/pci/devices/0000:01:00.0/numa_node": text])
        let here = try #require(PCIAddress("01:00.0"))
        let absent = try #require(PCIAddress("02:00.0"))
        #expect(nodes.node(of: here) == expected)
        #expect(nodes.node(of: absent) == nil)
        withExtendedLifetime(root) {}
    }

    @Test(
        "the processors of a node are a rising list; anything else is none",
        arguments: [
            ("0-3,8-9\n", [0, 1, 2, 3, 8, 9]), ("5\n", [5]), ("\n", []), ("3-1\n", []),
            ("1,0\n", []), ("0-8192\n", []), ("0-4294967295\n", []), ("a\n", []), ("1-2-3\n", []),
            ("0,,1\n", [0, 1]),
        ] as [(String, [UInt32])])
    func processors(text: String, expected: [UInt32]) throws {
        let (root, nodes) = try machine(["devices/system/node/node1/cpulist": text])
        #expect(nodes.processors(of: 1) == expected)
        #expect(nodes.processors(of: 2) == [])
        #expect(nodes.processors(of: -1) == [])
        withExtendedLifetime(root) {}
    }
}
