// SPDX-License-Identifier: Apache-2.0
// nvmectl session, inspect, reload, shutdown: the service itself.

import ArgumentParser
import NVMeClient
import Wire

struct SessionCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "session", abstract: "Shows and ends sessions.",
        subcommands: [List.self, Close.self])

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Lists the open sessions.")
        @OptionGroup var global: GlobalOptions

        func run() throws {
            try global.perform(.service) {
                let sessions = try global.connect().listSessions(
                    deadlineNanoseconds: global.deadline)
                global.show([("sessions", .array(sessions.map(SessionCommand.json)))]) {
                    Text.table(
                        [
                            "ID", "DISK", "DEVICE", "ACCESS", "PID", "UID", "READ", "WRITTEN",
                            "ERRORS", "GENERATION", "ADOPTED", "LAST PAUSE", "OPENED",
                        ],
                        sessions.map {
                            [
                                "\($0.sessionID)", $0.disk, $0.device,
                                DiskCommand.access($0.access), "\($0.clientPID)",
                                "\($0.clientUID)", Text.size($0.counters.readBytes),
                                Text.size($0.counters.writtenBytes), "\($0.counters.errors)",
                                Text.generation($0.continuity), Text.adoptions($0.continuity),
                                Text.pause($0.continuity), Text.ago($0.openedNanoseconds),
                            ]
                        })
                }
            }
        }
    }

    struct Close: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Ends a session. Its client is told so and has to reopen the disk.")
        @Argument(help: "The id, as the list shows it.") var id: UInt64
        @Option(help: "Why, for the client and the log.") var reason = "closed by an operator"
        @OptionGroup var global: GlobalOptions

        func run() throws {
            try global.perform(.session(id)) {
                try global.connect().closeSession(
                    id, reason: reason, deadlineNanoseconds: global.deadline)
                global.show([("session", .object([("id", .number(id))]))]) { "" }
            }
        }
    }

    static func json(_ session: SessionInfo) -> JSON {
        let head: [(String, JSON)] = [
            ("id", .number(session.sessionID)), ("disk", .string(session.disk)),
            ("device", .text(session.device)), ("nsid", .number(UInt64(session.nsid))),
            ("access", .string(DiskCommand.access(session.access))),
            ("shared", .bool(session.shared)), ("client_pid", .signed(Int64(session.clientPID))),
            ("client_uid", .number(UInt64(session.clientUID))),
            ("opened_ns", .number(session.openedNanoseconds)),
            ("reads", .number(session.counters.reads)),
            ("writes", .number(session.counters.writes)),
            ("read_bytes", .number(session.counters.readBytes)),
            ("written_bytes", .number(session.counters.writtenBytes)),
            ("others", .number(session.counters.others)),
            ("errors", .number(session.counters.errors)),
            ("in_flight", .number(UInt64(session.counters.inFlight))),
        ]
        return .object(head + JSON.continuity(session.continuity))
    }
}

struct InspectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect",
        abstract: "Shows the values inside the service whose path begins with the given one.")
    @Argument(help: "The beginning of the paths; all when left out.") var path = ""
    @OptionGroup var global: GlobalOptions

    func run() throws {
        try global.perform(.service) {
            let entries = try global.connect().inspect(path, deadlineNanoseconds: global.deadline)
            guard !entries.isEmpty || path.isEmpty else {
                throw Failure(
                    .notFound, .service, "nothing is below '\(path)'", global.output,
                    code: "not-found", hint: "See: nvmectl inspect")
            }
            global.show([("values", .object(entries.map { ($0.path, .string($0.value)) }))]) {
                entries.map { Text.printable("\($0.path) = \($0.value)") }.joined(separator: "\n")
            }
        }
    }
}

struct ReloadCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "reload", abstract: "Has nvmed read its configuration again.")
    @OptionGroup var global: GlobalOptions

    func run() throws {
        try global.perform(.service) {
            let warnings = try global.connect().reload(deadlineNanoseconds: global.deadline)
            global.show([("warnings", .array(warnings.map { .string($0) }))]) {
                warnings.map(Text.printable).joined(separator: "\n")
            }
        }
    }
}

struct ShutdownCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "shutdown",
        abstract: "Stops nvmed in order: sessions, devices, workers, supervisor.")
    @Flag(help: "Only say what would be stopped.") var dryRun = false
    @OptionGroup var global: GlobalOptions

    func run() throws {
        try global.perform(.service) {
            let backend = try global.connect()
            guard dryRun else {
                try backend.shutdown(deadlineNanoseconds: global.deadline)
                global.show([]) { "" }
                return
            }
            let devices = try backend.listDevices(deadlineNanoseconds: global.deadline)
            let sessions = try backend.listSessions(deadlineNanoseconds: global.deadline)
            global.show([
                ("devices", .number(UInt64(devices.count))),
                ("sessions", .number(UInt64(sessions.count))),
            ]) { "would end \(sessions.count) session(s) and stop \(devices.count) device(s)" }
        }
    }
}
