// SPDX-License-Identifier: Apache-2.0
// Who may ask the opener for which device.

import DMA
import DiskConfig
import Testing
import VFIO
import Wire

@testable import DeviceOpener

@Suite("The opener's policy")
struct OpenerPolicyTests {
    private func configuration(_ files: [String: String]) -> Configuration {
        Configuration.parse(
            files.sorted { $0.key < $1.key }.map { name, text in
                ConfigSourceFile(
                    directory: 0, relativePath: name, path: "/etc/nvmed/\(name)",
                    bytes: Array(text.utf8))
            }, lookup: NameLookup(user: { _ in nil }, group: { _ in nil }))
    }

    private func refusal(_ asker: Asker, _ device: String) -> ErrorCode? {
        do throws(WireError) {
            try OpenerPolicy.authorise(asker, device)
            return nil
        } catch { return error.code }
    }

    @Test("the worker of a device may ask for it, and root for every one")
    func allowed() {
        #expect(refusal(Asker(uid: 61_000, pid: 7, unit: "nvmed-worker@a.service"), "a") == nil)
        #expect(refusal(Asker(uid: 0, pid: 7, unit: nil), "a") == nil)
        #expect(
            refusal(Asker(uid: 61_000, pid: 7, unit: "nvmed-worker@disk-1.service"), "disk-1")
                == nil)
    }

    @Test(
        "nobody else may",
        arguments: [
            nil, "", "nvmed-worker@b.service", "nvmed-worker@a.service.d", "ssh.service",
            "nvmed-worker@a.scope", "nvmed-worker@.service",
        ])
    func refused(_ unit: String?) {
        #expect(
            refusal(Asker(uid: 61_000, pid: 7, unit: unit), "a") == .permissionDenied)
    }

    @Test("a name that is too long for a unit belongs to nobody")
    func longName() {
        let name = String(repeating: "x", count: 300)
        #expect(refusal(Asker(uid: 1, pid: 7, unit: nil), name) == .permissionDenied)
    }

    @Test("a device is opened as its file says, then as nvmed.conf says")
    func found() throws {
        let device = try OpenerPolicy.find(
            "a",
            in: configuration([
                "nvmed.conf": "[Supervisor]\nIOMMU=type1\nnvme_always_flr=yes\n",
                "a.device":
                    "[Device]\nTransport=pci\nAddress=0000:01:00.0\nInterruptAffinity=2,0-1\n",
                "b.device": "[Device]\nTransport=pci\nAddress=0000:02:00.0\nIOMMU=iommufd\n",
            ]))
        #expect(
            device
                == OpenableDevice(
                    name: "a", address: "0000:01:00.0", mode: .type1, alwaysResets: true,
                    keepsAlive: false,
                    interruptAffinity: [0, 1, 2]))
    }

    @Test("guest memory is the configured node and ranges of a device without an IOMMU")
    func guestMemory() throws {
        let device = "[Device]\nTransport=pci\nAddress=0000:01:00.0\n"
        let memory = "GuestMemory=/dev/zero 0x0-0xbfffffff 4294967296-0x1ffffffff\n"
        let all = configuration([
            "good.device": device + memory + "IOMMU=noiommu\n",
            "none.device": device.replacing("01:", with: "02:") + "IOMMU=noiommu\n",
            "iommu.device": device.replacing("01:", with: "03:") + memory,
        ])
        func find(
            _ name: String, number: (String) -> UInt64? = { $0 == "/dev/zero" ? 0x0105 : nil }
        ) throws -> GuestMemoryFound {
            try OpenerPolicy.guestMemory(
                of: OpenerPolicy.find(name, in: all), number: number)
        }
        #expect(
            try find("good")
                == GuestMemoryFound(
                    deviceNumber: 0x0105, ranges: [0...0xBFFF_FFFF, 1 << 32...0x1_FFFF_FFFF]))
        #expect(throws: VFIOError.self) { try find("none") }
        #expect(throws: VFIOError.self) { try find("iommu") }
        #expect(throws: VFIOError.self) { try find("good") { _ in nil } }
        #expect(
            all.problems.map(\.description) == [
                "/etc/nvmed/iommu.device: warning: GuestMemory=: without IOMMU=noiommu no guest "
                    + "memory can be registered; remove it"
            ])
    }

    @Test("a pool is opened where its device's file says, and nothing else is")
    func pool() throws {
        let device = "[Device]\nTransport=pci\nAddress=0000:01:00.0\n"
        let all = configuration([
            "huge.device": device + "Pool=hugetlb\nPoolPath=/dev/hugepages/x.pool\n",
            "plain.device": device.replacing("01:", with: "02:"),
        ])
        #expect(
            try OpenerPolicy.pool(of: "huge", in: all)
                == PoolPlace(.hugePages, path: "/dev/hugepages/x.pool"))
        #expect(throws: WireError.self) { _ = try OpenerPolicy.pool(of: "plain", in: all) }
        #expect(throws: WireError.self) { _ = try OpenerPolicy.pool(of: "nobody", in: all) }
    }

    @Test("what is no PCI device, left to the kernel, unknown or wrong is refused with the reason")
    func notFound() {
        let files = [
            "kernel.device":
                "[Device]\nTransport=pci\nAddress=0000:01:00.0\nnvme_vfio=off\n",
            "socket.device": "[Device]\nTransport=vfio-user\nSocket=/run/x.sock\n",
            "wrong.device": "[Device]\nTransport=pci\nAddress=0000:02:00.0\nIOMMU=maybe\n",
        ]
        let all = configuration(files)
        for (name, words) in [
            ("kernel", "left to the kernel"), ("socket", "no PCI device"),
            ("wrong", "auto, type1, iommufd or noiommu"), ("missing", "not configured"),
        ] {
            let error = #expect(throws: WireError.self) {
                _ = try OpenerPolicy.find(name, in: all)
            }
            #expect(error?.message.contains(words) == true, "\(name): \(error?.message ?? "")")
        }
    }

    @Test("lists of processors", arguments: [("0", [0]), ("3-5,1", [1, 3, 4, 5]), ("2, 2", [2])])
    func processors(_ text: String, _ expected: [UInt32]) {
        #expect(ConfigValue.processors(text) == expected)
    }

    @Test(
        "what is no list of processors",
        arguments: ["", ",", "3-1", "-1", "1-", "1-2-3", "x", "8192", "0-99999999999"])
    func noProcessors(_ text: String) {
        #expect(ConfigValue.processors(text) == nil)
    }
}
