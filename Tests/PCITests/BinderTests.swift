// SPDX-License-Identifier: Apache-2.0
// Binding and giving back: the steps, the refusals, and that a failure leaves things as they were.

import Glibc
import Linux
import Synchronization
import Testing

@testable import PCI

@Suite("Binding")
struct BinderTests {
    private let machine: FakeMachine
    private let address = FakeMachine.address

    init() throws { machine = try FakeMachine() }

    private var binder: PCIBinder { PCIBinder(machine.host) }

    /// Why it was refused; empty when it was not.
    private func refusal(
        _ options: PCIBinder.Options = .init(),
        _ work: ((PCIBinder) throws(PCIError) -> Void)? = nil
    ) -> [String] {
        do throws(PCIError) {
            if let work { try work(binder) } else { _ = try binder.bind(address, options) }
            return []
        } catch {
            switch error {
            case .refused(_, let reasons, _), .inUse(_, let reasons): return reasons
            default: return ["\(error)"]
            }
        }
    }

    @Test("a free controller is taken from its driver in three writes")
    func bind() throws {
        let outcome = try binder.bind(address)
        #expect(
            outcome
                == .init(changed: true, formerDriver: "nvme", driver: "vfio-pci", notes: []))
        #expect(machine.driver == "vfio-pci")
        #expect(
            machine.writes.withLock { $0 } == [
                "driver_override=vfio-pci", "unbind=0000:01:00.0", "drivers_probe=0000:01:00.0",
            ])
    }

    @Test("what is bound already is left alone")
    func again() throws {
        _ = try binder.bind(address)
        #expect(try binder.bind(address).changed == false)
        #expect(machine.writes.withLock { $0.count } == 3)
    }

    @Test("a dry run writes nothing")
    func dryRun() throws {
        var options = PCIBinder.Options()
        options.dryRun = true
        #expect(try binder.bind(address, options).changed)
        #expect(machine.writes.withLock { $0.isEmpty })
    }

    @Test("a device without a driver is bound, too")
    func noDriver() throws {
        machine.remove("sys/bus/pci/devices/0000:01:00.0/driver")
        #expect(try binder.bind(address).formerDriver == nil)
        #expect(machine.driver == "vfio-pci")
    }

    @Test("a missing module is loaded, and that is told")
    func module() throws {
        machine.remove("sys/bus/pci/drivers/vfio-pci/unbind")
        _ = unsafe rmdir("\(machine.root)/sys/bus/pci/drivers/vfio-pci")
        #expect(try binder.bind(address).notes == ["loaded the kernel module vfio-pci"])
        #expect(machine.modules.withLock { $0 } == ["vfio-pci"])
    }

    @Test("an address that does not exist is named")
    func absent() throws {
        let other = try #require(PCIAddress("0000:02:00.0"))
        #expect(throws: PCIError.absent(other)) { try binder.bind(other) }
    }

    @Test("what is no NVMe controller needs force")
    func classes() throws {
        machine.function("0000:01:00.0", classCode: "0x020000", driver: "e1000e", group: "7")
        #expect(refusal() == ["it is no NVMe controller (class 020000, not 010802)"])
        var options = PCIBinder.Options()
        options.force = true
        _ = try binder.bind(address, options)
        #expect(machine.driver == "vfio-pci")
    }

    @Test("without an IOMMU it is refused unless that is asked for")
    func noIOMMU() throws {
        machine.remove("sys/bus/pci/devices/0000:01:00.0/iommu_group")
        machine.file("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n")
        #expect(refusal() == ["it has no IOMMU group"])
        var options = PCIBinder.Options()
        options.noIOMMU = true
        _ = try binder.bind(address, options)
        #expect(machine.writes.withLock { $0[0] } == "enable_unsafe_noiommu_mode=Y")
    }

    @Test("a neighbour in the IOMMU group that has a driver is named; bridges do not count")
    func neighbours() {
        machine.function("0000:00:01.0", classCode: "0x060400", driver: "pcieport", group: "7")
        machine.function("0000:03:00.0", classCode: "0x010802", driver: nil, group: "7")
        machine.function("0000:04:00.0", classCode: "0x010802", driver: "vfio-pci", group: "7")
        machine.function("0000:05:00.0", classCode: "0x020000", driver: "e1000e", group: "7")
        #expect(
            refusal() == [
                "0000:05:00.0 is in the same IOMMU group 7 and belongs to the driver e1000e"
            ])
    }

    @Test("somebody who comes after the first look is noticed, and nothing has changed")
    func race() {
        machine.interfere.withLock {
            $0 = { [machine] write throws(SlowFiles.Failure) in
                guard write.value == "vfio-pci" else { return }
                machine.file("proc/self/mountinfo", "30 1 259:0 / /mnt rw - ext4 /dev/nvme0n1 rw\n")
            }
        }
        #expect(refusal() == ["nvme0n1 is mounted on /mnt"])
        #expect(machine.driver == "nvme")
        #expect(machine.driverOverride == "")
        #expect(!machine.writes.withLock { $0.contains("unbind=0000:01:00.0") })
    }

    @Test("when vfio-pci does not take it, the former driver has it again")
    func restored() {
        machine.refusing.withLock { $0 = ["vfio-pci"] }
        #expect(
            refusal() == [
                "0000:01:00.0: binding to vfio-pci: the driver did not take it; "
                    + "it is as it was before"
            ])
        #expect(machine.driver == "nvme")
        #expect(machine.driverOverride == "")
    }

    @Test("a former driver_override comes back")
    func formerOverride() {
        machine.file("sys/bus/pci/devices/0000:01:00.0/driver_override", "nvme\n")
        machine.refusing.withLock { $0 = ["vfio-pci"] }
        #expect(refusal().count == 1)
        #expect(machine.driverOverride == "nvme")
    }

    @Test("a write that hangs is told with who holds the device, and nothing more is written")
    func stuck() {
        machine.process(42, "nvmed-worker", open: "/dev/vfio/7")
        machine.interfere.withLock {
            $0 = { write throws(SlowFiles.Failure) in
                if write.path.hasSuffix("unbind") {
                    throw .stuck(path: write.path, pid: 99, milliseconds: 5)
                }
            }
        }
        #expect(
            refusal() == [
                "0000:01:00.0: changing the driver waits in the kernel until it is closed by "
                    + "process 42 (nvmed-worker)"
            ])
        #expect(machine.writes.withLock { $0.last } == "unbind=0000:01:00.0")
    }

    @Test("giving back clears the override, unbinds and probes")
    func unbind() throws {
        _ = try binder.bind(address)
        machine.writes.withLock { $0 = [] }
        let outcome = try binder.unbind(address)
        #expect(
            outcome
                == .init(changed: true, formerDriver: "vfio-pci", driver: "nvme", notes: []))
        #expect(
            machine.writes.withLock { $0 } == [
                "driver_override=\n", "unbind=0000:01:00.0", "drivers_probe=0000:01:00.0",
            ])
        #expect(try binder.unbind(address).changed == false)
    }

    @Test("the ways to reset it, which were taken from the kernel meanwhile, are given back, too")
    func resetMethod() throws {
        _ = try binder.bind(address)
        machine.file("sys/bus/pci/devices/0000:01:00.0/reset_method", "\n")
        machine.writes.withLock { $0 = [] }
        _ = try binder.unbind(address)
        #expect(
            machine.writes.withLock { $0 } == [
                "driver_override=\n", "unbind=0000:01:00.0", "reset_method=default\n",
                "drivers_probe=0000:01:00.0",
            ])
    }

    @Test("giving back asks first, and refuses while somebody still has it open")
    func unbindHeld() throws {
        _ = try binder.bind(address)
        machine.process(42, "nvmed-worker", open: "/dev/vfio/7")
        machine.process(1, "systemd", open: "/dev/vfio/7")
        let held = refusal { binder throws(PCIError) in _ = try binder.unbind(address) }
        #expect(
            held == [
                "the service manager (a unit's stored descriptors) has it open",
                "process 42 (nvmed-worker) has it open",
            ])
        #expect(machine.driver == "vfio-pci")
        let outcome = try binder.unbind(address) {
            machine.remove("proc/42/fd/5")
            machine.remove("proc/1/fd/5")
            return ["asked"]
        }
        #expect(outcome.notes == ["asked"])
        #expect(machine.driver == "nvme")
    }

    @Test(
        "odd contents of sysfs are no device, and no reason to trap",
        arguments: [
            "", "0x", "xyz", "0x10000000000000000", "-1", "\u{0}\u{ff}", "0x010802 0x010802",
        ])
    func odd(text: String) {
        machine.file("sys/bus/pci/devices/0000:01:00.0/class", text)
        #expect(throws: PCIError.absent(address)) { try binder.bind(address) }
    }

    @Test(
        "texts that are no address",
        arguments: [
            "", ":", "::", "1", "0000:01:00.8", "0000:01:00", "../../etc", "0000:01:00.0/..",
            "0000:01:00.+0", "00000000000000000000:01:00.0", "0000:é1:00.0", "0:0:0:0.0",
        ])
    func noAddress(text: String) { #expect(PCIAddress(text) == nil) }

    @Test("addresses are normalised")
    func addresses() {
        #expect(PCIAddress("AB:1f.7")?.description == "0000:ab:1f.7")
        #expect(PCIAddress("10000:01:00.0")?.description == "10000:01:00.0")
    }
}
