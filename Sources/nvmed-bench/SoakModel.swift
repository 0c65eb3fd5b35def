// SPDX-License-Identifier: Apache-2.0
// A model of a stretch of a disk that outlives its client: what each block may hold, exactly.
//
// The model is a file, shared with the program that kills (`.ci/soak`, `.ci/crash`): 64-bit words
// of control and counters first, the first message at 1024, the history of each block from 4096 on.
// A client that is killed leaves its writes in the history as begun; its successor goes on from
// there.
//
// A block is one logical block, which NVMe writes whole. Each write has a begin and an end by a
// clock that counts events, so that order is exact. A read that began at `r` may return the write
// `w` unless another write began after `w` ended, and ended before `r` began. Nothing else is
// allowed: neither an older write (lost, or done again later), nor a mixture.

import CMemory
import Glibc
import Linux

/// The words of a model's first page.
enum SoakWord: Int {
    /// 0 run, 1 drain and wait, 2 drain, verify everything and exit.
    case command = 0
    /// 0 starting, 1 running, 2 drained, 3 verified.
    case state = 1
    /// Kills so far, and when the last one was (CLOCK_MONOTONIC, ns): written before the signal.
    case killIndex = 2
    case killTime = 3
    /// The kill whose pause is in `pause`: from it to the first completion of a request that was
    /// submitted after it.
    case seenKill = 4
    case pauseNanoseconds = 5
    case clock = 6
    case nextSequence = 7
    case isInitialized = 8
    case requests = 16
    case errors = 17
    /// Requests that never completed.
    case lost = 18
    /// Completions of rings that nothing waited for. (Replies to messages may come twice.)
    case doubled = 19
    case corrupt = 20
    /// Reads that returned a write which others had replaced.
    case stale = 21
    case bytesIssued = 22
    case bytesAcknowledged = 23
    case duplicateReplies = 24
    case stalled = 25
    case resumed = 26
    case reopened = 27
    case controlOperations = 28
    case longestNanoseconds = 29
    case blocksChecked = 30
    /// Writes of a dead client of which only reading tells what became.
    case uncertain = 31
    /// Sessions that ended where that was to be expected, and requests that were then repeated.
    case ended = 32
    case repeated = 33
}

/// What a read may have returned.
enum SoakVerdict {
    case allowed
    case stale(String)
    case corrupt(String)
}

/// The model. One thread.
@safe
final class SoakModel {
    /// Writes of one block that are kept; more are not begun.
    static let historyCount = 12
    private static let entryByteCount = 24
    private static let historyOffset = 4096
    private static let messageOffset = 1024
    private static let messageByteCount = 2048
    private static let isPresent: UInt64 = 1
    private static let isZero: UInt64 = 2
    private static let isUncertain: UInt64 = 4
    private static let magic: UInt64 = 0x6E76_6D65_642D_736B

    let blockCount: Int
    let blockByteCount: Int
    let firstBlock: UInt64
    private let base: UnsafeMutableRawPointer

    /// Maps a model's file; the file has room for it.
    init(path: String, firstBlock: UInt64, blockCount: Int, blockByteCount: Int) throws {
        self.blockCount = blockCount
        self.blockByteCount = blockByteCount
        self.firstBlock = firstBlock
        let byteCount = Self.historyOffset + blockCount * Self.historyCount * Self.entryByteCount
        let file = try OwnedFD.open(path, flags: O_RDWR)
        let mapping = try Mapping(file, byteCount: byteCount)
        unsafe base = mapping.leak()
        if self[.isInitialized] == 0 { initialize() }
    }

    private func initialize() {
        self[.clock] = 2
        self[.nextSequence] = 1
        for block in 0..<blockCount {
            // A device in memory starts with zeroes.
            unsafe nv_store64(entry(block, 0) + 8, 1)
            unsafe nv_store64(entry(block, 0) + 16, 1)
            unsafe nv_store64(entry(block, 0), Self.isPresent | Self.isZero)
        }
        self[.isInitialized] = 1
    }

    subscript(_ word: SoakWord) -> UInt64 {
        get { unsafe nv_load_acquire64(base + word.rawValue * 8) }
        set { unsafe nv_store_release64(base + word.rawValue * 8, newValue) }
    }

    /// Counts something bad; the first is told in words.
    func report(_ word: SoakWord, _ message: String, count: UInt64 = 1) {
        self[word] &+= count
        guard unsafe nv_load8(base + Self.messageOffset) == 0 else { return }
        for (index, byte) in message.utf8.prefix(Self.messageByteCount - 1).enumerated() {
            unsafe nv_store8(base + Self.messageOffset + index, byte)
        }
    }

    /// The next moment.
    func tick() -> UInt64 {
        self[.clock] &+= 1
        return self[.clock]
    }

    func takeSequence() -> UInt64 {
        self[.nextSequence] &+= 1
        return self[.nextSequence]
    }

    private func entry(_ block: Int, _ index: Int) -> UnsafeMutableRawPointer {
        unsafe base + Self.historyOffset
            + (block * Self.historyCount + index) * Self.entryByteCount
    }

    private func load(_ block: Int, _ index: Int) -> SoakEntry? {
        let place = unsafe entry(block, index)
        let word = unsafe nv_load64(place)
        guard word & Self.isPresent != 0 else { return nil }
        return SoakEntry(
            sequence: word >> 8, isZero: word & Self.isZero != 0,
            isUncertain: word & Self.isUncertain != 0, begin: unsafe nv_load64(place + 8),
            end: unsafe nv_load64(place + 16))
    }

    // MARK: Writes

    /// Whether each block of a range can remember one more write. Forgets what no read in flight
    /// can return any more.
    func hasRoom(_ blocks: Range<Int>, oldestRead: UInt64) -> Bool {
        for block in blocks {
            forget(block, oldestRead)
            guard (0..<Self.historyCount).contains(where: { load(block, $0) == nil }) else {
                return false
            }
        }
        return true
    }

    private func forget(_ block: Int, _ oldestRead: UInt64) {
        // The write that began last among those that no read in flight can precede.
        var latest: UInt64 = 0
        for index in 0..<Self.historyCount {
            guard let other = load(block, index), !other.isUncertain, other.end != 0,
                other.end < oldestRead
            else { continue }
            latest = max(latest, other.begin)
        }
        for index in 0..<Self.historyCount {
            guard let old = load(block, index), old.end != 0, old.end < latest else { continue }
            unsafe nv_store64(entry(block, index), 0)
        }
    }

    /// A write of a range begins; each block has room.
    func begin(_ blocks: Range<Int>, sequence: UInt64, isZero: Bool) {
        let now = tick()
        for block in blocks {
            for index in 0..<Self.historyCount where load(block, index) == nil {
                let place = unsafe entry(block, index)
                unsafe nv_store64(place + 8, now)
                unsafe nv_store64(place + 16, 0)
                // Last: a client that is killed before has not begun.
                unsafe nv_store_release64(
                    place, sequence << 8 | Self.isPresent | (isZero ? Self.isZero : 0))
                break
            }
        }
    }

    /// A write was acknowledged, or ended without it being known whether it was done.
    func end(_ blocks: Range<Int>, sequence: UInt64, isUncertain: Bool) {
        let now = tick()
        for block in blocks {
            for index in 0..<Self.historyCount {
                guard let entry = load(block, index), entry.sequence == sequence else { continue }
                close(block, index, at: now, isUncertain: isUncertain)
            }
        }
    }

    private func close(_ block: Int, _ index: Int, at now: UInt64, isUncertain: Bool) {
        let place = unsafe entry(block, index)
        if isUncertain { unsafe nv_store64(place, nv_load64(place) | Self.isUncertain) }
        unsafe nv_store_release64(place + 16, now)
    }

    /// A write was never taken: it must not show.
    func withdraw(_ blocks: Range<Int>, sequence: UInt64) {
        for block in blocks {
            for index in 0..<Self.historyCount where load(block, index)?.sequence == sequence {
                unsafe nv_store64(entry(block, index), 0)
            }
        }
    }

    /// Nothing of a predecessor is in flight any more: what it began has happened by now, or never
    /// will.
    func settle() {
        let now = tick()
        for block in 0..<blockCount {
            for index in 0..<Self.historyCount {
                guard let entry = load(block, index), entry.end == 0 else { continue }
                self[.uncertain] &+= 1
                close(block, index, at: now, isUncertain: true)
            }
        }
    }

    // MARK: Contents

    private func word(_ block: Int, _ sequence: UInt64, _ index: Int) -> UInt64 {
        var mixed = sequence &* 0x9E37_79B9_7F4A_7C15 &+ (firstBlock &+ UInt64(block)) << 20
        mixed &+= UInt64(index) &* 0xBF58_476D_1CE4_E5B9
        return mixed ^ (mixed >> 29)
    }

    /// Fills a block's bytes with what its write of this number has.
    func fill(_ block: Int, sequence: UInt64, at place: UnsafeMutableRawPointer) {
        unsafe store(place, 0, Self.magic)
        unsafe store(place, 1, firstBlock &+ UInt64(block))
        unsafe store(place, 2, sequence)
        for index in 3..<blockByteCount / 8 {
            unsafe store(place, index, word(block, sequence, index))
        }
    }

    /// Makes sure that what stands there is not taken for a read's data.
    func spoil(at place: UnsafeMutableRawPointer) {
        unsafe store(place, 0, 0xDEAD_DEAD_DEAD_DEAD)
        unsafe store(place, blockByteCount / 8 - 1, 0xDEAD_DEAD_DEAD_DEAD)
    }

    // A place may have any alignment.
    private func store(_ place: UnsafeMutableRawPointer, _ index: Int, _ value: UInt64) {
        unsafe place.storeBytes(of: value, toByteOffset: index * 8, as: UInt64.self)
    }

    private func value(_ place: UnsafeRawPointer, _ index: Int) -> UInt64 {
        unsafe place.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self)
    }

    /// Judges a block that a read returned; `begin` is when the read began.
    func check(
        _ block: Int, at place: UnsafeRawPointer, begin: UInt64, oldestRead: UInt64
    ) -> SoakVerdict {
        self[.blocksChecked] &+= 1
        let words = blockByteCount / 8
        var sequence: UInt64?
        if unsafe value(place, 0) == 0 {
            for index in 0..<words where unsafe value(place, index) != 0 {
                return .corrupt("\(name(block)) is zero up to word \(index)")
            }
        } else {
            guard unsafe value(place, 0) == Self.magic else {
                let text = String(unsafe value(place, 0), radix: 16)
                return .corrupt("\(name(block)) begins with \(text)")
            }
            let found = unsafe value(place, 1)
            guard found == firstBlock &+ UInt64(block) else {
                return .corrupt("\(name(block)) holds what belongs to block \(found)")
            }
            let claimed = unsafe value(place, 2)
            for index in 3..<words where unsafe value(place, index) != word(block, claimed, index) {
                return .corrupt("\(name(block)) is write \(claimed) only up to word \(index)")
            }
            sequence = claimed
        }
        return judge(block, sequence, begin, oldestRead)
    }

    private func judge(
        _ block: Int, _ sequence: UInt64?, _ begin: UInt64, _ oldestRead: UInt64
    ) -> SoakVerdict {
        var latest: UInt64 = 0
        var newestEnd: UInt64 = 0
        for index in 0..<Self.historyCount {
            guard let entry = load(block, index) else { continue }
            newestEnd = max(newestEnd, entry.end == 0 ? .max : entry.end)
            if entry.end != 0, !entry.isUncertain, entry.end < begin {
                latest = max(latest, entry.begin)
            }
        }
        var match: Int?
        for index in 0..<Self.historyCount {
            guard let entry = load(block, index) else { continue }
            let isSame = sequence.map { !entry.isZero && entry.sequence == $0 } ?? entry.isZero
            if isSame, entry.end == 0 || entry.end >= latest { match = index }
        }
        guard let match else {
            let what = sequence.map { "write \($0)" } ?? "zeroes"
            return .stale("\(name(block)) holds \(what), allowed is \(describe(block))")
        }
        // Every write is over and no other read is older: the block has this value from now on.
        if newestEnd < min(begin, oldestRead) {
            for index in 0..<Self.historyCount where index != match {
                unsafe nv_store64(entry(block, index), 0)
            }
            let place = unsafe entry(block, match)
            unsafe nv_store64(place, nv_load64(place) & ~Self.isUncertain)
        }
        return .allowed
    }

    private func name(_ block: Int) -> String { "block \(firstBlock &+ UInt64(block))" }

    private func describe(_ block: Int) -> String {
        (0..<Self.historyCount).compactMap { load(block, $0) }.map {
            "\($0.isZero ? "zeroes" : "write") \($0.sequence) "
                + "[\($0.begin), \($0.end == 0 ? "…" : "\($0.end)")]\($0.isUncertain ? "?" : "")"
        }.joined(separator: ", ")
    }
}

/// A write that a block remembers.
struct SoakEntry {
    var sequence: UInt64
    var isZero: Bool
    var isUncertain: Bool
    var begin: UInt64
    /// 0: not over.
    var end: UInt64
}
