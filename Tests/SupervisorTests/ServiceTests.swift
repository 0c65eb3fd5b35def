// SPDX-License-Identifier: Apache-2.0
// The service over fake workers: resolution, policy, exclusivity, recovery, isolation.

import DiskConfig
import Linux
import Systemd
import Testing
import Wire

@testable import Supervisor

@Suite("Supervisor service", .timeLimit(.minutes(5)))
struct ServiceTests {
    @Test("opening a disk starts its worker alone, and gives a session")
    func opens() async throws {
        try await onLoop {
            let units = FakeUnits()
            let service = try await Service.example(units)

            let opened = try await service.openDisk("root", nil, .root)

            #expect(units.connects == ["a"])
            #expect(opened.info.name == "root")
            #expect(opened.fd.raw != nil)
            #expect(service.devices["a"]?.info.state == .ready)
            #expect(service.devices["a"]?.info.sessionCount == 1)
            #expect(service.devices["b"]?.info.state == .absent)
        }
    }

    @Test(
        "a disk that cannot be is refused with the reason",
        arguments: [
            ("none", ErrorCode.notFound, "open_disk.name"), ("absent", .notFound, nil),
            ("by-uuid", .notFound, nil),
        ] as [(String, ErrorCode, String?)])
    func refuses(_ disk: String, _ code: ErrorCode, _ field: String?) async throws {
        try await onLoop {
            let service = try await Service.example(FakeUnits())

            let error = await failure { try await service.openDisk(disk, nil, .root) }

            #expect(error?.code == code)
            #expect(error?.field == field)
            #expect(error?.message.contains(disk) == true)
        }
    }

    @Test("a second writer is refused whatever the disk is called; a reader is not")
    func exclusive() async throws {
        try await onLoop {
            let service = try await Service.example(FakeUnits())
            let first = try await service.openDisk("root", .readWrite, .root)

            let second = await failure { try await service.openDisk("root", nil, .root) }
            let alias = await failure { try await service.openDisk("alias", .readWrite, .root) }
            _ = try await service.openDisk("root", .readOnly, .root)

            #expect(second?.code == .busy)
            #expect(second?.message.contains("session \(first.sessionID)") == true)
            #expect(alias?.code == .busy)
            #expect(alias?.message.contains("the same namespace as disk root") == true)
        }
    }

    @Test("a disk that was just closed can be opened at once")
    func reopens() async throws {
        try await onLoop {
            let service = try await Service.example(FakeUnits())
            for _ in 0..<20 {
                let opened = try await service.openDisk("root", .readWrite, .root)
                _ = opened.fd.take()
            }
            #expect(service.devices["a"]?.sessions.count ?? 9 <= 1)
        }
    }

    @Test("the list says why a namespace that is there is not served")
    func refusedNamespace() async throws {
        try await onLoop {
            let units = FakeUnits()
            units.worker("a").namespaces[0].refusal = "its format has 8 bytes of metadata a block"
            let service = try await Service.example(units)
            _ = try await service.openDisk("root", .readOnly, .root)

            let listed = try service.listDisks(name: "root", after: nil, .root).entries[0]

            #expect(listed.problem.contains("namespace 1 is not served: its format has 8 bytes"))
            #expect(listed.blockCount == 0)
            #expect(listed.nsid == 1)
        }
    }

    @Test("a shared disk has several writers")
    func shared() async throws {
        try await onLoop {
            let units = FakeUnits()
            units.worker("b").namespaces.append(
                NamespaceInfo(nsid: 2, blockByteCount: 4096, blockCount: 10))
            let service = try await Service.example(units)

            let first = try await service.openDisk("shared", .readWrite, .root)
            let second = try await service.openDisk("shared", .readWrite, .root)

            #expect(first.sessionID < second.sessionID)
        }
    }

    @Test("a read-only disk is not opened for writing, and by default for reading")
    func readOnly() async throws {
        try await onLoop {
            let units = FakeUnits()
            let service = try await Service.example(units)

            let error = await failure { try await service.openDisk("frozen", .readWrite, .root) }
            let opened = try await service.openDisk("frozen", nil, .root)

            #expect(error?.code == .readOnly)
            #expect(error?.field == "open_disk.access")
            #expect(units.worker("a").sessions[opened.sessionID]?.access == .readOnly)
        }
    }

    @Test("policy names users and groups, and root always")
    func policy() {
        let named = Policy(users: [4242], groups: [77])
        #expect(named.names(Caller.user(4242).peer))
        #expect(named.names(Caller.user(5, groups: [1, 77]).peer))
        #expect(named.names(Caller.user(77).peer))
        #expect(named.names(Caller.user(0).peer))
        #expect(!named.names(Caller.user(5, groups: [78]).peer))
        #expect(!Policy().names(Caller.user(5).peer))
    }

    @Test("strangers neither open nor see nor stop what is not theirs")
    func strangers() async throws {
        try await onLoop {
            let service = try await Service.example(FakeUnits())
            let opened = try await service.openDisk("root", nil, .root)
            let stranger = Caller.user(5)

            let open = await failure { try await service.openDisk("root", nil, stranger) }
            let close = await failure {
                try await service.closeSession(opened.sessionID, reason: "", stranger)
            }
            let reload = await failure { try await service.reload(stranger) }
            let retry = await failure { try await service.retryDevice("a", stranger) }
            let shutdown = await failure { try await service.shutdown(stranger) }
            let mine = try service.listDisks(name: nil, after: nil, .user(4242))
            let sessions = await service.listSessions(after: nil, stranger)

            #expect(open?.code == .permissionDenied)
            #expect(close?.code == .permissionDenied)
            #expect(reload?.code == .permissionDenied)
            #expect(retry?.code == .permissionDenied)
            #expect(shutdown?.code == .permissionDenied)
            #expect(mine.entries.map(\.name) == ["theirs"])
            #expect(sessions.entries.isEmpty)
        }
    }

    @Test("a failed start says why, and nothing is poisoned")
    func failedStart() async throws {
        try await onLoop {
            let units = FakeUnits()
            units.worker("a").loadFailures = [WireError(.deviceFailed, "CSTS.CFS is set")]
            let service = try await Service.example(units)

            let error = await failure { try await service.openDisk("root", nil, .root) }
            #expect(error?.code == .deviceFailed)
            #expect(error?.message.contains("CSTS.CFS is set") == true)
            #expect(service.devices["a"]?.info.attempts == 1)
            #expect(service.devices["a"]?.info.reason == "CSTS.CFS is set")

            try await service.retryDevice("a", .root)
            _ = try await service.openDisk("root", nil, .root)
            #expect(service.devices["a"]?.info.attempts == 0)
        }
    }

    @Test("after the back-off a failed device is tried again by itself")
    func retriesByItself() async throws {
        try await onLoop {
            let units = FakeUnits()
            units.worker("a").loadFailures = [WireError(.deviceFailed, "not yet")]
            let service = try await Service.example(units)
            _ = await failure { try await service.openDisk("root", nil, .root) }

            let device = try #require(service.devices["a"])
            try await until { device.state == .ready }

            _ = try await service.openDisk("root", nil, .root)
        }
    }

    @Test("a hung worker costs its own clients their deadline and the others nothing")
    func hung() async throws {
        try await onLoop {
            let units = FakeUnits()
            units.worker("a").isDeaf = true
            let service = try await Service.example(units)
            let late = await failure {
                try await service.openDisk("root", nil, .user(0, nanoseconds: 50_000_000))
            }
            // No deadline that a loaded machine could reach: this one waits until it is cancelled.
            var stuckHasEnded = false
            let stuck = EventLoop.current.task {
                let error = await failure {
                    try await service.openDisk("root", nil, .user(0, nanoseconds: 1 << 60))
                }
                stuckHasEnded = true
                return error
            }

            _ = try await service.openDisk("data", nil, .root)
            let waitedForStuck = stuckHasEnded
            stuck.cancel()
            _ = await stuck.value

            #expect(late?.code == .deadlineExceeded)
            #expect(!waitedForStuck)
        }
    }

    @Test("inspection loses only the part of a worker that does not answer")
    func inspects() async throws {
        try await onLoop {
            let units = FakeUnits()
            let service = try await Service.example(units)
            _ = try await service.openDisk("root", nil, .root)
            _ = try await service.openDisk("data", nil, .root)
            units.worker("a").isDeaf = true

            // The worker that answers has a second for it, which a loaded machine may use up.
            var all = await service.inspect(prefix: "device/", after: nil, .root)
            for _ in 0..<9 where !all.entries.contains(where: { $0.path.hasSuffix("/serial") }) {
                all = await service.inspect(prefix: "device/", after: nil, .root)
            }
            let one = await service.inspect(
                prefix: "device/b/worker/queue/", after: nil, .root)

            let paths = all.entries.map(\.path)
            #expect(paths == paths.sorted { $0.sortsBefore($1) })
            #expect(paths.contains("device/a/worker_problem"))
            #expect(paths.contains("device/b/worker/serial"))
            #expect(one.entries == [InspectEntry("device/b/worker/queue/1/depth", "64")])
        }
    }

    @Test("sessions of workers that ran before the supervisor are listed from its first moment on")
    func adopts() async throws {
        try await onLoop {
            let units = FakeUnits()
            units.running.insert("a")
            units.worker("a").keep(7, "root")

            let service = try await Service.example(units)
            let listed = await service.listSessions(after: nil, .root)

            #expect(listed.entries.map(\.sessionID) == [7])
        }
    }

    @Test("a worker that dies is reconnected; its device recovers, the others never notice")
    func workerDies() async throws {
        try await onLoop {
            let units = FakeUnits()
            let service = try await Service.example(units)
            _ = try await service.openDisk("root", nil, .root)
            let kept = try await service.openDisk("data", nil, .root)

            units.worker("a").die()
            let device = try #require(service.devices["a"])
            try await until { device.state == .recovering }
            try await until { device.state == .ready }
            _ = try await service.openDisk("root", .readWrite, .root)

            #expect(units.connects.filter { $0 == "a" }.count == 2)
            #expect(units.connects.filter { $0 == "b" }.count == 1)
            #expect(service.devices["b"]?.sessions[kept.sessionID] != nil)
        }
    }

    @Test("a worker that its unit stopped in order stays stopped until its device is wanted")
    func workerIsStopped() async throws {
        try await onLoop {
            let units = FakeUnits()
            let service = try await Service.example(units)
            _ = try await service.openDisk("root", nil, .root)
            let device = try #require(service.devices["a"])

            units.worker("a").tell(.stateChanged(.absent, reason: "the unit was stopped"))
            units.worker("a").die()
            try await until { device.state == .absent }
            #expect(units.connects.filter { $0 == "a" }.count == 1)

            _ = try await service.openDisk("root", .readWrite, .root)
            #expect(units.connects.filter { $0 == "a" }.count == 2)
        }
    }

    @Test("a supervisor that starts anew learns the sessions of the workers that run")
    func rebuilds() async throws {
        try await onLoop {
            let units = FakeUnits()
            let before = try await Service.example(units)
            let opened = try await before.openDisk("root", .readWrite, .root)
            units.connectFailure = WireError(.internalError, "this supervisor is gone")
            units.worker("a").die(keepingSessions: true)

            let successor = FakeUnits()
            successor.workers = units.workers
            successor.running = units.running
            let after = try await Service.example(successor)
            let device = try #require(after.devices["a"])
            try await until { device.state == .ready }
            let second = await failure { try await after.openDisk("root", .readWrite, .root) }
            let other = try await after.openDisk("data", nil, .root)

            #expect(device.sessions.keys.contains(opened.sessionID))
            #expect(second?.code == .busy)
            #expect(other.sessionID > opened.sessionID)
        }
    }

    @Test("a worker whose device left the configuration while nobody looked is ended in order")
    func strays() async throws {
        try await onLoop {
            let units = FakeUnits()
            let stray = units.worker("old")
            units.running = ["a", "old"]
            stray.keep(7, "root")
            units.worker("a").keep(8, "root")

            let service = try await Service.example(units)

            #expect(stray.requests == ["listSessions", "closeSession", "shutdown"])
            #expect(units.stopped == ["old"])
            #expect(units.running == ["a"])
            #expect(service.devices["old"] == nil)
            #expect(!units.worker("a").isStopped)
        }
    }

    @Test("a client that goes away leaves no session behind")
    func cancelled() async throws {
        try await onLoop {
            let units = FakeUnits()
            let service = try await Service.example(units)
            units.worker("a").isDeafToSessions = true
            let gone = EventLoop.current.task {
                await failure { try await service.openDisk("root", .readWrite, .root) }
            }
            try await until { units.worker("a").requests.contains("openSession") }

            gone.cancel()
            let error = await gone.value
            units.worker("a").isDeafToSessions = false
            _ = try await service.openDisk("root", .readWrite, .root)

            #expect(error?.code == .cancelled)
            #expect(units.worker("a").sessions.count == 1)
        }
    }

    @Test("a closed session is gone when the answer comes, and its disk free")
    func closes() async throws {
        try await onLoop {
            let service = try await Service.example(FakeUnits())
            let opened = try await service.openDisk("root", .readWrite, .root)

            try await service.closeSession(opened.sessionID, reason: "maintenance", .root)
            let again = await failure {
                try await service.closeSession(opened.sessionID, reason: "", .root)
            }
            _ = try await service.openDisk("root", .readWrite, .root)

            #expect(again?.code == .notFound)
            #expect(again?.field == "close_session.session_id")
        }
    }

    @Test("a disk known by identity is found on whichever device has it, all started at once")
    func identity() async throws {
        try await onLoop {
            let units = FakeUnits()
            units.worker("b").namespaces[0].identity.uuid = [UInt8](repeating: 7, count: 16)
            units.worker("a").isDeaf = true
            let service = try await Service.example(units)

            let opened = try await service.openDisk("by-uuid", nil, .root)

            #expect(units.worker("b").sessions[opened.sessionID]?.nsid == 1)
        }
    }

    @Test("an identity that two namespaces claim is refused with both names")
    func ambiguous() async throws {
        try await onLoop {
            let units = FakeUnits()
            for name in ["a", "b"] {
                units.worker(name).namespaces[0].identity.uuid = [UInt8](repeating: 7, count: 16)
            }
            let service = try await Service.example(units)
            _ = try await service.openDisk("root", nil, .root)
            _ = try await service.openDisk("data", nil, .root)

            let error = await failure { try await service.openDisk("by-uuid", nil, .root) }

            #expect(error?.code == .notFound)
            #expect(error?.message.contains("a namespace 1, b namespace 1") == true)
        }
    }

    @Test("a device that is gone after a reload loses its sessions and its worker")
    func reloads() async throws {
        try await onLoop {
            let units = FakeUnits()
            let plan = PlanBox()
            let service = try await Service.example(units) { plan.plan }
            let lost = try await service.openDisk("root", nil, .root)
            let kept = try await service.openDisk("data", nil, .root)

            plan.plan.devices["a"] = nil
            plan.plan.disks["root"] = nil
            plan.plan.devices["d"] = DeviceConfig(name: "d", transport: .null)
            _ = try await service.reload(.root)

            #expect(units.stopped == ["a"])
            #expect(lost.fd.raw != nil)
            #expect(units.worker("a").requests.contains("closeSession"))
            #expect(units.worker("a").isStopped)
            #expect(service.devices.keys.sorted() == ["b", "c", "d"])
            #expect(service.devices["b"]?.sessions[kept.sessionID] != nil)
        }
    }

    @Test("shutdown ends every worker in order and takes nothing more")
    func shutdown() async throws {
        try await onLoop {
            let units = FakeUnits()
            let service = try await Service.example(units)
            _ = try await service.openDisk("root", nil, .root)
            _ = try await service.openDisk("data", nil, .root)

            try await service.shutdown(.user(1000))

            #expect(units.stopped.sorted() == ["a", "b"])
            #expect(units.worker("a").isStopped)
            #expect(service.isStopping)
        }
    }

    @Test("a thousand opens at once are all answered")
    func thousand() async throws {
        try await onLoop {
            let service = try await Service.example(FakeUnits())
            let tasks = (0..<1000).map { _ in
                EventLoop.current.task {
                    await failure { try await service.openDisk("root", .readOnly, .root) }
                }
            }
            var failures = 0
            for task in tasks where await task.value != nil { failures += 1 }
            #expect(failures == 0)
        }
    }

    @Test("devices are found by PCI address, and listed in pages by name")
    func lists() async throws {
        try await onLoop {
            let service = try await Service.example(FakeUnits())
            let byAddress = try service.listDevices(name: "0000:01:00.0", after: nil)
            let after = try service.listDevices(name: nil, after: "a")

            #expect(byAddress.entries.map(\.name) == ["c"])
            #expect(after.entries.map(\.name) == ["b", "c"])
            #expect(!after.more)
        }
    }

    @Test("a long list comes in pages that each fit a message")
    func pages() throws {
        let all = (0..<1000).map { DiskEntry(name: "disk\($0 + 1000)", access: .readWrite) }
        var seen: [String] = []
        var after: String?
        repeat {
            let page = Paging.page(all, after: after, key: \.name, cost: Paging.cost)
            var writer = MessageWriter()
            try Codec<SupervisorProtocol>.encode(
                Envelope(requestID: .max, content: .reply(.disks(page))), into: &writer)
            seen += page.entries.map(\.name)
            after = page.more ? page.entries.last?.name : nil
        } while after != nil
        #expect(seen == all.map(\.name))
    }
}

/// A configuration that a test changes.
@Control
final class PlanBox {
    var plan = examplePlan()

    /// Edits one thing of a disk that user 4242 may write.
    func change(_ what: String, of name: String) {
        guard var disk = plan.disks[name] else { return }
        switch what {
        case "User=": disk.users = []
        case "Access=": disk.access = .readOnly
        case "Namespace=": disk.selector = .namespace(nsid: 9)
        default: return plan.disks[name] = nil
        }
        plan.disks[name] = disk
    }
}

/// The protocol's error that an operation ended with; nil when it succeeded.
@Control
func failure<Value>(_ body: @Control () async throws -> Value) async -> WireError? {
    do {
        _ = try await body()
        return nil
    } catch {
        return error as? WireError ?? WireError(.internalError, "\(error)")
    }
}

/// Waits until something holds, looking after each turn of the loop.
@Control
func until(_ condition: @escaping @Control () -> Bool) async throws {
    if condition() { return }
    let loop = EventLoop.current
    let done = OneShot<Void>()
    let post = try loop.post { if condition() { done.succeed(()) } }
    defer { post.cancel() }
    let nudge = try loop.defer {}
    defer { nudge.cancel() }
    try await done.value()
}
