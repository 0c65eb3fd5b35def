// SPDX-License-Identifier: Apache-2.0
// A state area that somebody changed: adoption is refused, or correct.

import CMemory
import Linux
import NVMeSpec
import TestSupport
import Testing
import VFIO

@testable import NVMeDriver

@Suite("Adoption from a damaged state area", .serialized)
struct AdoptionDamageTests {
    /// Where something that counts lies, in a state area of one I/O queue in its first epoch.
    private func places(_ layout: StateLayout) -> [(name: String, range: Range<Int>)] {
        [
            ("numbers", 0..<32),
            ("header", 64..<(64 + TwinRecord.byteCount(words: StateLayout.headerWords))),
            (
                "controller",
                StateLayout
                    .controllerOffset..<(StateLayout.controllerOffset
                    + TwinRecord.byteCount(words: StateLayout.controllerWords))
            ),
            ("events", StateLayout.eventsOffset..<(StateLayout.eventsOffset + 24)),
            (
                "region",
                (StateLayout.regionsOffset + StateLayout.regionByteCount)..<(StateLayout
                    .regionsOffset + 2 * StateLayout.regionByteCount)
            ),
            ("admin queue", layout.queueRecordOffset(0)..<(layout.queueRecordOffset(0) + 128)),
            ("queue", layout.queueRecordOffset(1)..<(layout.queueRecordOffset(1) + 128)),
            (
                "admin slots",
                layout.slotsOffset(0, epoch: 1)..<(layout.slotsOffset(0, epoch: 1) + 512)
            ),
            ("slots", layout.slotsOffset(1, epoch: 1)..<(layout.slotsOffset(1, epoch: 1) + 512)),
            (
                "requests",
                layout.requestsOffset(1, epoch: 1)..<(layout.requestsOffset(1, epoch: 1) + 256)
            ),
            (
                "identify",
                layout.controllerPageOffset(0)..<(layout.controllerPageOffset(0) + 4160)
            ),
            ("ages", layout.agesOffset(1)..<(layout.agesOffset(1) + 112)),
            ("namespace", layout.namespaceOffset(0)..<(layout.namespaceOffset(0) + 8256)),
        ]
    }

    private func submit(_ rig: AdoptionRig, _ round: Int) throws {
        rig.fill(at: 0, byteCount: 32768, seed: UInt64(round))
        for token in 1...3 as ClosedRange<UInt64> {
            try rig.submit(
                IOOperation.write, lba: token * 8, offset: Int(token) * 4096, token: token)
        }
        for token in 4...5 as ClosedRange<UInt64> {
            try rig.submit(
                IOOperation.write, lba: token * 8, offset: Int(token) * 4096, token: token,
                ring: false)
        }
    }

    /// Every byte of what is short, and a sample of the rest.
    @Test("any changed byte: refused, or nothing is lost or wrong", arguments: 0..<13)
    func flips(part: Int) throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed &+ UInt64(part))
        let rig = try AdoptionRig(depth: 16)
        let layout = rig.controller.state.layout
        let place = places(layout)[part]
        let known = (
            rig.controller.namespaces, rig.controller.identify.sn,
            rig.controller.state.region(rig.region), rig.controller.limits.maxTransferByteCount
        )
        var offsets = Array(place.range)
        while offsets.count > 120 {
            offsets.remove(at: Int(random.next() % UInt64(offsets.count)))
        }
        var (refused, adopted) = (0, 0)
        try submit(rig, 0)
        for (round, offset) in offsets.enumerated() {
            let mask = UInt8(1) << UInt8(random.next() % 8)
            let words = "\(place.name), byte \(offset - place.range.lowerBound), seed \(seed)"
            let flip = Flip(offset: offset, mask: mask)
            // When
            do {
                try rig.crash(flip)
            } catch is StateAreaError {
                refused += 1
                try rig.change(flip)
                continue
            }
            var isRefused = false
            do throws(DriverError) {
                try rig.controller.adopt(rig.inheritance())
            } catch {
                guard case .notAdoptable = error else { throw error }
                isRefused = true
            }
            if isRefused {
                refused += 1
                try rig.discardSuccessor(flip)
                continue
            }
            // Then
            adopted += 1
            let statuses = try rig.complete(5)
            #expect(statuses == [1: 0, 2: 0, 3: 0, 4: 0, 5: 0], "\(words)")
            #expect(rig.controller.namespaces == known.0, "\(words)")
            #expect(rig.controller.identify.sn == known.1, "\(words)")
            #expect(rig.controller.state.region(rig.region) == known.2, "\(words)")
            #expect(rig.controller.limits.maxTransferByteCount == known.3, "\(words)")
            try rig.submit(IOOperation.read, lba: 40, offset: 1 << 20, token: 9)
            #expect(try rig.complete(1) == [9: 0], "\(words)")
            #expect(rig.equal(5 * 4096, 1 << 20, byteCount: 4096), "\(words)")
            try submit(rig, round + 1)
        }
        #expect(refused + adopted == offsets.count)
        // Of damaged events nothing is known, so that all of them are told; and commands whose age
        // is not known are young.
        #expect(refused > 0 || ["events", "ages"].contains(place.name), "\(place.name)")
    }
}
