// SPDX-License-Identifier: Apache-2.0
// What sessions, rings and regions store: found again by kind and number, shared, removed, bounded.

import CLinux
import Glibc
import Linux
import Systemd
import TestSupport
import Testing

@testable import Worker

/// Runs a body on the control thread.
private func onLoop<Value: Sendable>(
    _ body: @escaping @Control () throws -> Value
) async throws -> Value {
    EventLoop.startOnOwnThread()
    return try await LoopTurn.run { try await EventLoop.current.task { try body() }.value }
}

@Control
private func silentLog() -> Log {
    Log(sink: LogSink(levelMax: .emergency, format: .plain, output: { _ in }))
}

/// A descriptor of a memory file with this many bytes, by which it is known again.
private func file(_ byteCount: Int) throws -> CInt {
    try MemFD.create(name: "stored", byteCount: byteCount, seals: []).release()
}

@Control
private func stored(_ named: [(String, CInt)], limit: Int = 4096) -> StoredFDs {
    var fds = ListenFDs(adopting: named.map { (name: $0.0, raw: $0.1) })
    return StoredFDs(
        store: FDStore(inherited: named.map(\.0), limit: limit), log: silentLog(), from: &fds)
}

private func isOpen(_ raw: CInt) -> Bool { fcntl(raw, F_GETFD) >= 0 }

/// Waits until a descriptor is closed by another thread.
private func awaitClosed(_ raw: CInt) {
    let deadline = patience()
    while isOpen(raw), MonotonicClock.nowNanoseconds < deadline { sched_yield() }
}

@Suite("Stored descriptors of a worker", .timeLimit(.minutes(5)))
struct StoredFDsTests {
    @Test("each is found once, by its kind and its number")
    func take() async throws {
        let sizes = try await onLoop {
            let all = stored([
                ("s-7", try file(1)), ("s-18446744073709551615", try file(2)), ("m-7", try file(3)),
            ])
            let numbers = all.numbers(.session)
            var sizes: [Int] = []
            for number in [7, UInt64.max] {
                if let fd = all.take(.session, number) { sizes.append(try MemFD.byteCount(of: fd)) }
            }
            return (numbers, sizes, all.take(.session, 7) == nil, all.take(.ring, 7) == nil)
        }
        #expect(sizes.0 == [7, UInt64.max])
        #expect(sizes.1 == [1, 2])
        #expect(sizes.2 && sizes.3)
    }

    @Test(
        "names that are not quite right belong to nothing",
        arguments: [
            "s-", "s-01", "s--1", "s-+1", "q-1", "s-18446744073709551616", "s-1-1", "S-1", "stored",
            "unknown",
        ])
    func badNames(_ name: String) async throws {
        let raw = try file(1)
        let removed = try await onLoop {
            let all = stored([(name, raw)])
            let isFree = StoredKind.allCases.allSatisfy { all.numbers($0).isEmpty }
            return (isFree, all.removeUnclaimed(), all.removeUnclaimed())
        }
        awaitClosed(raw)
        #expect(removed.0)
        #expect(removed.1 == 1)
        #expect(removed.2 == 0)
        #expect(!isOpen(raw))
    }

    @Test("two of one name: the first counts, the other goes with the rest")
    func twice() async throws {
        let size = try await onLoop {
            let all = stored([("k-1", try file(1)), ("k-1", try file(2))])
            var size = 0
            if let fd = all.take(.kick, 1) { size = try MemFD.byteCount(of: fd) }
            return (size, all.removeUnclaimed())
        }
        #expect(size == (1, 1))
    }

    @Test("memory that several registered is stored once, and goes with its last user")
    func sharedMemory() async throws {
        let seen = try await onLoop {
            let all = stored([])
            let first = OwnedFD(adopting: try file(4096))
            let again = try OwnedFD.open("/proc/self/fd/\(first.raw)", flags: O_RDWR)
            let other = OwnedFD(adopting: try file(4096))
            let numbers = [
                try all.keep(.memory, 1, first), try all.keep(.memory, 2, again),
                try all.keep(.memory, 3, other),
            ]
            all.remove(.memory, 1)
            let still = try all.keep(.memory, 4, first)
            all.remove(.memory, 1)
            all.remove(.memory, 1)
            return (numbers, still, try all.keep(.memory, 5, first))
        }
        #expect(seen.0 == [1, 1, 3])
        #expect(seen.1 == 1)
        #expect(seen.2 == 5)
    }

    @Test("memory that came back is found by each of its users, and by those who register it anew")
    func sharedAgain() async throws {
        let seen = try await onLoop {
            let raw = try file(4096)
            let all = stored([("m-9", raw)])
            var sizes: [Int] = []
            for _ in 0..<2 {
                if let fd = all.take(.memory, 9) { sizes.append(try MemFD.byteCount(of: fd)) }
            }
            let same = try OwnedFD.duplicate(ofRaw: raw)
            let unclaimed = all.removeUnclaimed()
            return (sizes, unclaimed, isOpen(raw), try all.keep(.memory, 10, same))
        }
        #expect(seen.0 == [4096, 4096])
        #expect(seen.1 == 0)
        #expect(!seen.2)
        #expect(seen.3 == 9)
    }

    @Test("memory whose users all end goes with what belongs to nothing")
    func disclaimed() async throws {
        let seen = try await onLoop {
            let all = stored([("m-9", try file(4096))])
            let isThere = all.take(.memory, 9) != nil
            all.disclaimMemory()
            return (isThere, all.removeUnclaimed())
        }
        #expect(seen == (true, 1))
    }

    @Test("the last places are the device's: sessions are refused before they are full")
    func limit() async throws {
        let seen = try await onLoop {
            let names = (0..<19).map { "s-\($0)" }
            let all = stored(
                try names.map { ($0, try file(1)) }, limit: 20 + StoredFDs.reservedCount)
            try all.checkRoom(1)
            let refused = #expect(throws: FDStoreError.self) { try all.checkRoom(2) }
            // What is over makes room.
            all.remove(.session, 0)
            return "\(refused.map { "\($0)" } ?? "")"
        }
        #expect(seen.contains("20 descriptors are stored already"))
    }

    @Test("4 000 come back within the time of one bring-up")
    func many() async throws {
        let count = try await onLoop {
            _ = nv_raise_nofile_limit(WorkerLimits.openFiles)
            let names = (0..<1000 as Range<UInt64>).flatMap { number in
                ["s", "r", "k", "m"].map { "\($0)-\(number)" }
            }
            let all = stored(try names.map { ($0, try file(1)) })
            var taken = 0
            for number in 0..<999 as Range<UInt64> {
                for kind in [StoredKind.session, .ring, .kick, .memory]
                where all.take(kind, number) != nil { taken += 1 }
            }
            return (taken, all.removeUnclaimed())
        }
        #expect(count == (3996, 4))
    }
}
