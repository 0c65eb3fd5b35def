// SPDX-License-Identifier: Apache-2.0
// When a worker has the function of its device reset: at a bring-up that fails, after a controller
// that does not confirm its own reset, and after an error that the function reports.

import CLinux
import Glibc
import Linux
import NVMeDriver
import Systemd
import TestSupport
import Testing
import VFIO
import Wire

@testable import Worker

@Suite("Resets of the function", .timeLimit(.minutes(5)))
struct ResetTests {
    @Test("a device that does not come up is reset once, and tried again")
    func atBringUp() async throws {
        try await scenario(["--fault", "register:never-ready"]) { rig in
            let emulator = rig.emulator
            rig.onReset = { _ = try? emulator.command("clear") }
            _ = try await rig.load()
            #expect(rig.prepared == [false, true])
            #expect(rig.service.counters.functionResets == 1)
        }
    }

    @Test("when the reset does not help, or cannot be done, the error is the first one's")
    func inVain() async throws {
        try await scenario(["--fault", "register:never-ready"]) { rig in
            let first = await rig.problem()
            rig.resetError = .device(.unsupported("no reset"))
            let second = await rig.problem()
            #expect(first.contains("CSTS.RDY") && second.contains("CSTS.RDY"))
            #expect(rig.prepared == [false, true, false, true])
        }
    }

    @Test("what the machine lacks is not looked for in the device: there is no reset")
    func noCause() async throws {
        try await scenario([]) { rig in
            rig.openError = .device(.unsupported("no huge pages"))
            #expect(await rig.problem().contains("no huge pages"))
            #expect(rig.prepared == [false])
        }
    }

    @Test("a controller that does not confirm its reset is reset as a function at once")
    func unconfirmed() async throws {
        try await scenario(["--fault", "register:stuck-ready"]) { rig in
            _ = try await rig.load()
            await rig.report()
            #expect(rig.service.counters.functionResets == 1)
            #expect(try rig.emulator.command("stats").contains("\"deviceResets\":1"))
            _ = try await rig.load()
            #expect(rig.prepared == [false, false])
        }
    }

    @Test("a function that cannot be reset while it is open is reset before it is opened again")
    func later() async throws {
        try await scenario([]) { rig in
            _ = try await rig.load()
            rig.device?.canReset = false
            await rig.report()
            #expect(rig.service.lifecycle.state == .failed)
            #expect(rig.service.lifecycle.reason.contains("AER"))
            _ = try await rig.load()
            #expect(rig.prepared == [false, true])
            #expect(rig.service.counters.functionResets == 1)
        }
    }

    @Test("an error that the function reports ends its requests and has it reset, once")
    func reported() async throws {
        try await scenario([]) { rig in
            _ = try await rig.load()
            await rig.report()
            _ = try await rig.load()
            #expect(rig.prepared == [false, false])
            #expect(rig.service.counters.functionResets == 1)
            #expect(rig.service.counters.faults == 1)
        }
    }

    @Test("a function that cannot be reset while it is open is reset by the worker's successor")
    func successor() async throws {
        try await scenario([]) { rig in
            // Given: a worker that leaves for a successor, because there is a session.
            _ = try await rig.load()
            rig.device?.canReset = false
            _ = try rig.open()
            await rig.reportAndLeave()
            // When
            try await rig.succeed()
            // Then
            #expect(rig.prepared == [false, true])
            #expect(rig.service.resetReason.contains("function has to be reset"))
            #expect(rig.service.counters.functionResets == 1)
            // And it is done once.
            try await rig.succeed()
            #expect(rig.prepared == [false, true, false])
            #expect(!rig.service.resetReason.contains("function has to be reset"))
        }
    }

    @Test("a worker that dies right after its function has reported an error leaves that on record")
    func killed() async throws {
        try await scenario([]) { rig in
            _ = try await rig.load()
            rig.service.note(.device(.deviceError("AER")))
            try await rig.succeed()
            #expect(rig.prepared == [false, true])
            #expect(rig.service.resetReason.contains("function has to be reset"))
        }
    }

    @Test("who opens a session before the worker has acted upon the failure may come again")
    func opening() async throws {
        try await scenario([]) { rig in
            _ = try await rig.load()
            rig.service.note(.device(.deviceError("AER")))
            let failed = #expect(throws: WireError.self) { try rig.open() }
            #expect(failed?.code == .deviceStarting)
            #expect(failed?.message.contains("AER") == true)
        }
    }

    @Test("a function without a reset is used again when its controller obeys")
    func noReset() async throws {
        try await scenario([]) { rig in
            _ = try await rig.load()
            rig.device?.canReset = false
            await rig.report()
            rig.resetError = .device(.unsupported("no reset"))
            _ = try await rig.load()
            #expect(rig.prepared == [false, true, false])
            #expect(rig.service.counters.functionResets == 0)
        }
    }
}

/// Runs a body on the control thread with a device that counts as hardware.
private func scenario(
    _ faults: [String], _ body: @escaping @Control (ResetRig) async throws -> Void
) async throws {
    EventLoop.startOnOwnThread()
    try await LoopTurn.run {
        try await EventLoop.current.task {
            let arguments = ["--namespace", "memory=4M", "--fault", "register:to=2"] + faults
            try await body(ResetRig(arguments))
        }.value
    }
}

/// A service whose PCI device is an emulator's.
@Control
private final class ResetRig: DeviceObserver {
    let emulator: EmulatorProcess
    private(set) var service: DeviceService
    private(set) var device: ReportingDevice?
    /// What was asked of whoever opens devices: with a reset or without.
    var prepared: [Bool] = []
    var onReset: @Control () -> Void = {}
    var resetError: DriverError?
    var openError: DriverError?
    private var failed = OneShot<Bool>()
    private var settled = OneShot<Bool>()
    private let environment: DeviceEnvironment

    init(_ arguments: [String]) throws {
        emulator = try EmulatorProcess(arguments)
        let path = emulator.socket
        let none: @Control (DeviceConfig) throws(DriverError) -> any DeviceBacking = {
            _ throws(DriverError) in throw .exhausted("not set up")
        }
        let log = Log(sink: LogSink(levelMax: .emergency, format: .plain, output: { _ in }))
        var environment = DeviceEnvironment(name: "d", log: log, open: none)
        let box = Box()
        environment.open = { _ throws(DriverError) in
            if let error = box.rig?.openError { throw error }
            // The emulator serves one connection.
            box.rig?.device = nil
            do throws(VFIOError) {
                let device = ReportingDevice(try VFIOUserDevice(path: path, name: "d"))
                box.rig?.device = device
                return device
            } catch { throw .device(error) }
        }
        environment.prepare = { _, reset async throws(DriverError) in
            box.rig?.prepared.append(reset)
            guard reset else { return }
            if let error = box.rig?.resetError { throw error }
            box.rig?.onReset()
        }
        environment.adopt = { _ in
            // Something that cannot be adopted, but is there.
            guard let device = try? VFIOUserDevice(path: path, name: "d"),
                let pool = try? MemFD.create(name: "pool", byteCount: 4096)
            else { return nil }
            return LiveDevice(device: device, pool: pool, interrupts: [])
        }
        self.environment = environment
        service = DeviceService(
            environment: environment, state: try StateArea.create(layout: DeviceService.stateLayout)
        )
        box.rig = self
        service.observer = self
    }

    /// Breaks the circle of closures.
    @Control
    private final class Box { weak var rig: ResetRig? }

    func load() async throws -> DeviceReady {
        failed = OneShot()
        return try await service.load(
            DeviceConfig(name: "d", transport: .pci(address: "0000:01:00.0")))
    }

    /// Why it cannot be loaded.
    func problem() async -> String {
        do {
            _ = try await load()
            return ""
        } catch { return "\(error)" }
    }

    /// Has the function report an error, and waits until the device has failed by that.
    func report() async {
        device?.report()
        _ = try? await failed.value()
    }

    func open() throws -> Session {
        try service.openSession(
            OpenSession(
                sessionID: 1, nsid: 1, access: .readWrite, shared: false, disk: "d", clientPID: 1,
                clientUID: 0))
    }

    /// Has the function report an error, and waits until the worker leaves for a successor.
    func reportAndLeave() async {
        let left = OneShot<Bool>()
        service.leaveToSuccessor = { left.succeed(true) }
        device?.report()
        _ = try? await left.value()
    }

    /// The worker is no more; waits until its successor has the device.
    func succeed() async throws {
        let raw = service.withState { dup($0.fd.raw) } ?? -1
        let next = DeviceService(
            environment: environment, state: try StateArea.adopt(OwnedFD(adopting: raw)))
        settled = OneShot()
        service.observer = nil
        service = next
        device = nil
        next.observer = self
        next.recover()
        _ = try? await settled.value()
    }

    func tell(_ event: WorkerEvent) {
        guard case .stateChanged(let state, _) = event else { return }
        if state == .failed { failed.succeed(true) }
        if state == .failed || state == .ready { settled.succeed(true) }
    }
}

/// An emulator's device that can report an error as the kernel's VFIO does.
private final class ReportingDevice: ForwardingDevice {
    let target: any DeviceBacking
    private let event: CInt
    var canReset = true

    init(_ device: VFIOUserDevice) {
        target = device
        event = nv_eventfd()
    }

    deinit { _ = OwnedFD(adopting: event) }

    func report() { _ = nv_eventfd_signal(event) }

    var eventDescriptors: [EventDescriptor] {
        target.eventDescriptors + [EventDescriptor(raw: event)]
    }

    func handleEvents() throws(VFIOError) -> [DeviceNotice] {
        guard nv_eventfd_drain(event) <= 0 else { throw .deviceError("AER") }
        return try target.handleEvents()
    }

    func resetDevice() throws(VFIOError) {
        guard canReset else { throw .unsupported("no reset while it is open") }
        try target.resetDevice()
    }
}
