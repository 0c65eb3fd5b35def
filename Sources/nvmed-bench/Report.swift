// SPDX-License-Identifier: Apache-2.0
// What a benchmark prints: one JSON object a line.

import Glibc

/// One measured figure.
struct Figure {
    var name: String
    var value: Double
    var unit: String
    /// What it is compared with, measured in the same run or a fixed budget; nil when there is
    /// nothing to compare.
    var baseline: Double?
    /// How to measure it again.
    var command: String

    /// The line: {name, value, unit, baseline, ratio, command}.
    var line: String {
        let ratio = baseline.flatMap { $0 == 0 ? nil : value / $0 }
        return "{\"name\":\"\(name)\",\"value\":\(Self.number(value)),\"unit\":\"\(unit)\","
            + "\"baseline\":\(Self.number(baseline)),\"ratio\":\(Self.number(ratio)),"
            + "\"command\":\"\(command)\"}"
    }

    private static func number(_ value: Double?) -> String {
        guard let value, value.isFinite else { return "null" }
        let thousandths = (value * 1000).rounded() / 1000
        return thousandths == thousandths.rounded() && abs(thousandths) < 1e15
            ? "\(Int(thousandths))" : "\(thousandths)"
    }
}

/// Latencies, sorted when asked.
struct Latencies {
    private var nanoseconds: [UInt64] = []

    init(capacity: Int) { nanoseconds.reserveCapacity(capacity) }

    mutating func add(_ value: UInt64) {
        // Bounded: the first ten million are enough for any percentile here.
        if nanoseconds.count < 10_000_000 { nanoseconds.append(value) }
    }

    /// The value below which `fraction` of all lie.
    mutating func percentile(_ fraction: Double) -> UInt64 {
        guard !nanoseconds.isEmpty else { return 0 }
        nanoseconds.sort()
        let index = Int((Double(nanoseconds.count - 1) * fraction).rounded())
        return nanoseconds[index]
    }
}

/// Ends the program with a message.
func die(_ message: String) -> Never {
    print("nvmed-bench: \(message)")
    exit(1)
}
