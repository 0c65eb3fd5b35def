// SPDX-License-Identifier: Apache-2.0
// What a disk has to contain while it is measured with verification.

import NVMeClient

/// One request of a measurement.
struct BenchTask {
    /// The place: requests of one size lie side by side.
    var place: UInt64
    var isWrite: Bool
    /// Which writing of the place the data is; 0: it is not looked at.
    var version: UInt32 = 0
}

/// The data of every place that was written, by the number of times it was.
///
/// The places are divided among the slots, each of which has one request in flight: so that what
/// has to be at a place is never in doubt, however many requests overlap in time.
struct BenchModel {
    /// The most places: beyond, nothing is learnt that these do not tell.
    static let placeCountMax: UInt64 = 1 << 16
    /// Makes the data of each writing another.
    private static let versionStep: UInt64 = 0xD6E8_FEB8_6659_FD93

    private let seed: UInt64
    private let byteCount: Int
    private let slotCount: Int
    private var versions: [UInt32]
    /// Where each slot is in the last pass over what it wrote.
    private var cursors: [Int]
    /// Reads whose data was compared.
    private(set) var verified: UInt64 = 0
    private(set) var written: UInt64 = 0

    /// A model of the first places of a disk; nil: there are fewer places than slots.
    init?(seed: UInt64, byteCount: Int, placeCount: UInt64, slotCount: Int) {
        let places = Int(min(placeCount, Self.placeCountMax)) / slotCount * slotCount
        guard places > 0 else { return nil }
        self.seed = seed
        self.byteCount = byteCount
        self.slotCount = slotCount
        versions = Array(repeating: 0, count: places)
        cursors = Array(0..<slotCount)
    }

    /// The next request of a slot: a write or a read of one of its places.
    mutating func next(_ slot: Int, _ random: UInt64) -> BenchTask {
        let rounds = UInt64(versions.count / slotCount)
        let place = Int((random >> 1) % rounds) * slotCount + slot
        let isWrite = versions[place] == 0 || random & 1 == 0
        if isWrite { versions[place] &+= versions[place] == .max ? 2 : 1 }
        return BenchTask(place: UInt64(place), isWrite: isWrite, version: versions[place])
    }

    /// The next place of a slot to be read once more at the end; nil: all were.
    mutating func last(_ slot: Int) -> BenchTask? {
        while cursors[slot] < versions.count {
            let place = cursors[slot]
            cursors[slot] += slotCount
            guard versions[place] > 0 else { continue }
            return BenchTask(place: UInt64(place), isWrite: false, version: versions[place])
        }
        return nil
    }

    private func pattern(_ task: BenchTask) -> DataPattern {
        DataPattern(seed: seed &+ UInt64(task.version) &* Self.versionStep)
    }

    /// Puts the data of a write, or something else for a read, into a buffer.
    func prepare(_ task: BenchTask, _ buffer: IOBuffer, offset: Int) {
        let place = task.place * UInt64(byteCount)
        if task.isWrite {
            pattern(task).fill(buffer, offset: offset, count: byteCount, diskByteOffset: place)
        } else {
            // So that a read that moved nothing is noticed.
            let other = DataPattern(seed: ~pattern(task).seed)
            other.fill(buffer, offset: offset, count: 8, diskByteOffset: place)
        }
    }

    /// Where on the disk the data of a read is not what was written last; nil: it is.
    mutating func mismatch(_ task: BenchTask, _ buffer: IOBuffer, offset: Int) -> UInt64? {
        guard !task.isWrite else {
            written += 1
            return nil
        }
        verified += 1
        return pattern(task).firstMismatch(
            buffer, offset: offset, count: byteCount,
            diskByteOffset: task.place * UInt64(byteCount))
    }
}
