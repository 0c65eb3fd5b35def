// SPDX-License-Identifier: Apache-2.0
// A host without manners: random registers, commands, doorbells, regions and scribbled memory. A
// short run is part of every test run, a long one of `make fuzz`.

import Glibc
import Linux
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeEmulator

/// Does one random thing after the other to a controller.
private struct HostileHost {
    let host: Host
    var random: Random

    init(seed: UInt64) throws {
        host = try Host.ready(shadow: true)
        random = Random(seed: seed)
    }

    /// Zero, small, or anything: small numbers reach further.
    private mutating func number() -> UInt64 {
        switch random.next(below: 4) {
        case 0: 0
        case 1: random.next(below: 8)
        case 2: random.next(below: 1 << 16)
        default: random.next(below: .max)
        }
    }

    /// An address that is mostly within the memory and mostly aligned.
    private mutating func address() -> UInt64 {
        switch random.next(below: 8) {
        case 0: number()
        case 1: Host.iova + random.next(below: UInt64(Host.byteCount) + 8192)
        default: Host.iova + random.next(below: UInt64(Host.byteCount) / 4096) * 4096
        }
    }

    private mutating func word() -> UInt32 { UInt32(truncatingIfNeeded: number()) }

    private mutating func entry() -> SubmissionEntry {
        let opcodes: [UInt8] = [0, 1, 2, 4, 5, 6, 8, 9, 0x0A, 0x0C, 0x7C]
        var entry = SubmissionEntry(
            opcode: opcodes[Int(random.next(below: UInt64(opcodes.count)))],
            namespaceID: UInt32(random.next(below: 4)), prp1: address(), prp2: address(),
            cdw10: word(), cdw11: word(), cdw12: word(), cdw13: word(), cdw14: word(),
            cdw15: word())
        if random.next(below: 4) == 0 { entry.namespaceID = word() }
        if random.next(below: 16) == 0 { entry.flags = UInt8(random.next(below: 256)) }
        // Every second command is about something that exists.
        if random.next(below: 2) == 0 { entry.cdw11 &= 0x0003_0007 }
        if random.next(below: 2) == 0 { entry.cdw10 &= 0x003F_0003 }
        return entry
    }

    mutating func step() {
        switch random.next(below: 16) {
        case 0...6: host.submit(entry(), on: UInt16(random.next(below: 2)))
        case 7: while host.take(UInt16(random.next(below: 2))) != nil {}
        case 8:
            let offset = random.next(below: 64) * 4
            host.write(offset, number(), byteCount: random.next(below: 2) == 0 ? 4 : 8)
        case 9: host.write(RegisterOffset.doorbells + random.next(below: 16) * 4, number())
        case 10: host.memory.store32(Host.shadow + Int(random.next(below: 16)) * 4, word())
        case 11: host.memory.store64(Int(random.next(below: 0x2000)) * 8, number())
        case 12: host.memory.store64(Host.lists + Int(random.next(below: 512)) * 8, address())
        case 13: region()
        case 14: operate()
        default: restart()
        }
        for _ in 0..<4 { _ = host.controller.pass() }
        _ = host.controller.prepareToSleep()
        _ = host.read32(random.next(below: 32) * 4)
    }

    private mutating func region() {
        let memory = host.controller.memory
        let address = number() & ~4095
        if random.next(below: 2) == 0 {
            try? memory.add(
                address: address, byteCount: 4096, fd: host.file.raw, offset: 0,
                isReadable: random.next(below: 2) == 0, isWritable: random.next(below: 2) == 0)
        } else {
            try? memory.remove(address: address, byteCount: 4096)
        }
        if random.next(below: 64) == 0 { memory.removeAll() }
    }

    /// What an operator does meanwhile.
    private mutating func operate() {
        let controller = host.controller
        let id = UInt32(1 + random.next(below: 4))
        switch random.next(below: 8) {
        case 0: _ = try? controller.addNamespace(NamespaceOptions(parsing: "memory=64K"))
        case 1: try? controller.removeNamespace(id)
        case 2: try? controller.resizeNamespace(id, byteCount: (1 + random.next(below: 64)) << 12)
        case 3: try? controller.faults.add(FaultRule(parsing: "command:hang,skip=3,times=9"))
        case 4: try? controller.faults.add(FaultRule(parsing: "completion:duplicate,times=9"))
        case 5: try? controller.faults.add(FaultRule(parsing: "completion:wrong-phase,times=2"))
        default: controller.faults.clear()
        }
    }

    private mutating func restart() {
        guard random.next(below: 2) == 0 else { return }
        host.controller.resetDevice()
        host.controller.memory.removeAll()
        try? host.controller.memory.add(
            address: Host.iova, byteCount: UInt64(Host.byteCount), fd: host.file.raw, offset: 0,
            isReadable: true, isWritable: true)
        host.usesShadow = false
        host.enable()
        host.createQueues(shadow: random.next(below: 2) == 0)
    }
}

@Suite("Hostile hosts")
struct HostileHostTests {
    @Test("whatever a host does, the controller can be reset and works", arguments: [1, 2, 3])
    func short(seed: UInt64) throws {
        try HostileHostTests.run(seed: seed, steps: 3000)
    }

    static func run(seed: UInt64, steps: Int) throws {
        var hostile = try HostileHost(seed: seed)
        for _ in 0..<steps { hostile.step() }
        let host = hostile.host
        let counters = host.controller.counters
        let executed = (counters.adminByOpcode + counters.ioByOpcode).reduce(0, &+)
        // Otherwise the controller was dead most of the time, and the run proves little.
        #expect(executed > UInt64(steps) / 8, "seed \(seed)")
        host.controller.faults.clear()
        host.controller.resetDevice()
        host.controller.memory.removeAll()
        try host.controller.memory.add(
            address: Host.iova, byteCount: UInt64(Host.byteCount), fd: host.file.raw, offset: 0,
            isReadable: true, isWritable: true)
        for offset in stride(from: 0, to: 0x1_0000, by: 8) { host.memory.store64(offset, 0) }
        host.usesShadow = false
        host.enable()
        host.createQueues()

        #expect(host.status(of: .flush(namespaceID: .max), on: 1) == .success, "seed \(seed)")
    }
}

@Suite("HostileHostFuzz", .enabled(if: environmentNumber("NVMED_FUZZ_SECONDS") != nil))
struct HostileHostFuzz {
    @Test("whatever a host does for a long time")
    func long() throws {
        let seconds = environmentNumber("NVMED_FUZZ_SECONDS") ?? 1
        var seed = environmentNumber("NVMED_SEED") ?? 1
        let end = MonotonicClock.nowNanoseconds &+ seconds &* 1_000_000_000
        while MonotonicClock.nowNanoseconds < end {
            try HostileHostTests.run(seed: seed, steps: 20_000)
            seed &+= 1
        }
    }
}
