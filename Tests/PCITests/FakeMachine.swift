// SPDX-License-Identifier: Apache-2.0
// A machine in a directory: sys, proc and dev, and a kernel that does what is written to sysfs.

import Glibc
import Linux
import Synchronization
import TestSupport

@testable import PCI

/// A tree like the kernel's, with one NVMe controller at 0000:01:00.0 and its disk nvme0n1.
final class FakeMachine: Sendable {
    static let address: PCIAddress = {
        guard let address = PCIAddress("0000:01:00.0") else { preconditionFailure("no address") }
        return address
    }()

    let directory: TemporaryDirectory
    /// What was written to sysfs, file names and texts.
    let writes = Mutex<[String]>([])
    /// Modules that were loaded.
    let modules = Mutex<[String]>([])
    /// Called before each write; may change the tree, or throw.
    let interfere = Mutex<(@Sendable (SlowFiles.Write) throws(SlowFiles.Failure) -> Void)?>(nil)
    /// Drivers that refuse to take a device.
    let refusing = Mutex<Set<String>>([])

    var root: String { directory.path }

    init() throws {
        directory = try TemporaryDirectory()
        file("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n")
        file("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
        file("sys/bus/pci/drivers_probe", "")
        for driver in ["nvme", "vfio-pci", "e1000e", "pcieport"] {
            file("sys/bus/pci/drivers/\(driver)/unbind", "")
        }
        function("0000:01:00.0", classCode: "0x010802", driver: "nvme", group: "7")
        disk("nvme0n1", of: "0000:01:00.0", controller: "nvme0", number: "259:0")
    }

    /// The machine for the code under test.
    var host: PCIHost {
        var host = PCIHost(root: root)
        host.write = { writes, _ throws(SlowFiles.Failure) in
            for write in writes { try self.take(write) }
        }
        host.loadModule = { name throws(SystemCallError) in
            self.modules.withLock { $0.append(name) }
            self.file("sys/bus/pci/drivers/\(name)/unbind", "")
        }
        return host
    }

    var driver: String? {
        Files.target(ofLink: "\(root)/sys/bus/pci/devices/0000:01:00.0/driver")?.lastComponent
    }

    var driverOverride: String {
        host.line("\(root)/sys/bus/pci/devices/0000:01:00.0/driver_override") ?? "?"
    }

    // MARK: The tree

    func file(_ path: String, _ text: String) {
        try? TestFiles.write(text, to: "\(root)/\(path)")
    }

    func link(_ path: String, to target: String) {
        makeDirectories(path)
        _ = unsafe unlink("\(root)/\(path)")
        _ = unsafe symlink(target, "\(root)/\(path)")
    }

    func remove(_ path: String) { _ = unsafe unlink("\(root)/\(path)") }

    private func makeDirectories(_ path: String) {
        var made = root
        for part in path.split(separator: "/").dropLast() {
            made += "/\(part)"
            _ = unsafe mkdir(made, 0o755)
        }
    }

    func function(_ address: String, classCode: String, driver: String?, group: String?) {
        let path = "sys/bus/pci/devices/\(address)"
        file("\(path)/class", "\(classCode)\n")
        file("\(path)/vendor", "0x1b36\n")
        file("\(path)/device", "0x0010\n")
        file("\(path)/driver_override", "(null)\n")
        if let driver { link("\(path)/driver", to: "../../../../bus/pci/drivers/\(driver)") }
        guard let group else { return }
        link("\(path)/iommu_group", to: "../../../../kernel/iommu_groups/\(group)")
        file("sys/kernel/iommu_groups/\(group)/devices/\(address)", "")
    }

    func disk(_ name: String, of address: String, controller: String, number: String) {
        file("sys/bus/pci/devices/\(address)/nvme/\(controller)/model", "Fake controller   \n")
        file("sys/bus/pci/devices/\(address)/nvme/\(controller)/serial", "S\u{1b}1  \n")
        let place = "devices/pci0000:00/0000:00:01.0/\(address)/nvme/\(controller)/\(name)"
        block(name, at: place, number: number)
    }

    func partition(_ name: String, of disk: String, number: String) {
        let target = Files.target(ofLink: "\(root)/sys/class/block/\(disk)") ?? ""
        block(name, at: String(target.dropFirst(6)) + "/\(name)", number: number)
    }

    func block(_ name: String, at place: String, number: String) {
        file("sys/\(place)/dev", "\(number)\n")
        link("sys/class/block/\(name)", to: "../../\(place)")
        file("dev/\(name)", "")
    }

    func holder(_ name: String, on disk: String, number: String, called: String) {
        block(name, at: "devices/virtual/block/\(name)", number: number)
        file("sys/devices/virtual/block/\(name)/dm/name", "\(called)\n")
        file("sys/class/block/\(disk)/holders/\(name)", "")
    }

    func process(_ pid: Int, _ name: String, open path: String) {
        file("proc/\(pid)/comm", "\(name)\n")
        link("proc/\(pid)/exe", to: "/usr/bin/\(name)")
        link("proc/\(pid)/fd/5", to: path)
    }

    // MARK: The kernel

    private func take(_ write: SlowFiles.Write) throws(SlowFiles.Failure) {
        let name = write.path.lastComponent
        writes.withLock { $0.append("\(name)=\(write.value)") }
        if let interfere = interfere.withLock({ $0 }) { try interfere(write) }
        guard Files.exists(write.path) else {
            throw .system(SystemCallError("write \(write.path)", errno: ENOENT))
        }
        let path = "sys/bus/pci/devices/\(write.value)"
        switch name {
        case "driver_override":
            file(String(write.path.dropFirst(root.count + 1)), write.value)
        case "unbind": remove("\(path)/driver")
        case "drivers_probe": probe(path)
        default: file(String(write.path.dropFirst(root.count + 1)), write.value)
        }
    }

    private func probe(_ path: String) {
        let wanted = host.line("\(root)/\(path)/driver_override") ?? ""
        let driver = wanted.isEmpty || wanted == "(null)" ? "nvme" : wanted
        guard !Files.exists("\(root)/\(path)/driver"), !refusing.withLock({ $0.contains(driver) })
        else { return }
        link("\(path)/driver", to: "../../../../bus/pci/drivers/\(driver)")
    }
}
