// SPDX-License-Identifier: Apache-2.0
// Where a device is in its machine, and where its threads run.

import CLinux
import Glibc
import Linux
import NVMeDriver
import TestSupport
import Testing
import Wire

@testable import Worker

@Suite("Where a device's threads run")
struct PlacementTests {
    /// A machine whose one device is at node 1, with processors 2 and 3.
    private func placement(_ transport: Transport) throws -> DevicePlacement {
        let root = try TemporaryDirectory()
        for (path, text) in [
            ("bus/pci/devices/0000:01:00.0/numa_node", "1\n"),
            ("devices/system/node/node1/cpulist", "2-3\n"),
        ] { try TestFiles.write(text, to: "\(root.path)/\(path)") }
        return DevicePlacement(transport, MachineNodes(sysfs: root.path))
    }

    @Test("threads prefer the processors of the device's node, unless some are configured")
    func policy() throws {
        // Given
        let here = try placement(.pci(address: "0000:01:00.0"))
        var config = DeviceConfig(name: "a", transport: .pci(address: "0000:01:00.0"))
        config.spinNanoseconds = 7
        // When
        let near = here.spinPolicy(config, queue: 1)
        config.dataAffinity = [5, 6]
        let own = (1...3).map { here.spinPolicy(config, queue: $0) }
        // Then
        #expect(here.node == 1)
        #expect(near == SpinPolicy(limitNanoseconds: 7, preferred: [2, 3]))
        #expect(own.map(\.processor) == [5, 6, 5])
        #expect(own.allSatisfy { $0.preferred.isEmpty })
    }

    @Test("a server in another process is nowhere, and so is a function that is not there")
    func nowhere() throws {
        for transport in [
            Transport.vfioUser(path: "/run/x"), .null, .pci(address: "0000:02:00.0"),
            .pci(address: "../x"),
        ] {
            let found = try placement(transport)
            #expect(found.node == nil)
            #expect(found.processors == [])
        }
    }

    /// The processors that this thread may run on.
    private static var own: [UInt32] {
        let bytes = (try? Files.read("/proc/thread-self/status", limit: 65_536)) ?? []
        let key = "Cpus_allowed_list:\t"
        let line = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
            .first { $0.hasPrefix(key) }
        return (line?.dropFirst(key.count) ?? "").split(separator: ",").flatMap { part in
            let ends = part.split(separator: "-").compactMap { UInt32($0) }
            return Array((ends.first ?? 1)...(ends.last ?? 1))
        }
    }

    @Test("a thread stays on what it prefers, and where it may be at all")
    func affinity() async throws {
        // When
        let (before, moved, after, away, last) = try await withCheckedThrowingContinuation {
            (done: CheckedContinuation<([UInt32], Bool?, [UInt32], Bool?, [UInt32]), any Error>) in
            do {
                try BackgroundThread.start {
                    let before = Self.own
                    let first = Array(before.prefix(1))
                    let moved = try? ProcessorAffinity.prefer(first + [1000])
                    let after = Self.own
                    let away = try? ProcessorAffinity.prefer([1001])
                    done.resume(returning: (before, moved, after, away, Self.own))
                }
            } catch { done.resume(throwing: error) }
        }
        // Then
        #expect(moved == (before.count > 1))
        #expect(after == Array(before.prefix(1)))
        #expect(away == false)
        #expect(last == after)
    }
}

extension WorkerProcessTests {
    @Suite("Where a worker's device is")
    struct Nodes {
        @Test("inspect shows the device's node and where its pool lies")
        func inspect() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            #expect(try supervisor.inspect("device/numa_node") == "none")
            #expect(try supervisor.inspect("pool/placement") == "anywhere")
        }
    }
}
