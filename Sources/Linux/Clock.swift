// SPDX-License-Identifier: Apache-2.0
// The clocks.

internal import CLinux
internal import Glibc

/// CLOCK_MONOTONIC.
public enum MonotonicClock {
    /// Nanoseconds since some fixed point.
    public static var nowNanoseconds: UInt64 { nv_monotonic_ns() }
}

/// CLOCK_REALTIME.
public enum RealtimeClock {
    /// Nanoseconds since 1970; 0 when the clock stands before.
    public static var nowNanoseconds: UInt64 {
        var now = timespec()
        guard unsafe clock_gettime(CLOCK_REALTIME, &now) == 0 else { return 0 }
        return UInt64(clamping: now.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: now.tv_nsec)
    }
}
