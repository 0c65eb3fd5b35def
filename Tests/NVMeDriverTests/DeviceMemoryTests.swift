// SPDX-License-Identifier: Apache-2.0
// What a device shares with the driver over the death of one: shadow doorbells, which adoption goes
// on with, and everything that a device gone wild can have written meanwhile.

import CMemory
import DMA
import Glibc
import Linux
import NVMeSpec
import Synchronization
import TestSupport
import Testing

@testable import NVMeDriver

@Suite("Adoption and the memory that the device can write", .serialized)
struct DeviceMemoryTests {
    @Test("shadow doorbells are gone on with, and what the device was not told of is told")
    func shadow() throws {
        // Given
        let rig = try AdoptionRig(["--doorbells", "shadow"], depth: 16)
        let before = rig.controller.hasShadowDoorbells
        for token in 1...5 as ClosedRange<UInt64> {
            try rig.submit(IOOperation.write, lba: token * 8, token: token, ring: token < 4)
        }
        let controlPlane = try rig.controlPlane()
        // When
        try rig.crashAndAdopt()
        let statuses = try rig.complete(5)
        // Then
        #expect(before)
        #expect(rig.controller.hasShadowDoorbells)
        #expect(statuses == [1: 0, 2: 0, 3: 0, 4: 0, 5: 0])
        #expect(try rig.controlPlane() == controlPlane)
        // Several times around the queue.
        for token in 10..<80 as Range<UInt64> {
            try rig.submit(IOOperation.read, lba: token, token: token)
            #expect(try rig.complete(1) == [token: 0])
        }
        #expect(try rig.counter("tailsFromShadow") > 0)
    }

    /// The places of a pool that the device can write, whole.
    private func places(_ rig: AdoptionRig) throws -> [(UnsafeMutableRawPointer, Int)] {
        let plan = try requireValue(rig.controller.plan)
        let slices =
            plan.queues.map(\.completion) + [plan.adminBuffer, plan.shadow, plan.eventIndex]
        return try unsafe slices.map {
            let start = unsafe rig.controller.pool?.deviceWritesAddress($0)
            return (try unsafe requireValue(start), $0.byteCount)
        }
    }

    /// What the queue says has ended, as long as it can be believed; each request once.
    private func take(_ rig: AdoptionRig) -> [UInt64] {
        let engine = unsafe rig.controller.engine(0)
        var tokens: [UInt64] = []
        unsafe engine.pointee.recover { tokens.append($0.token) }
        unsafe engine.pointee.retire()
        var completion = IOCompletion()
        for _ in 0..<64 where unsafe engine.pointee.reap(into: &completion, capacity: 1) == 1 {
            tokens.append(completion.token)
            unsafe engine.pointee.retire()
        }
        return tokens
    }

    @Test("a device that writes wildly between two drivers: refused, or each request ends once")
    func wild() throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,opcode=1"], depth: 16)
        var adopted = 0
        for round in 0..<40 {
            for token in 1...5 as ClosedRange<UInt64> {
                try rig.submit(IOOperation.write, lba: token * 8, token: token)
            }
            _ = try rig.counter("faultsInjected")
            // When: many places or few, with anything or with what nearly fits.
            let places = try unsafe places(rig)
            try rig.crash()
            for _ in 0..<(round % 4 == 0 ? 4_000 : 1 + round % 4) {
                let (base, byteCount) =
                    unsafe places[Int(random.next() % UInt64(places.count))]
                let word = unsafe base + Int(random.next() % UInt64(byteCount / 8)) * 8
                let nearly = unsafe nv_load64(word) ^ (1 << (random.next() & 63))
                unsafe nv_store64(word, random.next() & 1 == 0 ? nearly : random.next())
            }
            var isAdopted = false
            do throws(DriverError) {
                try rig.controller.adopt(rig.inheritance())
                isAdopted = true
            } catch {
                guard case .notAdoptable = error else { throw error }
            }
            var ended: [UInt64] = []
            if isAdopted {
                adopted += 1
                ended = take(rig)
                try rig.crash()
            }
            try rig.controller.startOver(rig.inheritance(), replay: { _ in .nothing })
            let rest = take(rig)
            // Then
            let words = "round \(round), seed \(seed)"
            #expect((ended + rest).sorted() == [1, 2, 3, 4, 5], "\(words)")
            #expect(unsafe rig.controller.engine(0).pointee.isIdle, "\(words)")
        }
        #expect(adopted > 0)
    }

    /// A device gone wild: writes anything, or what nearly fits, to where it can write, until it is
    /// stopped.
    private final class WildDevice: Sendable {
        private let isOver = Atomic<Bool>(false)
        private let hasBegun = Atomic<Bool>(false)

        func begin(_ places: [(UInt, Int)], seed: UInt64) -> TestThreads {
            let threads = TestThreads(count: 1) { _ in
                var random = SplitMix64(state: seed)
                while !self.isOver.load(ordering: .relaxed) {
                    let (base, byteCount) = places[Int(random.next() % UInt64(places.count))]
                    let place = base + UInt(random.next() % UInt64(byteCount / 8)) * 8
                    guard let word = unsafe UnsafeMutableRawPointer(bitPattern: place) else {
                        return
                    }
                    let nearly = unsafe nv_load64(word) ^ (1 << (random.next() & 63))
                    unsafe nv_store64(word, random.next() & 1 == 0 ? nearly : random.next())
                    self.hasBegun.store(true, ordering: .relaxed)
                }
            }
            while !hasBegun.load(ordering: .relaxed) { sched_yield() }
            return threads
        }

        func end(_ threads: TestThreads) {
            isOver.store(true, ordering: .relaxed)
            threads.join()
        }
    }

    /// The places that the device can write: each that means something, and the whole zone.
    private func zone(_ rig: AdoptionRig) throws -> [(UInt, Int)] {
        let plan = try requireValue(rig.controller.plan)
        let first = plan.queues[0].completion
        let start = unsafe try requireValue(rig.controller.pool?.deviceWritesAddress(first))
        let whole = (
            UInt(bitPattern: start) - UInt(first.offset), plan.layout.deviceWritesByteCount
        )
        return try unsafe places(rig).map { unsafe (UInt(bitPattern: $0.0), $0.1) } + [whole]
    }

    @Test(
        "a device that writes wildly while a driver takes over: refused, or each request ends once")
    func wildMeanwhile() throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        let rig = try AdoptionRig(["--fault", "command:hang,queue=io,opcode=1"], depth: 16)
        var adopted = 0
        for round in 0..<30 {
            for token in 1...5 as ClosedRange<UInt64> {
                try rig.submit(
                    IOOperation.write, lba: token * 8, token: token, ring: token < 4)
            }
            _ = try rig.counter("faultsInjected")
            // When
            let wild = WildDevice()
            let threads = wild.begin(try zone(rig), seed: random.next())
            var isAdopted = false
            var ended: [UInt64] = []
            do throws(DriverError) {
                defer { wild.end(threads) }
                do { try rig.crash() } catch { throw .exhausted("\(error)") }
                try rig.controller.adopt(rig.inheritance())
                isAdopted = true
                // Also while its answers are taken.
                if round % 2 == 0 { ended = take(rig) }
            } catch {
                guard case .notAdoptable = error else { throw error }
            }
            if isAdopted {
                adopted += 1
                if round % 2 == 1 { ended = take(rig) }
                try rig.crash()
            }
            try rig.controller.startOver(rig.inheritance(), replay: { _ in .nothing })
            let rest = take(rig)
            // Then
            let words = "round \(round), seed \(seed)"
            #expect((ended + rest).sorted() == [1, 2, 3, 4, 5], "\(words)")
            #expect(unsafe rig.controller.engine(0).pointee.isIdle, "\(words)")
        }
        #expect(adopted > 0)
    }
}
