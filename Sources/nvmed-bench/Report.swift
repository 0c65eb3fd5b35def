// SPDX-License-Identifier: Apache-2.0
// Latencies, and the end of a benchmark that cannot go on.

import Glibc

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
