// SPDX-License-Identifier: Apache-2.0
// The clock of the data path: 32 bits that say when a command was pushed.

internal import Linux

/// CLOCK_MONOTONIC in units of 256 ns, cut to 32 bits: only differences count, and only those below
/// nine minutes.
public enum Tick {
    /// The longest time that a difference can tell with certainty, rounded down: a bound for
    /// time-outs.
    public static let maxMilliseconds: UInt32 = 300_000

    /// The tick of a time.
    @inline(__always)
    public static func of(nanoseconds: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: nanoseconds >> 8)
    }

    /// The tick of this moment.
    public static var now: UInt32 { of(nanoseconds: MonotonicClock.nowNanoseconds) }

    /// How many ticks a time-out has; at most those of `maxMilliseconds`.
    public static func count(milliseconds: UInt32) -> UInt32 {
        of(nanoseconds: UInt64(min(milliseconds, maxMilliseconds)) * 1_000_000)
    }
}
