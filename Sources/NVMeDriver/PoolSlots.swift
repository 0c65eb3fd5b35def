// SPDX-License-Identifier: Apache-2.0
// What was written down of a pool's slots against what its plan says: a controller whose queues lie
// elsewhere than this build puts them is not gone on with.

internal import DMA
internal import SavedState

extension NVMeController {
    /// Throws `notAdoptable`, naming the slot, when what was written down is not what the plan of
    /// the pool at hand says.
    func checkSlots(_ saved: [SavedSlot]) throws(DriverError) {
        guard !saved.isEmpty else { return }
        let planned = poolSlots.filter { $0.state != .free }
        if let difference = Self.slotDifference(saved: saved, planned: planned) {
            throw .notAdoptable(difference)
        }
    }

    /// The first slot in which the two differ, for messages; nil: none. The order in which they
    /// were written down does not count.
    static func slotDifference(saved: [SavedSlot], planned: [SlotPool.Slot]) -> String? {
        let saved = saved.sorted { ($0.firstPage, $0.pageCount) < ($1.firstPage, $1.pageCount) }
        for (known, slot) in zip(saved, planned) {
            guard known.firstPage == UInt64(clamping: slot.run.first),
                known.pageCount == UInt64(clamping: slot.run.count), known.owner == slot.owner,
                known.tag == slot.tag
            else {
                return "a slot of its pool was \(text(known)), and is \(text(slot)) by the plan"
            }
            guard known.state == SlotPool.State.allocated.rawValue else {
                return "slot \(text(known)) of its pool was not in use (state \(known.state))"
            }
        }
        if saved.count > planned.count {
            return
                "its pool had the slot \(text(saved[planned.count])), which nothing is planned for"
        }
        if planned.count > saved.count {
            return "its pool did not have the slot \(text(planned[saved.count])) of the plan"
        }
        return nil
    }

    private static func text(_ slot: SavedSlot) -> String {
        text(slot.tag, slot.owner, slot.firstPage, slot.pageCount)
    }

    private static func text(_ slot: SlotPool.Slot) -> String {
        text(
            slot.tag, slot.owner, UInt64(clamping: slot.run.first), UInt64(clamping: slot.run.count)
        )
    }

    private static func text(
        _ tag: String, _ owner: String, _ first: UInt64, _ count: UInt64
    ) -> String {
        "'\(printable(tag))' of \(printable(owner)) (\(count) pages from page \(first) on)"
    }

    /// Whoever wrote the file chose the text, and it goes into a log.
    private static func printable(_ text: String) -> String {
        String(decoding: text.utf8.map { 0x20..<0x7F ~= $0 ? $0 : 0x3F }, as: UTF8.self)
    }
}
