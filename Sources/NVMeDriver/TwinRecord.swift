// SPDX-License-Identifier: Apache-2.0
// A record of the state area that changes: two copies, and a selector that says which one counts.
//
//   0…n-1    copy 0
//   n…2n-1   copy 1
//   2n       selector: sequence (32) | CRC-32C of the sequence and the chosen copy, keyed (32)
//
// The copy of a sequence number is its lowest bit. A write fills the copy that does not count and
// then, by one store, changes the selector. So a process that dies between any two instructions
// leaves the old content or the new one, and any changed bit of what counts is seen.

internal import CMemory

/// A record of `wordCount` 64-bit words in memory that outlives this process.
@safe
struct TwinRecord {
    /// What a record holds.
    enum Content: Equatable {
        /// Nothing was ever written.
        case empty
        /// The words that were written last.
        case words([UInt64])
        /// Something else than `write` has changed it.
        case damaged
    }

    private let base: UnsafeMutableRawPointer
    private let wordCount: Int
    private let key: UInt32

    /// Bytes of a record.
    static func byteCount(words: Int) -> Int { (2 * words + 1) * 8 }

    /// A record at `base`; `key` tells it from all others.
    init(base: UnsafeMutableRawPointer, wordCount: Int, key: UInt32) {
        unsafe self.base = base
        self.wordCount = wordCount
        self.key = key
    }

    private var selector: UnsafeMutableRawPointer { unsafe base + 2 * wordCount * 8 }

    private func copy(_ sequence: UInt32) -> UnsafeMutableRawPointer {
        unsafe base + Int(sequence & 1) * wordCount * 8
    }

    private func seal(_ sequence: UInt32) -> UInt64 {
        let copy = unsafe copy(sequence)
        var crc = nv_crc32c_64(key, UInt64(sequence))
        for word in 0..<wordCount { crc = nv_crc32c_64(crc, unsafe nv_load64(copy + word * 8)) }
        return UInt64(sequence) | UInt64(crc) << 32
    }

    /// What the record holds.
    func read() -> Content {
        let selected = unsafe nv_load64(selector)
        guard selected != 0 else { return .empty }
        let sequence = UInt32(truncatingIfNeeded: selected)
        guard seal(sequence) == selected else { return .damaged }
        let copy = unsafe copy(sequence)
        return .words((0..<wordCount).map { unsafe nv_load64(copy + $0 * 8) })
    }

    /// The words that were written last; nil when there are none, or they are damaged.
    var words: [UInt64]? {
        if case .words(let words) = read() { words } else { nil }
    }

    /// Replaces the words; those that are missing are 0.
    func write(_ words: [UInt64]) {
        // 0 is what a record has that was never written.
        let next = max(UInt32(truncatingIfNeeded: unsafe nv_load64(selector)) &+ 1, 1)
        let copy = unsafe copy(next)
        for word in 0..<wordCount {
            unsafe nv_store64(copy + word * 8, word < words.count ? words[word] : 0)
        }
        nv_dma_wmb()
        unsafe nv_store64(selector, seal(next))
    }
}

/// Two 32-bit positions that change together: what a ring has taken and what it has completed. A
/// `TwinRecord` of one word, without arrays, for the data path.
@safe
struct TwinPositions {
    /// Bytes of the record.
    static let byteCount = 24

    private let base: UnsafeMutableRawPointer
    private let key: UInt32
    private var sequence: UInt32

    /// The record at `base`, to be written by this process from now on.
    init(base: UnsafeMutableRawPointer, key: UInt32) {
        unsafe self.base = base
        self.key = key
        sequence = UInt32(truncatingIfNeeded: unsafe nv_load64(base + 16))
    }

    /// Replaces both.
    @inline(__always)
    mutating func write(head: UInt32, tail: UInt32) {
        #if !NVMED_WITHOUT_LOG
            sequence = sequence &+ 1
            // 0 is what a record has that was never written.
            if sequence == 0 { sequence = 2 }
            let word = UInt64(head) | UInt64(tail) << 32
            unsafe nv_store64(base + Int(sequence & 1) &* 8, word)
            let crc = Checksum.step(Checksum.step(UInt64(key), UInt64(sequence)), word)
            nv_dma_wmb()
            unsafe nv_store64(base + 16, UInt64(sequence) | crc << 32)
        #endif
    }

    /// What was written last; nil when there is nothing, or it is damaged.
    static func read(
        at base: UnsafeMutableRawPointer, key: UInt32
    ) -> (head: UInt32, tail: UInt32)? {
        guard let word = unsafe TwinRecord(base: base, wordCount: 1, key: key).words?.first else {
            return nil
        }
        return (UInt32(truncatingIfNeeded: word), UInt32(truncatingIfNeeded: word >> 32))
    }
}
