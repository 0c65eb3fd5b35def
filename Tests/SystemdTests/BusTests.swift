// SPDX-License-Identifier: Apache-2.0
// The bus and what PID 1 is asked over it: a real dbus-daemon, and a PID 1 that is the test's.

import FakeSystemd
import Linux
import Testing

@testable import Systemd

private func soon(_ seconds: UInt64 = 20) -> UInt64 {
    MonotonicClock.nowNanoseconds + seconds * 1_000_000_000
}

/// A bus, a fake PID 1 on it, and a client.
@Control
private struct Rig {
    let daemon: PrivateBus
    let systemd: FakeSystemd
    let bus: Bus
    let units: UnitBus

    init() throws {
        daemon = try PrivateBus()
        systemd = try FakeSystemd(address: daemon.address)
        bus = Bus(address: daemon.address)
        units = UnitBus(bus)
    }
}

private func thrown(_ body: @Control () async throws(BusError) -> Void) async -> BusError? {
    do throws(BusError) {
        try await body()
        return nil
    } catch { return error }
}

@Suite("Bus", .timeLimit(.minutes(5)))
struct BusTests {
    @Test("a unit is started, and is active when that returns")
    func start() async throws {
        try await onLoop { _ in
            let rig = try Rig()
            let status = try await rig.units.start("a.service", deadlineNanoseconds: soon())
            #expect(status.activeState == "active")
            #expect(rig.systemd.calls.contains("StartUnit a.service"))
        }
    }

    @Test("a job that takes its time is waited for, whatever signals say")
    func waits() async throws {
        try await onLoop { loop in
            let rig = try Rig()
            rig.systemd.jobsWait = true
            let job = loop.task {
                try await rig.units.start("a.service", deadlineNanoseconds: soon())
            }
            // Two looks at the job: the one at once, and the one after the false signal.
            while rig.systemd.calls.count(where: { $0 == "Get Job" }) < 1 { await Task.yield() }
            rig.systemd.tellFalseJobRemoved()
            while rig.systemd.calls.count(where: { $0 == "Get Job" }) < 2 { await Task.yield() }
            #expect(rig.systemd.units["a.service"]?.activeState == "inactive")
            rig.systemd.finishJobs()
            #expect(try await job.value.activeState == "active")
        }
    }

    @Test("a job that never ends is given up at the deadline")
    func deadline() async throws {
        try await onLoop { _ in
            let rig = try Rig()
            rig.systemd.jobsWait = true
            let error = await thrown { () throws(BusError) in
                _ = try await rig.units.stop("a.service", deadlineNanoseconds: soon())
                // Enough for the answer that names the job, also on a loaded machine: it is the job
                // that must not end.
                _ = try await rig.units.start(
                    "a.service",
                    deadlineNanoseconds: MonotonicClock.nowNanoseconds + 3_000_000_000)
            }
            #expect(error == .timedOut(call: "StartUnit of a.service"))
        }
    }

    @Test("a PID 1 that does not answer is given up at the deadline")
    func silence() async throws {
        try await onLoop { _ in
            let rig = try Rig()
            rig.systemd.isSilent = true
            let error = await thrown { () throws(BusError) in
                _ = try await rig.units.status(
                    "a.service",
                    deadlineNanoseconds: MonotonicClock.nowNanoseconds + 100_000_000)
            }
            let path = UnitBus.path(of: "a.service")
            #expect(error == .timedOut(call: "Get of \(path)"))
        }
    }

    @Test("what a unit is doing comes from its properties")
    func status() async throws {
        try await onLoop { _ in
            let rig = try Rig()
            let name = "nvmed-worker@0000:01:00.0.service"
            rig.systemd.units[name] = FakeUnit()
            rig.systemd.units[name]?.activeState = "activating"
            rig.systemd.units[name]?.subState = "auto-restart"
            rig.systemd.units[name]?.result = "watchdog"
            rig.systemd.units[name]?.restarts = 7
            let status = try await rig.units.status(name, deadlineNanoseconds: soon())
            var wanted = BusUnitStatus()
            wanted.activeState = "activating"
            wanted.subState = "auto-restart"
            wanted.result = "watchdog"
            wanted.restarts = 7
            #expect(status == wanted)
            #expect(status.isRunning)
        }
    }

    @Test("a unit that is not there is stopped already, and any other refusal is told")
    func notThere() async throws {
        try await onLoop { _ in
            let rig = try Rig()
            let status = try await rig.units.stop("none.service", deadlineNanoseconds: soon())
            #expect(status == BusUnitStatus())
            try await rig.units.resetFailed("none.service", deadlineNanoseconds: soon())
            let method = BusMethod(
                destination: UnitBus.name, path: UnitBus.managerPath,
                interface: UnitBus.manager, member: "Nonsense")
            let error = await thrown { () throws(BusError) in
                _ = try await rig.bus.call(method, deadlineNanoseconds: soon())
            }
            guard case .refused(_, let name, _) = error else {
                Issue.record("\(String(describing: error))")
                return
            }
            #expect(name == "org.freedesktop.DBus.Error.UnknownMethod")
        }
    }

    @Test("an answer of another kind is an error and nothing else")
    func odd() async throws {
        try await onLoop { _ in
            let rig = try Rig()
            rig.systemd.answersOddly = true
            let error = await thrown { () throws(BusError) in
                _ = try await rig.units.status("a.service", deadlineNanoseconds: soon())
            }
            let path = UnitBus.path(of: "a.service")
            #expect(error == .badReply(call: "ActiveState of \(path)"))
        }
    }

    @Test("a name that cannot be one is an error and nothing else")
    func badCall() async throws {
        try await onLoop { _ in
            let rig = try Rig()
            let method = BusMethod(
                destination: "not a name", path: "x", interface: "y", member: "z")
            let error = await thrown { () throws(BusError) in
                _ = try await rig.bus.call(method, deadlineNanoseconds: soon())
            }
            guard case .badCall = error else {
                Issue.record("\(String(describing: error))")
                return
            }
        }
    }

    @Test("the job of a unit tells a stop from a restart, and none from both")
    func jobs() async throws {
        try await onLoop { _ in
            let rig = try Rig()
            rig.systemd.units["w.service"] = FakeUnit()
            #expect(try await rig.units.job(of: "w.service", soon()) == nil)
            rig.systemd.units["w.service"]?.job = 9
            rig.systemd.units["w.service"]?.jobType = "stop"
            #expect(try await rig.units.job(of: "w.service", soon())?.type == "stop")
            #expect(try await rig.units.isSystemStopping(soon()) == false)
            rig.systemd.systemState = "stopping"
            #expect(try await rig.units.isSystemStopping(soon()))
        }
    }

    @Test("without a bus a call fails at once")
    func noBus() async throws {
        try await onLoop { _ in
            let bus = Bus(address: "unix:path=/tmp/nvbus.none/bus")
            let error = await thrown { () throws(BusError) in
                _ = try await UnitBus(bus).status("a.service", deadlineNanoseconds: soon())
            }
            guard case .disconnected = error else {
                Issue.record("\(String(describing: error))")
                return
            }
        }
    }

    @Test("a bus that goes away fails the calls that wait, and watches come back with it")
    func comesBack() async throws {
        try await onLoop { loop in
            let rig = try Rig()
            let changed = OneShot<Void>()
            let watch = rig.units.watch("a.service") { changed.succeed(()) }
            rig.systemd.isSilent = true
            let call = loop.task {
                await thrown { () throws(BusError) in
                    _ = try await rig.units.status("a.service", deadlineNanoseconds: soon())
                }
            }
            while !rig.systemd.calls.contains("Get ActiveState") { await Task.yield() }
            rig.daemon.stop()
            let error = await call.value
            guard case .disconnected = error else {
                Issue.record("\(String(describing: error))")
                return
            }
            rig.systemd.close()
            try rig.daemon.start()
            let second = try FakeSystemd(address: rig.daemon.address)
            // Its subscription tells that the client is back; the watch was sent before.
            while !second.calls.contains("Subscribe ") { await Task.yield() }
            _ = try await rig.units.status("a.service", deadlineNanoseconds: soon())
            second.tellChanged("a.service")
            try await changed.value()
            withExtendedLifetime(watch) {}
        }
    }

    @Test("names of instances and paths of units are escaped as PID 1 does it")
    func names() {
        func name(_ instance: String) -> String? {
            EscapedUnit.name(template: "nvmed-worker", instance: instance, suffix: "socket")
        }
        #expect(name("0000:01:00.0") == "nvmed-worker@0000:01:00.0.socket")
        #expect(name("disk-1_a") == "nvmed-worker@disk-1_a.socket")
        #expect(name("a b/c\\@") == "nvmed-worker@a\\x20b\\x2fc\\x5c\\x40.socket")
        #expect(name("") == nil)
        #expect(name(String(repeating: "x", count: 256)) == nil)
        #expect(
            UnitBus.path(of: "nvmed-worker@0000:01:00.0.service")
                == "/org/freedesktop/systemd1/unit/"
                + "nvmed_2dworker_400000_3a01_3a00_2e0_2eservice")
    }

    @Test("the own unit is the innermost service or scope of the own cgroup")
    func ownUnit() {
        let worker = "nvmed-worker@ssd0.service"
        let path = "/nvmed.slice/system-nvmed\\x2dworker.slice/\(worker)"
        #expect(UnitBus.unit(inCgroups: "0::\(path)\n") == worker)
        #expect(UnitBus.unit(inCgroups: "0::\(path)/sub\n") == worker)
        #expect(UnitBus.unit(inCgroups: "5:cpu:/a\n1:name=systemd:\(path)\n") == worker)
        #expect(UnitBus.unit(inCgroups: "0::/\n") == nil)
        #expect(UnitBus.unit(inCgroups: "0::/user.slice\n") == nil)
        #expect(UnitBus.unit(inCgroups: "") == nil)
    }
}
