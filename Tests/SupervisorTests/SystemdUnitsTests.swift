// SPDX-License-Identifier: Apache-2.0
// Workers as units of systemd: a real bus, and a PID 1 that is the test's.

import FakeSystemd
import Linux
import Systemd
import TestSupport
import Testing
import Wire

@testable import Supervisor

/// A bus with a PID 1 that listens where a socket unit would.
@Control
private final class Rig {
    let directory: TemporaryDirectory
    let daemon: PrivateBus
    let systemd: FakeSystemd
    let units: SystemdUnits
    var troubles: [String] = []
    private var listeners: [Listener] = []

    private final class Listener {
        let fd: OwnedFD
        init(_ fd: consuming OwnedFD) { self.fd = fd }
    }

    init() throws {
        directory = try TemporaryDirectory()
        daemon = try PrivateBus()
        systemd = try FakeSystemd(address: daemon.address)
        units = SystemdUnits(
            directory: directory.path, bus: Bus(address: daemon.address), log: Log())
        units.onTrouble = { [weak self] device, reason in
            self?.troubles.append("\(device): \(reason)")
        }
        systemd.onJob = { [weak self] type, unit in
            if type == "start", unit.hasSuffix(".socket") { self?.listen() }
        }
    }

    /// What starting `nvmed-worker@ssd-0.socket` does.
    func listen() {
        let path = "\(directory.path)/worker-ssd-0.sock"
        if let fd = try? UnixSocket.listen(path, kind: .sequencedPacket, mode: 0o600) {
            listeners.append(Listener(fd))
        }
    }

    /// The state-changing calls, in order.
    var deeds: [String] {
        systemd.calls.filter { $0.hasPrefix("Start") || $0.hasPrefix("Stop") }
    }

    /// Has PID 1 say that the worker was started again so often.
    func restarted(_ count: UInt32) {
        systemd.units["nvmed-worker@ssd-0.service"]?.restarts = count
        systemd.tellChanged("nvmed-worker@ssd-0.service")
    }
}

@Suite("Workers under systemd", .timeLimit(.minutes(5)))
struct SystemdUnitsTests {
    private static let service = "nvmed-worker@ssd-0.service"

    @Test("the first connection starts the socket, and the next one needs no bus")
    func connect() async throws {
        try await onLoop {
            let rig = try Rig()
            _ = try await rig.units.connect("ssd-0")
            #expect(rig.deeds == ["StartUnit nvmed-worker@ssd-0.socket"])
            rig.daemon.stop()
            _ = try await rig.units.connect("ssd-0")
            #expect(rig.deeds == ["StartUnit nvmed-worker@ssd-0.socket"])
        }
    }

    @Test("a socket that cannot be started is an error that names the unit")
    func noSocket() async throws {
        try await onLoop {
            let rig = try Rig()
            rig.systemd.onJob = { [systemd = rig.systemd] _, unit in
                systemd.units[unit]?.activeState = "failed"
            }
            do throws(WireError) {
                _ = try await rig.units.connect("ssd-0")
                Issue.record("connected")
            } catch {
                #expect(error.message.contains("systemctl status 'nvmed-worker@ssd-0.socket'"))
            }
        }
    }

    @Test("a device is stopped by its socket first, so that nothing starts the worker again")
    func stop() async throws {
        try await onLoop {
            let rig = try Rig()
            rig.systemd.units["nvmed-worker@ssd-0.socket"] = FakeUnit()
            rig.systemd.units[Self.service] = FakeUnit()
            try await rig.units.stop("ssd-0")
            #expect(
                rig.deeds == [
                    "StopUnit nvmed-worker@ssd-0.socket", "StopUnit \(Self.service)",
                ])
        }
    }

    @Test("a worker that runs is recognised after a restart of the supervisor")
    func running() async throws {
        try await onLoop {
            let rig = try Rig()
            #expect(try await rig.units.isRunning("ssd-0") == false)
            rig.systemd.units[Self.service] = FakeUnit()
            rig.systemd.units[Self.service]?.activeState = "active"
            #expect(try await rig.units.isRunning("ssd-0"))
        }
    }

    @Test("all workers that run are found, whatever their devices are called, and nothing else")
    func allRunning() async throws {
        try await onLoop {
            let rig = try Rig()
            for (unit, state) in [
                (Self.service, "active"), ("nvmed-worker@a\\x2fb.service", "activating"),
                ("nvmed-worker@old.service", "inactive"), ("nvmed-worker@ssd-0.socket", "active"),
                ("nvmed-worker@a/b.service", "active"), ("sshd@7.service", "active"),
            ] {
                rig.systemd.units[unit] = FakeUnit()
                rig.systemd.units[unit]?.activeState = state
            }
            #expect(try await rig.units.running().sorted() == ["a/b", "ssd-0"])
        }
    }

    @Test("a worker that is restarted again and again without an answer is stopped and told")
    func crashLoop() async throws {
        try await onLoop {
            let rig = try Rig()
            rig.systemd.units[Self.service] = FakeUnit()
            rig.systemd.units[Self.service]?.activeState = "activating"
            _ = try await rig.units.connect("ssd-0")
            // The first look says where the count begins.
            while !rig.systemd.calls.contains("Get NRestarts") { await Task.yield() }
            rig.restarted(SystemdUnits.restartsMax)
            while rig.troubles.isEmpty { await Task.yield() }
            #expect(rig.troubles.count == 1)
            #expect(rig.troubles[0].contains("ended 10 times before it answered once"))
            #expect(rig.deeds.contains("StopUnit \(Self.service)"))
        }
    }

    @Test("restarts before an answer do not count")
    func answered() async throws {
        try await onLoop {
            let rig = try Rig()
            rig.systemd.units[Self.service] = FakeUnit()
            rig.systemd.units[Self.service]?.activeState = "active"
            _ = try await rig.units.connect("ssd-0")
            for round in 1...3 as ClosedRange<UInt32> {
                let seen = rig.systemd.calls.count { $0 == "Get NRestarts" }
                rig.systemd.units[Self.service]?.restarts = round * 9
                rig.units.answered("ssd-0")
                while rig.systemd.calls.count(where: { $0 == "Get NRestarts" }) == seen {
                    await Task.yield()
                }
            }
            #expect(rig.troubles.isEmpty)
            #expect(!rig.deeds.contains("StopUnit \(Self.service)"))
        }
    }
}
