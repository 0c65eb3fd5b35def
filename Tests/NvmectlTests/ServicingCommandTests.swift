// SPDX-License-Identifier: Apache-2.0
// nvmectl service: what is accepted, and how progress reads.

import ArgumentParser
import NVMeClient
import Testing
import Wire

@testable import nvmectl

@Suite("nvmectl service")
struct ServicingCommandTests {
    private var status: ServicingStatus {
        var kept = ServicingDevice(name: "a", step: .saved)
        kept.commandsInFlight = 3
        kept.queueCount = 2
        kept.sessionCount = 1
        kept.byteCount = 2048
        kept.durationNanoseconds = 20_000_000
        var cold = ServicingDevice(name: "b\u{1b}", step: .cold)
        cold.reason = "too late"
        var status = ServicingStatus(
            phase: .saved,
            devices: Page([kept, cold, ServicingDevice(name: "c", step: .notKept)]))
        status.durationNanoseconds = 30_000_000
        status.byteCount = 4096
        return status
    }

    @Test(
        "what is no deadline is refused",
        arguments: ["0", "0.5", "-1", "3601", "nan", "x"])
    func deadlines(text: String) {
        #expect(throws: (any Error).self) {
            try Nvmectl.parseAsRoot(["service", "save", "--deadline", text])
        }
    }

    @Test("a save takes a deadline, all or nothing, and progress or none")
    func options() throws {
        let words = ["service", "save", "--deadline", "2.5", "--all-or-nothing", "--no-progress"]
        let command = try #require(
            try Nvmectl.parseAsRoot(words) as? ServicingCommand.Save)
        let plain = try #require(
            try Nvmectl.parseAsRoot(["service", "save"]) as? ServicingCommand.Save)
        #expect(command.deadline == 2.5)
        #expect(command.allOrNothing)
        #expect(command.view.progress == false)
        #expect(plain.deadline == 30)
        #expect(!plain.allOrNothing)
        #expect(plain.view.progress == nil)
    }

    @Test("progress on one line counts devices by their step")
    func line() {
        #expect(ServicingView.line(status) == "saved: 1 saved, 1 cold, 1 not-kept (30 ms)")
    }

    @Test("a person sees each device, its step, and why")
    func text() {
        let lines = ServicingView.text(status).split(separator: "\n")
        #expect(lines.first == "Phase:       saved")
        #expect(lines.contains { $0.hasPrefix("a       saved     2       3") })
        #expect(lines.contains { $0.hasPrefix("b?      cold") && $0.hasSuffix("too late") })
        #expect(ServicingView.text(ServicingStatus(phase: .idle)) == "Phase: idle")
    }

    @Test("a script sees the same, with null for what is not known")
    func json() {
        let empty = JSON.object(ServicingView.json(ServicingStatus(phase: .idle))).text
        let whole = JSON.object(ServicingView.json(status)).text
        #expect(
            empty == #"{"phase":"idle","duration_ns":null,"problem":null,"#
                + #""saved_at_realtime_ns":null,"bytes":null,"devices":[]}"#)
        #expect(
            whole.contains(
                #"{"name":"a","step":"saved","reason":null,"queues":2,"commands_in_flight":3,"#
                    + #""sessions":1,"bytes":2048,"duration_ns":20000000}"#))
        #expect(whole.contains(#""step":"not-kept""#))
    }
}
