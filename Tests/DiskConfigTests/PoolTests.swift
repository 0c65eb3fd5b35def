// SPDX-License-Identifier: Apache-2.0
// What is configured of pools and of keeping controllers alive.

import DiskConfig
import Testing

/// A vfio-user device with more lines.
private func device(_ name: String, _ lines: String = "") -> ConfigSourceFile {
    file("\(name).device", "[Device]\nTransport=vfio-user\nSocket=/run/\(name).sock\n\(lines)")
}

/// The supervisor's settings.
private func supervisor(_ lines: String) -> ConfigSourceFile {
    file("nvmed.conf", "[Supervisor]\n\(lines)")
}

@Suite("Pools and keeping alive")
struct PoolTests {
    @Test(
        "a pool has a size, lies in something, or both",
        arguments: [
            ("64M", nil, 64 << 20), ("hugetlb", .hugetlb, nil), ("hugetlb 64M", .hugetlb, 64 << 20),
            ("64M file", .file, 64 << 20), ("memfd 1T", .memfd, 1 << 40),
            ("auto", nil, nil), ("auto hugetlb", .hugetlb, nil), ("file auto", .file, nil),
        ] as [(String, ConfiguredPoolBacking?, UInt64?)])
    func pool(text: String, backing: ConfiguredPoolBacking?, byteCount: UInt64?) {
        #expect(
            ConfigValue.pool(text)
                == ConfiguredPool(
                    backing: backing, byteCount: byteCount, isAutomatic: text.contains("auto")))
    }

    @Test(
        "what is no pool",
        arguments: [
            "", "tmpfs", "1K", "2T", "hugetlb file", "64M 64M", "64M hugetlb 64M", "-1",
            "auto 64M", "64M auto", "auto auto",
        ])
    func noPool(text: String) {
        #expect(ConfigValue.pool(text) == nil)
    }

    @Test(
        "paths are absolute and go straight to their place",
        arguments: [
            ("/a", true), ("/a/b/", true), ("/..a/b.", true), ("a", false), ("", false),
            ("/", false), ("//", false), ("/a//b", false), ("/a/../b", false), ("/./b", false),
            ("/a//", false), ("/" + String(repeating: "a", count: 4094), true),
            ("/" + String(repeating: "a", count: 4095), false),
        ])
    func path(text: String, isRight: Bool) {
        #expect(ConfigValue.path(text) == (isRight ? text : nil))
    }

    @Test("what the file does not say, the supervisor does, and then the standard place")
    func inherited() {
        let configuration = parse(
            supervisor("Pool=hugetlb\nPoolPath=/huge/\nNVMeKeepAlive=yes\n"),
            device("a"), device("b", "Pool=file 2M\nPoolPath=/tmp/b\nNVMeKeepAlive=no\n"),
            device("c", "Pool=memfd\n"), device("d", "PoolPath=/other/\n"))
        let devices = configuration.devices
        #expect(configuration.problems.isEmpty)
        #expect(devices.map(\.poolBacking) == [.hugetlb, .file, .memfd, .hugetlb])
        #expect(devices.map(\.poolPath) == ["/huge/a", "/tmp/b", nil, "/other/d"])
        #expect(devices.map(\.keepsAlive) == [true, false, true, true])
        #expect(devices.map(\.poolByteCount) == [nil, 2 << 20, nil, nil])
    }

    @Test("files have standard places by their kind, and memory has none")
    func standardPlaces() {
        let devices = parse(
            device("a", "Pool=hugetlb"), device("b", "Pool=file"), device("c", "Pool=8M")
        ).devices
        #expect(devices.map(\.poolPath) == ["/dev/hugepages/nvmed/a", "/dev/shm/nvmed/b", nil])
        #expect(devices.map(\.poolBacking) == [.hugetlb, .file, nil])
        #expect(devices.map(\.keepsAlive) == [nil, nil, nil])
    }

    @Test(
        "a pool that has no place, or a place without a pool",
        arguments: [
            ("Pool=dax", "PoolPath=: it is missing; Pool=dax needs a node like /dev/dax0.0"),
            (
                "Pool=dax\nPoolPath=/dev/",
                "PoolPath=: it is missing; Pool=dax needs a node like /dev/dax0.0"
            ),
            (
                "PoolPath=/x",
                "PoolPath=: it goes with Pool=hugetlb, file or dax; write one or remove it"
            ),
            (
                "Pool=memfd\nPoolPath=/x",
                "PoolPath=: it goes with Pool=hugetlb, file or dax; write one or remove it"
            ),
        ])
    func wrongPlace(lines: String, message: String) {
        let configuration = parse(device("a", lines))
        #expect(
            configuration.problems.map(\.description) == ["/etc/nvmed/a.device: error: \(message)"])
        #expect(configuration.devices.isEmpty)
    }

    @Test("two devices may not have one pool")
    func shared() {
        let configuration = parse(
            device("a", "Pool=file\nPoolPath=/p/x"), device("b", "Pool=hugetlb\nPoolPath=/p/x"))
        #expect(
            configuration.problems.map(\.description) == [
                "/etc/nvmed/b.device: error: PoolPath=: device a (/etc/nvmed/a.device) has its "
                    + "pool there already; name another"
            ])
        #expect(configuration.devices.map(\.name) == ["a"])
    }

    @Test("the supervisor says how large pools are whose devices do not say it; auto is an answer")
    func sizes() {
        let devices = parse(
            supervisor("Pool=hugetlb 64M\n"), device("a"), device("b", "Pool=32M\n"),
            device("c", "Pool=auto\n"), device("d", "Pool=file\n")
        ).devices
        #expect(devices.map(\.poolByteCount) == [64 << 20, 32 << 20, nil, 64 << 20])
        #expect(devices.map(\.poolBacking) == [.hugetlb, .hugetlb, .hugetlb, .file])
    }

    @Test("the supervisor names a kind and a directory, not a node")
    func supervisorMistakes() {
        let found = parse(supervisor("Pool=dax 64M\nPoolPath=/p/x\n")).problems.map(\.description)
        #expect(
            found == [
                "/etc/nvmed/nvmed.conf:2: error: Pool=: 'dax 64M' is not auto or a size from "
                    + "1048576 to 1099511627776 bytes, like 64M, or memfd, hugetlb or file, or "
                    + "both like hugetlb 64M; dax is said of each device",
                "/etc/nvmed/nvmed.conf:3: error: PoolPath=: '/p/x' is not an absolute path of a "
                    + "directory, with / at the end",
            ])
    }

    @Test("a device that says it is kept, and cannot be, is told why")
    func obstacles() {
        let pci = "[Device]\nTransport=pci\nAddress=0000:01:00.0\nNVMeKeepAlive=yes\n"
        let cases = [
            device("m", "NVMeKeepAlive=yes"),
            file("n.device", "[Device]\nTransport=null\nNVMeKeepAlive=yes\n"),
            file("p.device", pci + "Pool=hugetlb\nIOMMU=type1\n"),
            file("p.device", pci + "Pool=hugetlb\nIOMMU=noiommu\nnvme_always_flr=yes\n"),
            file("p.device", pci + "Pool=hugetlb\nIOMMU=noiommu\n"),
            device("u", "NVMeKeepAlive=yes\nPool=file"),
        ]
        let found = cases.map { parse($0).problems.map(\.message) }
        #expect(
            found == [
                [
                    "memory of the worker does not outlive it, so the device would be started "
                        + "cold; write Pool=hugetlb, file or dax"
                ],
                ["a null device has nothing to keep; remove it"],
                [
                    "the kernel stops a controller behind an IOMMU when its last descriptor is "
                        + "closed, so the device would be started cold; only IOMMU=noiommu keeps it"
                ],
                [
                    "with nvme_always_flr=yes the function is reset whenever it is opened; remove "
                        + "one"
                ], [], [],
            ])
    }

    @Test("keeping all alive is odd when it helps none, and fine when it helps one")
    func inVain() {
        let all = supervisor("NVMeKeepAlive=yes\n")
        #expect(
            parse(all, device("a"), device("b")).problems.map(\.description) == [
                "/etc/nvmed/nvmed.conf: warning: NVMeKeepAlive=: no device can be kept: memory of "
                    + "the worker does not outlive it, so the device would be started cold; write "
                    + "Pool=hugetlb, file or dax"
            ])
        #expect(parse(all, device("a"), device("b", "Pool=file")).problems.isEmpty)
    }
}
