// SPDX-License-Identifier: Apache-2.0
// When a worker has the function of its device reset: at a bring-up that fails, after a controller
// that does not confirm its own reset, and after an error that the function reports.

import CLinux
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

    func tell(_ event: WorkerEvent) {
        if case .stateChanged(.failed, _) = event { failed.succeed(true) }
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
