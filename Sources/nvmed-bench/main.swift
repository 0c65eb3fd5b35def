// SPDX-License-Identifier: Apache-2.0
// Benchmarks of nvmed; `.ci/bench` runs them all and compares.

import Glibc
import NVMeDriver

/// The value after an option, or the default.
func option(_ name: String, _ fallback: String) -> String {
    let arguments = CommandLine.arguments
    guard let index = arguments.firstIndex(of: "--" + name), index + 1 < arguments.count else {
        return fallback
    }
    return arguments[index + 1]
}

func number(_ name: String, _ fallback: Int) -> Int {
    guard let value = Int(option(name, "\(fallback)")), value > 0 else {
        die("--\(name) wants a positive number")
    }
    return value
}

func main() throws {
    switch CommandLine.arguments.dropFirst().first {
    case "instructions":
        try runInstructions(count: number("count", 64_000), depth: number("depth", 32))
    case "driver":
        let result = try runDriver(
            socket: option("socket", ""), depth: number("depth", 32),
            seconds: Double(number("seconds", 2)), operation: IOOperation.read)
        print(
            "p50_ns=\(result.p50Nanoseconds) p99_ns=\(result.p99Nanoseconds)",
            "iops=\(Int(result.iops))"
        )
    default:
        print("usage: nvmed-bench instructions [--count N] [--depth N]")
        print("       nvmed-bench driver --socket PATH [--depth N] [--seconds N]")
        exit(2)
    }
}

do {
    try main()
} catch {
    die("\(error)")
}
