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
    private var holes: Set<UInt64> = []
    private var holeByteCount: UInt64 = 0

    /// An empty space between two page-aligned addresses.
    public init(first: UInt64 = 1 << 32, end: UInt64 = 1 << 47) {
        self.first = first
        self.end = end
    }

    /// An empty space made of the ranges that a device can reach, which rise and are apart.
    ///
    /// What lies below 4 GiB, where firmware and interrupts have their windows, is used only when
    /// there is little above.
    public init(ranges: [ClosedRange<UInt64>]) {
        let above = Self.clipped(ranges, from: 1 << 32)
        let roomAbove = above.reduce(0) { $0 &+ ($1.upperBound &- $1.lowerBound) }
        // Never address 0: too many bugs write there.
        let usable = roomAbove >= Self.enoughAbove ? above : Self.clipped(ranges, from: 1 << 20)
        self.init(first: usable.first?.lowerBound ?? 0, end: usable.last?.upperBound ?? 0)
        for (lower, upper) in zip(usable, usable.dropFirst()) {
            used.append(lower.upperBound..<upper.lowerBound)
            holes.insert(lower.upperBound)
            holeByteCount &+= upper.lowerBound &- lower.upperBound
        }
    }

    /// Above 4 GiB this much is enough to leave everything below alone: what one worker maps.
    private static let enoughAbove: UInt64 = 64 << 30
    /// No device address needs more bits than a processor's.
    private static let highest: UInt64 = 1 << 47

    /// The whole pages of the ranges from an address on.
    private static func clipped(
        _ ranges: [ClosedRange<UInt64>], from: UInt64
    ) -> [Range<UInt64>] {
        ranges.compactMap { range in
            let lower = roundUp(max(range.lowerBound, from), pageByteCount)
            let upper = (min(range.upperBound, highest - 1) + 1) & ~(pageByteCount - 1)
            return lower >= from && lower < upper ? lower..<upper : nil
        }
    }

    /// The bytes in use.
    public var usedByteCount: UInt64 {
        used.reduce(0) { $0 + ($1.upperBound - $1.lowerBound) } - holeByteCount
    }

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

    /// Takes exactly this stretch, which a predecessor had; false when some of it is in use or
    /// cannot be reached.
    public mutating func reserve(_ address: UInt64, byteCount: UInt64) -> Bool {
        let (sum, overflow) = address.addingReportingOverflow(byteCount)
        guard !overflow, byteCount > 0, sum <= end, address >= first,
            (address | byteCount) & (Self.pageByteCount - 1) == 0
        else { return false }
        // The first stretch that does not end before this one begins.
        let index = used.firstIndex { $0.upperBound > address } ?? used.endIndex
        if index < used.endIndex, used[index].lowerBound < sum { return false }
        used.insert(address..<sum, at: index)
        return true
    }

    /// Gives back what `allocate` returned; false when no such stretch is in use.
    @discardableResult
    public mutating func release(_ address: UInt64) -> Bool {
        guard let index = used.firstIndex(where: { $0.lowerBound == address }),
            !holes.contains(address)
        else { return false }
        used.remove(at: index)
        return true
    }

    private static func roundUp(_ value: UInt64, _ multiple: UInt64) -> UInt64 {
        (value &+ (multiple &- 1)) & ~(multiple &- 1)
    }
}
