// SPDX-License-Identifier: Apache-2.0
// Moves a chunk of a disk through a ring, in pieces of which several are in flight.

import Linux
import NVMeClient
import Wire

/// A ring for the chunks of one command.
final class RingJob {
    /// Pieces in flight: enough to keep a device busy.
    private static let entries: UInt32 = 16
    /// Bytes of a piece at most: what a device does in one command without effort.
    private static let pieceByteCount = 128 << 10

    private let disk: Disk
    private let buffer: IOBuffer
    private let region: UInt32
    private let ring: DiskRing
    private var done = [RingCompletion](repeating: RingCompletion(), count: Int(entries))

    /// Opens a ring; the session's end closes it.
    init(_ disk: Disk, _ buffer: IOBuffer, deadline: UInt64) throws(ClientError) {
        self.disk = disk
        self.buffer = buffer
        region = try disk.registerMemory(buffer, deadlineNanoseconds: deadline)
        ring = try disk.openRing(entries: Self.entries, deadlineNanoseconds: deadline)
    }

    /// Reads a part of the disk into the start of the buffer, or writes it from there.
    func move(
        _ range: ByteRange, isWrite: Bool, fua: Bool, deadline: UInt64
    ) throws(ClientError) {
        let block = UInt64(disk.blockByteCount)
        let piece = max(Self.pieceByteCount / Int(block) * Int(block), Int(block))
        var sent = 0
        var inFlight = 0
        while sent < range.byteCount || inFlight > 0 {
            while sent < range.byteCount, inFlight < Int(Self.entries) {
                let count = min(piece, range.byteCount - sent)
                let lba = (range.byteOffset + UInt64(sent)) / block
                let blocks = UInt32(clamping: UInt64(count) / block)
                let data = RingData.region(region, offset: UInt64(sent))
                let isTaken =
                    isWrite
                    ? ring.prepareWrite(lba: lba, blockCount: blocks, data: data, tag: 0, fua: fua)
                    : ring.prepareRead(lba: lba, blockCount: blocks, data: data, tag: 0)
                guard isTaken else { break }
                sent += count
                inFlight += 1
            }
            ring.submit()
            let count = ring.reap(into: &done)
            for completion in done[..<count] {
                if let error = completion.error(disk: disk.name) { throw .failed(error) }
            }
            inFlight -= count
            if count == 0, try ring.wait(deadlineNanoseconds: deadline) == .timedOut {
                throw .timedOut
            }
        }
    }
}
