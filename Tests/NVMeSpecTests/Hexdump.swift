// SPDX-License-Identifier: Apache-2.0
// Helpers of these tests: annotated hex, raw bytes of a value, seeded random bytes.

/// The bytes of a hex dump; everything from "#" to the end of a line is a note.
func bytes(_ dump: String) -> [UInt8] {
    dump.split(separator: "\n").flatMap { line in
        line.prefix { $0 != "#" }.split(separator: " ").compactMap { UInt8($0, radix: 16) }
    }
}

/// The memory of a trivial value.
func memory<Value: BitwiseCopyable>(of value: Value) -> [UInt8] {
    // SAFETY: the buffer lives for the closure, and the value has no padding.
    unsafe withUnsafeBytes(of: value) { unsafe Array($0) }
}

/// Bytes that a seed determines (splitmix64).
func randomBytes(count: Int, seed: UInt64) -> [UInt8] {
    var state = seed
    return (0..<count).map { _ in
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return UInt8(truncatingIfNeeded: mixed >> 56)
    }
}
