// SPDX-License-Identifier: Apache-2.0
// Devices that nvmed does not use: released by an operator, or left to the kernel by configuration.

import Linux
import Systemd
import TestSupport
import Testing
import Wire

@testable import Supervisor

@Suite("Devices that are not used", .timeLimit(.minutes(5)))
struct WithheldTests {
    @Test("a released device loses its sessions and worker, and is not started until retried")
    func released() async throws {
        try await onLoop {
            let units = FakeUnits()
            let directory = try TemporaryDirectory()
            let service = try await Service.example(units, state: directory.path)
            _ = try await service.openDisk("root", nil, .root)

            try await service.releaseDevice("a", reason: "wanted elsewhere", undo: false, .root)
            let error = await failure { try await service.openDisk("root", nil, .root) }
            let info = service.devices["a"]?.info
            try await service.retryDevice("a", .root)
            _ = try await service.openDisk("root", nil, .root)

            #expect(error?.code == .deviceFailed)
            #expect(error?.message.contains("wanted elsewhere") == true)
            #expect(info?.state == .absent)
            #expect(info?.reason == "wanted elsewhere")
            #expect(info?.sessionCount == 0)
            #expect(units.stopped == ["a"])
        }
    }

    @Test("a release can be taken back, which starts nothing")
    func undone() async throws {
        try await onLoop {
            let units = FakeUnits()
            let directory = try TemporaryDirectory()
            let service = try await Service.example(units, state: directory.path)

            try await service.releaseDevice("a", reason: "", undo: false, .root)
            let told = service.devices["a"]?.info.reason
            try await service.releaseDevice("a", reason: "", undo: true, .root)

            #expect(told == "released by an operator")
            #expect(service.devices["a"]?.info.reason == "")
            #expect(units.connects == [])
        }
    }

    @Test("a released device stays released when the supervisor starts anew, until it is retried")
    func restarted() async throws {
        try await onLoop {
            // Given
            let directory = try TemporaryDirectory()
            let first = FakeUnits()
            let before = try await Service.example(first, state: directory.path)
            _ = try await before.openDisk("root", nil, .root)
            try await before.releaseDevice("a", reason: "wanted elsewhere", undo: false, .root)
            // When
            let second = first.leave()
            let after = try await Service.example(second, state: directory.path)
            let error = await failure { try await after.openDisk("root", nil, .root) }
            let connects = second.connects
            try await after.retryDevice("a", .root)
            let last = try await Service.example(second.leave(), state: directory.path)
            _ = try await last.openDisk("root", nil, .root)
            // Then
            #expect(error?.code == .deviceFailed)
            #expect(error?.message.contains("wanted elsewhere") == true)
            #expect(connects == [])
        }
    }

    @Test("a release that was taken back is forgotten when the supervisor starts anew")
    func undoneForGood() async throws {
        try await onLoop {
            let directory = try TemporaryDirectory()
            let units = FakeUnits()
            let before = try await Service.example(units, state: directory.path)
            try await before.releaseDevice("a", reason: "", undo: false, .root)
            try await before.releaseDevice("a", reason: "", undo: true, .root)
            let after = try await Service.example(units.leave(), state: directory.path)
            _ = try await after.openDisk("root", nil, .root)

            #expect(try Files.list(directory.path, limit: 9) == [])
        }
    }

    @Test("a release is over when the device leaves the configuration, and comes again")
    func configuredAgain() async throws {
        try await onLoop {
            let directory = try TemporaryDirectory()
            let first = FakeUnits()
            let before = try await Service.example(first, state: directory.path)
            try await before.releaseDevice("a", reason: "", undo: false, .root)
            let marked = try Files.list(directory.path, limit: 9)
            let second = first.leave()
            _ = try await Service.example(second, state: directory.path) {
                var plan = examplePlan()
                plan.devices["a"] = nil
                return plan
            }
            #expect(marked == ["released.a"])
            #expect(try Files.list(directory.path, limit: 9) == [])
        }
    }

    @Test("a release that cannot be written down takes place, and is told as what it is")
    func notDurable() async throws {
        try await onLoop {
            let units = FakeUnits()
            let service = try await Service.example(units, state: "/dev/null/state")
            _ = try await service.openDisk("root", nil, .root)

            let told = await failure {
                try await service.releaseDevice("a", reason: "", undo: false, .root)
            }
            let open = await failure { try await service.openDisk("root", nil, .root) }

            #expect(told?.code == .internalError)
            #expect(told?.message.contains("a restart of nvmed would not know") == true)
            #expect(open?.code == .deviceFailed)
            #expect(units.stopped == ["a"])
        }
    }

    @Test("strangers release nothing")
    func strangers() async throws {
        try await onLoop {
            let service = try await Service.example(FakeUnits())
            let error = await failure {
                try await service.releaseDevice("a", reason: "", undo: false, .user(5))
            }
            #expect(error?.code == .permissionDenied)
        }
    }

    @Test("nvme_vfio=off leaves a device alone, says so, and takes it back when that changes")
    func leftToKernel() async throws {
        try await onLoop {
            let units = FakeUnits()
            let plan = PlanBox()
            let service = try await Service.example(units) { plan.plan }
            _ = try await service.openDisk("root", nil, .root)

            plan.plan.leftToKernel = ["a": "nvme_vfio=off"]
            _ = try await service.reload(.root)
            let open = await failure { try await service.openDisk("root", nil, .root) }
            let retry = await failure { try await service.retryDevice("a", .root) }
            let info = service.devices["a"]?.info
            plan.plan.leftToKernel = [:]
            _ = try await service.reload(.root)
            _ = try await service.openDisk("root", nil, .root)

            #expect(open?.code == .deviceFailed)
            #expect(retry?.code == .notSupported)
            #expect(info?.reason == "nvme_vfio=off")
            #expect(info?.sessionCount == 0)
            #expect(units.stopped == ["a"])
        }
    }
}
