// SPDX-License-Identifier: Apache-2.0
// nvmectl service: everything above the devices is stopped, and the disks go on.

import ArgumentParser
import Linux
import NVMeClient
import Wire

struct ServicingCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "service",
        abstract: "Saves the devices for a full stop of nvmed, and takes them up again.",
        discussion: """
            Devices with NVMeKeepAlive=yes are frozen all at once and written down; then their \
            workers end, and their controllers go on. Sessions end: their clients open the disks \
            again later. The next start of nvmed takes the devices up by itself. For operators.
            """,
        subcommands: [Save.self, Restore.self, Status.self, Cancel.self])

    struct Save: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Saves the devices and ends their workers, or changes nothing.",
            discussion: """
                A device that cannot be saved in time is left out: it goes on until nvmed is \
                stopped, and starts cold; the exit code is 8 then. The command may be interrupted: \
                the save goes on. See: nvmectl service cancel
                """)
        @Option(
            help: ArgumentHelp(
                "Everything must be written down after so many seconds, from 1 to 3600.",
                valueName: "seconds"))
        var deadline = 30.0
        @Flag(help: "One device that cannot be saved makes the whole fail.")
        var allOrNothing = false
        @OptionGroup var view: ProgressOptions
        @OptionGroup var global: GlobalOptions

        /// Ending the workers comes after the deadline, and has its own bound.
        private static let endSeconds = 60.0

        func validate() throws {
            guard deadline >= 1, deadline <= 3600 else {
                throw ValidationError("--deadline is from 1 to 3600 seconds.")
            }
        }

        func run() throws {
            try global.perform(.service) {
                let backend = try global.connect()
                let until = ServicingCommand.point(deadline)
                let view = ServicingView(global, view.progress)
                try backend.save(
                    until: until, allOrNothing: allOrNothing,
                    deadlineNanoseconds: ServicingCommand.point(deadline + Self.endSeconds),
                    progress: view.look)
                try ServicingCommand.conclude(try backend.servicing(), view, global)
            }
        }
    }

    struct Restore: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Takes the saved devices up; nvmed does so by itself when it starts.",
            discussion: """
                Each device is on its own: one that is not as it was saved is reset and started \
                cold, and the exit code is 8.
                """)
        @OptionGroup var view: ProgressOptions
        @OptionGroup var global: GlobalOptions

        func run() throws {
            try global.perform(.service) {
                let backend = try global.connect()
                let view = ServicingView(global, view.progress)
                try backend.restore(deadlineNanoseconds: global.deadline, progress: view.look)
                try ServicingCommand.conclude(try backend.servicing(), view, global)
            }
        }
    }

    struct Status: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Shows what is under way, or what the last save or restore came to.")
        @Flag(help: "Wait until nothing is under way, and show how far it has come.")
        var watch = false
        @OptionGroup var global: GlobalOptions

        func run() throws {
            try global.perform(.service) {
                let backend = try global.connect()
                let view = ServicingView(global, true)
                var status = try backend.servicing(deadlineNanoseconds: global.deadline)
                let clock = try EventFD()
                while watch, status.phase == .saving || status.phase == .restoring {
                    view.look(status)
                    // Nobody signals it: it is a wait with a bound.
                    _ = try clock.fd.waitReadable(timeoutMilliseconds: 200)
                    status = try backend.servicing(deadlineNanoseconds: global.deadline)
                }
                view.end()
                global.show(ServicingView.json(status)) { ServicingView.text(status) }
            }
        }
    }

    struct Cancel: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Gives up the save that is under way; all devices go on.")
        @OptionGroup var global: GlobalOptions

        func run() throws {
            try global.perform(.service) {
                try global.connect().cancelSave(deadlineNanoseconds: global.deadline)
                global.show([]) { "" }
            }
        }
    }

    /// How progress is shown.
    struct ProgressOptions: ParsableArguments {
        @Flag(
            inversion: .prefixedNo,
            help: "Tell of each step; by default with text, in JSON one object a line.")
        var progress: Bool?
    }

    /// A point of CLOCK_MONOTONIC.
    private static func point(_ seconds: Double) -> UInt64 {
        Deadline.after(milliseconds: UInt64(seconds * 1000))
    }

    /// Shows what it came to. Throws when some devices are started cold.
    private static func conclude(
        _ status: ServicingStatus, _ view: ServicingView, _ global: GlobalOptions
    ) throws {
        view.end()
        global.show(ServicingView.json(status)) { ServicingView.text(status) }
        let cold = status.devices.entries.filter { $0.step == .cold || $0.step == .failed }
        guard !cold.isEmpty else { return }
        throw PartlyDone(
            "nvmectl: \(cold.count) of \(status.devices.entries.count) devices are started cold: "
                + cold.map(\.name).joined(separator: ", "))
    }
}

/// Something was done for some devices; what is known of it was shown already.
struct PartlyDone: Error {
    let message: String
    init(_ message: String) { self.message = message }
}

/// What a person or a script sees of a save or a restore while it runs.
final class ServicingView {
    private let output: OutputFormat
    private let isShown: Bool
    private var steps: [String: ServicingStep] = [:]
    private var hasLine = false

    /// `progress` nil: with text only.
    init(_ global: GlobalOptions, _ progress: Bool?) {
        output = global.output
        isShown = progress ?? (global.output == .text)
    }

    /// Shows what is new.
    func look(_ status: ServicingStatus) {
        guard isShown else { return }
        let changed = status.devices.entries.filter { steps[$0.name] != $0.step }
        for device in changed { steps[device.name] = device.step }
        switch output {
        case .json:
            guard !changed.isEmpty else { return }
            Program.show(JSON.object([("version", 1)] + Self.json(status)).text)
        case .text where StandardStream.error.isTerminal:
            try? StandardStream.error.write("\r\u{1B}[K" + Self.line(status))
            hasLine = true
        case .text:
            for device in changed {
                let reason = device.reason.isEmpty ? "" : ": \(device.reason)"
                Program.complain(
                    Text.printable("nvmectl: device \(device.name): \(device.step.name)\(reason)"))
            }
        }
    }

    /// Removes what is only of interest while it runs.
    func end() {
        guard hasLine else { return }
        hasLine = false
        try? StandardStream.error.write("\r\u{1B}[K")
    }

    /// `saving: 3 frozen, 1 cold, 4 freezing (120 ms)`.
    static func line(_ status: ServicingStatus) -> String {
        let counts = ServicingStep.allCases.compactMap { step -> String? in
            let count = status.devices.entries.count { $0.step == step }
            return count > 0 ? "\(count) \(step.name)" : nil
        }
        let time = status.durationNanoseconds.map { " (\(Text.duration($0)))" } ?? ""
        return "\(status.phase): \(counts.joined(separator: ", "))\(time)"
    }

    /// For people.
    static func text(_ status: ServicingStatus) -> String {
        let head = Text.list([
            ("Phase", "\(status.phase)"),
            ("Took", status.durationNanoseconds.map(Text.duration) ?? ""),
            ("Saved state", status.byteCount.map(Text.size) ?? ""),
            ("Problem", status.problem),
        ])
        guard !status.devices.entries.isEmpty else { return head }
        return head + "\n\n"
            + Text.table(
                ["DEVICE", "STEP", "QUEUES", "COMMANDS", "SESSIONS", "BYTES", "TIME", "REASON"],
                status.devices.entries.map { device in
                    [
                        device.name, device.step.name, number(device.queueCount),
                        number(device.commandsInFlight), number(device.sessionCount),
                        device.byteCount.map(Text.size) ?? "-",
                        device.durationNanoseconds.map(Text.duration) ?? "-", device.reason,
                    ]
                })
    }

    private static func number(_ value: UInt32?) -> String { value.map { "\($0)" } ?? "-" }

    /// For scripts.
    static func json(_ status: ServicingStatus) -> [(String, JSON)] {
        [
            ("phase", .string("\(status.phase)")),
            ("duration_ns", number(status.durationNanoseconds)),
            ("problem", .text(status.problem)),
            ("saved_at_realtime_ns", number(status.savedAtRealtimeNanoseconds)),
            ("bytes", number(status.byteCount)),
            (
                "devices",
                .array(
                    status.devices.entries.map { device in
                        .object([
                            ("name", .string(device.name)), ("step", .string(device.step.name)),
                            ("reason", .text(device.reason)),
                            ("queues", number(device.queueCount.map(UInt64.init))),
                            (
                                "commands_in_flight",
                                number(device.commandsInFlight.map(UInt64.init))
                            ),
                            ("sessions", number(device.sessionCount.map(UInt64.init))),
                            ("bytes", number(device.byteCount)),
                            ("duration_ns", number(device.durationNanoseconds)),
                        ])
                    })
            ),
        ]
    }

    private static func number(_ value: UInt64?) -> JSON { value.map { .number($0) } ?? .null }
}

extension ServicingStep {
    /// As people and scripts read it.
    var name: String { self == .notKept ? "not-kept" : "\(self)" }
}
