// SPDX-License-Identifier: Apache-2.0
// Data that a seed and a place on the disk determine, for writing and verifying without a copy.

/// A pattern: each 8 bytes of the disk have one value, which depends on the seed and the byte
/// offset.
public struct DataPattern: Sendable, Hashable {
    /// The seed.
    public let seed: UInt64

    /// The pattern of a seed.
    public init(seed: UInt64) { self.seed = seed }

    /// The little-endian word at a byte offset that is a multiple of 8 (SplitMix64's mixer).
    @inline(__always)
    public func word(at diskByteOffset: UInt64) -> UInt64 {
        var mixed = (diskByteOffset >> 3 &+ 1) &* 0x9E37_79B9_7F4A_7C15 &+ seed
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }

    /// Fills whole words of a part of a buffer; offsets and count are multiples of 8.
    public func fill(_ buffer: IOBuffer, offset: Int, count: Int, diskByteOffset: UInt64) {
        let part = unsafe buffer.slice(offset, count)
        for index in stride(from: 0, to: count & ~7, by: 8) {
            unsafe part.storeBytes(
                of: word(at: diskByteOffset &+ UInt64(index)).littleEndian, toByteOffset: index,
                as: UInt64.self)
        }
    }

    /// The byte offset on the disk of the first word that differs; nil when none does.
    public func firstMismatch(
        _ buffer: IOBuffer, offset: Int, count: Int, diskByteOffset: UInt64
    ) -> UInt64? {
        let part = unsafe buffer.slice(offset, count)
        for index in stride(from: 0, to: count & ~7, by: 8) {
            let found = unsafe part.loadUnaligned(fromByteOffset: index, as: UInt64.self)
            let place = diskByteOffset &+ UInt64(index)
            if found != word(at: place).littleEndian { return place }
        }
        return nil
    }
}
