// SPDX-License-Identifier: Apache-2.0
// What the machine itself costs, measured in the same run: the baselines of the other figures.

import CMemory
import Glibc
import Linux

/// The floor of a message and its answer: two threads, a socket pair, 64 bytes there and 4 KiB
/// back.
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
    let result = try measure(seconds: seconds) {
        _ = try unsafe UnixSocket.send(pair.first, request)
        _ = try unsafe UnixSocket.receive(pair.first, into: buffer)
    }
    UnixSocket.shutdown(pair.first)
    echo.join()
    return result
}

/// The floor of two cores that watch each other's cache lines: what any device in software costs at
/// least, and the copy of 4 KiB on the other side.
func runMemoryFloor(seconds: Double) throws -> DriverResult {
    let memory = try Mapping(anonymous: 16384)
    let words = SharedWords(base: UInt(bitPattern: unsafe memory.base))
    let peer = try Thread.start {
        guard let base = unsafe UnsafeMutableRawPointer(bitPattern: words.base) else { return }
        var seen: UInt64 = 0
        while true {
            let value = unsafe nv_load_acquire64(base)
            if value == .max { return }
            if value != seen {
                seen = value
                unsafe memcpy(base + 8192, base + 4096, 4096)
                unsafe nv_store_release64(base + 64, value)
            }
            nv_pause()
        }
    }
    var turn: UInt64 = 0
    let result = try measure(seconds: seconds) {
        turn += 1
        unsafe nv_store_release64(memory.base, turn)
        while unsafe nv_load_acquire64(memory.base + 64) != turn { nv_pause() }
    }
    unsafe nv_store_release64(memory.base, .max)
    peer.join()
    return result
}

/// An address that crosses to another thread; the memory outlives both.
private struct SharedWords: Sendable {
    let base: UInt
}

/// Repeats something for a time and takes the time of each turn.
private func measure(seconds: Double, _ turn: () throws -> Void) throws -> DriverResult {
    var latencies = Latencies(capacity: 1 << 20)
    let begin = MonotonicClock.nowNanoseconds
    let end = begin + UInt64(seconds * 1e9)
    var now = begin
    var done = 0
    while now < end {
        try turn()
        let after = MonotonicClock.nowNanoseconds
        latencies.add(after - now)
        now = after
        done += 1
    }
    return DriverResult(
        p50Nanoseconds: latencies.percentile(0.5), p99Nanoseconds: latencies.percentile(0.99),
        iops: Double(done) / seconds)
}

/// A thread that can be waited for.
@safe
private struct Thread {
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
