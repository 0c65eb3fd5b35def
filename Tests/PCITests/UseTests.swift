// SPDX-License-Identifier: Apache-2.0
// Who uses a device: every way there is, and what is not one.

import Linux
import Testing

@testable import PCI

@Suite("Users of a device")
struct UseTests {
    private let machine: FakeMachine

    init() throws { machine = try FakeMachine() }

    private var users: [String] {
        get throws { try machine.host.users(FakeMachine.address).map(\.description) }
    }

    @Test("a free device has none, whatever else the machine does")
    func free() throws {
        machine.process(42, "vi", open: "/home/dev/nvme0n1x")
        machine.process(43, "cat", open: "/dev/nvme1n1")
        #expect(try users == [])
    }

    @Test("a mount is found by number, with its place unescaped")
    func mounted() throws {
        machine.file(
            "proc/self/mountinfo",
            "36 35 259:0 / /mnt/a\\040b\\134c rw,noatime shared:1 - ext4 /dev/root rw\n")
        #expect(try users == ["nvme0n1 is mounted on /mnt/a b\\c"])
    }

    @Test("a mount of btrfs, which has a number of its own, is found by its source")
    func btrfs() throws {
        machine.partition("nvme0n1p2", of: "nvme0n1", number: "259:2")
        machine.file(
            "proc/self/mountinfo", "36 35 0:45 /@ / rw - btrfs /dev/nvme0n1p2 rw,space_cache\n")
        #expect(try users == ["nvme0n1p2 is mounted on /"])
    }

    @Test("swap on a partition")
    func swap() throws {
        machine.partition("nvme0n1p1", of: "nvme0n1", number: "259:1")
        machine.file(
            "proc/swaps",
            "Filename\tType\tSize\tUsed\tPriority\n/dev/nvme0n1p1   partition\t8\t0\t-2\n")
        #expect(try users == ["nvme0n1p1 is used as swap"])
    }

    @Test("LVM on a partition, and the mount on it")
    func deviceMapper() throws {
        machine.partition("nvme0n1p3", of: "nvme0n1", number: "259:3")
        machine.holder("dm-0", on: "nvme0n1p3", number: "253:0", called: "vg-root")
        machine.file("proc/self/mountinfo", "36 35 253:0 / /srv rw - xfs /dev/mapper/vg-root rw\n")
        #expect(
            try users == [
                "nvme0n1p3 is held by dm-0 (vg-root)",
                "nvme0n1p3 → dm-0 (vg-root) is mounted on /srv",
            ])
    }

    @Test("holders that hold each other do not make an endless search")
    func loop() throws {
        machine.holder("dm-0", on: "nvme0n1", number: "253:0", called: "a")
        machine.holder("dm-1", on: "dm-0", number: "253:1", called: "b")
        machine.file("sys/class/block/dm-1/holders/dm-0", "")
        #expect(
            try users == [
                "nvme0n1 is held by dm-0 (a)", "nvme0n1 → dm-0 (a) is held by dm-1 (b)",
            ])
    }

    @Test("a loop device, which is no holder in sysfs")
    func loopDevice() throws {
        machine.block("loop3", at: "devices/virtual/block/loop3", number: "7:3")
        machine.file("sys/devices/virtual/block/loop3/loop/backing_file", "/dev/nvme0n1\n")
        #expect(try users == ["nvme0n1 is held by loop3"])
    }

    @Test(
        "a process with the disk, the controller or the passthrough node open",
        arguments: [
            ("/dev/nvme0n1", "nvme0n1"), ("/dev/nvme0", "nvme0"), ("/dev/ng0n1", "ng0n1"),
            ("/run/chroot/dev/nvme0n1", "nvme0n1"), ("/dev/nvme0n1 (deleted)", "nvme0n1"),
        ])
    func process(path: String, node: String) throws {
        machine.process(42, "dd", open: path)
        #expect(try users == ["\(node) is open in process 42 (dd)"])
    }

    @Test("udev, which looks at new disks for a moment, does not count")
    func udev() throws {
        machine.process(42, "udevadm", open: "/dev/nvme0n1")
        #expect(try users == [])
    }

    @Test("a mount in another mount namespace is found by way of its processes")
    func namespaces() throws {
        machine.link("proc/self/ns/mnt", to: "mnt:[1]")
        machine.process(42, "sleep", open: "/dev/null")
        machine.link("proc/42/ns/mnt", to: "mnt:[2]")
        machine.file("proc/42/mountinfo", "36 35 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n")
        #expect(
            try users == [
                "nvme0n1 is mounted on /data in the mount namespace of process 42 (sleep)"
            ])
    }

    @Test("a multipath namespace is used by way of its head")
    func multipath() throws {
        machine.disk("nvme3c0n2", of: "0000:01:00.0", controller: "nvme0", number: "")
        machine.block(
            "nvme3n2", at: "devices/virtual/nvme-subsystem/nvme-subsys3/nvme3n2", number: "259:9")
        machine.partition("nvme3n2p1", of: "nvme3n2", number: "259:10")
        machine.file(
            "proc/self/mountinfo", "36 35 259:10 / /home rw - ext4 /dev/nvme3n2p1 rw\n")
        machine.process(42, "nvme", open: "/dev/ng3n2")
        #expect(
            try users == [
                "nvme3n2p1 is mounted on /home", "ng3n2 is open in process 42 (nvme)",
            ])
    }

    @Test(
        "names of multipath paths",
        arguments: [
            ("nvme0c1n2", "nvme0n2"), ("nvme10c0n15", "nvme10n15"),
        ])
    func heads(path: String, head: String) { #expect(PCIHost.head(ofPath: path) == head) }

    @Test(
        "names that are no multipath path", arguments: ["nvme0n1", "nvme0c1n2p1", "c1n2", "nvmec"])
    func noHeads(name: String) { #expect(PCIHost.head(ofPath: name) == nil) }

    @Test(
        "odd lines of proc are passed over",
        arguments: [
            "", "a", "1 2 3 4 5 6 7", "- - - - - - -", "36 35 259:0", "\u{0}\n\n - \n",
        ])
    func oddLines(text: String) throws {
        machine.file("proc/self/mountinfo", text)
        machine.file("proc/swaps", text)
        #expect(try users == [])
    }

    @Test("a process name with control characters cannot steer a terminal")
    func hostileName() throws {
        machine.process(42, "x", open: "/dev/nvme0n1")
        machine.file("proc/42/comm", "\u{1b}[2J\n")
        #expect(try users == ["nvme0n1 is open in process 42 (?[2J)"])
    }

    @Test("the controller's own text is cleaned, too")
    func controller() {
        let controller = machine.host.controller(FakeMachine.address)
        #expect(
            controller
                == KernelController(
                    name: "nvme0", model: "Fake controller", serial: "S?1"))
    }

    @Test(
        "octal escapes",
        arguments: [
            ("a\\040b", "a b"), ("\\", "\\"), ("\\04", "\\04"), ("\\999", "\\999"),
            ("\\777", "\u{fffd}"),
        ])
    func escapes(text: String, plain: String) {
        #expect(PCIHost.unescaped(text[...]) == plain)
    }
}
