// SPDX-License-Identifier: Apache-2.0
// How many requests and bytes a session may have in a second: GCRA, the generic cell rate algorithm
// (virtual scheduling), once for requests and once for bytes.
//
// Each rate has a point in time up to which the session has used what it may. A request is admitted
// while neither point is more than the burst ahead of now, and moves both on by what it costs. So a
// request of any size is admitted, and what it costs too much is waited for afterwards. There is no
// timer, no division and nothing to refill.

internal import CMemory
public import Linux

/// The limits of one session, shared by all threads that serve it.
///
/// Threads may race: then one request in many is not counted. Let go of it when no thread has its
/// `gate` any more.
@safe
public struct IOLimiter: ~Copyable {
    /// How far ahead a session may be: after a pause it may have at once what this time is worth at
    /// its limit, and one request. Short enough that others hardly notice, long enough that a
    /// thread that looks every few milliseconds costs the session nothing.
    public static let burstNanoseconds: UInt64 = 20_000_000
    /// Two points in time on a cache line of their own.
    private static let byteCount = 64

    private let memory: UnsafeMutableRawPointer
    private let requestCost: UInt64
    private let sectorCost: UInt64

    /// Limits in requests and bytes a second; 0: none.
    public init(
        requestsPerSecond: UInt64, bytesPerSecond: UInt64,
        nowNanoseconds: UInt64 = MonotonicClock.nowNanoseconds
    ) {
        unsafe memory = .allocate(byteCount: Self.byteCount, alignment: Self.byteCount)
        unsafe nv_store64(memory, nowNanoseconds &<< 8)
        unsafe nv_store64(memory + 8, nowNanoseconds &<< 8)
        requestCost = Self.cost(of: 1, at: requestsPerSecond)
        sectorCost = Self.cost(of: 512, at: bytesPerSecond)
    }

    deinit { unsafe memory.deallocate() }

    /// How long `count` of what comes at `rate` a second take, in 1/256 ns, rounded up. At most a
    /// day, so that no sum of a few overflows.
    private static func cost(of count: UInt64, at rate: UInt64) -> UInt64 {
        guard rate > 0 else { return 0 }
        let day: UInt64 = 86_400_000_000_000 << 8
        return min((count * (1_000_000_000 << 8) - 1) / rate + 1, day)
    }

    /// What admits requests; a plain value for the hot path. Valid while the limiter lives.
    public var gate: IOGate {
        unsafe IOGate(memory: memory, requestCost: requestCost, sectorCost: sectorCost)
    }
}

/// Admits the requests of one session.
@safe
public struct IOGate {
    /// A point that is farther ahead is none: the clock went round (after 417 days) since it was
    /// set. No request costs that much: it is five hours.
    private static let farthest: Int64 = 1 << 52
    private static let burst = Int64(IOLimiter.burstNanoseconds << 8)

    private let memory: UnsafeMutableRawPointer
    private let requestCost: UInt64
    private let sectorCost: UInt64

    init(memory: UnsafeMutableRawPointer, requestCost: UInt64, sectorCost: UInt64) {
        unsafe self.memory = memory
        self.requestCost = requestCost
        self.sectorCost = sectorCost
    }

    /// Whether there is any limit.
    @inline(__always)
    public var isLimited: Bool { requestCost | sectorCost != 0 }

    /// Admits a request of `byteCount` bytes (0 for those that move none) and counts it, or does
    /// neither: `nextAdmission` tells when to ask again. `nowNanoseconds` is CLOCK_MONOTONIC, and
    /// may be as old as the caller likes.
    @inline(__always)
    public func admit(nowNanoseconds: UInt64, byteCount: UInt64) -> Bool {
        guard isLimited else { return true }
        guard isOpen(nowNanoseconds: nowNanoseconds) else { return false }
        charge(nowNanoseconds: nowNanoseconds, byteCount: byteCount)
        return true
    }

    /// Whether a request would be admitted now.
    @inline(__always)
    public func isOpen(nowNanoseconds: UInt64) -> Bool {
        guard isLimited else { return true }
        let now = nowNanoseconds &<< 8
        return unsafe Self.ahead(memory, now) <= Self.burst
            && Self.ahead(memory + 8, now) <= Self.burst
    }

    /// Counts a request that was let through.
    @inline(__always)
    public func charge(nowNanoseconds: UInt64, byteCount: UInt64) {
        guard isLimited else { return }
        let now = nowNanoseconds &<< 8
        unsafe Self.advance(memory, now, by: requestCost)
        unsafe Self.advance(memory + 8, now, by: sectorCost &* (byteCount &>> 9))
    }

    /// When the next request will be admitted if none is before: CLOCK_MONOTONIC in nanoseconds,
    /// `nowNanoseconds` when that is now.
    public func nextAdmission(nowNanoseconds: UInt64) -> UInt64 {
        let now = nowNanoseconds &<< 8
        let ahead = unsafe max(Self.ahead(memory, now), Self.ahead(memory + 8, now))
        let wait = max(0, ahead - Self.burst)
        return nowNanoseconds &+ (UInt64(wait) + 255) >> 8
    }

    /// How far a point is ahead of now, in 1/256 ns; 0 when it has passed.
    @inline(__always)
    private static func ahead(_ point: UnsafeMutableRawPointer, _ now: UInt64) -> Int64 {
        let difference = Int64(truncatingIfNeeded: unsafe nv_load64(point) &- now)
        return difference > 0 && difference < farthest ? difference : 0
    }

    @inline(__always)
    private static func advance(
        _ point: UnsafeMutableRawPointer, _ now: UInt64, by cost: UInt64
    ) {
        let ahead = unsafe Self.ahead(point, now)
        unsafe nv_store64(point, now &+ UInt64(truncatingIfNeeded: ahead) &+ cost)
    }
}
