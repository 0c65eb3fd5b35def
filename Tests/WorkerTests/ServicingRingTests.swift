// SPDX-License-Identifier: Apache-2.0
// Servicing of a device whose clients use rings; and of one that cannot carry commands over.

import CLinux
import DMA
import Linux
import NVMeDriver
import SavedState
import Systemd
import TestSupport
import Testing
import VFIO
import Wire

@testable import NVMeClient
@testable import Worker

/// A client's ring, by hand.
final class RingEnd {
    private let client: Client
    private let held: [HeldFD]
    private let memory: Mapping
    private var port: NVMeClient.RingPort
    private var done = 0

    init(_ client: Client) throws {
        self.client = client
        let request = SessionRequest.openRing(
            ringID: 1, submissionEntryCount: 16, completionEntryCount: 16)
        let answer = try client.fullAnswer(to: client.send(request))
        guard case .ringOpened(_, let byteCount) = answer.reply, answer.held.count == 3 else {
            throw RigError("\(answer.reply) with \(answer.held.count) descriptors")
        }
        held = answer.held
        let mapping = try Mapping(answer.held[0].fd, byteCount: Int(byteCount))
        let layout = try unsafe RingLayout(
            at: mapping.base, byteCount: Int(byteCount), ringID: 1)
        port = unsafe NVMeClient.RingPort(base: mapping.base, layout: layout)
        memory = mapping
    }

    /// Submits a write of one block out of region 1, and wakes the worker in any case.
    func write(_ lba: UInt64) throws {
        let entry = RingEntry(
            opcode: RingOpcode.write, blockCount: 1, lba: lba, tag: lba,
            data: .region(1, offset: lba * 512))
        guard port.prepare(entry) else { throw RigError("no room in the ring") }
        _ = port.publish()
        _ = nv_eventfd_signal(held[1].fd.raw)
    }

    /// Waits until so many are done in all.
    func wait(_ count: Int) throws {
        let deadline = patience()
        let room = UnsafeMutableBufferPointer<NVMeClient.RingCompletion>.allocate(capacity: 16)
        defer { unsafe room.deallocate() }
        while done < count {
            done += unsafe port.reap(into: room)
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw RigError("\(done) of \(count) are done")
            }
        }
    }
}

extension WorkerProcessTests {
    @Suite("Servicing with rings")
    struct ServicingRings {
        private func open(_ supervisor: Supervisor) throws -> (Client, RingEnd, SharedMemory) {
            let client = try supervisor.open()
            let memory = try SharedMemory(byteCount: 1 << 20)
            memory.fill(pattern(8192, seed: 21), at: 0)
            try client.register(1, memory)
            return (client, try RingEnd(client), memory)
        }

        @Test("entries that come while the device is frozen stay, and are done after thaw")
        func thaw() throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let (client, ring, _) = try open(supervisor)
            try ring.write(0)
            try ring.wait(1)
            _ = try kept.save(supervisor)
            try ring.write(1)
            try ring.write(2)
            let taken = try supervisor.inspect("rings/\(client.id)/1/taken")
            _ = try supervisor.ask(.thaw)
            try ring.wait(3)

            #expect(taken == "1")
            #expect(try client.read(0, 3) == pattern(1536, seed: 21))
        }

        @Test("what a ring has with the device goes on, and holds its namespace back")
        func carried() throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let (client, ring, _) = try open(supervisor)
            try kept.rig.control("fault command:delay=600000,queue=io")
            for lba in 0..<3 as Range<UInt64> { try ring.write(lba) }
            try supervisor.wait(until: "rings/\(client.id)/1/inflight", is: "3")
            let saved = try kept.save(supervisor)
            _ = try kept.stop(supervisor)
            let (successor, ready) = try kept.restore(saved.section.fd)
            try kept.rig.control("clear")
            let again = try successor.open()
            let write = try again.send(
                .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 8))
            try successor.wait(until: "sessions/\(again.id)/waits", is: "held")
            try kept.rig.control("release")

            #expect(saved.summary.commandsInFlight == 3)
            #expect(ready.restored, "\(ready.coldReason)")
            #expect(try again.answer(to: write).reply == .done)
            #expect(try again.read(0, 1) == pattern(512, seed: 8))
        }
    }
}

@Suite("A device that cannot carry commands over", .timeLimit(.minutes(5)))
struct DrainTests {
    @Test("it is saved when its commands have ended, and else goes on")
    func drained() async throws {
        EventLoop.startOnOwnThread()
        try await LoopTurn.run {
            try await EventLoop.current.task { try await Self.scenario() }.value
        }
    }

    @Control
    private static func scenario() async throws {
        let emulator = try EmulatorProcess(["--namespace", "memory=4M"])
        let service = try service(emulator.socket)
        var config = DeviceConfig(name: "d", transport: .pci(address: "0000:01:00.0"))
        config.keepAlive = true
        config.poolBacking = .hugetlb
        config.poolPath = "/nowhere/pool"
        _ = try await service.load(config)
        let controller = try #require(service.controller)
        try hold(service, controller, emulator)
        let early = await refusal(service, 1, drain: 20_000_000)
        let sealed = controller.poolSeal
        _ = try emulator.command("release")
        let token = [UInt8](repeating: 2, count: 16)
        let saved = try await service.save(
            SaveDevice(token: token, drainNanoseconds: 10_000_000_000))
        let held = controller.poolSeal
        let again = await refusal(service, 3, drain: 0)
        service.thaw("the test says so")

        #expect(early == .deadlineExceeded)
        #expect(sealed == nil)
        #expect(saved.summary.commandsInFlight == 0)
        #expect(held?.bytes == token)
        #expect(again == .busy)
        #expect(controller.poolSeal == nil)
        #expect(service.servicing == nil)
        #expect(throws: WireError.self) { try service.commit() }
    }

    @Test("a device that is asked for again while it is given back comes up afterwards")
    func returned() async throws {
        EventLoop.startOnOwnThread()
        try await LoopTurn.run {
            try await EventLoop.current.task { try await Self.returning() }.value
        }
    }

    @Control
    private static func returning() async throws {
        // Given: a command that keeps the release waiting
        let emulator = try EmulatorProcess(["--namespace", "memory=4M"])
        let service = try service(emulator.socket)
        let config = DeviceConfig(name: "d", transport: .pci(address: "0000:01:00.0"))
        _ = try await service.load(config)
        // Not held here: the emulator serves one connection.
        try hold(service, try #require(service.controller), emulator)
        // When
        service.act(on: .removalRequested)
        let state = service.lifecycle.state
        let isReleasing = service.isReleasing
        _ = try await service.load(config)
        // Then
        #expect(state == .removed)
        #expect(isReleasing)
        #expect(service.lifecycle.state == .ready)
        #expect(service.controller != nil)
        #expect(service.counters.bringUps == 2)
    }

    /// Has a Flush stay with the device.
    @Control
    private static func hold(
        _ service: DeviceService, _ controller: NVMeController, _ emulator: EmulatorProcess
    ) throws {
        _ = try emulator.command("fault command:delay=600000,queue=io")
        service.exclusively(1) {
            let flush = IORequest(
                operation: IOOperation.flush, namespaceID: 1, session: 0, token: 0)
            _ = unsafe controller.engine(1).pointee.submit(flush)
            unsafe controller.engine(1).pointee.ring()
            try? controller.writePendingDoorbells(1)
        }
    }

    @Control
    private static func service(_ path: String) throws -> DeviceService {
        let log = Log(sink: LogSink(levelMax: .emergency, format: .plain, output: { _ in }))
        var environment = DeviceEnvironment(
            name: "d", log: log,
            open: { _ throws(DriverError) in
                do throws(VFIOError) {
                    return try VFIOUserDevice(path: path, name: "d")
                } catch { throw .device(error) }
            })
        environment.poolFile = { _, byteCount, _ throws(PoolFileError) in
            try PoolFile.create(.memory, byteCount: byteCount)
        }
        return DeviceService(
            environment: environment,
            state: try StateArea.create(layout: DeviceService.stateLayout))
    }

    @Control
    private static func refusal(
        _ service: DeviceService, _ byte: UInt8, drain: UInt64
    ) async -> ErrorCode? {
        do throws(WireError) {
            _ = try await service.save(
                SaveDevice(
                    token: [UInt8](repeating: byte, count: 16), drainNanoseconds: drain))
            return nil
        } catch { return error.code }
    }
}
