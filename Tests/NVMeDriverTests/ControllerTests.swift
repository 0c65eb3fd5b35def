// SPDX-License-Identifier: Apache-2.0
// The driver on a real emulator process: bring-up, data, servers unlike ours, and devices that lie.

import CMemory
import Linux
import NVMeSpec
import TestSupport
import Testing
import VFIO

@testable import NVMeDriver

@Suite("The controller, on an emulator process", .serialized)
struct ControllerTests {
    /// Servers unlike ours, and ours: every one must give the same data.
    /// With the largest transfer tried: one that comes in pieces of a few bytes takes its time.
    static let servers: [([String], Int)] = [
        ([], 3 << 20), (["--doorbells", "mapped"], 3 << 20), (["--no-mmap"], 3 << 20),
        (["--doorbells", "mapped", "--sparse-unaligned"], 3 << 20), (["--short-replies"], 3 << 20),
        (["--dma-by-message"], 3 << 20), (["--mdts", "0"], 9 << 20), (["--mdts", "1"], 3 << 20),
        (["--mqes", "8"], 3 << 20), (["--msix", "1"], 3 << 20),
        (["--reply-delay-ms", "1"], 3 << 20),
        (["--no-mmap", "--short-replies", "--dma-by-message"], 1 << 16),
    ]

    @Test("data written is read back, over every kind of server", arguments: servers)
    func dataRoundTrip(server: [String], largest: Int) throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        let rig = try ControllerRig(
            ["--namespace", "memory=16M,block=512", "--namespace", "memory=16M,block=4096"] + server
        )
        #expect(rig.controller.namespaces.count == 2)
        for id in rig.controller.namespaces.keys.sorted() {
            let namespace = try requireValue(rig.controller.namespaces[id])
            for byteCount in [4096, 8192, 65536, 1 << 20, largest] where byteCount <= largest {
                // When
                let lba = random.next() % 64 * 8
                rig.fill(at: 0, byteCount: byteCount, seed: random.next())
                try rig.run(IOOperation.write, namespace, lba: lba, byteCount: byteCount, offset: 0)
                try rig.run(IOOperation.flush, namespace, lba: 0, byteCount: 0, offset: 0)
                let target = 10 << 20 | Int(random.next() % 1000) * 4
                try rig.run(
                    IOOperation.read, namespace, lba: lba, byteCount: byteCount, offset: target)
                // Then
                #expect(rig.equal(0, target, byteCount: byteCount), "seed \(seed)")
            }
        }
        try rig.controller.stop()
    }

    @Test("what the controller says of itself and its namespaces arrives")
    func identity() throws {
        // Given, when
        let rig = try ControllerRig([
            "--serial", "TEST42", "--namespace", "memory=8M,block=512,eui64=0102030405060708",
            "--namespace", "memory=4M,block=4096,nguid=000102030405060708090a0b0c0d0e0f,readonly",
        ])
        let first = try requireValue(rig.controller.namespaces[1])
        let second = try requireValue(rig.controller.namespaces[2])
        // Then
        #expect(rig.controller.identify.sn.hasPrefix("TEST42"))
        #expect(first.blockByteCount == 512)
        #expect(first.blockCount == 16384)
        #expect(first.eui64 == [1, 2, 3, 4, 5, 6, 7, 8])
        #expect(second.blockByteCount == 4096)
        #expect(second.blockCount == 1024)
        #expect(second.nguid == (0..<16).map { UInt8($0) })
        #expect(second.isWriteProtected)
    }

    @Test("zeroes, deallocate, compare and verify do what they say")
    func otherCommands() throws {
        // Given
        let rig = try ControllerRig(["--namespace", "memory=16M"])
        let namespace = try requireValue(rig.controller.namespaces[1])
        rig.fill(at: 0, byteCount: 65536, seed: 1)
        try rig.run(IOOperation.write, namespace, lba: 0, byteCount: 65536, offset: 0)
        // When, then
        try rig.run(IOOperation.compare, namespace, lba: 0, byteCount: 65536, offset: 0)
        try rig.run(IOOperation.verify, namespace, lba: 0, byteCount: 65536, offset: 0)
        try rig.run(IOOperation.writeZeroes, namespace, lba: 8, byteCount: 4096, offset: 0)
        try rig.run(IOOperation.deallocate, namespace, lba: 64, byteCount: 8192, offset: 0)
        try rig.run(IOOperation.read, namespace, lba: 0, byteCount: 65536, offset: 1 << 20)
        #expect(rig.isZero((1 << 20) + 4096, byteCount: 4096))
        #expect(rig.isZero((1 << 20) + 32768, byteCount: 8192))
        #expect(rig.equal(0, 1 << 20, byteCount: 4096))
        rig.fill(at: 0, byteCount: 512, seed: 2)
        let status = try rig.status(
            IOOperation.compare, namespace, lba: 0, byteCount: 512, offset: 0)
        #expect(status.matches(.compareFailure))
    }

    @Test("several queues each move data")
    func severalQueues() throws {
        // Given
        let rig = try ControllerRig(["--namespace", "memory=16M"], queues: 4)
        let namespace = try requireValue(rig.controller.namespaces[1])
        #expect(rig.controller.queueCount == 4)
        for queue in 0..<4 {
            // When
            rig.fill(at: 0, byteCount: 4096, seed: UInt64(queue))
            try rig.run(
                IOOperation.write, namespace, lba: UInt64(queue) * 8, byteCount: 4096, offset: 0,
                queue: queue)
            try rig.run(
                IOOperation.read, namespace, lba: UInt64(queue) * 8, byteCount: 4096, offset: 8192,
                queue: (queue + 1) % 4)
            // Then
            #expect(rig.equal(0, 8192, byteCount: 4096))
        }
    }

    @Test("an orderly stop tells the controller")
    func orderlyStop() throws {
        // Given
        let rig = try ControllerRig(["--namespace", "memory=4M"])
        // When
        try rig.controller.stop()
        let stats = try rig.emulator.command("stats")
        // Then
        #expect(stats.contains("\"shutdowns\":1"), "\(stats)")
        #expect(stats.contains("\"submissionQueuesDeleted\":1"), "\(stats)")
    }

    /// A device that lies, and what the error must name.
    static let bringUpFaults: [(String, String)] = [
        ("register:never-ready,", "CSTS.RDY did not become 1"),
        ("register:fatal-at-enable", "CFS"),
        ("register:gone", "gone"),
        ("register:mqes=0", "CAP.MQES"),
        ("register:mpsmin=4", "CAP.MPSMIN"),
        ("register:css=128", "CAP.CSS"),
        ("command:gone,opcode=6,queue=admin", "CSTS reads as all ones"),
        ("command:fatal,opcode=6,queue=admin", "CFS"),
        ("register:dstrd=15", "CAP.DSTRD"),
        ("identify:sqes=0x77,cns=1", "SQES"),
        ("identify:cqes=0x55,cns=1", "CQES"),
        ("identify:nn=0,cns=1", "NN"),
        ("command:status=0/6,opcode=6,queue=admin", "Identify Controller"),
        ("command:status=0/6,opcode=1,queue=admin", "Create I/O Submission Queue"),
        ("command:status=0/6,opcode=5,queue=admin", "Create I/O Completion Queue"),
        ("command:hang,opcode=6,queue=admin", "no answer"),
        ("command:drop,opcode=9,queue=admin", "no answer"),
        ("completion:cid=invented,queue=admin", "never in use"),
        ("completion:sqid=9,queue=admin", "another submission queue"),
        ("completion:sqhd=60000,queue=admin", "head pointer"),
        ("completion:duplicate,queue=admin", "not in flight"),
        ("completion:wrong-phase,queue=admin", "no answer"),
        ("completion:dw0=0xFFFFFFFF,opcode=9,feature=7", "Number of Queues"),
        ("command:disconnect,opcode=6", "gone"),
    ]

    @Test(
        "a device that lies at bring-up ends in an error that names the field",
        arguments: bringUpFaults)
    func bringUpLies(fault: String, words: String) throws {
        // Given
        let rule = fault.hasSuffix(",") ? String(fault.dropLast()) : fault
        let begin = MonotonicClock.nowNanoseconds
        // When
        var message = "no error"
        do {
            _ = try ControllerRig(
                ["--namespace", "memory=4M", "--fault", "register:to=2", "--fault", rule],
                adminTimeoutMilliseconds: 300)
        } catch { message = "\(error)" }
        // Then
        #expect(message.contains(words), "\(message)")
        #expect(MonotonicClock.nowNanoseconds - begin < 10_000_000_000)
    }

    /// A namespace that cannot be served, and what its refusal must name.
    static let namespaceFaults: [(String, String)] = [
        ("identify:nsze=0,cns=0", "NSZE"), ("identify:lbads=3,cns=0", "LBADS"),
        ("identify:lbads=40,cns=0", "LBADS"), ("identify:ms=8,cns=0", "metadata"),
        ("identify:flbas=9,cns=0", "FLBAS"), ("identify:nsze=0xFFFFFFFFFFFFFFFF,cns=0", "NSZE"),
        ("identify:zeroed,cns=0", "NSZE"),
    ]

    @Test(
        "a namespace that cannot be served is refused with the reason", arguments: namespaceFaults)
    func namespaceLies(fault: String, words: String) throws {
        // Given, when
        let rig = try ControllerRig(["--namespace", "memory=4M", "--fault", fault])
        // Then
        let refusal = try requireValue(rig.controller.namespaces[1]).refusal ?? "none"
        #expect(refusal.contains(words), "\(refusal)")
    }

    @Test("identify pages of garbage never trap", arguments: [0, 1, 2, 3, 6])
    func garbage(cns: Int) throws {
        var outcome = "served"
        do {
            let rig = try ControllerRig(
                ["--namespace", "memory=4M", "--fault", "identify:garbage,cns=\(cns)"],
                adminTimeoutMilliseconds: 300)
            outcome = "served \(rig.controller.namespaces.count)"
        } catch { outcome = "\(error)" }
        #expect(!outcome.isEmpty)
    }

    @Test("a controller of many command sets alone is driven with CC.CSS 110b")
    func multipleCommandSets() throws {
        // Given, when: CAP.CSS bit 6 without bit 0.
        let rig = try ControllerRig(["--namespace", "memory=4M", "--fault", "register:css=0x40"])
        let registers = try rig.controller.inspectRegisters()
        // Then
        let configuration = try requireValue(registers.first { $0.name == "cc" }).value
        #expect(configuration >> 4 & 7 == 6)
        #expect(rig.controller.namespaces[1]?.refusal == nil)
    }

    @Test("a combination of command sets without NVM is refused")
    func noNVMCommandSet() throws {
        // Given, when: vector 0 has only the zoned command set (bit 2).
        var message = "no error"
        do {
            _ = try ControllerRig([
                "--namespace", "memory=4M", "--fault", "register:css=0x40", "--fault",
                "identify:bytes=0/8/4,cns=0x1C",
            ])
        } catch { message = "\(error)" }
        // Then
        #expect(message.contains("I/O Command Set vector"), "\(message)")
    }

    @Test("an orderly stop of a device that is gone ends at once")
    func stopWhenGone() throws {
        // Given
        let rig = try ControllerRig(["--namespace", "memory=4M"], adminTimeoutMilliseconds: 60_000)
        _ = try rig.emulator.command("fault command:gone")
        // When
        let begin = MonotonicClock.nowNanoseconds
        var seen: DriverError?
        do throws(DriverError) { try rig.controller.stop() } catch { seen = error }
        // Then
        #expect(seen?.isGone == true)
        #expect(MonotonicClock.nowNanoseconds - begin < 60_000_000_000)
    }

    /// Completions of I/O commands that cannot be right.
    static let ioFaults: [(String, QueueFault)] = [
        ("completion:cid=invented,queue=io", .inventedCommandID),
        ("completion:duplicate,queue=io", .staleCommandID),
        ("completion:sqid=5,queue=io", .wrongQueueID),
        ("completion:sqhd=40000,queue=io", .badHeadPointer),
    ]

    @Test("a completion of I/O that cannot be right is a fault of the queue", arguments: ioFaults)
    func ioLies(rule: String, fault: QueueFault) throws {
        // Given
        let rig = try ControllerRig(["--namespace", "memory=4M"])
        let namespace = try requireValue(rig.controller.namespaces[1])
        _ = try rig.emulator.command("fault " + rule)
        // When
        var seen = QueueFault.none
        for _ in 0..<2 where seen == .none {
            do {
                _ = try rig.status(
                    IOOperation.read, namespace, lba: 0, byteCount: 4096, offset: 0)
            } catch let error as DriverError {
                if case .queueFault(_, let found, _) = error { seen = found }
            }
        }
        // Then
        #expect(seen == fault)
    }
}
