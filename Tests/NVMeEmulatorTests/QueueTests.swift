// SPDX-License-Identifier: Apache-2.0
// Queues under pressure: wrapping, full completion queues, shadow doorbells, interrupts, vanished
// memory.

import CLinux
import Linux
import NVMeSpec
import Testing

@testable import NVMeEmulator

@Suite("Queues")
struct QueueTests {
    @Test("queues wrap with the phase, many times over", arguments: [false, true])
    func wrapping(shadow: Bool) throws {
        let host = try Host.ready(shadow: shadow, entryCount: 3)
        for _ in 0..<50 {
            let commandID = host.submit(.flush(namespaceID: 1), on: 1)
            host.run()
            let entry = host.take(1)
            #expect(entry?.commandID == commandID)
            #expect(entry?.sqID == 1)
        }
    }

    @Test("a full completion queue holds commands back and loses none", arguments: [false, true])
    func fullCompletionQueue(shadow: Bool) throws {
        let host = try Host()
        host.enable()
        host.createQueues(entryCount: 4, shadow: shadow)
        var expected: [UInt16] = []
        for _ in 0..<3 { expected.append(host.submit(.flush(namespaceID: 1), on: 1)) }
        host.run()
        for _ in 0..<3 { expected.append(host.submit(.flush(namespaceID: 1), on: 1)) }
        host.run()
        #expect(host.controller.counters.ioByOpcode[0] == 3)

        var seen: [UInt16] = []
        while let entry = host.take(1) {
            seen.append(entry.commandID)
            host.run()
        }
        #expect(seen == expected)
    }

    @Test("queues share a completion queue")
    func sharedCompletionQueue() throws {
        let host = try Host.ready()
        #expect(
            host.status(
                of: .createIOSubmissionQueue(
                    queueID: 2, entryCount: 16, address: Host.iova + 0xA000,
                    completionQueueID: 1)) == .success)
        #expect(host.status(of: .deleteIOSubmissionQueue(queueID: 1)) == .success)
        #expect(host.status(of: .deleteIOCompletionQueue(queueID: 1)) == .invalidQueueDeletion)
        #expect(host.status(of: .deleteIOSubmissionQueue(queueID: 2)) == .success)
        #expect(host.status(of: .deleteIOCompletionQueue(queueID: 1)) == .success)
    }

    @Test("a sleeping controller is rung exactly once, a busy one not at all")
    func shadowDoorbells() throws {
        let host = try Host.ready(shadow: true)
        #expect(host.controller.prepareToSleep())
        host.place(.flush(namespaceID: 1), on: 1)
        #expect(host.ring(1))
        host.run()
        _ = host.take(1)
        // Awake: the tail is seen without a doorbell.
        for _ in 0..<200 {
            host.place(.flush(namespaceID: 1), on: 1)
            #expect(!host.ring(1))
            host.run()
            #expect(host.take(1)?.status == .success)
        }
        #expect(host.controller.prepareToSleep())
        host.place(.flush(namespaceID: 1), on: 1)
        #expect(host.ring(1))
    }

    @Test("a tail that moved before the event index was stored keeps the controller awake")
    func lastLook() throws {
        let host = try Host.ready(shadow: true)
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()
        host.place(.flush(namespaceID: 1), on: 1)
        #expect(!host.ring(1))

        #expect(!host.controller.prepareToSleep())
        host.run()
        #expect(host.take(1) != nil)
    }

    @Test("a shadow tail beyond the queue stops that queue only")
    func brokenShadowTail() throws {
        let host = try Host.ready(shadow: true)
        host.memory.store32(Host.shadow + 8, 0xFFFF_FFFF)
        host.run()
        #expect(host.controller.counters.doorbellsInvalid == 1)
        #expect(host.controller.prepareToSleep())
        #expect(host.status(of: .getFeatures(.arbitration)) == .success)
        #expect(host.status(of: .deleteIOSubmissionQueue(queueID: 1)) == .success)
    }

    @Test("a head beyond what was posted is reported and ignored")
    func brokenHead() throws {
        let host = try Host.ready()
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()
        host.write(RegisterOffset.doorbells + 12, 40)
        // Only a nearly full queue, or an interrupt decision, looks at the head.
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()

        #expect(host.controller.counters.doorbellsInvalid == 1)
        #expect(!host.status.cfs)
    }

    private func connect(_ host: Host, _ vector: Int) throws -> EventFD {
        let event = try EventFD()
        host.controller.interrupts.messages.connect(vector, try event.fd.duplicate())
        return event
    }

    @Test("a host that has taken everything is interrupted at once")
    func interruptAtOnce() throws {
        let host = try Host.ready(shadow: true)
        let event = try connect(host, 1)
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()

        #expect(try event.drain() == 1)
    }

    @Test("entries posted while the host is behind are announced before the controller sleeps")
    func interruptBeforeSleep() throws {
        let host = try Host.ready(shadow: true)
        let event = try connect(host, 1)
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()
        try event.drain()
        // The host has not taken the first one: it is awake, or will look.
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()
        while !host.controller.prepareToSleep() {}

        #expect(try event.drain() == 1)
    }

    @Test("a host that takes everything in time is spared the interrupt")
    func interruptSuppressed() throws {
        let host = try Host.ready(shadow: true)
        let event = try connect(host, 1)
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()
        try event.drain()
        host.submit(.flush(namespaceID: 1), on: 1)
        #expect(host.controller.pass())
        while host.take(1) != nil {}
        while !host.controller.prepareToSleep() {}

        #expect(host.controller.counters.interruptsRaised >= 1)
        #expect(try event.drain() <= 1)
    }

    @Test("a masked vector waits until it is unmasked")
    func maskedVector() throws {
        let host = try Host.ready()
        let event = try connect(host, 1)
        host.controller.interrupts.messages.mask(1)
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()
        #expect(try event.drain() == 0)
        host.controller.interrupts.messages.unmask(1)
        #expect(try event.drain() == 1)
    }

    @Test("without MSI-X the pin is raised, unless INTMS masks it")
    func pin() throws {
        let host = try Host()
        let event = try EventFD()
        host.controller.interrupts.pin.connect(0, try event.fd.duplicate())
        host.enable()
        #expect(host.status(of: .getFeatures(.arbitration)) == .success)
        #expect(try event.drain() == 1)
        host.controller.interrupts.pin.unmask(0)
        host.write(RegisterOffset.intms, 1)
        #expect(host.status(of: .getFeatures(.arbitration)) == .success)
        #expect(try event.drain() == 0)
        #expect(host.read32(RegisterOffset.intmc) == 1)
    }

    @Test("memory that is unmapped under a queue is fatal for the controller, not for the process")
    func unmappedQueue() throws {
        let host = try Host.ready()
        try host.controller.memory.remove(address: Host.iova, byteCount: UInt64(Host.byteCount))
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()

        #expect(host.status.cfs)
    }

    @Test("memory that is truncated under the controller reads as zeroes")
    func truncatedMemory() throws {
        try checked("handler", nv_install_sigbus_handler())
        let host = try Host.ready()
        let before = nv_sigbus_count()
        let file = try MemFD.create(name: "victim", byteCount: 1 << 20, seals: [])
        try host.controller.memory.add(
            address: 0x4000_0000, byteCount: 1 << 20, fd: file.raw, offset: 0, isReadable: true,
            isWritable: true)
        try checked("ftruncate", nv_ftruncate(file.raw, 0))
        var entry = SubmissionEntry.write(namespaceID: 1, lba: 0, blockCount: 8)
        entry.prp1 = 0x4000_0000

        #expect(host.status(of: entry, on: 1) == .success)
        #expect(nv_sigbus_count() == before + 1)
    }

    @Test("regions that cannot be are refused")
    func badRegions() throws {
        let memory = AddressSpace()
        let file = try MemFD.create(name: "region", byteCount: 65536)
        func add(_ address: UInt64, _ size: UInt64, _ offset: UInt64 = 0) -> CInt {
            do throws(RegionError) {
                try memory.add(
                    address: address, byteCount: size, fd: file.raw, offset: offset,
                    isReadable: true, isWritable: true)
                return 0
            } catch {
                return error.errno
            }
        }
        let invalid: CInt = 22
        #expect(add(0x1000, 0) == invalid)
        #expect(add(0x1001, 4096) == invalid)
        #expect(add(0x1000, 4095) == invalid)
        #expect(add(0x1000, 4096, 1) == invalid)
        #expect(add(0x1000, 131072) == invalid)
        #expect(add(0x1000, 4096, 65536) == invalid)
        #expect(add(0x1000, 4096, UInt64.max & ~4095) == invalid)
        #expect(add(UInt64.max & ~4095, 8192) == invalid)
        #expect(add(0x10000, 65536) == 0)
        #expect(add(0x1F000, 4096) == 17)
        #expect(add(0x8000, 0x9000) == 17)
        #expect(add(0x8000, 0x8000) == 0)
        #expect(memory.isAccessible(0x8000, 0x18000, write: true))
        #expect(!memory.isAccessible(0x8000, 0x18001, write: true))
    }

    @Test("a copy may cross from one region to the next, with and without memory behind")
    func crossingRegions() throws {
        let memory = AddressSpace()
        let file = try MemFD.create(name: "region", byteCount: 8192)
        try memory.add(
            address: 0x2000, byteCount: 4096, fd: file.raw, offset: 4096, isReadable: true,
            isWritable: false)
        try memory.add(
            address: 0x1000, byteCount: 4096, fd: file.raw, offset: 0, isReadable: true,
            isWritable: true)
        var buffer = [UInt8](repeating: 7, count: 4096)
        #expect(unsafe memory.write(0x1800, from: buffer, 2048))
        #expect(unsafe !memory.write(0x1800, from: buffer, 4096))
        #expect(unsafe memory.read(0x1800, into: &buffer, 4096))
        #expect(buffer[0..<2048].allSatisfy { $0 == 7 })
        #expect(buffer[2048...].allSatisfy { $0 == 0 })
        #expect(unsafe !memory.read(0x2FFF, into: &buffer, 2))
    }
}
