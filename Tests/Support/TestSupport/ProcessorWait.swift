// SPDX-License-Identifier: Apache-2.0
// What a loaded machine adds to a measured time.

import Glibc
import Linux

/// Time for which threads were ready to run and had no processor (proc_pid_schedstat(5)).
///
/// A bound on how long something takes is a bound on the program, not on what else the machine
/// has to do: tests take this off what they measured. Where the kernel does not count it, it is 0.
public enum ProcessorWait {
    /// Of the calling thread, in nanoseconds since it began.
    public static var ofThisThread: UInt64 { read("/proc/thread-self/schedstat") }

    /// Of all threads that these processes have now, in nanoseconds since each began.
    public static func of(_ pids: [Int32]) -> UInt64 {
        var sum: UInt64 = 0
        for pid in pids {
            for thread in (try? Files.list("/proc/\(pid)/task", limit: 10_000)) ?? [] {
                sum += read("/proc/\(pid)/task/\(thread)/schedstat")
            }
        }
        return sum
    }

    /// The second of the three numbers of the file.
    private static func read(_ path: String) -> UInt64 {
        let text = String(decoding: (try? Files.read(path, limit: 256)) ?? [], as: UTF8.self)
        let fields = text.split { $0 == " " || $0 == "\n" }
        return fields.dropFirst().first.flatMap { UInt64($0) } ?? 0
    }
}
