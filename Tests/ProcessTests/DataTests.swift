// SPDX-License-Identifier: Apache-2.0
// Random writes, reads and verifies over whole disks: no difference, ever. SEED= replays a run.

import Glibc
import Linux
import NVMeClient
import TestSupport
import Testing

/// What a disk must contain, and operations that keep to it.
struct Model {
    let disk: Disk
    var random: SplitMix64
    let shadow: IOBuffer
    let buffer: IOBuffer
    private(set) var writtenByteCount = 0

    static let byteCountMax = 8 << 20

    init(_ disk: Disk, random: SplitMix64, registered: Bool) throws {
        self.disk = disk
        self.random = random
        shadow = try IOBuffer(byteCount: Int(disk.byteCount))
        // Room for any alignment of the data in the buffer.
        buffer = try IOBuffer(byteCount: Self.byteCountMax + 8192)
        if registered { try disk.registerMemory(buffer) }
        try disk.writeZeroes(byteOffset: 0, byteCount: disk.byteCount)
    }

    /// A range of one block to 8 MiB, small ones as often as large ones.
    private mutating func range() -> (offset: UInt64, count: Int, bufferOffset: Int) {
        let block = disk.blockByteCount
        let exponent = random.next() % 15
        let most = min(Self.byteCountMax / block, 1 << Int(exponent))
        let blocks = 1 + Int(random.next() % UInt64(most))
        let places = disk.byteCount / UInt64(block) - UInt64(blocks) + 1
        let offset = random.next() % places * UInt64(block)
        return (offset, blocks * block, Int(random.next() % 2048) * 4)
    }

    /// One random operation; the offset at which the disk differs, or nil.
    mutating func step() throws -> UInt64? {
        let (offset, count, bufferOffset) = range()
        switch random.next() % 8 {
        case 0: try disk.flush()
        case 1:
            try disk.writeZeroes(byteOffset: offset, byteCount: UInt64(count))
            shadow.zero(Int(offset), count)
        case 2...4:
            DataPattern(seed: random.next()).fill(
                buffer, offset: bufferOffset, count: count, diskByteOffset: offset)
            try disk.write(
                from: buffer, bufferOffset: bufferOffset, byteOffset: offset, byteCount: count,
                fua: random.next() % 4 == 0)
            shadow.copy(Int(offset), count, from: buffer, bufferOffset)
            writtenByteCount += count
        default: return try check(offset, count, bufferOffset)
        }
        return nil
    }

    func check(_ offset: UInt64, _ count: Int, _ bufferOffset: Int) throws -> UInt64? {
        try disk.read(
            into: buffer, bufferOffset: bufferOffset, byteOffset: offset, byteCount: count)
        return shadow.equals(Int(offset), count, buffer, bufferOffset) ? nil : offset
    }

    /// Reads the whole disk; the offset of the first piece that differs, or nil.
    func checkAll() throws -> UInt64? {
        for offset in stride(from: UInt64(0), to: disk.byteCount, by: 4 << 20) {
            if let difference = try check(offset, 4 << 20, 0) { return difference }
        }
        return nil
    }
}

extension IOBuffer {
    /// A part, in the fast form that debug builds have too.
    private func part(_ offset: Int, _ count: Int) -> UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + count])
    }

    fileprivate func zero(_ offset: Int, _ count: Int) {
        let part = unsafe part(offset, count)
        _ = unsafe part.initializeMemory(as: UInt8.self, repeating: 0)
    }

    fileprivate func copy(_ offset: Int, _ count: Int, from other: IOBuffer, _ start: Int) {
        unsafe part(offset, count).copyMemory(
            from: UnsafeRawBufferPointer(other.part(start, count)))
    }

    fileprivate func equals(
        _ offset: Int, _ count: Int, _ other: IOBuffer, _ start: Int
    ) -> Bool {
        guard let mine = unsafe part(offset, count).baseAddress,
            let theirs = unsafe other.part(start, count).baseAddress
        else { return false }
        return unsafe memcmp(mine, theirs, count) == 0
    }
}

extension ProcessTests {
    @Suite("Data", .timeLimit(.minutes(5)))
    struct DataTests {
        /// Enough to visit every size many times; the soak does more.
        static let stepCount = 300

        @Test(
            "random I/O of every size and alignment never differs", arguments: ["a", "b"],
            [false, true])
        func random(_ device: String, _ registered: Bool) throws {
            let service = try RunningService()
            let disk = try service.connect().openDisk("disk-\(device)")
            var model = try Model(
                disk, random: SplitMix64(state: seed()), registered: registered)

            for step in 0..<Self.stepCount {
                let difference = try model.step()
                #expect(difference == nil, "step \(step)")
            }
            let difference = try model.checkAll()

            #expect(difference == nil)
            #expect(model.writtenByteCount > 0)
        }
    }
}
