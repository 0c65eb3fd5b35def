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

/// The floor of a message and its answer: two threads, a socket pair, 64 bytes there and 4 KiB back.
func runSocketFloor(seconds: Double) throws -> DriverResult {
    let pair = try UnixSocket.pair()
    let echoFD = try pair.second.duplicate().release()
    let echo = try Thread.start {
        let fd = OwnedFD(adopting: echoFD)
        guard let room = try? Mapping(anonymous: 8192) else { return }
        let buffer = unsafe UnsafeMutableRawBufferPointer(start: room.base, count: 8192)
        let reply = unsafe UnsafeRawBufferPointer(start: room.base, count: 4096)
        while let message = try? unsafe UnixSocket.receive(fd, into: buffer), !message.isEnd {
            guard (try? unsafe UnixSocket.send(fd, reply)) != nil else { return }
        }
    }
    let room = try Mapping(anonymous: 8192)
    let buffer = unsafe UnsafeMutableRawBufferPointer(start: room.base, count: 8192)
    let request = unsafe UnsafeRawBufferPointer(start: room.base, count: 64)
    var latencies = Latencies(capacity: 1 << 20)
    let begin = MonotonicClock.nowNanoseconds
    let end = begin + UInt64(seconds * 1e9)
    var now = begin
    var done = 0
    while now < end {
        _ = try unsafe UnixSocket.send(pair.first, request)
        _ = try unsafe UnixSocket.receive(pair.first, into: buffer)
        let after = MonotonicClock.nowNanoseconds
        latencies.add(after - now)
        now = after
        done += 1
    }
    UnixSocket.shutdown(pair.first)
    echo.join()
    return DriverResult(
        p50Nanoseconds: latencies.percentile(0.5), p99Nanoseconds: latencies.percentile(0.99),
        iops: Double(done) / seconds)
}

/// A thread that can be waited for.
@safe
struct Thread {
    private let handle: pthread_t

    static func start(_ body: @escaping @Sendable () -> Void) throws -> Thread {
        let box = unsafe Unmanaged.passRetained(Box(body))
        var handle = pthread_t()
        let result = unsafe pthread_create(
            &handle, nil,
            { argument in
                if let argument = unsafe argument {
                    unsafe Unmanaged<Box>.fromOpaque(argument).takeRetainedValue().body()
                }
                return nil
            }, box.toOpaque())
        guard result == 0 else { throw SystemCallError("pthread_create", errno: result) }
        return Thread(handle: handle)
    }

    func join() { _ = pthread_join(handle, nil) }

    private final class Box {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
}
