// SPDX-License-Identifier: Apache-2.0
// Rate limits, on a clock of the test's own.

import TestSupport
import Testing

@testable import NVMeDriver

/// A client that always has another request, on a virtual clock.
private struct Greedy {
    var nowNanoseconds: UInt64
    var requests: UInt64 = 0
    var bytes: UInt64 = 0

    /// Sends requests of a size for a time, asking again exactly when it is told to.
    mutating func run(_ gate: IOGate, seconds: UInt64, byteCount: UInt64) {
        let end = nowNanoseconds + seconds * 1_000_000_000
        while nowNanoseconds < end {
            while gate.admit(nowNanoseconds: nowNanoseconds, byteCount: byteCount) {
                requests += 1
                bytes += byteCount
            }
            nowNanoseconds = gate.nextAdmission(nowNanoseconds: nowNanoseconds)
        }
    }
}

@Suite("Rate limits")
struct IOLimiterTests {
    static let start: UInt64 = 0x123_4567_89AB_CDEF

    @Test("without limits everything is admitted, and at once")
    func unlimited() {
        // Given
        let limiter = IOLimiter(
            requestsPerSecond: 0, bytesPerSecond: 0,
            nowNanoseconds: Self.start)
        let gate = limiter.gate
        // When, then
        for _ in 0..<100_000 {
            #expect(gate.admit(nowNanoseconds: Self.start, byteCount: 1 << 30))
        }
        #expect(gate.nextAdmission(nowNanoseconds: Self.start) == Self.start)
        #expect(!gate.isLimited)
    }

    @Test(
        "a greedy client gets its requests a second, and one burst",
        arguments: [1, 7, 100, 3_000, 1_000_000] as [UInt64])
    func requests(rate: UInt64) {
        // Given
        let limiter = IOLimiter(
            requestsPerSecond: rate, bytesPerSecond: 0,
            nowNanoseconds: Self.start)
        var client = Greedy(nowNanoseconds: Self.start)
        // When
        client.run(limiter.gate, seconds: 10, byteCount: 4096)
        // Then: a burst of 20 ms, and the first and the last; 1/1000 for rounding
        let most = 10 * rate + rate / 50 + 2
        #expect(client.requests >= 10 * rate - 10 * rate / 1000)
        #expect(client.requests <= most)
    }

    @Test(
        "a greedy client gets its bytes a second, whatever the size of its requests",
        arguments: [512, 4096, 65536, 4 << 20] as [UInt64])
    func bytes(byteCount: UInt64) {
        // Given
        let rate: UInt64 = 10_000_000
        let limiter = IOLimiter(
            requestsPerSecond: 0, bytesPerSecond: rate,
            nowNanoseconds: Self.start)
        var client = Greedy(nowNanoseconds: Self.start)
        // When
        client.run(limiter.gate, seconds: 100, byteCount: byteCount)
        // Then
        #expect(client.bytes >= 100 * rate - rate / 10)
        #expect(client.bytes <= 100 * rate + rate / 50 + 2 * byteCount)
    }

    @Test("of two limits the tighter one counts")
    func both() {
        // Given
        let limiter = IOLimiter(
            requestsPerSecond: 1000, bytesPerSecond: 1_024_000,
            nowNanoseconds: Self.start)
        var small = Greedy(nowNanoseconds: Self.start)
        var large = Greedy(nowNanoseconds: Self.start + 100_000_000_000)
        // When
        small.run(limiter.gate, seconds: 10, byteCount: 512)
        large.run(limiter.gate, seconds: 10, byteCount: 4096)
        // Then: 1000 requests of 512 bytes are half of the bytes; 4096 bytes 250 times are all
        #expect((9_990...10_022).contains(small.requests))
        #expect((2_495...2_507).contains(large.requests))
    }

    @Test(
        "a pause of any length is worth a burst, no more",
        arguments: [1, 60, 86_400, 1 << 26] as [UInt64])
    func pause(seconds: UInt64) {
        // Given
        let limiter = IOLimiter(
            requestsPerSecond: 1000, bytesPerSecond: 0,
            nowNanoseconds: Self.start)
        let gate = limiter.gate
        var client = Greedy(nowNanoseconds: Self.start)
        client.run(gate, seconds: 1, byteCount: 0)
        // When
        let later = client.nowNanoseconds + seconds * 1_000_000_000
        var count = 0
        while gate.admit(nowNanoseconds: later, byteCount: 0) { count += 1 }
        // Then
        #expect(count == 21)
    }

    @Test("a request larger than the burst passes, and is paid for afterwards")
    func large() {
        // Given
        let limiter = IOLimiter(
            requestsPerSecond: 0, bytesPerSecond: 1 << 20,
            nowNanoseconds: Self.start)
        let gate = limiter.gate
        // When
        let first = gate.admit(nowNanoseconds: Self.start, byteCount: 64 << 20)
        let second = gate.admit(nowNanoseconds: Self.start, byteCount: 512)
        let next = gate.nextAdmission(nowNanoseconds: Self.start)
        // Then: 64 MiB at 1 MiB a second, less the burst
        #expect(first)
        #expect(!second)
        #expect((next - Self.start) / 1_000_000 == 64_000 - 20)
        #expect(!gate.isOpen(nowNanoseconds: next - 1))
        #expect(gate.admit(nowNanoseconds: next, byteCount: 512))
    }

    @Test("the clock may go round, and a session may sleep for a year")
    func wraps() {
        // Given: in 1/256 ns, 64 bits go round after 2.3 years
        let begin: UInt64 = (1 << 56) - 5_000_000_000
        let limiter = IOLimiter(
            requestsPerSecond: 1000, bytesPerSecond: 0, nowNanoseconds: begin)
        var client = Greedy(nowNanoseconds: begin)
        // When
        client.run(limiter.gate, seconds: 10, byteCount: 0)
        client.nowNanoseconds += 420 * 86_400 * 1_000_000_000
        client.run(limiter.gate, seconds: 10, byteCount: 0)
        // Then
        #expect((19_990...20_050).contains(client.requests))
    }

    @Test("two threads' gates share one limit")
    func shared() {
        // Given
        let limiter = IOLimiter(
            requestsPerSecond: 1000, bytesPerSecond: 0, nowNanoseconds: Self.start)
        let (control, data) = (limiter.gate, limiter.gate)
        // When
        var count = 0
        for millisecond in 0..<1000 as Range<UInt64> {
            let now = Self.start + millisecond * 1_000_000
            while control.admit(nowNanoseconds: now, byteCount: 0) { count += 1 }
            while data.admit(nowNanoseconds: now, byteCount: 0) { count += 1 }
        }
        // Then
        #expect((1000...1022).contains(count))
    }

    @Test(
        "the extremes of a configuration neither overflow nor stop a session",
        arguments: [
            (1, 65_536), (1_000_000_000, 1 << 50), (UInt64.max, UInt64.max),
        ] as [(UInt64, UInt64)])
    func extremes(requestsPerSecond: UInt64, bytesPerSecond: UInt64) {
        // Given
        let limiter = IOLimiter(
            requestsPerSecond: requestsPerSecond, bytesPerSecond: bytesPerSecond,
            nowNanoseconds: Self.start)
        let gate = limiter.gate
        var now = Self.start
        for _ in 0..<10 {
            // When
            #expect(gate.admit(nowNanoseconds: now, byteCount: 64 << 20))
            let next = gate.nextAdmission(nowNanoseconds: now)
            // Then
            #expect(next >= now)
            #expect(next - now <= 1_100_000_000_000)
            now = next
        }
    }
}
