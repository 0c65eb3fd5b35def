// SPDX-License-Identifier: Apache-2.0
// Saves over fake workers: all at once, in time, or as if nothing had been asked.

import DiskConfig
import Linux
import SavedState
import Systemd
import TestSupport
import Testing
import Wire

@testable import Supervisor

/// A plan with the kept devices `a` and `b` and the device `c`, each with a disk of its name.
func keptPlan(_ names: [String] = ["a", "b"]) -> Plan {
    var files = [
        "c.device": "[Device]\nTransport=null\n", "c.disk": "[Disk]\nDevice=c\nNamespace=1\n",
    ]
    for name in names {
        files["\(name).device"] =
            "[Device]\nTransport=vfio-user\nSocket=/\(name)\nPool=file\nNVMeKeepAlive=yes\n"
        files["\(name).disk"] = "[Disk]\nDevice=\(name)\nNamespace=1\n"
    }
    let sources = files.map { name, text in
        ConfigSourceFile(directory: 0, relativePath: name, path: name, bytes: Array(text.utf8))
    }
    let configuration = Configuration.parse(
        sources.sorted { $0.path.sortsBefore($1.path) },
        lookup: NameLookup(user: { UInt32($0) }, group: { UInt32($0) }))
    precondition(configuration.problems.isEmpty, "\(configuration.problems)")
    return Plan(configuration)
}

/// A service over kept devices, all of which are in use.
@Control
struct ServicingRig {
    let directory: TemporaryDirectory
    var units = FakeUnits()
    var service: Service
    /// The sessions of the first supervisor's clients.
    var opened: [OpenedDisk] = []
    var path: String { directory.path + "/servicing.state" }

    init(_ names: [String] = ["a", "b"]) async throws {
        let directory = try TemporaryDirectory()
        self.directory = directory
        service = try await Service.example(units, state: directory.path) { keptPlan(names) }
        for name in names + ["c"] { opened.append(try await service.openDisk(name, nil, .root)) }
    }

    /// The supervisor ends without a word, and another one starts.
    mutating func restart(
        _ names: [String] = ["a", "b"], host: HostIdentity = .current
    ) async throws {
        units = units.leave()
        service = try await Service.example(units, state: directory.path, host: host) {
            keptPlan(names)
        }
    }

    func save(milliseconds: UInt64 = 60_000, allOrNothing: Bool = false) async throws(WireError) {
        try await service.save(
            deadline: Deadline.after(milliseconds * 1_000_000), allOrNothing: allOrNothing, .root)
    }

    func worker(_ name: String) -> FakeWorker { units.worker(name) }

    /// The steps of all devices: `a saved`.
    var steps: [String] {
        service.servicing.status(after: nil).devices.entries.map { "\($0.name) \($0.step)" }
    }

    /// The worker of a device dies, and its successor takes everything over.
    func replace(_ name: String) async throws {
        worker(name).beReplaced()
        try await until { service.devices[name]?.state == .recovering }
        worker(name).finishRecovery()
        try await until { service.devices[name]?.state == .ready }
    }

    /// The step of each device, of all pages.
    var allSteps: [String: ServicingStep] {
        var steps: [String: ServicingStep] = [:]
        var after: String?
        while true {
            let page = service.servicing.status(after: after).devices
            for device in page.entries { steps[device.name] = device.step }
            guard page.more, let last = page.entries.last?.name else { return steps }
            after = last
        }
    }

    /// Why a device is at its step.
    func reason(_ name: String) -> String {
        service.servicing.status(after: nil).devices.entries.first { $0.name == name }?.reason ?? ""
    }

    /// What is written down.
    func file() throws -> SavedFile {
        try SavedState.decode(Files.read(path, limit: 1 << 24))
    }

    /// Whether a disk of the device can be opened anew.
    func isServed(_ name: String) async -> Bool {
        await failure { try await service.openDisk(name, .readOnly, .root) } == nil
    }
}

@Suite("Saving", .timeLimit(.minutes(5)))
struct ServicingTests {
    @Test("all kept devices are written down and end; the others go on")
    func saves() async throws {
        try await onLoop {
            let rig = try await ServicingRig()

            try await rig.save()

            let file = try rig.file()
            let saved = try file.devices.mapValues { try $0.get().token.bytes }
            #expect(saved["a"] == rig.worker("a").servicing.token)
            #expect(saved["b"] == rig.worker("b").servicing.token)
            #expect(saved.keys.sorted() == ["a", "b"])
            #expect(rig.steps == ["a saved", "b saved", "c notKept"])
            #expect(rig.units.stopped.sorted() == ["a", "b"])
            #expect(rig.service.servicing.status(after: nil).phase == .saved)
            #expect(rig.service.devices["a"]?.state == .absent)
            #expect(rig.service.devices["a"]?.sessions.isEmpty == true)
            #expect(await rig.isServed("c"))
            let refusal = await failure { try await rig.service.openDisk("a", nil, .root) }
            #expect(refusal?.code == .shuttingDown)
            #expect(rig.units.connects.count == 3)
        }
    }

    @Test("a save tells what it carries over, and gives time to commands and to the supervisor")
    func tells() async throws {
        try await onLoop {
            let rig = try await ServicingRig(["a"])

            try await rig.save(milliseconds: 20_000)

            let status = rig.service.servicing.status(after: nil)
            let told = try #require(status.devices.entries.first)
            let asked = try #require(rig.worker("a").servicing.saves.first)
            #expect(told.commandsInFlight == 3)
            #expect(told.queueCount == 2)
            #expect(told.sessionCount == 1)
            #expect(told.byteCount ?? 0 > 64)
            #expect(told.durationNanoseconds ?? 0 > 0)
            #expect(status.byteCount ?? 0 > told.byteCount ?? 0)
            #expect(asked.drainNanoseconds < 15_000_000_000)
            #expect(asked.leaseNanoseconds ?? 0 > 20_000_000_000)
            #expect(asked.token.count == 16)
        }
    }

    @Test("a device that cannot be saved is left out and goes on")
    func leavesOut() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("a").servicing.saveFailure = WireError(.notSupported, "its pool is gone")

            try await rig.save()

            #expect(rig.steps == ["a cold", "b saved", "c notKept"])
            #expect(rig.reason("a").contains("its pool is gone"))
            #expect(try rig.file().devices.keys.sorted() == ["b"])
            #expect(rig.units.stopped == ["b"])
            #expect(await rig.isServed("a"))
        }
    }

    @Test("a device that is too late is left out, is thawed and goes on")
    func late() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("b").servicing.isDeafToSave = true

            try await rig.save(milliseconds: 2000)

            #expect(rig.steps == ["a saved", "b cold", "c notKept"])
            #expect(rig.worker("b").requests.contains("thaw"))
            #expect(rig.worker("b").servicing.isFrozen == false)
            #expect(await rig.isServed("b"))
        }
    }

    @Test("with all or nothing one failure has all devices go on")
    func allOrNothing() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("b").servicing.saveFailure = WireError(.internalError, "no memory")

            let error = await failure { try await rig.save(allOrNothing: true) }

            #expect(error?.message.contains("device b: no memory") == true)
            #expect(rig.service.servicing.machine.state == .idle)
            #expect(rig.worker("a").servicing.token == nil)
            #expect(rig.worker("a").servicing.isFrozen == false)
            #expect(!Files.exists(rig.path))
            #expect(rig.units.stopped.isEmpty)
            #expect(await rig.isServed("a"))
            #expect(await rig.isServed("b"))
        }
    }

    @Test("a save that is cancelled leaves nothing behind")
    func cancels() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("b").servicing.isDeafToSave = true
            let save = EventLoop.current.task { await failure { try await rig.save() } }
            try await until { rig.steps == ["a frozen", "b freezing", "c notKept"] }
            let waiting = EventLoop.current.task { await rig.isServed("a") }

            try await rig.service.cancelSave(.root)

            #expect(await save.value?.code == .cancelled)
            #expect(rig.steps == ["a thawed", "b thawed", "c notKept"])
            #expect(rig.service.servicing.status(after: nil).phase == .idle)
            #expect(rig.service.servicing.status(after: nil).problem == "it was cancelled")
            #expect(rig.worker("a").servicing.token == nil)
            #expect(!Files.exists(rig.path))
            // What was opened meanwhile has waited.
            #expect(await waiting.value)
            #expect(await rig.isServed("b"))
        }
    }

    @Test("one thing at a time: a save keeps everything else that ends workers waiting")
    func busy() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("b").servicing.isDeafToSave = true
            let save = EventLoop.current.task { await failure { try await rig.save() } }
            try await until { rig.steps.contains("a frozen") }

            let again = await failure { try await rig.save() }
            let restore = await failure { try await rig.service.restore(.root) }
            let reload = await failure { try await rig.service.reload(.root) }
            let release = await failure {
                try await rig.service.releaseDevice("a", reason: "", undo: false, .root)
            }

            #expect(again?.code == .busy)
            #expect(restore?.code == .busy)
            #expect(reload?.code == .busy)
            #expect(release?.code == .busy)
            try await rig.service.cancelSave(.root)
            _ = await save.value
        }
    }

    @Test("what is saved cannot be saved or cancelled, and is saved again after a restore")
    func twice() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            try await rig.save()
            let first = try rig.file().host.generation
            let again = await failure { try await rig.save() }
            let cancel = await failure { try await rig.service.cancelSave(.root) }

            try await rig.service.restore(.root)
            let nothing = await failure { try await rig.service.cancelSave(.root) }
            try await rig.save()

            #expect(again?.code == .alreadyExists)
            #expect(cancel?.code == .alreadyExists)
            #expect(nothing?.code == .notFound)
            #expect(try rig.file().host.generation == first + 1)
            #expect(rig.steps == ["a saved", "b saved", "c notKept"])
        }
    }

    @Test("a worker that dies under a save is succeeded by one that is saved")
    func workerDies() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("a").servicing.deathsUnderSave = 2

            try await rig.save()

            #expect(rig.steps == ["a saved", "b saved", "c notKept"])
            #expect(rig.worker("a").servicing.saves.count == 3)
        }
    }

    @Test("a worker that dies when it is frozen already is succeeded by one that is frozen again")
    func diesFrozen() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("b").servicing.isDeafToSave = true
            let save = EventLoop.current.task { await failure { try await rig.save() } }
            try await until { rig.steps.contains("a frozen") }
            let first = rig.worker("a").servicing.token
            try await rig.replace("a")
            rig.worker("b").servicing.isDeafToSave = false
            try await rig.replace("b")

            #expect(await save.value == nil)
            #expect(rig.steps == ["a saved", "b saved", "c notKept"])
            #expect(rig.worker("a").servicing.saves.count == 2)
            let written = try rig.file().devices["a"]?.get().token.bytes
            #expect(written == rig.worker("a").servicing.token)
            #expect(written != first)
        }
    }

    @Test(
        "one whose successor cannot be frozen is left out, and goes on", arguments: [false, true])
    func diesFrozenForGood(allOrNothing: Bool) async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("b").servicing.isDeafToSave = true
            let save = EventLoop.current.task {
                await failure { try await rig.save(allOrNothing: allOrNothing) }
            }
            try await until { rig.steps.contains("a frozen") }
            rig.worker("a").servicing.saveFailure = WireError(.notSupported, "its pool is gone")
            try await rig.replace("a")
            rig.worker("b").servicing.isDeafToSave = false
            try await rig.replace("b")

            let error = await save.value
            #expect((error?.message.contains("device a: its pool is gone") == true) == allOrNothing)
            #expect(rig.reason("a").contains("its pool is gone"))
            #expect(
                rig.steps
                    == (allOrNothing ? ["a thawed", "b thawed"] : ["a cold", "b saved"])
                    + ["c notKept"])
            #expect(Files.exists(rig.path) == !allOrNothing)
            #expect(await rig.isServed("a"))
        }
    }

    @Test("more devices than fit one page are saved, and restored, all of them")
    func manyDevices() async throws {
        try await onLoop {
            let names = (100..<400).map { "d\($0)" }
            var rig = try await ServicingRig(names)

            try await rig.save()
            let saved = rig.allSteps
            let written = try rig.file().devices
            try await rig.restart(names)
            try await rig.settled()

            #expect(saved.filter { $0.value == .saved }.keys.sorted() == names)
            #expect(written.keys.sorted() == names)
            #expect(written.values.allSatisfy { (try? $0.get()) != nil })
            #expect(rig.allSteps.filter { $0.value == .restored }.keys.sorted() == names)
        }
    }

    @Test("as many devices can be configured as a saved state has room for")
    func limits() {
        #expect(ConfigLimits.deviceCount <= SavedLimits.deviceCount)
        #expect(SavedLimits.deviceCount < SavedLimits.sectionCount)
    }

    @Test("a worker that tells the state of another save is not believed")
    func otherToken() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("a").servicing.tellsAnotherToken = true

            try await rig.save()

            #expect(rig.steps == ["a cold", "b saved", "c notKept"])
            #expect(rig.reason("a").contains("another token"))
            #expect(rig.worker("a").servicing.token == nil)
        }
    }

    @Test("without a place to write nothing is saved, and all devices go on")
    func noPlace() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            try RenamedDirectory.block(rig.path + ".new")

            let error = await failure { try await rig.save() }

            #expect(error?.message.contains("the state cannot be written") == true)
            #expect(rig.steps == ["a thawed", "b thawed", "c notKept"])
            #expect(rig.worker("a").servicing.token == nil)
            #expect(await rig.isServed("a"))
            #expect(await rig.isServed("b"))
        }
    }

    @Test("a device that has gone on before its worker was to end is written down no longer")
    func leaseOver() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("a").servicing.onFrozen = { $0.servicing.isFrozen = false }

            try await rig.save()

            #expect(rig.steps == ["a cold", "b saved", "c notKept"])
            #expect(rig.reason("a").contains("not frozen any more"))
            #expect(try rig.file().devices.keys.sorted() == ["b"])
            #expect(rig.service.servicing.status(after: nil).phase == .saved)
            #expect(await rig.isServed("a"))
        }
    }

    @Test("when no device can be ended after all, nothing is saved")
    func allLeasesOver() async throws {
        try await onLoop {
            let rig = try await ServicingRig(["a"])
            rig.worker("a").servicing.onFrozen = { $0.servicing.isFrozen = false }

            let error = await failure { try await rig.save() }

            #expect(error?.message.contains("went on before its worker ended") == true)
            #expect(rig.service.servicing.machine.state == .idle)
            #expect(!Files.exists(rig.path))
        }
    }

    @Test("a worker that dies when it is to end is succeeded, and goes on")
    func diesUnderEnd() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("a").servicing.diesUnderEnd = true

            try await rig.save()

            #expect(rig.steps == ["a cold", "b saved", "c notKept"])
            #expect(try rig.file().devices.keys.sorted() == ["b"])
            #expect(await rig.isServed("a"))
            #expect(rig.worker("a").servicing.offers.isEmpty)
        }
    }

    @Test("a worker that ends without a word is taken up as it was saved")
    func endsWithoutAWord() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("a").servicing.endsWithoutAWord = true

            try await rig.save()

            #expect(rig.steps == ["a cold", "b saved", "c notKept"])
            #expect(await rig.isServed("a"))
            #expect(rig.worker("a").servicing.isRestored)
        }
    }

    @Test("a device that fails, and one that nobody uses, are not waited for")
    func failedDevices() async throws {
        try await onLoop {
            let rig = try await ServicingRig(["a", "b", "d"])
            rig.worker("b").loadFailures = Array(
                repeating: WireError(.deviceFailed, "no answer"), count: 40)
            rig.worker("b").tell(.stateChanged(.failed, reason: "it broke"))
            rig.worker("d").tell(.stateChanged(.absent, reason: ""))
            rig.worker("d").die()
            try await until {
                rig.service.devices["b"]?.state == .retrying
                    && rig.service.devices["d"]?.state == .absent
            }

            try await rig.save()

            #expect(rig.steps == ["a saved", "b cold", "c notKept"])
            #expect(rig.reason("b").contains("it broke"))
        }
    }

    @Test("a device that is about to be ready is waited for")
    func recovering() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("a").beReplaced()
            try await until { rig.service.devices["a"]?.state == .recovering }
            let save = EventLoop.current.task { await failure { try await rig.save() } }
            try await until { rig.steps == ["a waiting", "b frozen", "c notKept"] }

            rig.worker("a").finishRecovery()

            #expect(await save.value == nil)
            #expect(rig.steps == ["a saved", "b saved", "c notKept"])
        }
    }

    @Test("without a device to keep there is nothing to save")
    func nothing() async throws {
        try await onLoop {
            let rig = try await ServicingRig([])

            let error = await failure { try await rig.save() }

            #expect(error?.message.contains("no device is in use that is to be kept") == true)
            #expect(rig.steps == ["c notKept"])
            #expect(!Files.exists(rig.path))
        }
    }

    @Test("who stops everything during a save has all devices shut down in order")
    func stopped() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            rig.worker("b").servicing.isDeafToSave = true
            let save = EventLoop.current.task { await failure { try await rig.save() } }
            try await until { rig.steps.contains("a frozen") }

            await rig.service.stopAll()

            #expect(await save.value != nil)
            #expect(rig.worker("a").isStopped)
            #expect(rig.worker("b").isStopped)
            #expect(rig.worker("a").servicing.token == nil)
            #expect(!Files.exists(rig.path))
        }
    }

    @Test("saving, cancelling and restoring are for operators")
    func operators() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            let mallory = Caller.user(4242)

            let refusals = [
                await failure {
                    try await rig.service.save(deadline: nil, allOrNothing: false, mallory)
                }, await failure { try await rig.service.cancelSave(mallory) },
                await failure { try await rig.service.restore(mallory) },
            ]

            #expect(refusals.map { $0?.code } == Array(repeating: .permissionDenied, count: 3))
        }
    }
}

/// Something that a file cannot replace.
enum RenamedDirectory {
    /// Makes a directory that is not empty.
    static func block(_ path: String) throws {
        try DurableFile.makeDirectory(path)
        try DurableFile.prepare(path + "/x", [1])
    }
}
