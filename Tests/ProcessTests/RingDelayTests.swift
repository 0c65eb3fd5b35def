// SPDX-License-Identifier: Apache-2.0
// A device that takes its time: what is closed, unregistered or killed meanwhile.

import CRing
import Glibc
import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

/// A device whose reads end when the test says so.
private struct SlowDevice {
    let service: RunningService
    private let emulator: EmulatorProcess
    /// The device has a worker from the beginning to the end.
    private let reader: Disk

    init() throws {
        service = try RunningService()
        reader = try service.connect().openDisk("disk-a", access: .readOnly)
        emulator = try #require(service.emulators["a"])
    }

    /// From now on reads stay with the device.
    func holdReads() throws {
        #expect(try emulator.command("fault command:delay=600000,queue=io,opcode=2") == "ok")
    }

    /// Waits until the device has so many.
    func waitForHeld(_ count: Int) throws {
        let deadline = Deadline.after(milliseconds: 60_000)
        while try !emulator.command("stats").contains("\"heldCommands\":\(count),") {
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw SetUpError("the device has not got \(count) reads within 60 s")
            }
            sched_yield()
        }
    }

    /// The reads end, and those that come are not delayed any more.
    func release(_ count: Int) throws {
        #expect(try emulator.command("clear") == "ok")
        #expect(try emulator.command("release") == "ok \(count)")
    }
}

extension RawRing {
    /// Publishes reads and waits until they are with the device.
    fileprivate func hold(_ count: UInt32, _ device: SlowDevice) throws {
        for tag in 0..<UInt64(count) { writeRead(tag) }
        publish()
        try device.waitForHeld(Int(count))
    }
}

extension ProcessTests {
    @Suite("Rings of a slow device", .timeLimit(.minutes(5)))
    struct RingDelayTests {
        @Test(
            "CloseRing and UnregisterMemory answer when the requests have ended, twice not at all")
        func closing() throws {
            // Given: 8 reads into region 0 with the device
            let device = try SlowDevice()
            let before = try Holdings(device.service)
            do {
                let ring = try RawRing(device.service)
                try device.holdReads()
                try ring.hold(8, device)
                // When: both twice; what is refused at once overtakes what waits
                try ring.connection.channel.send(request: .closeRing(ringID: 0))
                try ring.connection.channel.send(request: .closeRing(ringID: 0))
                let closedTwice = ring.connection.answer()
                try ring.connection.channel.send(request: .unregisterMemory(regionID: 0))
                try ring.connection.channel.send(request: .unregisterMemory(regionID: 0))
                let unregisteredTwice = ring.connection.answer()
                let early = ring.word(NV_RING_OFFSET_COMPLETION_TAIL)
                let state = ring.word(NV_RING_OFFSET_STATE)
                try device.release(8)
                let answers = [ring.connection.answer(), ring.connection.answer()]
                // Then
                #expect(closedTwice == .failed(.notFound, field: "close_ring.ring_id"))
                #expect(
                    unregisteredTwice == .failed(.notFound, field: "unregister_memory.region_id"))
                #expect(early == 0)
                #expect(state != UInt32(NV_RING_STATE_ENDED))
                #expect(answers == [.answered, .answered])
                #expect(ring.reap().sorted() == Array(0..<8))
                #expect(ring.word(NV_RING_OFFSET_STATE) == UInt32(NV_RING_STATE_ENDED))
                // Both ids are free.
                #expect(try ring.connection.openRing(0, 2).count == 3)
                try ring.connection.channel.send(
                    request: .registerMemory(
                        regionID: 0, byteCount: UInt64(RawRing.regionByteCount), readOnly: false),
                    fds: [ring.region.raw])
                #expect(ring.connection.answer() == .answered)
            }
            #expect(try Holdings.settled(device.service, before) == before)
        }

        @Test("a ring goes on while memory that its requests use is being unregistered")
        func unregistering() throws {
            // Given: 4 reads into region 0 with the device, and another region
            let device = try SlowDevice()
            let ring = try RawRing(device.service)
            try ring.connection.channel.send(
                request: .registerMemory(
                    regionID: 1, byteCount: UInt64(RawRing.regionByteCount), readOnly: false),
                fds: [ring.region.raw])
            #expect(ring.connection.answer() == .answered)
            try device.holdReads()
            try ring.hold(4, device)
            try ring.connection.channel.send(request: .unregisterMemory(regionID: 0))
            // When: a write from the other region
            ring.write(1 | 8 << 32, tag: 99, place: 1)
            ring.publish()
            try ring.waitForCompletions(1)
            // Then
            #expect(ring.reap() == [99])
            try device.release(4)
            #expect(ring.connection.answer() == .answered)
            #expect(ring.word(NV_RING_OFFSET_COMPLETION_TAIL) == 5)
        }

        @Test("a client killed while it waits for both keeps its memory until its reads have ended")
        func killed() throws {
            // Given: a process that asked for both with 32 reads under way, and is killed
            let device = try SlowDevice()
            let before = try Holdings(device.service)
            try device.holdReads()
            try Victim.kill(at: "waiting", in: device.service)
            // When: the next client opens the disk
            let disk = try device.service.connect().reopenable("disk-a")
            let buffer = try IOBuffer(byteCount: 4096)
            let region = try disk.registerMemory(buffer)
            let ring = try disk.openRing(entries: 2)
            #expect(
                ring.prepareWrite(lba: 0, blockCount: 8, data: .region(region, offset: 0), tag: 1))
            ring.submit()
            let early = try ring.wait(deadlineNanoseconds: Deadline.after(milliseconds: 200))
            let meanwhile = try Holdings(device.service)
            try device.release(32)
            // Then: it did not overtake the dead one's reads, and goes on after them
            #expect(early != .completions)
            #expect(meanwhile.rings == before.rings + 2)
            let late = try ring.wait(deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
            #expect(late == .completions)
            disk.close()
            #expect(try Holdings.settled(device.service, before) == before)
        }
    }
}
