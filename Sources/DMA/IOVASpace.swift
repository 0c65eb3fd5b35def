// SPDX-License-Identifier: Apache-2.0
// I/O virtual addresses: which stretches of the device's address space are in use.

/// Hands out I/O virtual addresses, page by page, first fit; free neighbours merge by construction.
///
/// A value: the addresses in use are a sorted list, so that the space can be rebuilt from a table
/// of regions.
public struct IOVASpace: Sendable {
    /// The granularity of every address and length.
    public static let pageByteCount: UInt64 = 4096

    private let first: UInt64
    private let end: UInt64
    private var used: [Range<UInt64>] = []

    /// An empty space between two page-aligned addresses.
    public init(first: UInt64 = 1 << 32, end: UInt64 = 1 << 47) {
        self.first = first
        self.end = end
    }

    /// The bytes in use.
    public var usedByteCount: UInt64 { used.reduce(0) { $0 + UInt64($1.count) } }

    /// Takes the first gap of `byteCount` bytes at a multiple of `alignment` (a power of two); nil
    /// when none fits.
    public mutating func allocate(byteCount: UInt64, alignment: UInt64 = pageByteCount) -> UInt64? {
        guard byteCount > 0, byteCount <= end - first else { return nil }
        let length = Self.roundUp(byteCount, Self.pageByteCount)
        var candidate = Self.roundUp(first, alignment)
        for (index, range) in used.enumerated() {
            if range.lowerBound >= candidate, range.lowerBound - candidate >= length {
                used.insert(candidate..<(candidate + length), at: index)
                return candidate
            }
            candidate = max(candidate, Self.roundUp(range.upperBound, alignment))
        }
        guard candidate <= end, end - candidate >= length else { return nil }
        used.append(candidate..<(candidate + length))
        return candidate
    }

    /// Gives back what `allocate` returned; false when no such stretch is in use.
    @discardableResult
    public mutating func release(_ address: UInt64) -> Bool {
        guard let index = used.firstIndex(where: { $0.lowerBound == address }) else { return false }
        used.remove(at: index)
        return true
    }

    private static func roundUp(_ value: UInt64, _ multiple: UInt64) -> UInt64 {
        (value &+ (multiple &- 1)) & ~(multiple &- 1)
    }
}
