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

/// Prints what `.ci/bench` reads.
func show(_ result: DriverResult) {
    print(
        "p50_ns=\(result.p50Nanoseconds) p99_ns=\(result.p99Nanoseconds) iops=\(Int(result.iops))")
}

func main() throws {
    switch CommandLine.arguments.dropFirst().first {
    case "instructions":
        try runInstructions(
            count: number("count", 64_000), depth: number("depth", 32),
            segments: min(512, max(0, Int(option("segments", "0")) ?? 0)))
    case "driver":
        let before = Usage.now(worker: nil)
        let seconds = Double(number("seconds", 2))
        let result = try runDriver(
            socket: option("socket", ""), depth: number("depth", 32), seconds: seconds,
            operation: IOOperation.read)
        let used = Usage.now(worker: nil).client - before.client
        show(result)
        print("cpu_ps_per_io=\(UInt64(Double(used) * 1000 / max(1, result.iops * seconds)))")
    case "rpc":
        show(
            try runService(
                socket: option("socket", ""), disk: option("disk", ""),
                depth: number("depth", 1), seconds: Double(number("seconds", 2)),
                registered: option("memory", "inline") == "registered"))
    case "ring":
        try runRing(
            RingJob(
                socket: option("socket", ""), disk: option("disk", ""), depth: number("depth", 1),
                seconds: Double(number("seconds", 2)), count: Int(option("count", "0")) ?? 0,
                cpu: Int(option("cpu", "")), spinNanoseconds: UInt64(option("spin", "50000")) ?? 0,
                idleSeconds: Int(option("idle", "0")) ?? 0))
    case "worker":
        let result = try runWorker(
            program: option("program", ""), deviceSocket: option("socket", ""),
            directory: option("directory", "/tmp"))
        print("ready_ns=\(result.readyNanoseconds) resident_kib=\(result.residentKiB)")
    case "soak-client": try runSoakClient()
    case "crowd": try runCrowd()
    case "memory": show(try runMemoryFloor(seconds: Double(number("seconds", 1))))
    case "socket": show(try runSocketFloor(seconds: Double(number("seconds", 1))))
    default:
        print("usage: nvmed-bench instructions [--count N] [--depth N] [--segments N]")
        print("       nvmed-bench driver [--socket PATH] [--depth N] [--seconds N]")
        print("       nvmed-bench rpc --socket PATH --disk NAME [--depth N] [--seconds N]")
        print("                       [--memory inline|registered]")
        print("       nvmed-bench ring --socket PATH --disk NAME [--depth N] [--seconds N]")
        print("                       [--count N] [--cpu N] [--spin NANOSECONDS] [--idle SECONDS]")
        print("       nvmed-bench worker --program PATH --socket PATH [--directory DIR]")
        print("       nvmed-bench socket|memory [--seconds N]")
        print("       nvmed-bench soak-client ...   (.ci/soak and .ci/crash say how)")
        print("       nvmed-bench crowd --socket PATH --disk NAME --stop FILE [--sessions N]")
        print("                       [--regions N] [--rings N]")
        exit(2)
    }
}

do {
    try main()
} catch {
    die("\(error)")
}
