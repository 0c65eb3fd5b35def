// SPDX-License-Identifier: Apache-2.0
// Configuration files that were valid once, damaged: part of `make fuzz`.

import DiskConfig
import Glibc
import TestSupport
import Testing

/// Numbers that a seed determines (splitmix64).
private struct Numbers: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}

@Suite("ConfigFuzz", .enabled(if: environmentNumber("NVMED_FUZZ_SECONDS") != nil))
struct ConfigFuzz {
    private static let lines = [
        "[Device]", "[Disk]", "[Supervisor]", "Transport=pci", "Transport=null",
        "Transport=vfio-user", "Socket=/run/x", "Address=0000:01:00.0", "Queues=4",
        "QueueDepth=64", "MaxTransfer=1M", "Pool=64M", "Pool=hugetlb 2M",
        "PoolPath=/p/", "NVMeKeepAlive=yes", "IOTimeoutSec=5s 3ms", "Device=a",
        "Namespace=1", "Serial=S", "NGUID=00112233445566778899aabbccddeeff",
        "EUI64=0011223344556677",
        "Access=read-only", "Shared=yes", "User=1 2 alice", "User=", "Group=disk",
        "SocketMode=0660",
        "# comment", "; comment \\", "continued \\", "",
    ]
    private static let names = [
        "a.device", "b.device", "a.disk", "b.disk", "nvmed.conf", "a.device.d/x.conf",
        "a.disk.d/y.conf", "..disk", "x/y/z.disk", ".d/.conf", "",
    ]

    private func source(_ numbers: inout Numbers) -> ConfigSourceFile {
        var bytes: [UInt8] = []
        for _ in 0..<Int.random(in: 0...12, using: &numbers) {
            bytes += Array((Self.lines.randomElement(using: &numbers) ?? "").utf8)
            bytes.append(10)
        }
        for _ in 0..<Int.random(in: 0...3, using: &numbers) where !bytes.isEmpty {
            bytes[Int.random(in: bytes.indices, using: &numbers)] = UInt8.random(
                in: 0...255, using: &numbers)
        }
        let name = Self.names.randomElement(using: &numbers) ?? ""
        return ConfigSourceFile(
            directory: Int.random(in: 0...2, using: &numbers), relativePath: name,
            path: "/c/\(name)", bytes: bytes)
    }

    @Test("any files give a configuration in which every entry is in order")
    func files() {
        let seconds = environmentNumber("NVMED_FUZZ_SECONDS") ?? 1
        var seed = environmentNumber("NVMED_SEED") ?? 1
        let end = ContinuousClock.now + .seconds(Int64(clamping: seconds))
        repeat {
            var numbers = Numbers(state: seed)
            let sources = (0..<6).map { _ in source(&numbers) }
            let configuration = Configuration.parse(sources, lookup: accounts)
            let devices = Set(configuration.devices.map(\.name))
            #expect(devices.count == configuration.devices.count, "seed \(seed)")
            #expect(configuration.problems.count <= ConfigLimits.problemCount, "seed \(seed)")
            for disk in configuration.disks {
                #expect(disk.selector != .namespace(nsid: 0), "seed \(seed)")
                _ = Resolver.resolve(disk, devices: [])
            }
            seed &+= 1
        } while ContinuousClock.now < end
    }
}
