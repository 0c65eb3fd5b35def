// SPDX-License-Identifier: Apache-2.0
// When to raise an interrupt, and when the host is awake anyway.
//
// An interrupt costs a system call here and a wake-up there. It is raised at once when the host had
// taken everything before (it may be asleep), and held back as a debt while it is visibly taking
// entries. A debt ends when the host has taken everything, or with the interrupt when it gets too
// old, or when the emulator is about to sleep: none is lost. A host that takes entries faster than
// an interrupt could wake it is polling; such a host is given a few microseconds before it is
// interrupted at all.

internal import CMemory
internal import Linux

extension Controller {
    /// How long a debt may stand while the host is taking entries, or polls.
    static let maxDebtNanoseconds: UInt64 = 20_000
    /// The longest proof of polling that is asked for.
    static let maxDistrust: UInt32 = 4096
    /// An eventfd never wakes a waiter faster than this: a host that reacts sooner was looking.
    static let pollingNanoseconds: UInt64 = 3_000

    /// The first entry of a pass is about to be posted.
    func beginBatch(_ index: Int) {
        // A queue that is deleted and created anew within one pass is listed twice.
        if dirtyCount == dirty.count { settleInterrupts() }
        completion[index].isDirty = true
        dirty[dirtyCount] = UInt16(truncatingIfNeeded: index)
        dirtyCount &+= 1
        guard completion[index].interruptsEnabled else { return }
        refreshHead(index)
        completion[index].hadCaughtUp = completion[index].head == completion[index].tail
    }

    /// Decides about what was posted in this pass, and about older debts.
    func settleInterrupts() {
        nowNanoseconds = MonotonicClock.nowNanoseconds
        for position in 0..<dirtyCount {
            let index = Int(dirty[position])
            completion[index].isDirty = false
            guard completion[index].isActive, completion[index].interruptsEnabled else { continue }
            settleNew(index)
        }
        dirtyCount = 0
        settleWatched()
    }

    private func settleNew(_ index: Int) {
        // The admin queue is rare: no reason to be clever.
        if index == 0 { return raise(index) }
        if completion[index].hadCaughtUp && !isBelievedToPoll(index) {
            raise(index)
            completion[index].raisedNanoseconds = nowNanoseconds
            watch(index)
        } else if !completion[index].owesInterrupt {
            completion[index].owesInterrupt = true
            completion[index].owedSinceNanoseconds = nowNanoseconds
            watch(index)
        }
    }

    /// Whether to wait for the host a little before interrupting it.
    private func isBelievedToPoll(_ index: Int) -> Bool {
        guard completion[index].hostPolls else { return false }
        guard completion[index].distrust == 0 else {
            completion[index].distrust &-= 1
            return false
        }
        return true
    }

    /// The host slept although it had seemed to poll: it has to prove itself for longer each time.
    private func disappointed(_ index: Int) {
        completion[index].hostPolls = false
        completion[index].distrust = completion[index].nextDistrust
        completion[index].nextDistrust = min(
            completion[index].nextDistrust &* 2, Self.maxDistrust)
    }

    private func watch(_ index: Int) {
        let id = UInt16(truncatingIfNeeded: index)
        if !watched.contains(id) { watched.append(id) }
    }

    /// Looks at every queue whose host is being watched.
    private func settleWatched() {
        var position = 0
        while position < watched.count {
            if isSettled(Int(watched[position])) {
                watched.swapAt(position, watched.count &- 1)
                watched.removeLast()
            } else {
                position &+= 1
            }
        }
    }

    private func isSettled(_ index: Int) -> Bool {
        guard completion[index].isActive else { return true }
        refreshHead(index)
        let hasCaughtUp = completion[index].head == completion[index].tail
        if completion[index].owesInterrupt {
            if hasCaughtUp {
                completion[index].owesInterrupt = false
                completion[index].hostPolls = true
                completion[index].nextDistrust = 16
                counters.interruptsSuppressed &+= 1
            } else if nowNanoseconds &- completion[index].owedSinceNanoseconds
                > Self.maxDebtNanoseconds
            {
                disappointed(index)
                raise(index)
            }
        }
        if completion[index].raisedNanoseconds != 0 {
            let age = nowNanoseconds &- completion[index].raisedNanoseconds
            if hasCaughtUp && age < Self.pollingNanoseconds { completion[index].hostPolls = true }
            if hasCaughtUp || age >= Self.pollingNanoseconds {
                completion[index].raisedNanoseconds = 0
            }
        }
        return !completion[index].owesInterrupt && completion[index].raisedNanoseconds == 0
    }

    /// Pays every debt that the host has not made moot.
    func settleBeforeSleep() {
        if dirtyCount > 0 || !watched.isEmpty { settleInterrupts() }
        for id in watched {
            let index = Int(id)
            completion[index].raisedNanoseconds = 0
            guard completion[index].owesInterrupt else { continue }
            disappointed(index)
            raise(index)
        }
        watched.removeAll(keepingCapacity: true)
    }

    private func raise(_ index: Int) {
        completion[index].owesInterrupt = false
        if faults.concerns(.interrupt),
            let action = faults.action(at: .interrupt, queue: UInt16(truncatingIfNeeded: index))
        {
            counters.faultsInjected &+= 1
            if action == .lost {
                counters.interruptsLost &+= 1
                return
            }
            interrupts.raise(vector: completion[index].vector)
        }
        counters.interruptsRaised &+= 1
        interrupts.raise(vector: completion[index].vector)
    }
}
