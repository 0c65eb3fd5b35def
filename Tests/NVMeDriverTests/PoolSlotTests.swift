// SPDX-License-Identifier: Apache-2.0
// What was written down of a pool's slots is what the plan of the pool says, or the controller is
// not gone on with.

import DMA
import SavedState
import Testing

@testable import NVMeDriver

@Suite("Slots of a pool that were written down", .serialized)
struct PoolSlotTests {
    private static let planned = [
        SlotPool.Slot(
            run: PageRun(first: 0, count: 4), state: .allocated, owner: "d", tag: "admin"),
        SlotPool.Slot(
            run: PageRun(first: 4, count: 1), state: .allocated, owner: "d", tag: "token"),
        SlotPool.Slot(
            run: PageRun(first: 512, count: 9), state: .allocated, owner: "d", tag: "bounce"),
    ]

    private static var saved: [SavedSlot] { planned.map(saved) }

    private static func saved(_ slot: SlotPool.Slot) -> SavedSlot {
        SavedSlot(
            firstPage: UInt64(slot.run.first), pageCount: UInt64(slot.run.count),
            owner: slot.owner, tag: slot.tag, state: slot.state.rawValue)
    }

    @Test("that are as planned are as planned, in whatever order")
    func same() {
        #expect(
            NVMeController.slotDifference(saved: Self.saved.reversed(), planned: Self.planned)
                == nil)
    }

    @Test(
        "one that differs is named, with what is planned",
        arguments: [
            ("owner", "'token' of x (1 pages from page 4 on)"),
            ("tag", "'x' of d (1 pages from page 4 on)"),
            ("first page", "'token' of d (1 pages from page 5 on)"),
            ("page count", "'token' of d (2 pages from page 4 on)"),
            ("huge", "'token' of d (18446744073709551615 pages from page 4 on)"),
        ])
    func different(field: String, text: String) throws {
        var saved = Self.saved
        switch field {
        case "owner": saved[1].owner = "x"
        case "tag": saved[1].tag = "x"
        case "first page": saved[1].firstPage += 1
        case "page count": saved[1].pageCount += 1
        default: saved[1].pageCount = .max
        }
        let difference = NVMeController.slotDifference(saved: saved, planned: Self.planned)
        #expect(
            difference
                == "a slot of its pool was \(text), and is 'token' of d (1 pages from page 4 on) "
                + "by the plan")
    }

    @Test("one too many, one too few, one twice, and one that was lost are named")
    func otherNumbers() throws {
        var more = Self.saved
        more.append(
            SavedSlot(firstPage: 600, pageCount: 1, owner: "e\n", tag: "other", state: 1))
        let fewer = Array(Self.saved.dropLast())
        let twice = Self.saved + [Self.saved[0]]
        var lost = Self.saved
        lost[2].state = SlotPool.State.leaked.rawValue
        func difference(_ saved: [SavedSlot]) -> String {
            NVMeController.slotDifference(saved: saved, planned: Self.planned) ?? "none"
        }
        #expect(difference(more).contains("had the slot 'other' of e? (1 pages"))
        #expect(difference(fewer).contains("did not have the slot 'bounce' of d"))
        #expect(difference(twice).contains("was 'admin' of d"))
        #expect(difference(lost).contains("'bounce' of d (9 pages from page 512 on)"))
        #expect(difference(lost).contains("state 3"))
    }

    @Test("a controller whose pool has them is gone on with", arguments: [false, true])
    func adoption(isChanged: Bool) throws {
        // Given
        let rig = try AdoptionRig()
        var slots = rig.controller.poolSlots.filter { $0.state != .free }.map(Self.saved)
        let tag = slots[2].tag
        if isChanged { slots[2].tag = "other" }
        let saved = try rig.saved()
        var inheritance = rig.inheritance()
        inheritance.poolSlots = slots
        // When
        try rig.succeed(
            try StateArea.create(restoring: saved.controller, layout: rig.stateLayout))
        var reason = ""
        do throws(DriverError) { try rig.controller.adopt(inheritance) } catch {
            reason = error.description
        }
        // Then
        #expect(rig.controller.wasAdopted == !isChanged, "\(reason)")
        #expect(reason.contains("was 'other' of") == isChanged)
        #expect(reason.contains("and is '\(tag)' of") == isChanged)
    }
}
