// SPDX-License-Identifier: Apache-2.0
// From disks to namespaces.

import DiskConfig
import Testing

@Suite("Resolution of disks")
struct ResolutionTests {
    private let id = [UInt8](1...16)
    private let devices = [
        KnownDevice(
            name: "a", serial: "S-A",
            namespaces: [
                KnownNamespace(nsid: 1, nguid: [UInt8](1...16)),
                KnownNamespace(nsid: 2, eui64: [UInt8](1...8)),
            ], isComplete: true),
        KnownDevice(
            name: "b", serial: "S-B",
            namespaces: [KnownNamespace(nsid: 1, uuid: [UInt8](1...16))], isComplete: true),
    ]

    private func disk(_ selector: NamespaceSelector, device: String? = nil) -> ConfiguredDisk {
        ConfiguredDisk(
            name: "v", location: ConfigLocation(file: "/etc/nvmed/v.disk", line: 0),
            device: device, selector: selector, access: .readWrite, shared: false, users: [],
            groups: [])
    }

    @Test("each way of naming a namespace finds it")
    func selectors() {
        let nguid = Resolver.resolve(disk(.nguid(id)), devices: devices)
        let eui64 = Resolver.resolve(disk(.eui64([UInt8](1...8))), devices: devices)
        let uuid = Resolver.resolve(disk(.uuid(id)), devices: devices)
        let serial = Resolver.resolve(disk(.serial("S-B", nsid: 5)), devices: devices)
        let direct = Resolver.resolve(disk(.namespace(nsid: 9), device: "a"), devices: devices)
        #expect(nguid == .resolved(device: "a", nsid: 1))
        #expect(eui64 == .resolved(device: "a", nsid: 2))
        #expect(uuid == .resolved(device: "b", nsid: 1))
        #expect(serial == .resolved(device: "b", nsid: 5))
        #expect(direct == .resolved(device: "a", nsid: 9))
    }

    @Test("what is nowhere says where to look")
    func nowhere() {
        let missing = Resolver.resolve(
            disk(.nguid([UInt8](repeating: 9, count: 16))), devices: devices)
        #expect(
            missing
                == .failed(
                    "no device has NGUID 09090909090909090909090909090909; compare with nvmectl "
                        + "device show, and correct /etc/nvmed/v.disk"))
        let noDevice = Resolver.resolve(disk(.namespace(nsid: 1), device: "z"), devices: devices)
        #expect(noDevice == .failed("there is no device z"))
    }

    @Test("devices that were never ready leave it open")
    func pending() {
        let unknown = KnownDevice(name: "c", serial: "", namespaces: [], isComplete: false)
        let resolution = Resolver.resolve(
            disk(.nguid([UInt8](repeating: 9, count: 16))), devices: devices + [unknown])
        #expect(resolution == .pending(devices: ["c"]))
    }

    @Test("what is found twice is not guessed")
    func twice() {
        let twin = KnownDevice(
            name: "c", serial: "S-C", namespaces: [KnownNamespace(nsid: 4, nguid: id)],
            isComplete: true)
        let open = Resolver.resolve(disk(.nguid(id)), devices: devices + [twin])
        let named = Resolver.resolve(disk(.nguid(id), device: "c"), devices: devices + [twin])
        #expect(
            open
                == .failed(
                    "the namespace is found 2 times (a namespace 1, c namespace 4); write Device= "
                        + "into /etc/nvmed/v.disk"))
        #expect(named == .resolved(device: "c", nsid: 4))
    }

    @Test("disks that meet on one namespace under different names are found")
    func writers() {
        var other = disk(.namespace(nsid: 1), device: "a")
        other.name = "w"
        #expect(Resolver.writers([disk(.nguid(id)), other], devices: devices) == [["v", "w"]])
    }
}

@Suite("Values of keys")
struct ConfigValueTests {
    @Test("sizes and durations")
    func units() {
        #expect(ConfigValue.byteCount("512") == 512)
        #expect(ConfigValue.byteCount("2G") == 2 << 30)
        #expect(ConfigValue.byteCount("K") == nil)
        #expect(ConfigValue.byteCount("18446744073709551615K") == nil)
        #expect(ConfigValue.milliseconds("5") == 5000)
        #expect(ConfigValue.milliseconds("2min 1s 5ms") == 121_005)
        #expect(ConfigValue.milliseconds("") == nil)
        #expect(ConfigValue.milliseconds("99999999999999999999s") == nil)
    }

    @Test("PCI addresses with and without a domain")
    func pci() {
        #expect(ConfigValue.pciAddress("01:00.7") == "0000:01:00.7")
        #expect(ConfigValue.pciAddress("ABCD:01:00.0") == "abcd:01:00.0")
        #expect(ConfigValue.pciAddress("0000:01:00.8") == nil)
        #expect(ConfigValue.pciAddress("0000:01:00") == nil)
        #expect(ConfigValue.pciAddress("") == nil)
    }
}
