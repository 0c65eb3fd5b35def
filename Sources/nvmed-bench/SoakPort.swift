// SPDX-License-Identifier: Apache-2.0
// The two ways to a disk, as one: messages and rings.

import Glibc
import Linux
import NVMeClient
import Wire

/// What is asked of a disk.
enum SoakOperation: UInt8, CaseIterable {
    case read, write, flush, zeroes, deallocate, verify

    /// Whether the blocks hold something else afterwards.
    var changes: Bool { self == .write || self == .zeroes || self == .deallocate }
}

/// Where a request's data is: whole blocks from an offset of the buffer on.
struct SoakData {
    var offset: Int
    /// In pieces, listed at this offset of the buffer; nil: in one.
    var listOffset: Int?
}

/// Requests and completions of one disk.
protocol SoakPort: AnyObject {
    var disk: Disk { get }
    /// The most bytes of one request.
    var byteCountMax: Int { get }
    /// False: there is no room at the moment.
    func submit(
        _ operation: SoakOperation, lba: UInt64, blockCount: UInt32, data: SoakData, tag: UInt64
    ) throws -> Bool
    /// Makes visible what was submitted.
    func publish()
    /// Waits at most so long for completions; each is handed over with its error.
    func complete(deadlineNanoseconds: UInt64, _ done: (UInt64, WireError?) -> Void) throws
    /// After the session was opened again.
    func reopened() throws
    /// Opens and closes something that the session has; `drained`: nothing is in flight.
    func exercise(_ turn: UInt64, drained: Bool, _ done: (UInt64, WireError?) -> Void) throws
    /// Entries that were not taken when a ring was closed.
    func takeUntaken() -> Bool
}

/// Messages; data inline, or in registered memory.
final class MessagePort: SoakPort {
    let disk: Disk
    private let buffer: IOBuffer
    private let isRegistered: Bool
    private var tags: [UInt64: UInt64] = [:]

    init(_ disk: Disk, _ buffer: IOBuffer, registered: Bool) throws {
        self.disk = disk
        self.buffer = buffer
        isRegistered = registered
        if registered { try disk.registerMemory(buffer) }
    }

    var byteCountMax: Int { isRegistered ? .max : Int(disk.info.maxInlineByteCount) }

    func submit(
        _ operation: SoakOperation, lba: UInt64, blockCount: UInt32, data: SoakData, tag: UInt64
    ) throws -> Bool {
        guard disk.inFlightCount < Disk.windowCount else { return false }
        let range = BlockRange(lba: lba, blockCount: UInt64(blockCount))
        let request: DiskOperation =
            switch operation {
            case .read:
                .read(lba: lba, blockCount: blockCount, into: buffer, bufferOffset: data.offset)
            case .write:
                .write(
                    lba: lba, blockCount: blockCount, from: buffer, bufferOffset: data.offset,
                    fua: tag & 7 == 0)
            case .flush: .flush
            case .zeroes: .writeZeroes(range, deallocate: tag & 1 == 0, fua: false)
            case .deallocate: .unmap([range])
            case .verify: .verify(range)
            }
        tags[try disk.submit(request)] = tag
        return true
    }

    func publish() {}

    func complete(deadlineNanoseconds: UInt64, _ done: (UInt64, WireError?) -> Void) throws {
        do throws(ClientError) {
            guard let first = try disk.nextCompletion(deadlineNanoseconds: deadlineNanoseconds)
            else { return }
            finish(first, done)
            while let more = try disk.pollCompletion() { finish(more, done) }
        } catch .timedOut { return }
    }

    private func finish(_ completion: DiskCompletion, _ done: (UInt64, WireError?) -> Void) {
        guard let tag = tags.removeValue(forKey: completion.id) else { return }
        done(tag, completion.error)
    }

    func reopened() throws { tags = [:] }

    func exercise(_ turn: UInt64, drained: Bool, _ done: (UInt64, WireError?) -> Void) throws {
        if turn & 1 == 0 {
            try Self.registerOther(disk)
        } else {
            try disk.refreshInfo(deadlineNanoseconds: Deadline.after(milliseconds: 30_000))
        }
    }

    func takeUntaken() -> Bool { false }

    /// Memory that comes and goes.
    static func registerOther(_ disk: Disk) throws {
        let deadline = Deadline.after(milliseconds: 30_000)
        let other = try IOBuffer(byteCount: 1 << 20)
        try disk.registerMemory(other, deadlineNanoseconds: deadline)
        try disk.read(
            into: other, byteOffset: 0, byteCount: disk.blockByteCount,
            deadlineNanoseconds: deadline)
        try disk.unregisterMemory(other, deadlineNanoseconds: deadline)
    }
}

/// A ring, with data in registered memory, now and then in pieces.
final class RingSoakPort: SoakPort {
    let disk: Disk
    let byteCountMax = Int.max
    private let buffer: IOBuffer
    private let entries: UInt32
    private let region: UInt32
    private var ring: DiskRing
    private var room: [RingCompletion]
    private var hasUntaken = false

    init(_ disk: Disk, _ buffer: IOBuffer, entries: UInt32) throws {
        self.disk = disk
        self.buffer = buffer
        self.entries = entries
        region = try disk.registerMemory(buffer)
        ring = try Self.open(disk, entries)
        room = [RingCompletion](repeating: RingCompletion(), count: Int(entries))
    }

    private static func open(_ disk: Disk, _ entries: UInt32) throws -> DiskRing {
        try disk.openRing(
            entries: entries, deadlineNanoseconds: Deadline.after(milliseconds: 30_000))
    }

    func submit(
        _ operation: SoakOperation, lba: UInt64, blockCount: UInt32, data: SoakData, tag: UInt64
    ) throws -> Bool {
        let place: RingData
        if let list = data.listOffset {
            let count = min(Int(blockCount), 64)
            storeList(count, Int(blockCount) * disk.blockByteCount, data.offset, list)
            place = .segments(listRegion: region, offset: UInt64(list), count: UInt32(count))
        } else {
            place = .region(region, offset: UInt64(data.offset))
        }
        switch operation {
        case .read:
            return ring.prepareRead(lba: lba, blockCount: blockCount, data: place, tag: tag)
        case .write:
            return ring.prepareWrite(
                lba: lba, blockCount: blockCount, data: place, tag: tag, fua: tag & 7 == 0)
        case .flush: return ring.prepareFlush(tag: tag)
        case .zeroes:
            return ring.prepareWriteZeroes(
                lba: lba, blockCount: blockCount, tag: tag, deallocate: tag & 1 == 0)
        case .deallocate:
            return ring.prepareDeallocate(lba: lba, blockCount: blockCount, tag: tag)
        case .verify: return ring.prepareVerify(lba: lba, blockCount: blockCount, tag: tag)
        }
    }

    /// A list of pieces that are one after another.
    private func storeList(_ count: Int, _ byteCount: Int, _ offset: Int, _ list: Int) {
        let piece = byteCount / count / disk.blockByteCount * disk.blockByteCount
        var done = 0
        for index in 0..<count {
            let length = index == count - 1 ? byteCount - done : piece
            let segment = RingSegment(
                region: region, offset: UInt64(offset + done), byteCount: UInt32(length))
            guard buffer.storeSegment(segment, listOffset: list, index: index) else {
                die("a segment list does not fit the buffer")
            }
            done += length
        }
    }

    func publish() { ring.submit() }

    func complete(deadlineNanoseconds: UInt64, _ done: (UInt64, WireError?) -> Void) throws {
        var count = ring.reap(into: &room)
        if count == 0 {
            _ = try ring.wait(deadlineNanoseconds: deadlineNanoseconds)
            count = ring.reap(into: &room)
        }
        for completion in room[0..<count] { done(completion.tag, completion.error()) }
    }

    func reopened() throws {
        // Whatever a ring of the old session left untaken has been given up with it.
        hasUntaken = false
        ring = try Self.open(disk, entries)
    }

    func exercise(_ turn: UInt64, drained: Bool, _ done: (UInt64, WireError?) -> Void) throws {
        switch turn % 3 {
        case 0: try MessagePort.registerOther(disk)
        case 1: try disk.refreshInfo(deadlineNanoseconds: Deadline.after(milliseconds: 30_000))
        default:
            try disk.closeRing(ring, deadlineNanoseconds: Deadline.after(milliseconds: 30_000))
            while case let count = ring.reap(into: &room), count > 0 {
                for completion in room[0..<count] { done(completion.tag, completion.error()) }
            }
            hasUntaken = true
            ring = try Self.open(disk, entries)
        }
    }

    func takeUntaken() -> Bool {
        defer { hasUntaken = false }
        return hasUntaken
    }
}
