// SPDX-License-Identifier: Apache-2.0
// Workers that die and whose successors take everything over: what the supervisor makes of it.

import DiskConfig
import Linux
import Systemd
import Testing
import Wire

@testable import Supervisor

/// A service with disk `root` open for writing, whose worker has just been replaced.
@Control
private struct Rig {
    let units: FakeUnits
    let service: Service
    let device: Device
    let opened: OpenedDisk
    var worker: FakeWorker { units.worker("a") }

    init(_ units: FakeUnits = FakeUnits()) async throws {
        self.units = units
        service = try await Service.example(units)
        opened = try await service.openDisk("root", .readWrite, .root)
        device = try #require(service.devices["a"])
    }

    /// The worker dies, and its successor is found at work.
    func replace() async throws {
        let (device, worker) = (device, worker)
        let asked = worker.requests.count
        worker.beReplaced()
        try await until { device.state == .recovering && worker.requests.count > asked }
    }

    /// The successor is ready, and the supervisor knows.
    func recover() async throws {
        worker.finishRecovery()
        let device = device
        try await until { device.state == .ready }
    }
}

@Suite("Workers that are replaced, and the supervisor", .timeLimit(.minutes(5)))
struct ReplacementTests {
    @Test("a worker's death ends no session, and a second writer waits and is then refused")
    func exclusive() async throws {
        try await onLoop {
            // Given
            let rig = try await Rig()
            try await rig.replace()
            // When
            let listed = await rig.service.listSessions(after: nil, .root)
            let state = rig.device.info.state
            let second = EventLoop.current.task {
                await failure { try await rig.service.openDisk("alias", .readWrite, .root) }
            }
            try await rig.recover()
            let refused = await second.value
            // Then
            #expect(state == .recovering)
            #expect(listed.entries.map(\.sessionID) == [rig.opened.sessionID])
            #expect(refused?.code == .busy)
            #expect(rig.worker.requests.filter { $0 == "loadDriver" }.count == 1)
            #expect(rig.device.info.restarts == 1)
            #expect(rig.device.info.sessionCount == 1)
        }
    }

    @Test("who opens a disk while its worker finds the device failed is served by the successor")
    func failing() async throws {
        try await onLoop {
            let rig = try await Rig()
            rig.worker.openFailures = [
                WireError(.deviceStarting, "CSTS.CFS is set"),
                WireError(.deviceStarting, "CSTS.CFS is set"),
            ]
            let opened = try await rig.service.openDisk("root", .readOnly, .root)
            #expect(rig.device.sessions[opened.sessionID] != nil)
            #expect(rig.worker.requests.filter { $0 == "openSession" }.count == 4)
        }
    }

    @Test("who opens a disk whose device failed in service waits until it is back")
    func failed() async throws {
        try await onLoop {
            // Given
            let rig = try await Rig()
            rig.worker.loadFailures = [
                WireError(.deviceFailed, "CSTS.CFS is set"),
                WireError(.deviceFailed, "CSTS.CFS is set"),
            ]
            let device = rig.device
            rig.worker.die()
            try await until { device.state == .retrying }
            // When
            let opened = try await rig.service.openDisk("root", .readWrite, .root)
            // Then
            #expect(rig.worker.loadFailures.isEmpty)
            #expect(device.sessions[opened.sessionID] != nil)
        }
    }

    @Test("who does not want to wait that long is told why, and may come again")
    func impatient() async throws {
        try await onLoop {
            let rig = try await Rig()
            rig.worker.loadFailures = Array(
                repeating: WireError(.deviceFailed, "CSTS.CFS is set"), count: 40)
            let device = rig.device
            rig.worker.die()
            try await until { device.state == .retrying }

            let error = await failure {
                try await rig.service.openDisk("root", nil, .user(0, nanoseconds: 20_000_000))
            }

            #expect(error?.code == .deviceStarting)
            #expect(error?.message.contains("CSTS.CFS is set") == true)
        }
    }

    @Test("a session that could not be kept is gone afterwards, and its disk is free")
    func lost() async throws {
        try await onLoop {
            let rig = try await Rig()
            try await rig.replace()
            rig.worker.sessions = [:]
            try await rig.recover()

            let again = try await rig.service.openDisk("root", .readWrite, .root)

            #expect(rig.device.sessions.keys.sorted() == [again.sessionID])
        }
    }

    @Test("a session that ends while the successor is asked for all of them stays ended")
    func endsMeanwhile() async throws {
        try await onLoop {
            let rig = try await Rig()
            try await rig.replace()
            rig.worker.endsAfterListing = rig.opened.sessionID
            try await rig.recover()

            _ = try await rig.service.openDisk("root", .readWrite, .root)

            #expect(rig.device.sessions[rig.opened.sessionID] == nil)
        }
    }

    @Test("a worker that dies again and again while it takes over is waited for")
    func twice() async throws {
        try await onLoop {
            let rig = try await Rig()
            try await rig.replace()
            let worker = rig.worker
            let asked = worker.requests.count
            worker.beReplaced()
            try await until { worker.requests.count > asked }
            let state = rig.device.info.state
            try await rig.recover()

            #expect(state == .recovering)
            #expect(rig.device.info.sessionCount == 1)
        }
    }

    @Test("an open under which the worker dies is made again, and leaves one session")
    func open() async throws {
        try await onLoop {
            let units = FakeUnits()
            let service = try await Service.example(units)
            units.worker("b").deathsUnderOpen = 2
            let opened = try await service.openDisk("data", .readOnly, .root)

            #expect(opened.fd.raw != nil)
            #expect(service.devices["b"]?.sessions[opened.sessionID] != nil)
            #expect(units.worker("b").requests.filter { $0 == "openSession" }.count == 3)
        }
    }

    @Test("a worker that dies under every open is not tried for ever")
    func hopeless() async throws {
        try await onLoop {
            let units = FakeUnits()
            let service = try await Service.example(units)
            units.worker("b").deathsUnderOpen = .max
            let error = await failure { try await service.openDisk("data", .readOnly, .root) }

            #expect(error?.code == .workerRestarted)
        }
    }

    @Test("what is closed during the pause is closed after it")
    func close() async throws {
        try await onLoop {
            let rig = try await Rig()
            try await rig.replace()
            let closing = EventLoop.current.task {
                await failure {
                    try await rig.service.closeSession(rig.opened.sessionID, reason: "", .root)
                }
            }
            try await rig.recover()
            let error = await closing.value

            #expect(error == nil)
            #expect(rig.worker.sessions.isEmpty)
            #expect(rig.device.sessions.isEmpty)
        }
    }

    @Test("a disk that is taken away during the pause is taken from its client after it")
    func withdrawn() async throws {
        try await onLoop {
            let units = FakeUnits()
            let plan = PlanBox()
            let service = try await Service.example(units) { plan.plan }
            _ = try await service.openDisk("root", .readWrite, .root)
            let kept = try await service.openDisk("frozen", .readOnly, .root)
            let device = try #require(service.devices["a"])
            let worker = units.worker("a")
            worker.beReplaced()
            try await until { device.state == .recovering }
            plan.plan.disks["root"] = nil
            _ = try await service.reload(.root)
            worker.finishRecovery()
            try await until { device.state == .ready && device.sessions.count == 1 }

            #expect(worker.sessions.keys.sorted() == [kept.sessionID])
        }
    }

    @Test("a supervisor that starts while a worker takes over learns everything from it")
    func both() async throws {
        try await onLoop {
            // Given
            let rig = try await Rig()
            rig.units.connectFailure = WireError(.internalError, "this supervisor is gone")
            rig.worker.beReplaced()
            let successor = FakeUnits()
            successor.workers = rig.units.workers
            successor.running = ["a"]
            // When
            let after = try await Service.example(successor)
            let device = try #require(after.devices["a"])
            let worker = rig.worker
            try await until { worker.requests.filter { $0 == "getDevice" }.count > 1 }
            let second = EventLoop.current.task {
                await failure { try await after.openDisk("root", .readWrite, .root) }
            }
            rig.worker.finishRecovery()
            let refused = await second.value
            // Then
            #expect(refused?.code == .busy)
            #expect(device.sessions.keys.sorted() == [rig.opened.sessionID])
            #expect(worker.requests.filter { $0 == "loadDriver" }.count == 1)
        }
    }

    @Test("a supervisor that starts anew takes back what is not configured any more")
    func unknownDisk() async throws {
        try await onLoop {
            let units = FakeUnits()
            let worker = units.worker("a")
            units.running = ["a"]
            for (id, disk) in [(7, "gone"), (8, "frozen"), (9, "data"), (10, "root")] {
                worker.keep(UInt64(id), disk)
            }
            let service = try await Service.example(units)

            try await until { worker.sessions.count == 1 }

            #expect(service.devices["a"]?.state == .ready)
            #expect(worker.sessions.keys.sorted() == [10])
        }
    }

    @Test("a device that is stopped during the pause is shut down in order by the successor")
    func stop() async throws {
        try await onLoop {
            let rig = try await Rig()
            try await rig.replace()
            let stopping = EventLoop.current.task { await rig.device.stop() }
            rig.worker.finishRecovery()
            await stopping.value

            #expect(rig.worker.isStopped)
            #expect(rig.device.state == .absent)
        }
    }

    @Test("generation, adoptions and pause are told; without a word of the worker, what was seen")
    func continuity() async throws {
        try await onLoop {
            let rig = try await Rig()
            let before = rig.device.info.continuity
            try await rig.replace()
            try await rig.recover()
            let seen = rig.device.info.continuity
            var told = Continuity(generation: 3)
            told.adoptions = 2
            told.lastPauseNanoseconds = 8_000_000
            rig.worker.continuity = told
            try await rig.replace()
            try await rig.recover()
            let disk = try rig.service.listDisks(name: "root", after: nil, .root).entries[0]
            let session = await rig.service.listSessions(after: nil, .root).entries.first

            #expect(before == Continuity(generation: 1))
            #expect(seen?.lastPauseNanoseconds ?? 0 > 0)
            #expect(rig.device.info.continuity == told)
            #expect(disk.continuity == told)
            #expect(session?.continuity == told)
        }
    }

    @Test("a change of a device whose worker is being adopted does not end its sessions")
    func changedMeanwhile() async throws {
        try await onLoop {
            // Given
            let units = FakeUnits()
            let worker = units.worker("a")
            let plan = PlanBox()
            units.running = ["a"]
            worker.keep(7, "root")
            worker.beReplaced()
            let service = try await Service.example(units) { plan.plan }
            // When
            plan.plan.devices["a"]?.queueDepth = 32
            let reload = EventLoop.current.task { try await service.reload(.root) }
            try await until { worker.requests.contains("getDevice") }
            worker.finishRecovery()
            let warnings = try await reload.value
            // Then
            #expect(warnings.count { $0.contains("device a: the change takes effect") } == 1)
            #expect(worker.sessions.keys.sorted() == [7])
            #expect(!worker.isStopped)
            #expect(units.stopped == [])
        }
    }

    @Test("a worker that ran before and cannot be asked what it has counts as in use")
    func changedUnheard() async throws {
        try await onLoop {
            // Given
            let units = FakeUnits()
            let plan = PlanBox()
            units.running = ["a"]
            units.worker("a").keep(7, "root")
            units.connectFailure = WireError(.internalError, "its socket is not there")
            let service = try await Service.example(units) { plan.plan }
            let device = try #require(service.devices["a"])
            try await until { device.state == .retrying }
            // When
            plan.plan.devices["a"]?.queueDepth = 32
            let warnings = try await service.reload(.root)
            // Then
            #expect(warnings.count { $0.contains("has not said yet") } == 1)
            #expect(units.stopped == [])
        }
    }

    @Test(
        "an open that waits gets what the configuration says when the wait is over",
        arguments: [
            ("User=", ErrorCode.permissionDenied), ("Access=", .readOnly), ("the disk", .notFound),
            ("Namespace=", .notFound),
        ])
    func judgedAgain(_ change: String, _ code: ErrorCode) async throws {
        try await onLoop {
            // Given
            let units = FakeUnits()
            let plan = PlanBox()
            plan.plan.disks["root"]?.users = [4242]
            let service = try await Service.example(units) { plan.plan }
            let device = try #require(service.devices["a"])
            let worker = units.worker("a")
            _ = try await service.openDisk("frozen", nil, .root)
            try await until { worker.sessions.isEmpty }
            worker.beReplaced()
            try await until { device.state == .recovering }
            // When
            var isWaiting = false
            let open = EventLoop.current.task {
                isWaiting = true
                return await failure {
                    try await service.openDisk("root", .readWrite, .user(4242))
                }
            }
            try await until { isWaiting }
            plan.change(change, of: "root")
            _ = try await service.reload(.root)
            worker.finishRecovery()
            let error = await open.value
            // Then
            #expect(error?.code == code)
            #expect(worker.requests.count { $0 == "openSession" } == 1)
            #expect(worker.sessions.isEmpty)
        }
    }

    @Test("a session is taken back whose disk changed while the worker was making it")
    func changedUnderOpen() async throws {
        try await onLoop {
            // Given
            let units = FakeUnits()
            let plan = PlanBox()
            plan.plan.disks["root"]?.users = [4242]
            let service = try await Service.example(units) { plan.plan }
            let worker = units.worker("a")
            worker.holdsOpens = true
            let open = EventLoop.current.task {
                await failure { try await service.openDisk("root", .readWrite, .user(4242)) }
            }
            try await until { worker.heldOpen != nil }
            // When
            plan.change("User=", of: "root")
            _ = try await service.reload(.root)
            try worker.heldOpen?()
            let error = await open.value
            try await until { worker.sessions.isEmpty }
            // Then
            #expect(error?.code == .permissionDenied)
            #expect(worker.requests.contains("closeSession"))
        }
    }

    @Test("a session is taken back whose disk became another namespace while nobody looked")
    func otherNamespace() async throws {
        try await onLoop {
            let units = FakeUnits()
            let worker = units.worker("a")
            let plan = PlanBox()
            units.running = ["a"]
            worker.keep(7, "root")
            worker.keep(8, "alias")
            plan.change("Namespace=", of: "root")

            let service = try await Service.example(units) { plan.plan }
            try await until { worker.sessions.count == 1 }

            #expect(service.devices["a"]?.state == .ready)
            #expect(worker.sessions.keys.sorted() == [8])
        }
    }

    @Test("who waits for a device that is taken out of the configuration does not start it again")
    func notStartedAgain() async throws {
        try await onLoop {
            // Given: one open is with the worker, and one waits for its turn
            let units = FakeUnits()
            let plan = PlanBox()
            let service = try await Service.example(units) { plan.plan }
            let worker = units.worker("a")
            let device = try #require(service.devices["a"])
            worker.isDeafToSessions = true
            let opens = (0..<2).map { _ in
                EventLoop.current.task {
                    await failure { try await service.openDisk("root", .readOnly, .root) }
                }
            }
            try await until {
                worker.requests.contains("openSession") && device.turn.waitingCount == 1
            }
            // When
            plan.plan.devices["a"] = nil
            for (name, disk) in plan.plan.disks where disk.device == "a" {
                plan.plan.disks[name] = nil
            }
            _ = try await service.reload(.root)
            let errors = [await opens[0].value, await opens[1].value]
            // Then
            #expect(errors.allSatisfy { $0?.code == .notFound })
            #expect(units.connects == ["a"])
            #expect(units.stopped == ["a"])
        }
    }
}
