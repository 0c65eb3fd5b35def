// SPDX-License-Identifier: Apache-2.0
// The monotonic clock.

internal import CLinux

/// CLOCK_MONOTONIC.
public enum MonotonicClock {
    /// Nanoseconds since some fixed point.
    public static var nowNanoseconds: UInt64 { nv_monotonic_ns() }
}
