// SPDX-License-Identifier: Apache-2.0
// Who owns which pages of a pool of memory: slots with owner and tag, quotas and reservations, and
// the claims of those who come back after a restart.
//
// Pure bookkeeping: the memory itself is somebody else's. Free neighbours merge at once, and the
// smallest hole that suffices is used, so that large holes stay. What nobody claims after a restore
// is leaked for its owner and never used again: a device that was not stopped may still write it.

/// A run of pages, numbered from the start of the pool's memory.
public struct PageRun: Sendable, Hashable, CustomStringConvertible {
    /// The first page.
    public var first: Int
    /// How many.
    public var count: Int

    /// A run; both numbers are positive or 0.
    public init(first: Int, count: Int) {
        self.first = first
        self.count = count
    }

    /// The page behind the last.
    public var end: Int { first + count }
    /// The run for messages.
    public var description: String { "pages \(first)..<\(end)" }
}

/// What is wrong with a request to a pool, or with a saved one.
public enum SlotPoolError: Error, Sendable, Equatable, CustomStringConvertible {
    /// Zero or too many pages, or a name that is empty or too long.
    case malformed(field: String)
    /// There is no hole of that size.
    case exhausted(owner: String, wanted: Int, free: Int, largest: Int)
    /// The owner has what it may have.
    case overQuota(owner: String, wanted: Int, used: Int, quota: Int)
    /// What is free is promised to others.
    case promised(owner: String, wanted: Int, free: Int, promised: Int)
    /// No slot of that owner is there.
    case notOwned(owner: String, run: PageRun)
    /// Reservations and quotas do not fit the pool.
    case overcommitted(owner: String, pages: Int, available: Int)
    /// Saved slots do not tile the ranges of the pool.
    case mismatch(String)

    /// The error in words, with what to do.
    public var description: String {
        switch self {
        case .malformed(let field): "\(field) is not valid"
        case .exhausted(let owner, let wanted, let free, let largest):
            "\(owner) wants \(wanted) pages in a row, and the largest hole has \(largest) "
                + "(\(free) pages are free): make the pool larger"
        case .overQuota(let owner, let wanted, let used, let quota):
            "\(owner) wants \(wanted) pages more than the \(used) it has, and may have \(quota): "
                + "raise its quota"
        case .promised(let owner, let wanted, let free, let promised):
            "\(owner) wants \(wanted) pages, and of the \(free) free ones \(promised) are reserved "
                + "for others: make the pool larger"
        case .notOwned(let owner, let run): "\(owner) does not own \(run)"
        case .overcommitted(let owner, let pages, let available):
            "\(pages) pages cannot be reserved for \(owner): \(available) are left"
        case .mismatch(let text): "the saved pool does not fit: \(text)"
        }
    }
}

/// The pages of a pool and their owners.
public struct SlotPool: Sendable, Equatable {
    /// The most bytes of an owner's name and of a tag.
    public static let nameByteCountMax = 64
    /// The most pages of a pool: 4 TiB of 4096 bytes each.
    public static let pageCountMax = 1 << 30

    /// What a slot is.
    public enum State: UInt32, Sendable, Equatable {
        /// Nobody's.
        case free = 0
        /// In use.
        case allocated = 1
        /// Its owner has not come back after a restore.
        case pending = 2
        /// Its owner did not come back, or somebody else can touch it: never used again.
        case leaked = 3
    }

    /// A run of pages with one owner.
    public struct Slot: Sendable, Equatable {
        /// The pages.
        public var run: PageRun
        /// What it is.
        public var state: State
        /// Whose; empty when it is free.
        public var owner: String
        /// What its owner calls it.
        public var tag: String

        /// A slot.
        public init(run: PageRun, state: State, owner: String = "", tag: String = "") {
            self.run = run
            self.state = state
            self.owner = owner
            self.tag = tag
        }
    }

    /// What an owner may have.
    public struct Share: Sendable, Equatable {
        /// Pages that nobody else gets.
        public var reserved: Int
        /// The most pages.
        public var quota: Int

        /// A share.
        public init(reserved: Int = 0, quota: Int = .max) {
            self.reserved = reserved
            self.quota = quota
        }
    }

    /// The ranges that lie apart: no slot crosses from one to the next.
    public let ranges: [PageRun]
    /// All slots by rising page; together they are the ranges.
    public private(set) var slots: [Slot]
    private var shares: [String: Share] = [:]
    private var used: [String: Int] = [:]

    /// A pool of ranges, rising and apart, all of them free.
    public init(ranges: [PageRun]) throws(SlotPoolError) {
        try Self.check(ranges)
        self.ranges = ranges
        slots = ranges.map { Slot(run: $0, state: .free) }
        freeCount = ranges.reduce(0) { $0 + $1.count }
    }

    private static func check(_ ranges: [PageRun]) throws(SlotPoolError) {
        var last = 0
        for range in ranges {
            guard range.first >= last, range.count > 0, range.first <= pageCountMax,
                range.count <= pageCountMax
            else { throw .malformed(field: "the range of \(range)") }
            last = range.end
        }
        guard !ranges.isEmpty else { throw .malformed(field: "a pool without ranges") }
    }

    // MARK: What there is

    /// Pages of the pool.
    public var pageCount: Int { ranges.reduce(0) { $0 + $1.count } }
    /// Pages that are free.
    public private(set) var freeCount: Int
    /// The largest run of free pages.
    public var largestFree: Int {
        slots.reduce(0) { max($0, $1.state == .free ? $1.run.count : 0) }
    }
    /// Pages that are leaked.
    public var leakedCount: Int {
        slots.reduce(0) { $0 + ($1.state == .leaked ? $1.run.count : 0) }
    }
    /// Pages of an owner, those that it has not claimed and those that leaked included.
    public func usedCount(_ owner: String) -> Int { used[owner] ?? 0 }
    /// The slots of an owner.
    public func slots(of owner: String) -> [Slot] { slots.filter { $0.owner == owner } }

    // MARK: Shares

    /// Promises an owner pages, and bounds what it may have.
    public mutating func setShare(_ owner: String, _ share: Share) throws(SlotPoolError) {
        try Self.check(owner, "an owner's name")
        guard share.reserved >= 0, share.quota >= share.reserved else {
            throw .malformed(field: "the share of \(owner)")
        }
        var next = shares
        next[owner] = share
        let available = freeCount - promised(next, except: owner)
        let open = max(0, share.reserved - usedCount(owner))
        guard open <= available else {
            throw .overcommitted(owner: owner, pages: share.reserved, available: available)
        }
        shares = next
    }

    /// The shares of all owners that have one, by name.
    public var allShares: [(owner: String, share: Share)] {
        shares.sorted { $0.key < $1.key }.map { (owner: $0.key, share: $0.value) }
    }

    /// An owner is gone for good; what it had stays what it is.
    public mutating func removeShare(_ owner: String) { shares[owner] = nil }

    /// Pages that are promised to owners and that these do not have yet.
    private func promised(_ shares: [String: Share], except owner: String) -> Int {
        shares.reduce(0) { sum, share in
            share.key == owner ? sum : sum + max(0, share.value.reserved - usedCount(share.key))
        }
    }

    // MARK: Taking and giving back

    /// Takes pages in a row. The first page of a run that is aligned to `alignment` pages.
    public mutating func allocate(
        _ count: Int, owner: String, tag: String, alignment: Int = 1
    ) throws(SlotPoolError) -> PageRun {
        try checkRequest(count, owner, tag)
        guard alignment > 0, alignment & (alignment - 1) == 0 else {
            throw .malformed(field: "an alignment of \(alignment) pages")
        }
        guard let (index, first) = bestFit(count, alignment) else {
            throw .exhausted(owner: owner, wanted: count, free: freeCount, largest: largestFree)
        }
        let run = PageRun(first: first, count: count)
        carve(index, Slot(run: run, state: .allocated, owner: owner, tag: tag))
        return run
    }

    /// Takes pages that need not lie in a row: all of them or none. In as few runs as there have to
    /// be, or with `smallestFirst` out of the smallest holes, so that the large ones stay.
    public mutating func allocateScattered(
        _ count: Int, owner: String, tag: String, smallestFirst: Bool = false
    ) throws(SlotPoolError) -> [PageRun] {
        try checkRequest(count, owner, tag)
        var runs: [PageRun] = []
        var left = count
        // `checkRequest` has counted: there are as many free pages.
        while left > 0, let index = hole(for: left, smallestFirst) {
            let hole = slots[index].run
            let run = PageRun(first: hole.first, count: min(left, hole.count))
            runs.append(run)
            carve(index, Slot(run: run, state: .allocated, owner: owner, tag: tag))
            left -= run.count
        }
        return runs
    }

    /// The hole that is used next for pages that need not lie in a row.
    private func hole(for count: Int, _ smallestFirst: Bool) -> Int? {
        let free = slots.indices.filter { slots[$0].state == .free }
        if smallestFirst {
            return free.min { slots[$0].run.count < slots[$1].run.count }
        }
        return bestFit(count, 1)?.index
            ?? free.max { slots[$0].run.count < slots[$1].run.count }
    }

    private func checkRequest(
        _ count: Int, _ owner: String, _ tag: String
    ) throws(SlotPoolError) {
        guard count > 0, count <= Self.pageCountMax else {
            throw .malformed(field: "\(count) pages")
        }
        try Self.check(owner, "an owner's name")
        try Self.check(tag, "a tag")
        let has = usedCount(owner)
        let quota = shares[owner]?.quota ?? .max
        guard count <= quota - min(has, quota) else {
            throw .overQuota(owner: owner, wanted: count, used: has, quota: quota)
        }
        let free = freeCount
        guard count <= free else {
            throw .exhausted(owner: owner, wanted: count, free: free, largest: largestFree)
        }
        let others = promised(shares, except: owner)
        guard count <= free - others else {
            throw .promised(owner: owner, wanted: count, free: free, promised: others)
        }
    }

    private static func check(_ name: String, _ what: String) throws(SlotPoolError) {
        guard (1...nameByteCountMax).contains(name.utf8.count) else {
            throw .malformed(field: what)
        }
    }

    /// The smallest hole that has room, and where in it.
    private func bestFit(_ count: Int, _ alignment: Int) -> (index: Int, first: Int)? {
        var best: (index: Int, first: Int)?
        for (index, slot) in slots.enumerated() where slot.state == .free {
            let first = (slot.run.first + alignment - 1) & ~(alignment - 1)
            guard first <= slot.run.end - count else { continue }
            guard let known = best, slots[known.index].run.count <= slot.run.count else {
                best = (index, first)
                continue
            }
        }
        return best
    }

    /// Takes exactly these pages, which are free: a plan says what lies where.
    public mutating func take(
        _ run: PageRun, owner: String, tag: String
    ) throws(SlotPoolError) {
        try checkRequest(run.count, owner, tag)
        let hole = slots.lastIndex { $0.run.first <= run.first }
        guard let hole, slots[hole].state == .free, run.count <= slots[hole].run.count,
            run.first <= slots[hole].run.end - run.count
        else {
            throw .exhausted(
                owner: owner, wanted: run.count, free: freeCount, largest: largestFree)
        }
        carve(hole, Slot(run: run, state: .allocated, owner: owner, tag: tag))
    }

    /// Takes pages in use out of use for good: somebody else can still touch them.
    public mutating func leak(_ run: PageRun, owner: String) throws(SlotPoolError) {
        guard let index = index(of: run, owner), slots[index].state == .allocated else {
            throw .notOwned(owner: owner, run: run)
        }
        slots[index].state = .leaked
    }

    /// Puts a slot into a hole; what is left of the hole stays free on both sides.
    private mutating func carve(_ index: Int, _ slot: Slot) {
        let hole = slots[index].run
        var parts: [Slot] = []
        if slot.run.first > hole.first {
            parts.append(
                Slot(
                    run: PageRun(first: hole.first, count: slot.run.first - hole.first),
                    state: .free))
        }
        parts.append(slot)
        if slot.run.end < hole.end {
            parts.append(
                Slot(
                    run: PageRun(first: slot.run.end, count: hole.end - slot.run.end), state: .free)
            )
        }
        slots.replaceSubrange(index...index, with: parts)
        used[slot.owner, default: 0] += slot.run.count
        freeCount -= slot.run.count
    }

    /// Whether a run was taken at once by this owner, who has it still.
    public func isAllocated(_ run: PageRun, to owner: String) -> Bool {
        index(of: run, owner).map { slots[$0].state == .allocated } ?? false
    }

    /// Gives a run back. Only the whole of what was taken at once, and only by its owner.
    public mutating func release(_ run: PageRun, owner: String) throws(SlotPoolError) {
        guard let index = index(of: run, owner), slots[index].state == .allocated else {
            throw .notOwned(owner: owner, run: run)
        }
        free(index)
    }

    /// Gives back all that an owner has in use, but not what leaked. Returns how many pages.
    @discardableResult
    public mutating func releaseAll(of owner: String) -> Int {
        var count = 0
        while let index = slots.firstIndex(where: { $0.owner == owner && $0.state == .allocated }) {
            count += slots[index].run.count
            free(index)
        }
        return count
    }

    private func index(of run: PageRun, _ owner: String) -> Int? {
        var (low, high) = (0, slots.count)
        while low < high {
            let middle = (low + high) / 2
            if slots[middle].run.first < run.first { low = middle + 1 } else { high = middle }
        }
        guard low < slots.count, slots[low].run == run, slots[low].owner == owner else {
            return nil
        }
        return low
    }

    private mutating func free(_ index: Int) {
        let slot = slots[index]
        let left = (used[slot.owner] ?? 0) - slot.run.count
        used[slot.owner] = left > 0 ? left : nil
        freeCount += slot.run.count
        var run = slot.run
        var (first, last) = (index, index)
        if index + 1 < slots.count, joins(slots[index], slots[index + 1]) {
            run.count += slots[index + 1].run.count
            last = index + 1
        }
        if index > 0, joins(slots[index - 1], slots[index]) {
            run = PageRun(
                first: slots[index - 1].run.first, count: slots[index - 1].run.count + run.count)
            first = index - 1
        }
        slots.replaceSubrange(first...last, with: [Slot(run: run, state: .free)])
    }

    /// Whether what is beside `slot` is free and of the same range.
    private func joins(_ left: Slot, _ right: Slot) -> Bool {
        guard left.run.end == right.run.first, left.state == .free || right.state == .free else {
            return false
        }
        // Ranges that touch are still apart: their memory need not lie in a row.
        return !ranges.contains { $0.first == right.run.first }
    }

    // MARK: Coming back

    /// A pool as it was saved: what was in use waits for its owner.
    public init(ranges: [PageRun], saved: [Slot]) throws(SlotPoolError) {
        try Self.check(ranges)
        self.ranges = ranges
        slots = []
        freeCount = 0
        var next = ranges.map(\.first)[...]
        var end = ranges[0].first
        for slot in saved.sorted(by: { $0.run.first < $1.run.first }) {
            if slot.run.first == next.first {
                guard slots.isEmpty || slots[slots.count - 1].run.end == end else {
                    throw .mismatch("the range before \(slot.run) is not covered")
                }
                next = next.dropFirst()
                end = ranges[ranges.count - next.count - 1].end
            } else {
                guard let last = slots.last, last.run.end == slot.run.first else {
                    throw .mismatch("\(slot.run) overlaps, or there is a gap before it")
                }
            }
            guard slot.run.count > 0, slot.run.count <= end - slot.run.first else {
                throw .mismatch("\(slot.run) leaves its range")
            }
            try append(saved: slot)
        }
        guard next.isEmpty, slots.last?.run.end == end else {
            throw .mismatch("its slots end before its ranges do")
        }
    }

    private mutating func append(saved slot: Slot) throws(SlotPoolError) {
        guard slot.state != .free else {
            freeCount += slot.run.count
            if let last = slots.last, joins(last, slot), last.state == .free {
                slots[slots.count - 1].run.count += slot.run.count
            } else {
                slots.append(Slot(run: slot.run, state: .free))
            }
            return
        }
        try Self.check(slot.owner, "an owner's name")
        try Self.check(slot.tag, "a tag")
        var slot = slot
        if slot.state == .allocated { slot.state = .pending }
        slots.append(slot)
        used[slot.owner, default: 0] += slot.run.count
    }

    /// An owner comes back for pages that it had: by its name and their place.
    public mutating func claim(_ run: PageRun, owner: String) throws(SlotPoolError) -> Slot {
        guard let index = index(of: run, owner), slots[index].state == .pending else {
            throw .notOwned(owner: owner, run: run)
        }
        slots[index].state = .allocated
        return slots[index]
    }

    /// What an owner has not claimed will not be used again; the others are not concerned. Returns
    /// what that is, for the log.
    public mutating func leakUnclaimed(of owner: String) -> [Slot] {
        var leaked: [Slot] = []
        for index in slots.indices
        where slots[index].owner == owner && slots[index].state == .pending {
            slots[index].state = .leaked
            leaked.append(slots[index])
        }
        return leaked
    }

    /// Owners that have not claimed all that they had.
    public var missingOwners: [String] {
        Set(slots.filter { $0.state == .pending }.map(\.owner)).sorted()
    }
}
