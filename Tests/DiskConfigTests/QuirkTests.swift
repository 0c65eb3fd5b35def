// SPDX-License-Identifier: Apache-2.0
// What is configured of the quirks of controllers.

import DiskConfig
import Testing

@Suite("Quirks=")
struct QuirkKeyTests {
    private let place = "/etc/nvmed/a.device"
    private let good = "[Device]\nTransport=vfio-user\nSocket=/run/a.sock\n"

    @Test("a list is read whole, apart by blanks or commas, or none alone")
    func lists() {
        #expect(
            ConfigValue.quirks("do-not-adopt, vectors-ascending") == [
                .doNotAdopt, .vectorsAscending,
            ])
        #expect(ConfigValue.quirks("equal-queue-sizes\tequal-queue-sizes") == [.equalQueueSizes])
        #expect(ConfigValue.quirks("none") == [])
    }

    @Test(
        "what is no list",
        arguments: [
            "", "  ", ",", "do_not_adopt", "do-not-adopt none", "none none", "Do-Not-Adopt", "all",
            "do-not-adopt;vectors-ascending", "do-not-adopt\u{0}",
        ])
    func noList(text: String) {
        #expect(ConfigValue.quirks(text) == nil)
    }

    @Test("a device has what its file says, and nothing said is not none")
    func devices() {
        let configuration = parse(
            file("a.device", "\(good)Quirks=no-admin-after-servicing\n"),
            file("b.device", "[Device]\nTransport=vfio-user\nSocket=/b\nQuirks=none\n"),
            file("c.device", "[Device]\nTransport=vfio-user\nSocket=/c\n"))
        #expect(configuration.problems.isEmpty)
        #expect(
            configuration.devices.map(\.quirks) == [[.noAdminAfterServicing], [], nil])
    }

    @Test(
        "a wrong word costs the device, and is named with file, line and key",
        arguments: ["adopt", "none do-not-adopt", String(repeating: "x", count: 3000)])
    func wrong(text: String) {
        let configuration = parse(file("a.device", "\(good)Quirks=\(text)\n"))
        let problem = configuration.problems.map(\.description).first ?? ""
        #expect(configuration.devices.isEmpty)
        #expect(problem.hasPrefix("\(place):4: error: Quirks=: '\(text.prefix(5))"))
        #expect(
            problem.hasSuffix(
                "is not none, or one or more of no-admin-after-servicing, vectors-ascending, "
                    + "equal-queue-sizes, do-not-adopt"))
        #expect(problem.utf8.count < 400)
    }

    @Test("a null device has none")
    func null() {
        let configuration = parse(
            file("a.device", "[Device]\nTransport=null\nQuirks=do-not-adopt\n"))
        #expect(
            configuration.problems.map(\.description) == [
                "\(place):3: error: Quirks=: a null device has no controller; remove it"
            ])
    }
}
