// SPDX-License-Identifier: Apache-2.0
// What good files mean: keys, precedence, drop-ins, lists.

import DiskConfig
import Testing

@Suite("Configuration files")
struct ConfigurationTests {
    @Test("a device and a disk are read with every key")
    func everything() throws {
        let configuration = parse(
            file(
                "fast.device",
                """
                # The fast one.
                [Device]
                Transport = vfio-user
                Socket = /run/fast.sock
                Queues = 4
                QueueDepth = 0x100
                MaxTransfer = 1M
                Pool = 64M
                IOTimeoutSec = 1min 30s
                AdminTimeoutSec = 500ms
                """),
            file(
                "vol0.disk",
                """
                [Disk]
                Device=fast
                Namespace=1
                Access=read-only
                Shared=yes
                User=alice 1001 \\
                ; a comment between continued lines
                     1002
                Group=disk
                IOPSMax=20K
                BandwidthMax=1500M
                """),
            file(
                "nvmed.conf",
                """
                [Supervisor]
                Socket=/run/n.sock
                SocketMode=0660
                MaxSessions=100
                AdminUser=alice
                AdminGroup=disk 7
                """))

        #expect(configuration.problems.isEmpty)
        let device = try #require(configuration.devices.first)
        #expect(device.name == "fast")
        #expect(device.transport == .vfioUser(path: "/run/fast.sock"))
        #expect(device.queueCount == 4)
        #expect(device.queueDepth == 256)
        #expect(device.maxTransferByteCount == 1 << 20)
        #expect(device.poolByteCount == 64 << 20)
        #expect(device.ioTimeoutMilliseconds == 90_000)
        #expect(device.adminTimeoutMilliseconds == 500)
        let disk = try #require(configuration.disks.first)
        #expect(disk.device == "fast")
        #expect(disk.selector == .namespace(nsid: 1))
        #expect(disk.access == .readOnly)
        #expect(disk.shared)
        #expect(disk.users == [1000, 1001, 1002])
        #expect(disk.groups == [6])
        #expect(disk.requestsPerSecondMax == 20_000)
        #expect(disk.bytesPerSecondMax == 1_500_000_000)
        #expect(configuration.supervisor.socketPath == "/run/n.sock")
        #expect(configuration.supervisor.socketMode == 0o660)
        #expect(configuration.supervisor.maxSessions == 100)
        #expect(configuration.supervisor.adminUsers == [1000])
        #expect(configuration.supervisor.adminGroups == [6, 7])
    }

    @Test("a disk is read-write, not shared and for root alone unless it says more")
    func defaults() {
        let disk = parse(nvme0, file("v.disk", "[Disk]\nDevice=nvme0\nNamespace=1")).disks.first
        #expect(disk?.access == .readWrite)
        #expect(disk?.shared == false)
        #expect(disk?.users == [])
        #expect(disk?.groups == [])
    }

    @Test("guest memory is a node and ranges, in decimal or hexadecimal")
    func guestMemory() {
        let configuration = parse(
            file(
                "p.device",
                "[Device]\nTransport=pci\nAddress=0000:01:00.0\nIOMMU=noiommu\n"
                    + "GuestMemory=/dev/mshv_vtl_low 0-4095  0x100000000-0x23fffffff"))
        #expect(configuration.problems.isEmpty)
        #expect(
            configuration.devices.first?.guestMemory
                == ConfiguredGuestMemory(
                    path: "/dev/mshv_vtl_low", ranges: [0...4095, 1 << 32...0x2_3FFF_FFFF]))
    }

    @Test("a null device may have a size and a block size")
    func null() throws {
        let configuration = parse(
            file("n.device", "[Device]\nTransport=null\nSize=2T\nBlockSize=4K"),
            file("m.device", "[Device]\nTransport=null"))
        let byName = configuration.devices.sorted { $0.name < $1.name }
        #expect(configuration.problems.isEmpty)
        #expect(byName.map(\.byteCount) == [nil, 2 << 40])
        #expect(byName.map(\.blockByteCount) == [nil, 4096])
    }

    @Test("the file of the higher directory counts, in whatever order they come")
    func precedence() {
        let low = file("a.device", "[Device]\nTransport=null\nQueues=1", directory: 0)
        let mid = file("a.device", "[Device]\nTransport=null\nQueues=2", directory: 1)
        let high = file("a.device", "[Device]\nTransport=null\nQueues=3", directory: 2)
        #expect(parse(low, mid, high).devices.map(\.queueCount) == [3])
        #expect(parse(high, low, mid).devices.map(\.queueCount) == [3])
        #expect(parse(mid, low).devices.map(\.queueCount) == [2])
    }

    @Test("an empty file masks the one below")
    func mask() {
        let low = file("a.device", "[Device]\nTransport=null", directory: 0)
        let configuration = parse(low, file("a.device", ""))
        #expect(configuration.devices.isEmpty)
        #expect(configuration.problems.isEmpty)
    }

    @Test("drop-ins are read after the file, by name, and a higher one replaces its namesake")
    func dropIns() {
        let configuration = parse(
            file("a.device", "[Device]\nTransport=null\nQueues=1\nQueueDepth=8"),
            file("a.device.d/20-b.conf", "[Device]\nQueues=20", directory: 0),
            file("a.device.d/10-a.conf", "[Device]\nQueues=10\nQueueDepth=16"),
            file("a.device.d/20-b.conf", "[Device]\nQueues=21", directory: 1))
        #expect(configuration.devices.map(\.queueCount) == [21])
        #expect(configuration.devices.map(\.queueDepth) == [16])
        #expect(configuration.problems.isEmpty)
    }

    @Test("an empty assignment empties a list and takes a value back to its default")
    func reset() {
        let disk = parse(
            nvme0,
            file(
                "v.disk",
                "[Disk]\nDevice=nvme0\nNamespace=1\nUser=1 2\nShared=yes\nAccess=read-only"),
            file("v.disk.d/z.conf", "[Disk]\nUser=\nUser=3\nShared=\nAccess=")
        ).disks.first
        #expect(disk?.users == [3])
        #expect(disk?.shared == false)
        #expect(disk?.access == .readWrite)
    }

    @Test("a device named by its PCI address need not repeat it")
    func pciName() {
        let device = parse(file("0000:01:00.0.device", "[Device]\nTransport=pci")).devices.first
        #expect(device?.transport == .pci(address: "0000:01:00.0"))
    }

    @Test("a mistake takes only its own entry away")
    func isolation() {
        let configuration = parse(
            nvme0, file("bad.disk", "[Disk]\nnonsense"),
            file("good.disk", "[Disk]\nDevice=nvme0\nNamespace=1"))
        #expect(configuration.disks.map(\.name) == ["good"])
        #expect(configuration.hasErrors)
    }

    @Test("files are found in directories, and what cannot be read is told")
    func loader() {
        let files = [
            "/etc/nvmed/a.device": "[Device]\nTransport=null\nQueues=1",
            "/etc/nvmed/a.device.d/x.conf": "[Device]\nQueues=2",
        ]
        let access = ConfigFileAccess(
            list: { path, _ in
                switch path {
                case "/etc/nvmed": .read(["a.device", "a.device.d", "b.disk", "README"])
                case "/etc/nvmed/a.device.d": .read(["x.conf", "x.conf~"])
                case "/run/nvmed": .failed("Permission denied")
                default: .missing
                }
            },
            read: { path, _ in
                files[path].map { .read(Array($0.utf8)) } ?? .failed("Input/output error")
            })
        let configuration = ConfigLoader.configuration(access: access, lookup: accounts)
        #expect(configuration.devices.map(\.queueCount) == [2])
        #expect(
            configuration.problems.map(\.description) == [
                "/run/nvmed: error: cannot be listed (Permission denied); its files are ignored",
                "/etc/nvmed/b.disk: error: cannot be read (Input/output error); it is ignored",
            ])
    }

    @Test("nvme_vfio= of a device counts, then that of [Supervisor], and on without either")
    func vfio() {
        let silent = file("b.device", "[Device]\nTransport=pci\nAddress=00:02.0")
        let emulated = file("c.device", "[Device]\nTransport=null")
        let off = file("nvmed.conf", "[Supervisor]\nnvme_vfio=off")
        let addressed = file("a.device", "[Device]\nTransport=pci\nAddress=01:00.0\nnvme_vfio=on")

        #expect(parse(addressed, silent, emulated).devices.map(\.usesVFIO) == [true, true, true])
        let host = parse(addressed, silent, emulated, off)
        #expect(host.devices.map(\.usesVFIO) == [true, false, true])
        #expect(host.device(atPCIAddress: "0000:01:00.0")?.name == "a")
    }

    @Test("nvme_vfio= is a switch, and of PCI devices only")
    func badVFIO() {
        #expect(
            problems(ofDevice: "[Device]\nTransport=pci\nAddress=01:00.0\nnvme_vfio=perhaps") == [
                "/etc/nvmed/nvme1.device:4: error: nvme_vfio=: 'perhaps' is not on or off"
            ])
        #expect(
            problems(ofDevice: "[Device]\nTransport=null\nnvme_vfio=on") == [
                "/etc/nvmed/nvme1.device:3: error: nvme_vfio=: "
                    + "it goes with Transport=pci only; remove it"
            ])
    }

    @Test("a device beyond those that there can be is refused by name, and the others stand")
    func tooManyDevices() {
        let files = (0...ConfigLimits.deviceCount).map {
            file("d\(10_000 + $0).device", "[Device]\nTransport=null\n")
        }
        let configuration = Configuration.parse(files, lookup: accounts)
        #expect(configuration.devices.count == ConfigLimits.deviceCount)
        #expect(
            configuration.problems.map(\.description) == [
                "/etc/nvmed/d11000.device: error: there are 1000 devices already, as many as there "
                    + "can be"
            ])
    }
}
