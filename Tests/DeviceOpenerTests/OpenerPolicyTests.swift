// SPDX-License-Identifier: Apache-2.0
// Who may ask the opener for which device.

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
                    interruptAffinity: [0, 1, 2]))
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
