// SPDX-License-Identifier: Apache-2.0
// Memory of clients whose regions a predecessor left half way: who keeps it in the store.

import DMA
import Linux
import Systemd
import TestSupport
import Testing
import VFIO
import Wire

@testable import NVMeDriver
@testable import Worker

@Suite("Memory of a predecessor's regions", .timeLimit(.minutes(5)))
struct AdoptedMemoryTests {
    private static let byteCount = 65536

    @Test("a region that was being taken off the device uses its memory until it is given back")
    func unmapping() async throws {
        EventLoop.startOnOwnThread()
        try await LoopTurn.run {
            try await EventLoop.current.task { try await Self.scenario() }.value
        }
    }

    @Control
    private static func scenario() async throws {
        // Given: two regions of the file m-9, one of them UNMAPPING with an answer owed
        let file = try MemFD.create(name: "shared", byteCount: byteCount, seals: [.shrink])
        let emulator = try EmulatorProcess(["--namespace", "memory=4M"])
        let log = Log(sink: LogSink(levelMax: .emergency, format: .plain, output: { _ in }))
        let predecessor = try service(emulator.socket, log)
        var config = DeviceConfig(name: "d", transport: .vfioUser(path: emulator.socket))
        // No data threads: the queues are adopted once more.
        config.queueCount = 1
        _ = try await predecessor.load(config)
        let controller = try #require(predecessor.controller)
        let session = try predecessor.openSession(
            OpenSession(
                sessionID: 1, nsid: 1, access: .readOnly, shared: false, disk: "disk",
                clientPID: 1, clientUID: 0))
        let mapped = try controller.registerMemory(
            file, ClientMemoryStretch(byteCount: UInt64(byteCount)), session: session.key,
            clientID: 1, number: 9, requestID: 1)
        let written = controller.state.region(mapped)
        let record = try #require(written)
        var unmapping = record
        unmapping.state = .unmapping
        unmapping.clientID = 2
        unmapping.unregisterRequestID = 3
        controller.state.setRegion(mapped + 1, unmapping)
        // When: the one is mapped again, twice; the other is given back
        var fds = ListenFDs(adopting: [(name: "m-9", raw: try file.duplicate().release())])
        let stored = StoredFDs(store: FDStore(inherited: ["m-9"]), log: log, from: &fds)
        let service = try service(emulator.socket, log, stored)
        service.controller = controller
        service.sessions[session.slot] = session
        let memory = service.inheritPool().inheritance.memory
        let isThere = (memory(mapped, record) != nil, memory(mapped, record) != nil)
        try service.adoptSessions(controller)
        let adopted = session.regions.keys.sorted()
        service.settleRegions(session)
        let left = session.regions.keys.sorted()
        // Then: the file is in the store until the other is given back, too
        let known = try stored.keep(.memory, 10, file)
        stored.remove(.memory, known)
        try service.unregisterMemory(session, regionID: 1, requestID: 4)
        let anew = try stored.keep(.memory, 11, file)
        #expect(isThere == (true, true))
        #expect(adopted == [1, 2])
        #expect(left == [1])
        #expect(known == 9)
        #expect(anew == 11)
    }

    @Control
    private static func service(
        _ path: String, _ log: Log, _ stored: StoredFDs? = nil
    ) throws -> DeviceService {
        var environment = DeviceEnvironment(
            name: "d", log: log,
            open: { _ throws(DriverError) in
                do throws(VFIOError) {
                    return try VFIOUserDevice(path: path, name: "d")
                } catch { throw .device(error) }
            })
        environment.stored = stored
        return DeviceService(
            environment: environment,
            state: try StateArea.create(layout: DeviceService.stateLayout))
    }
}
