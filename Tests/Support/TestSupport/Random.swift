// SPDX-License-Identifier: Apache-2.0
// Randomness that a seed replays.

import Glibc
import Linux

/// The seed of this run: `SEED` in the environment replays one.
public func seed() -> UInt64 {
    let seed = environmentNumber("SEED") ?? MonotonicClock.nowNanoseconds
    print("SEED=\(seed)")
    return seed
}

/// A number from the environment, as .ci/random-tests sets it.
public func environmentNumber(_ name: String) -> UInt64? {
    // SAFETY: the tests do not change their environment.
    unsafe getenv(name).flatMap { unsafe UInt64(String(cString: $0)) }
}

/// Steele, Lea and Flood's SplitMix64: small, seedable, good enough for tests.
public struct SplitMix64: Sendable {
    /// The generator's only state.
    public var state: UInt64

    /// A generator that starts at a seed.
    public init(state: UInt64) { self.state = state }

    /// The next 64 bits.
    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
