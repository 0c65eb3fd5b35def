// SPDX-License-Identifier: Apache-2.0
// nvmectl top: what devices, namespaces, rings and sessions are doing.

import ArgumentParser
import Linux
import NVMeClient
import Wire

struct TopCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "top",
        abstract: "Shows requests, bytes, latencies and errors, again and again.",
        discussion: """
            Latencies are those that the worker saw, of the requests that ended within the \
            interval; at most an eighth too much. Reading disturbs nobody: the numbers are in \
            memory that the workers share.
            """)

    /// What rows are about.
    enum Scope: String, ExpressibleByArgument, CaseIterable {
        case all, device, namespace, ring, queue
    }

    @Option(
        help: ArgumentHelp("Seconds between two looks, from 0.1 to 3600.", valueName: "seconds"))
    var interval = 1.0

    @Flag(help: "Show one interval and end.") var once = false

    @Option(help: "Rows of one kind: device, namespace, ring (and session), queue.")
    var by: Scope = .all

    @Option(help: "What the rows are sorted by: iops, bandwidth, latency, depth, errors, name.")
    var sort: TopRow.Order = .iops

    @Option(help: ArgumentHelp("Only this device.", valueName: "name")) var device: String?

    @OptionGroup var global: GlobalOptions

    func validate() throws {
        guard interval >= 0.1, interval <= 3600 else {
            throw ValidationError("--interval is from 0.1 to 3600 seconds.")
        }
    }

    func run() throws {
        try global.perform(device.map { .device($0) } ?? .service) {
            let clock = try EventFD()
            let devices = TopDevices(try global.connect(), device, global)
            try devices.look()
            repeat {
                // Nobody signals it: it is a wait with a bound.
                _ = try clock.fd.waitReadable(timeoutMilliseconds: Int32(interval * 1000))
                try devices.look()
                try show(devices)
            } while !once
        }
    }

    private func show(_ devices: TopDevices) throws(SystemCallError) {
        let groups = devices.groups(by, sort)
        let text: String
        switch global.output {
        case .json:
            text =
                JSON.object([
                    ("version", 1), ("interval_s", .decimal(interval)),
                    ("devices", .array(groups.map(\.json))),
                    ("waiting", .array(devices.waiting.map(DeviceCommand.json))),
                ]).text + "\n"
        case .text:
            let clear = !once && StandardStream.output.isTerminal ? "\u{1B}[H\u{1B}[2J" : ""
            let table = Text.table(TopRow.heading, groups.flatMap { $0.rows.map(\.cells) })
            let waiting = devices.waiting.map { "\n" + TopDevices.line($0) }.joined()
            text = clear + table + waiting + (once || !clear.isEmpty ? "\n" : "\n\n")
        }
        // Whoever reads may have seen enough: then this ends.
        try StandardStream.output.write(text)
    }
}

/// The devices whose statistics are mapped, and the last two looks at each.
final class TopDevices {
    private final class Mapped {
        let reader: StatisticsReader
        var earlier: StatisticsSnapshot?
        var later: StatisticsSnapshot?

        init(_ reader: consuming StatisticsReader) { self.reader = reader }

        func look() {
            earlier = later
            later = try? reader.snapshot()
            // Counting began anew.
            if earlier?.startNanoseconds != later?.startNanoseconds { earlier = nil }
        }
    }

    private let backend: NVMeBackend
    private let only: String?
    private let global: GlobalOptions
    private var mapped: [String: Mapped] = [:]
    /// Devices whose requests wait at the moment.
    private(set) var waiting: [DeviceInfo] = []
    private var infos: [String: DeviceInfo] = [:]

    init(_ backend: NVMeBackend, _ only: String?, _ global: GlobalOptions) {
        self.backend = backend
        self.only = only
        self.global = global
    }

    /// Looks at every device; those that came, went or were restarted since are taken into account.
    func look() throws {
        var found: [String: Mapped] = [:]
        let devices = try list()
        waiting = devices.filter { $0.state == .recovering || $0.state == .starting }
        infos = Dictionary(devices.map { ($0.name, $0) }, uniquingKeysWith: { $1 })
        for device in devices where device.state == .ready {
            guard let pid = device.workerPID, let known = try map(device.name, pid) else {
                continue
            }
            known.look()
            found[device.name] = known
        }
        for device in waiting { found[device.name] = mapped[device.name] }
        mapped = found
    }

    /// A device whose requests wait, in words.
    static func line(_ device: DeviceInfo) -> String {
        let reason = device.reason.isEmpty ? "" : ": \(device.reason)"
        return Text.printable(
            "\(device.name) is \(device.state) since \(Text.ago(device.sinceNanoseconds))\(reason)")
    }

    private func list() throws -> [DeviceInfo] {
        guard let only else {
            return try backend.listDevices(deadlineNanoseconds: global.deadline)
        }
        return [try backend.device(only, deadlineNanoseconds: global.deadline)]
    }

    private func map(_ name: String, _ pid: Int32) throws -> Mapped? {
        if let known = mapped[name], known.later?.pid == pid { return known }
        do {
            let fd = try backend.openStatistics(name, deadlineNanoseconds: global.deadline)
            let now = Mapped(try StatisticsReader(fd))
            // A restarted worker goes on counting where its predecessor died.
            now.later = mapped[name]?.later
            return now
        } catch let error as ClientError {
            // It may have gone just now; whoever may not look learns it.
            guard error.isRetriable || error.wireError?.code == .deviceFailed else { throw error }
            return nil
        } catch let error as StatisticsError {
            throw Failure(.failure, .device(name), error.description, global.output)
        }
    }

    /// What happened between the last two looks, in order.
    func groups(_ scope: TopCommand.Scope, _ order: TopRow.Order) -> [TopGroup] {
        let groups = mapped.compactMap { name, device -> TopGroup? in
            guard let later = device.later, infos[name]?.state == .ready else { return nil }
            return TopGroup(
                name, infos[name]?.continuity, device.earlier, later, scope, order)
        }
        return groups.sorted { order.isBefore($0.total, $1.total) }
    }
}

/// A device's rows.
struct TopGroup {
    let name: String
    let pid: Int32
    let continuity: Continuity?
    /// The device as a whole.
    let total: TopRow
    /// Its rows, the one of the device first.
    let rows: [TopRow]

    init(
        _ name: String, _ continuity: Continuity?, _ earlier: StatisticsSnapshot?,
        _ later: StatisticsSnapshot,
        _ scope: TopCommand.Scope, _ order: TopRow.Order
    ) {
        self.name = name
        self.continuity = continuity
        pid = later.pid
        // Before the first look nothing is known: everything since counting began is shown.
        let earlier =
            earlier ?? StatisticsSnapshot(startingAt: later.startNanoseconds, pid: later.pid)
        let nanoseconds = max(1, later.takenNanoseconds &- earlier.takenNanoseconds)
        func row(
            _ kind: TopRow.Kind, _ disk: String, _ before: StatisticsNumbers,
            _ after: StatisticsNumbers
        ) -> TopRow {
            TopRow(
                device: name, kind: kind, disk: disk, total: after, change: after - before,
                seconds: Double(nanoseconds) / 1e9)
        }
        total = row(.device, "", earlier.namespace(0), later.namespace(0))
        var parts: [TopRow] = []
        if scope == .all || scope == .namespace {
            parts += later.namespaceIDs.map {
                row(.namespace($0), "", earlier.namespace($0), later.namespace($0))
            }
        }
        if scope == .queue {
            parts += later.queueIDs.map {
                row(.queue($0), "", earlier.queue($0), later.queue($0))
            }
        }
        if scope == .all || scope == .ring {
            let before = Dictionary(
                earlier.blocks.map { ($0.subject, $0.numbers) }, uniquingKeysWith: { $1 })
            for (subject, numbers) in later.blocks {
                guard let kind = TopRow.Kind(subject) else { continue }
                parts.append(
                    row(kind, subject.disk, before[subject] ?? StatisticsNumbers(), numbers))
            }
        }
        parts.sort { order.isBefore($0, $1) }
        rows = scope == .all || scope == .device ? [total] + parts : parts
    }

    var json: JSON {
        .object(
            [("name", .string(name)), ("pid", .signed(Int64(pid)))]
                + JSON.continuity(continuity) + [("rows", .array(rows.map(\.json)))])
    }
}
