// SPDX-License-Identifier: Apache-2.0
// One row of nvmectl top: somebody's numbers within an interval.

import ArgumentParser
import NVMeClient

struct TopRow {
    /// Whom it is about.
    enum Kind: Equatable {
        case device
        case namespace(UInt32)
        case queue(UInt32)
        case ring(session: UInt64, ring: UInt32)
        case session(UInt64)

        /// A ring or a session; nil for others.
        init?(_ subject: StatisticsSubject) {
            switch subject.kind {
            case .ring: self = .ring(session: subject.sessionID, ring: subject.ringID)
            case .session: self = .session(subject.sessionID)
            case .queue, .namespace: return nil
            }
        }

        var text: String {
            switch self {
            case .device: "device"
            case .namespace(let id): "namespace \(id)"
            case .queue(let id): "queue \(id)"
            case .ring(let session, let ring): "ring \(session)/\(ring)"
            case .session(let id): "session \(id)"
            }
        }

        /// Wholes come before their parts.
        var rank: Int {
            switch self {
            case .device: 0
            case .namespace: 1
            case .queue: 2
            case .ring: 3
            case .session: 4
            }
        }
    }

    /// What rows are sorted by; most first, but for names.
    enum Order: String, ExpressibleByArgument, CaseIterable {
        case iops, bandwidth, latency, depth, errors, name

        func isBefore(_ first: TopRow, _ second: TopRow) -> Bool {
            let (a, b) = (value(first), value(second))
            if a != b { return a > b }
            if first.device != second.device { return first.device < second.device }
            if first.kind.rank != second.kind.rank { return first.kind.rank < second.kind.rank }
            return first.kind.text < second.kind.text
        }

        private func value(_ row: TopRow) -> Double {
            switch self {
            case .iops: row.iops
            case .bandwidth: row.bytesPerSecond
            case .latency: Double(row.change.all.percentile(0.99) ?? 0)
            case .depth: Double(row.total.inFlight)
            case .errors: Double(row.change.errors)
            case .name: 0
            }
        }
    }

    let device: String
    let kind: Kind
    let disk: String
    /// Everything since counting began.
    let total: StatisticsNumbers
    /// What happened within the interval.
    let change: StatisticsNumbers
    /// The interval.
    let seconds: Double

    var iops: Double { Double(change.all.count) / seconds }
    var bytesPerSecond: Double { Double(change.bytesRead + change.bytesWritten) / seconds }

    static let heading = [
        "DEVICE", "WHAT", "DISK", "IOPS", "READ MB/s", "WRITE MB/s", "P50", "P99", "P99.9",
        "DEPTH", "ERRORS",
    ]

    var cells: [String] {
        let all = change.all
        func time(_ share: Double) -> String { all.percentile(share).map(Text.duration) ?? "-" }
        return [
            device, kind.text, disk, "\(UInt64(iops))", Self.megabytes(change.bytesRead, seconds),
            Self.megabytes(change.bytesWritten, seconds), time(0.5), time(0.99), time(0.999),
            "\(total.inFlight)", "\(change.errors)",
        ]
    }

    private static func megabytes(_ bytes: UInt64, _ seconds: Double) -> String {
        let tenths = (Double(bytes) / seconds / 1e5).rounded()
        return String(tenths / 10)
    }

    var json: JSON {
        let head: [(String, JSON)] = [
            ("what", .string(kind.text)), ("disk", .text(disk)), ("iops", .decimal(iops)),
            ("bytes_read_per_s", .decimal(Double(change.bytesRead) / seconds)),
            ("bytes_written_per_s", .decimal(Double(change.bytesWritten) / seconds)),
            ("in_flight", .number(total.inFlight)),
            ("latency", Self.latencies(change)),
            ("interval", Self.counters(change)), ("total", Self.counters(total)),
        ]
        return .object(head)
    }

    private static func latencies(_ numbers: StatisticsNumbers) -> JSON {
        .object(
            [
                ("all", numbers.all), ("read", numbers.reads), ("write", numbers.writes),
                ("other", numbers.others),
            ].map { name, histogram in
                (
                    name,
                    .object(
                        [("p50_ns", 0.5), ("p99_ns", 0.99), ("p99_9_ns", 0.999)].map { key, share in
                            (key, histogram.percentile(share).map { JSON.number($0) } ?? .null)
                        })
                )
            })
    }

    private static func counters(_ numbers: StatisticsNumbers) -> JSON {
        .object([
            ("submitted", .number(numbers.submitted)),
            ("reads", .number(numbers.reads.count)), ("writes", .number(numbers.writes.count)),
            ("others", .number(numbers.others.count)), ("flushes", .number(numbers.flushes)),
            ("errors", .number(numbers.errors)), ("bytes_read", .number(numbers.bytesRead)),
            ("bytes_written", .number(numbers.bytesWritten)),
            ("bounced", .number(numbers.bounced)), ("limited", .number(numbers.limited)),
            ("kicks", .number(numbers.kicks)), ("wakes", .number(numbers.wakes)),
            ("doorbells", .number(numbers.doorbells)), ("rounds", .number(numbers.rounds)),
            ("spins", .number(numbers.spins)), ("sleeps", .number(numbers.sleeps)),
            ("interrupts", .number(numbers.interrupts)),
        ])
    }
}
