// SPDX-License-Identifier: Apache-2.0
// Sizes on the command line: bytes, with K, M, G, T, or blocks of the disk with b.

import ArgumentParser

/// A size whose blocks are counted when the disk is known.
struct Size: ExpressibleByArgument {
    private let count: UInt64
    private let isBlocks: Bool
    private let written: String

    /// Bytes.
    init(byteCount: UInt64, written: String) {
        count = byteCount
        isBlocks = false
        self.written = written
    }

    init?(argument: String) {
        let shifts: [Character: UInt64] = ["K": 10, "M": 20, "G": 30, "T": 40]
        written = argument
        guard let last = argument.last else { return nil }
        let shift = shifts[last]
        isBlocks = last == "b"
        let digits = shift != nil || isBlocks ? argument.dropLast() : argument[...]
        guard !digits.isEmpty, digits.utf8.allSatisfy({ (48...57).contains($0) }),
            let number = UInt64(digits)
        else { return nil }
        let (bytes, overflow) = number.multipliedReportingOverflow(by: 1 << (shift ?? 0))
        if overflow { return nil }
        count = bytes
    }

    var defaultValueDescription: String { written }

    /// Bytes on a disk with such blocks, or nil when it is more than 64 bits.
    func byteCount(blockByteCount: Int) -> UInt64? {
        guard isBlocks else { return count }
        let (bytes, overflow) = count.multipliedReportingOverflow(by: UInt64(blockByteCount))
        return overflow ? nil : bytes
    }
}
