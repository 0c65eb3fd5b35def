// SPDX-License-Identifier: Apache-2.0
// Restores over fake workers: each device as it was left, or cold; and what a supervisor finds that
// another one left behind.

import Linux
import SavedState
import Systemd
import TestSupport
import Testing
import Wire

@testable import Supervisor

@Suite("Restoring", .timeLimit(.minutes(5)))
struct RestoreTests {
    @Test("the next supervisor takes the devices up as they were saved, and forgets the state")
    func restores() async throws {
        try await onLoop {
            var rig = try await ServicingRig()
            try await rig.save()

            try await rig.restart()
            try await rig.settled()

            #expect(rig.steps == ["a restored", "b restored"])
            #expect(rig.worker("a").servicing.isRestored)
            #expect(rig.worker("a").servicing.offers.count == 1)
            #expect(!Files.exists(rig.path))
            #expect(await rig.isServed("a"))
            #expect(await rig.isServed("b"))
        }
    }

    @Test("an operator takes the devices up without a stop")
    func restoresByCommand() async throws {
        try await onLoop {
            let rig = try await ServicingRig()
            try await rig.save()

            try await rig.service.restore(.root)
            let again = await failure { try await rig.service.restore(.root) }

            #expect(rig.worker("a").servicing.isRestored)
            #expect(rig.worker("b").servicing.isRestored)
            #expect(again?.code == .notFound)
            #expect(await rig.isServed("a"))
            #expect(rig.service.servicing.status(after: nil).byteCount == nil)
        }
    }

    @Test("a device whose memory is another one is started cold, and no other")
    func coldByToken() async throws {
        try await onLoop {
            var rig = try await ServicingRig()
            try await rig.save()
            rig.worker("a").servicing.token = [UInt8](repeating: 7, count: 16)

            try await rig.restart()
            try await rig.settled()

            #expect(rig.steps == ["a cold", "b restored"])
            #expect(rig.reason("a") == "the pool has another token")
            #expect(await rig.isServed("a"))
        }
    }

    @Test("a damaged section costs its device alone")
    func damaged() async throws {
        try await onLoop {
            var rig = try await ServicingRig()
            try await rig.save()
            var bytes = try Files.read(rig.path, limit: 1 << 24)
            let section = try #require(try rig.file().sections["a"])
            let start = try #require(bytes.firstRange(of: section)).lowerBound
            bytes[start + 100] ^= 1
            try DurableFile.prepare(rig.path, bytes)

            try await rig.restart()
            try await rig.settled()

            #expect(rig.steps == ["a cold", "b restored"])
            #expect(rig.reason("a").contains("is damaged"))
            #expect(rig.worker("a").servicing.offers.isEmpty)
            #expect(await rig.isServed("a"))
        }
    }

    @Test(
        "what another machine, or this one before it was started anew, has saved is of no use",
        arguments: [
            (HostIdentity(machineID: "other", bootID: HostIdentity.current.bootID), "machine"),
            (HostIdentity(machineID: HostIdentity.current.machineID, bootID: "x"), "started anew"),
        ])
    func otherHost(_ host: HostIdentity, _ word: String) async throws {
        try await onLoop {
            var rig = try await ServicingRig()
            try await rig.save()

            try await rig.restart(host: host)
            try await rig.settled()

            #expect(rig.steps == ["a cold", "b cold"])
            #expect(rig.reason("b").contains(word))
            #expect(rig.worker("a").servicing.offers.isEmpty)
            #expect(!Files.exists(rig.path))
        }
    }

    @Test("a file that says nothing is put aside, and devices start cold")
    func unreadable() async throws {
        try await onLoop {
            var rig = try await ServicingRig()
            try await rig.save()
            try DurableFile.prepare(rig.path, Array("hello".utf8))

            try await rig.restart()
            try await rig.settled()

            #expect(rig.service.servicing.problem.contains("cannot be used"))
            #expect(!Files.exists(rig.path))
            #expect(try Files.read(rig.path + ".refused", limit: 64) == Array("hello".utf8))
            #expect(await rig.isServed("a"))
            #expect(rig.worker("a").servicing.offers.isEmpty)
        }
    }

    @Test("devices that went and devices that came trouble nobody")
    func changedConfiguration() async throws {
        try await onLoop {
            var rig = try await ServicingRig()
            try await rig.save()

            try await rig.restart(["b", "d"])
            try await rig.settled()

            #expect(rig.steps == ["a gone", "b restored"])
            #expect(await rig.isServed("d"))
            #expect(rig.worker("d").servicing.offers.isEmpty)
            #expect(!Files.exists(rig.path))
        }
    }

    @Test("a device that does not come up at first gets its state again")
    func again() async throws {
        try await onLoop {
            var rig = try await ServicingRig(["a"])
            try await rig.save()
            rig.worker("a").loadFailures = [WireError(.deviceFailed, "nobody listens yet")]

            try await rig.restart(["a"])
            try await rig.settled()

            #expect(rig.steps == ["a restored"])
            #expect(rig.worker("a").servicing.offers.count == 2)
        }
    }

    @Test("a worker that dies while it takes over is succeeded by one that has done so")
    func diesInRestore() async throws {
        try await onLoop {
            var rig = try await ServicingRig(["a"])
            try await rig.save()
            let worker = rig.worker("a")
            worker.servicing.holdsLoads = true
            try await rig.restart(["a"])
            try await until { worker.servicing.held != nil }

            // Its state area was stored before it died: its successor has the device.
            worker.beReplaced()
            worker.finishRecovery()
            try await rig.settled()

            #expect(rig.steps == ["a restored"])
            #expect(worker.servicing.offers.count == 1)
        }
    }

    @Test("a worker that dies when it has taken over is succeeded by one that needs no state")
    func diesAfterRestore() async throws {
        try await onLoop {
            let rig = try await ServicingRig(["a"])
            try await rig.save()
            try await rig.service.restore(.root)

            rig.worker("a").beReplaced()
            try await until { rig.service.devices["a"]?.state == .recovering }
            rig.worker("a").finishRecovery()
            try await until { rig.service.devices["a"]?.state == .ready }

            #expect(rig.worker("a").servicing.offers.count == 1)
        }
    }

    @Test("a supervisor that died before the workers were ended leaves them as they were")
    func diedBeforeEnd() async throws {
        try await onLoop {
            var rig = try await ServicingRig()
            rig.worker("a").servicing.isDeafToEnd = true
            let old = rig
            let save = EventLoop.current.task { await failure { try await old.save() } }
            try await until { old.steps == ["a ending", "b saved", "c notKept"] }

            try await rig.restart()
            try await rig.settled()

            #expect(rig.steps == ["a thawed", "b restored"])
            #expect(rig.worker("a").servicing.offers.isEmpty)
            #expect(rig.worker("b").servicing.isRestored)
            #expect(!Files.exists(rig.path))
            #expect(await rig.isServed("a"))
            save.cancel()
        }
    }

    @Test("a supervisor that died before the state was durable leaves nothing behind")
    func diedBeforeCommit() async throws {
        try await onLoop {
            var rig = try await ServicingRig(["a"])
            try DurableFile.prepare(rig.path + ".new", [1, 2, 3])

            try await rig.restart(["a"])
            try await until { rig.service.devices["a"]?.state == .ready }
            try await rig.save()
            try await rig.service.restore(.root)

            #expect(!Files.exists(rig.path + ".new"))
            #expect(rig.worker("a").servicing.isRestored)
        }
    }

    @Test("a supervisor that died in a restore is followed by one that finishes it")
    func diedInRestore() async throws {
        try await onLoop {
            var rig = try await ServicingRig()
            try await rig.save()
            rig.worker("b").isDeaf = true
            try await rig.restart()
            try await until { rig.steps == ["a restored", "b restoring"] }
            rig.worker("b").isDeaf = false

            try await rig.restart()
            try await rig.settled()

            #expect(rig.steps == ["a thawed", "b restored"])
            #expect(rig.worker("a").servicing.offers.count == 1)
            #expect(!Files.exists(rig.path))
        }
    }

    @Test("who stops everything during a restore leaves the state for the next start")
    func stoppedInRestore() async throws {
        try await onLoop {
            var rig = try await ServicingRig(["a"])
            try await rig.save()
            rig.worker("a").loadFailures = Array(
                repeating: WireError(.deviceFailed, "not there"), count: 40)
            try await rig.restart(["a"])
            try await until { rig.service.devices["a"]?.state == .retrying }

            await rig.service.stopAll()
            rig.worker("a").loadFailures = []
            #expect(Files.exists(rig.path))
            try await rig.restart(["a"])
            try await rig.settled()

            #expect(rig.steps.count == 1)
            #expect(!Files.exists(rig.path))
            #expect(await rig.isServed("a"))
        }
    }

    @Test("a disk is not opened on a device that would lose what it saved")
    func opensWait() async throws {
        try await onLoop {
            var rig = try await ServicingRig(["a"])
            try await rig.save()
            rig.worker("a").servicing.holdsLoads = true
            try await rig.restart(["a"])
            let current = rig
            let opening = EventLoop.current.task { await current.isServed("a") }
            try await until { rig.worker("a").servicing.held != nil }

            try rig.worker("a").servicing.held?()

            #expect(await opening.value)
            #expect(rig.worker("a").servicing.isRestored)
        }
    }
}

extension ServicingRig {
    /// Waits until nothing is under way.
    func settled() async throws {
        let servicing = service.servicing
        try await until { servicing.machine.state == .idle }
    }
}
