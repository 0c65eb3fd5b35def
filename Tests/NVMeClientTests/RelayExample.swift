// SPDX-License-Identifier: Apache-2.0
// The example relay of README.md, which has the lines between the marks; a test compares them.

// README: begin
import NVMeClient

/// What a guest asks for: blocks of the disk, and where in its memory the data lies.
struct GuestRequest {
    var id: UInt64, isWrite: Bool, lba: UInt64, blockCount: UInt32, address: UInt64
}

/// Serves a guest until `next` has no more requests and all are done.
func relay(
    disk: Disk, guestMemory: IOBuffer, next: () -> GuestRequest?, done: (RingCompletion) -> Void
) throws {
    let region = try disk.registerMemory(guestMemory)  // mapped for the device once: zero copy
    let ring = try disk.openRing(entries: 128)
    let batch = UnsafeMutableBufferPointer<RingCompletion>.allocate(capacity: 128)
    defer { unsafe batch.deallocate() }
    var request = next()
    var inFlight = 0
    while request != nil || inFlight > 0 {
        while let asked = request {
            let data = RingData.region(region, offset: asked.address)
            let (lba, count, tag) = (asked.lba, asked.blockCount, asked.id)
            let taken =
                asked.isWrite
                ? ring.prepareWrite(lba: lba, blockCount: count, data: data, tag: tag)
                : ring.prepareRead(lba: lba, blockCount: count, data: data, tag: tag)
            guard taken else { break }  // full: completions make room
            inFlight += 1
            request = next()
        }
        ring.submit()  // a system call only if the worker sleeps
        let count = unsafe ring.reap(into: batch)
        for index in 0..<count { unsafe done(batch[index]) }
        inFlight -= count
        if count == 0, try ring.wait() == .event { print(disk.takeEvents()) }
    }
    try disk.closeRing(ring)
}
// README: end
