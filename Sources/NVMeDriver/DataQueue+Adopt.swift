// SPDX-License-Identifier: Apache-2.0
// Taking over the rings of a predecessor that died: positions are worked out, completions that it
// had not published are posted, and every client is woken once (DESIGN, section 5).
//
// A completion is known by its position, never by its tag. What a ring has taken less what it has
// completed is what is in flight, exactly: whatever does not add up is not adopted.

internal import CMemory
internal import CRing

extension DataQueue {
    /// Opens the ring of a predecessor at its place, with what it had taken and completed. False
    /// when the place is not free, or what is in flight contradicts the positions. `recover` must
    /// follow before anything is taken or reaped.
    mutating func adopt(
        at index: Int, base: UnsafeMutableRawPointer, shape: RingShape, session: UInt32,
        regions: SessionRegions, rules: RingRules, wakeFD: CInt, gate: IOGate,
        log: TwinPositions?, known: (head: UInt32, tail: UInt32),
        statistics: StatisticsBlock? = nil
    ) -> Bool {
        guard index >= 0, index < Self.ringCapacity,
            let use = unsafe engine.pointee.use(ofRing: UInt8(index + 1), head: known.head)
        else { return false }
        // No more can have been taken than completions have room for.
        let limit = shape.completionEntries
        guard use.head &- known.tail <= limit, use.requestCount <= 2 * limit else { return false }
        var positions = RingPositions(
            submissionHead: use.head, completionTail: known.tail, completionHead: 0,
            inFlight: use.requestCount)
        let head = unsafe nv_load_acquire32(base + Int(NV_RING_OFFSET_COMPLETION_HEAD))
        // What the client says it has taken, where that can be; or as little as can be.
        let least = use.head &- limit
        let isPossible = head &- least <= known.tail &- least
        positions.completionHead = isPossible ? head : least
        guard
            unsafe add(
                at: index, base: base, shape: shape, session: session, regions: regions,
                rules: rules, wakeFD: wakeFD, gate: gate, log: log, positions: positions,
                statistics: statistics) != nil
        else { return false }
        if !isPossible { unsafe rings[index].setFault(.completionHead) }
        return true
    }

    /// Posts what a predecessor had taken from the device and perhaps not published, publishes
    /// every ring, wakes every client, and gives the slots back. Completions of requests without a
    /// ring go to `deliver`. False when the rings do not add up: nothing was published then, and
    /// the device has to be started afresh.
    mutating func recover(_ deliver: (IOCompletion) -> Void) -> Bool {
        var posted = [[UInt32: IOCompletion]](repeating: [:], count: Self.ringCapacity)
        var isWhole = true
        unsafe engine.pointee.recoverAnswered { completion, position in
            guard completion.ring > 0 else { return deliver(completion) }
            let index = Int(completion.ring) - 1
            guard let ring = unsafe ring(index) else {
                isWhole = false
                return
            }
            if let place = unsafe ring.pointee.repost(completion, position: position) {
                isWhole = posted[index].updateValue(completion, forKey: place) == nil && isWhole
            }
        }
        for (index, posted) in posted.enumerated() {
            guard let ring = unsafe ring(index) else { continue }
            isWhole = isWhole && Set(posted.keys) == Set(0..<UInt32(posted.count))
            let tail = unsafe ring.pointee.publishedTail &+ UInt32(posted.count)
            unsafe ring.pointee.completionTail = tail
        }
        guard isWhole else { return false }
        unsafe engine.pointee.recoverFinished { completion in
            guard completion.ring > 0 else { return deliver(completion) }
            guard let ring = unsafe ring(Int(completion.ring) - 1) else {
                isWhole = false
                return
            }
            unsafe ring.pointee.adoptedInFlight &-= 1
            unsafe withUnsafePointer(to: completion) { unsafe ring.pointee.post($0) }
        }
        unsafe forEachRing { ring in isWhole = unsafe isWhole && ring.pointee.addsUp }
        guard isWhole else { return false }
        for (index, posted) in posted.enumerated() {
            unsafe ring(index)?.pointee.countAdopted(posted)
        }
        unsafe forEachRing { unsafe $0.pointee.publishAdopted() }
        CrashPoint.hit(.adoptDelivered)
        unsafe engine.pointee.retire()
        return true
    }
}

extension RingPort {
    /// Writes a completion that a predecessor had a position for, unless it has published it.
    /// Returns how far behind the published ones it is.
    mutating func repost(_ completion: IOCompletion, position: UInt32) -> UInt32? {
        adoptedInFlight = adoptedInFlight &- 1
        let distance = position &- publishedTail
        // No ring has more in flight; what lies behind was published.
        guard distance < UInt32(NV_RING_MAX_ENTRIES) else { return nil }
        write(
            at: position, tag: completion.token, status: completion.status,
            code: completion.status == 0 ? 0 : RingCode.of(completion.status),
            result: completion.result)
        return distance
    }

    /// Whether what was taken and not completed is what is in flight.
    var addsUp: Bool { submissionHead &- completionTail == adoptedInFlight }

    /// Makes everything visible again, and wakes the client whether it asked or not: the
    /// predecessor may have died between looking and waking.
    mutating func publishAdopted() {
        publishedTail = completionTail
        log.write(head: submissionHead, tail: completionTail)
        unsafe nv_store_release32(base + Int(NV_RING_OFFSET_SUBMISSION_HEAD), submissionHead)
        unsafe nv_store_release32(base + Int(NV_RING_OFFSET_COMPLETION_TAIL), completionTail)
        nv_full_fence()
        unsafe nv_store_seq32(base + Int(NV_RING_OFFSET_COMPLETION_NEED_WAKE), 1)
        wake()
    }

    /// Counts those of the completions written by `repost` that the predecessor has not counted,
    /// which did so in their order: the last ones.
    func countAdopted(_ posted: [UInt32: IOCompletion]) {
        let left = Int(adoptedInFlight)
        let uncounted = min(max(Int(clamping: statistics.inFlight) - left, 0), posted.count)
        for place in (posted.count - uncounted)..<posted.count {
            guard let completion = posted[UInt32(place)] else { continue }
            statistics.completed(
                operation: completion.operation, age: completion.age,
                failed: completion.status != 0)
        }
        statistics.settle(inFlight: left)
    }
}
