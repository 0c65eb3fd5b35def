// SPDX-License-Identifier: Apache-2.0
// The service as a relay sees it: requests as messages, through the worker, to the device.

import Glibc
import Linux
import NVMeClient
import Wire

/// Random aligned 4 KiB reads at a depth for a time, inline or in registered memory.
func runService(
    socket: String, disk name: String, depth: Int, seconds: Double, registered: Bool
) throws -> DriverResult {
    let disk = try NVMeBackend.connect(socket).openDisk(name)
    let buffer = try IOBuffer(byteCount: depth * 4096)
    if registered { try disk.registerMemory(buffer) }
    let perIO = UInt64(max(1, 4096 / disk.blockByteCount))
    var random: UInt64 = 0x1234_5678
    var started: [UInt64: (slot: Int, at: UInt64)] = [:]
    var latencies = Latencies(capacity: 1 << 20)
    func submit(_ slot: Int) throws {
        random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        let lba = (random >> 16) % (disk.info.blockCount / perIO) * perIO
        let id = try disk.submit(
            .read(lba: lba, blockCount: UInt32(perIO), into: buffer, bufferOffset: slot * 4096))
        started[id] = (slot, MonotonicClock.nowNanoseconds)
    }
    let begin = MonotonicClock.nowNanoseconds
    let end = begin + UInt64(seconds * 1e9)
    for slot in 0..<depth { try submit(slot) }
    var done = 0
    while disk.inFlightCount > 0 {
        guard let completion = try disk.nextCompletion() else { continue }
        if let error = completion.error { die("\(error)") }
        guard let (slot, at) = started.removeValue(forKey: completion.id) else { continue }
        let now = MonotonicClock.nowNanoseconds
        latencies.add(now - at)
        done += 1
        if now < end { try submit(slot) }
    }
    let elapsed = Double(MonotonicClock.nowNanoseconds - begin) / 1e9
    disk.close()
    return DriverResult(
        p50Nanoseconds: latencies.percentile(0.5), p99Nanoseconds: latencies.percentile(0.99),
        iops: Double(done) / elapsed)
}
