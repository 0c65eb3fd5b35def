// SPDX-License-Identifier: Apache-2.0
// A range of the Dataset Management command. NVM Command Set Specification 1.0, section 3.2.3.

/// A range of blocks: 16 bytes whose fields lie in wire order, little endian.
@frozen
public struct DatasetRange: Equatable, Sendable {
    /// Context attributes; 0 says nothing.
    public var contextAttributes: UInt32
    /// Blocks in the range (not less one).
    public var blockCount: UInt32
    /// The first block.
    public var lba: UInt64

    /// A range of blocks.
    @inlinable
    public init(lba: UInt64, blockCount: UInt32, contextAttributes: UInt32 = 0) {
        self.contextAttributes = contextAttributes
        self.blockCount = blockCount
        self.lba = lba
    }

    /// Bytes of a range in the list.
    public static let byteCount = 16

    /// Ranges in the longest list.
    public static let maximumCount = 256
}

extension DatasetRange {
    /// Parses `count` ranges (at most 256); every one of them has to be there.
    public static func parseAll(
        _ bytes: [UInt8], count: Int
    ) throws(PageError) -> [DatasetRange] {
        var codec = PageCodec(reading: bytes, page: "Dataset Management range list")
        var ranges: [DatasetRange] = []
        for index in 0..<max(0, min(count, maximumCount)) {
            var range = DatasetRange(lba: 0, blockCount: 0)
            let offset = index &* byteCount
            codec.field(&range.contextAttributes, at: offset, "context attributes of \(index)")
            codec.field(&range.blockCount, at: offset &+ 4, "length of range \(index)")
            codec.field(&range.lba, at: offset &+ 8, "starting LBA of range \(index)")
            if let failure = codec.failure { throw failure }
            ranges.append(range)
        }
        return ranges
    }

    /// The ranges as they lie in memory: 16 bytes each.
    public static func encodeAll(_ ranges: [DatasetRange]) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: ranges.count &* byteCount)
        for (index, range) in ranges.enumerated() {
            let offset = index &* byteCount
            bytes.storeLittleEndian(range.contextAttributes, at: offset, byteCount: 4)
            bytes.storeLittleEndian(range.blockCount, at: offset &+ 4, byteCount: 4)
            bytes.storeLittleEndian(range.lba, at: offset &+ 8, byteCount: 8)
        }
        return bytes
    }
}
