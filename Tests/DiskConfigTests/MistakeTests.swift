// SPDX-License-Identifier: Apache-2.0
// Each kind of mistake: file, line and key are named, and what to do.

import DiskConfig
import Testing

@Suite("Mistakes in configuration files")
struct MistakeTests {
    private let place = "/etc/nvmed/vol0.disk"
    private let good = "[Disk]\nDevice=nvme0\nNamespace=1\n"

    @Test("a line without an equals sign")
    func noAssignment() {
        #expect(
            problems(ofDisk: "\(good)Shared") == [
                "\(place):4: error: 'Shared' is not an assignment; write Key=value, or # before a "
                    + "comment"
            ])
    }

    @Test("a section that is not closed")
    func brokenSection() {
        #expect(
            problems(ofDisk: "\(good)[Disk").first
                == "\(place):4: error: '[Disk' is not a section; write [Device], [Disk] or "
                + "[Supervisor]")
    }

    @Test("a value without a key")
    func noKey() {
        #expect(
            problems(ofDisk: "\(good)=5").first
                == "\(place):4: error: there is no key before '='; write Key=value")
    }

    @Test("a line that is not text")
    func notText() {
        let bytes = Array("\(good)User=".utf8) + [0xff, 0x0a]
        let source = ConfigSourceFile(
            directory: 2, relativePath: "vol0.disk", path: place, bytes: bytes)
        #expect(
            parse(nvme0, source).problems.map(\.description) == [
                "\(place):4: error: the line is not UTF-8 text without NUL; rewrite it"
            ])
    }

    @Test("an unknown key is a warning, and the disk stands")
    func unknownKey() {
        let configuration = parse(nvme0, file("vol0.disk", "\(good)shared=yes\nX-Mine=1"))
        #expect(configuration.disks.count == 1)
        #expect(
            configuration.problems.map(\.description) == [
                "\(place):4: warning: shared=: unknown in [Disk], ignored; did you mean Shared=?"
            ])
    }

    @Test("an unknown section and a key before any section are warnings")
    func unknownSection() {
        let configuration = parse(nvme0, file("vol0.disk", "Early=1\n\(good)[Dsik]\nShared=yes"))
        #expect(configuration.disks.count == 1)
        #expect(
            configuration.problems.map(\.description) == [
                "\(place):1: warning: Early=: it is before the first section; put it below [Disk]. "
                    + "Ignored",
                "\(place):6: warning: Shared=: section [Dsik] is not known here; [Disk] is. "
                    + "Ignored",
            ])
    }

    @Test("a key assigned twice in one file is a warning, and the later one counts")
    func twice() {
        let configuration = parse(nvme0, file("vol0.disk", "\(good)Namespace=2"))
        #expect(configuration.disks.first?.selector == .namespace(nsid: 2))
        #expect(
            configuration.problems.map(\.description) == [
                "\(place):4: warning: Namespace=: assigned before in line 3; this one counts. "
                    + "Remove one"
            ])
    }

    @Test(
        "a disk's value that cannot be",
        arguments: [
            ("Access=rw", "4: error: Access=: 'rw' is not read-only or read-write"),
            ("Shared=maybe", "4: error: Shared=: 'maybe' is not yes or no"),
            (
                "IOPSMax=0",
                "4: error: IOPSMax=: '0' is not a number of requests a second from 1 to 1000000000,"
                    + " like 100K or 5M"
            ),
            (
                "BandwidthMax=1K",
                "4: error: BandwidthMax=: '1K' is not a number of bytes a second from 65536 to "
                    + "1000000000000, like 100K or 5M"
            ),
            ("User=bob", "4: error: User=: there is no user 'bob'; write a name or a number"),
            ("Group=bob", "4: error: Group=: there is no group 'bob'; write a name or a number"),
            (
                "User=4294967295",
                "4: error: User=: there is no user '4294967295'; write a name or a number"
            ),
        ])
    func diskValue(line: String, expected: String) {
        #expect(problems(ofDisk: good + line) == ["\(place):\(expected)"])
    }

    @Test(
        "namespace 0, the broadcast namespace and no number", arguments: ["0", "4294967295", "one"])
    func nsid(value: String) {
        #expect(
            problems(ofDisk: "[Disk]\nDevice=nvme0\nNamespace=\(value)") == [
                "\(place):3: error: Namespace=: '\(value)' is not a number from 1 to 4294967293"
            ])
    }

    @Test("a disk that names no namespace, or no device")
    func missing() {
        #expect(
            problems(ofDisk: "[Disk]\nDevice=nvme0").first?.contains("Namespace=: it is missing")
                == true)
        #expect(
            problems(ofDisk: "[Disk]\nNamespace=1").first?.contains("Device=: it is missing")
                == true)
    }

    @Test("a disk that names its namespace twice")
    func ambiguous() {
        let uuid = "00112233-4455-6677-8899-aabbccddeeff"
        #expect(
            problems(ofDisk: "\(good)UUID=\(uuid)") == [
                "\(place):4: error: UUID=: the namespace is named twice; keep one of NGUID=, "
                    + "EUI64=, UUID=, Namespace="
            ])
    }

    @Test("an identifier that is too short, not hexadecimal, or all zero")
    func identifiers() {
        for value in [
            "0011", "zz112233445566778899aabbccddeeff", String(repeating: "0", count: 32),
        ] {
            #expect(
                problems(ofDisk: "[Disk]\nNGUID=\(value)") == [
                    "\(place):2: error: NGUID=: '\(value)' is not 32 hexadecimal digits, not all "
                        + "zero"
                ])
        }
    }

    @Test("a disk of a device that is not there")
    func unknownDevice() {
        #expect(
            problems(ofDisk: "[Disk]\nDevice=nvme9\nNamespace=1") == [
                "\(place):2: error: Device=: there is no device 'nvme9'; write nvme9.device or "
                    + "name another (known: nvme0)"
            ])
    }

    @Test("two disks that write to one namespace are a warning")
    func sharedNamespace() {
        let configuration = parse(nvme0, file("a.disk", good), file("b.disk", good))
        #expect(configuration.disks.count == 2)
        #expect(
            configuration.problems.map(\.description) == [
                "/etc/nvmed/b.disk: warning: disk b and disk a (/etc/nvmed/a.disk) write to the "
                    + "same namespace; make one Access=read-only, or remove it"
            ])
    }

    @Test(
        "a device's value that cannot be",
        arguments: [
            ("Queues=0", "Queues=: '0' is not a number from 1 to 1024"),
            ("Queues=-1", "Queues=: '-1' is not a number from 1 to 1024"),
            ("QueueDepth=65537", "QueueDepth=: '65537' is not a number from 2 to 65536"),
            (
                "MaxTransfer=1X",
                "MaxTransfer=: '1X' is not a size from 4096 to 1073741824 bytes, like 64K or 1M"
            ),
            (
                "MaxTransfer=99999999999999999T",
                "MaxTransfer=: '99999999999999999T' is not a size from 4096 to 1073741824 bytes, "
                    + "like 64K or 1M"
            ),
            (
                "IOTimeoutSec=soon",
                "IOTimeoutSec=: 'soon' is not a duration from 1ms to 1h, like 5s or 100ms"
            ),
            (
                "BlockSize=3K",
                "BlockSize=: '3K' is not 512, 1K, 2K, 4K, 8K, 16K, 32K or 64K"
            ),
            (
                "Address=0000:01:00.0",
                "Address=: it goes with Transport=pci only; remove it or change "
                    + "Transport="
            ),
        ])
    func deviceValue(line: String, expected: String) {
        let text = "[Device]\nTransport=null\n\(line)"
        #expect(problems(ofDevice: text) == ["/etc/nvmed/nvme1.device:3: error: \(expected)"])
    }

    @Test(
        "guest memory that cannot be",
        arguments: [
            "/dev/zero", "dev/zero 0-0xfff", "/dev/zero 1-0xfff", "/dev/zero 0-0x1000",
            "/dev/zero 0xfff-0", "/dev/zero 0-", "/dev/zero 0-0xfff-0x1fff", "/dev/zero 0-x",
            "/dev/zero 0x0-0xffffffffffffffff", "0-0xfff",
            "/dev/zero" + String(repeating: " 0-0xfff", count: 65),
        ])
    func guestMemory(value: String) {
        let device = "[Device]\nTransport=pci\nAddress=0000:01:00.0\nIOMMU=noiommu\n"
        let found = problems(ofDevice: "\(device)GuestMemory=\(value)")
        #expect(found.count == 1)
        #expect(
            found.first?.hasPrefix("/etc/nvmed/nvme1.device:5: error: GuestMemory=: '") == true)
        #expect(
            found.first?.hasSuffix(
                "' is not a device node and, after blanks, ranges of whole pages, like "
                    + "/dev/mshv_vtl_low 0x0-0xbfffffff") == true)
    }

    @Test("guest memory of what is no PCI device")
    func guestMemoryElsewhere() {
        #expect(
            problems(ofDevice: "[Device]\nTransport=null\nGuestMemory=/dev/zero 0-0xfff").first
                == "/etc/nvmed/nvme1.device:3: error: GuestMemory=: it goes with Transport=pci "
                + "only; remove it")
    }

    @Test("a transport that is missing, unknown, or lacks its address")
    func transport() {
        let place = "/etc/nvmed/nvme1.device"
        #expect(
            problems(ofDevice: "[Device]") == [
                "\(place): error: Transport=: it is missing; write vfio-user, pci or null"
            ])
        #expect(
            problems(ofDevice: "[Device]\nTransport=tcp") == [
                "\(place):2: error: Transport=: 'tcp' is not vfio-user, pci or null"
            ])
        #expect(
            problems(ofDevice: "[Device]\nTransport=vfio-user") == [
                "\(place): error: Socket=: it is missing; write the path of the server's socket"
            ])
        #expect(
            problems(ofDevice: "[Device]\nTransport=pci") == [
                "\(place): error: Address=: it is missing; write a PCI address like 0000:01:00.0"
            ])
        #expect(
            problems(ofDevice: "[Device]\nTransport=pci\nAddress=1:2:3.9") == [
                "\(place):3: error: Address=: '1:2:3.9' is not a PCI address like 0000:01:00.0"
            ])
    }

    @Test("a socket that does not fit an address")
    func longSocket() {
        let path = "/" + String(repeating: "x", count: 107)
        #expect(
            problems(ofDevice: "[Device]\nTransport=vfio-user\nSocket=\(path)").first?
                .contains("is not an absolute path of at most 107 bytes") == true)
    }

    @Test("two devices at one address")
    func sameAddress() {
        let configuration = parse(
            nvme0, file("other.device", "[Device]\nTransport=vfio-user\nSocket=/run/nvme0.sock"))
        #expect(configuration.devices.map(\.name) == ["nvme0"])
        #expect(
            configuration.problems.map(\.description) == [
                "/etc/nvmed/other.device:3: error: Socket=: device nvme0 "
                    + "(/etc/nvmed/nvme0.device) has it already; one device, one file"
            ])
    }

    @Test("a file whose name cannot be a name")
    func fileName() {
        #expect(
            parse(file("a b.device", "[Device]\nTransport=null")).problems.first?.message
                == "'a b' cannot be a name; rename the file to at most 64 of A-Z a-z 0-9 _ . : -")
    }

    @Test("a drop-in of nothing is a warning")
    func strayDropIn() {
        #expect(
            parse(file("a.disk.d/x.conf", "[Disk]\nShared=yes")).problems.map(\.description) == [
                "/etc/nvmed/a.disk.d/x.conf: warning: there is no a.disk to which this drop-in "
                    + "could belong; it is ignored"
            ])
    }

    @Test("a supervisor's value that cannot be")
    func supervisor() {
        let configuration = parse(file("nvmed.conf", "[Supervisor]\nSocketMode=9999\nSocket=run"))
        #expect(configuration.supervisor == SupervisorSettings())
        #expect(configuration.problems.map(\.location.line) == [3, 2])
    }

    @Test("a file that is too large, has too many lines, or a line that is too long")
    func bounds() {
        let large = String(repeating: "#\n", count: (1 << 19) + 1)
        let many = String(repeating: "\n", count: 10_001)
        let long = "User=" + String(repeating: "1 ", count: 4096)
        #expect(problems(ofDisk: large).first?.contains("at most 1048576 are read") == true)
        #expect(
            problems(ofDisk: good + many).first?.contains(":10001: error: the file has more")
                == true)
        #expect(
            problems(ofDisk: good + long).first?.contains(":4: error: the line is longer") == true)
    }

    @Test("a file of nothing but mistakes does not fill the log")
    func manyProblems() {
        #expect(problems(ofDisk: String(repeating: "x\n", count: 9000)).count <= 256)
    }

    @Test("any bytes are parsed to something")
    func random() {
        let seed = UInt64.random(in: 0...(.max))
        var state = seed
        let alphabet = Array("[]=\\#;\n\n DiskeviceNamp1\u{e9}".utf8) + [0, 0xff]
        var parsed = 0
        for _ in 0..<3000 {
            var bytes: [UInt8] = []
            for _ in 0..<80 {
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                bytes.append(alphabet[Int(truncatingIfNeeded: state >> 33) % alphabet.count])
            }
            parsed += INIFile.parse(bytes, path: "f").assignments.isEmpty ? 0 : 1
            let source = ConfigSourceFile(
                directory: 0, relativePath: "f.disk", path: "f.disk", bytes: bytes)
            #expect(parse(nvme0, source).disks.isEmpty, "seed \(seed)")
        }
        #expect(parsed > 100, "seed \(seed)")
    }
}
