// SPDX-License-Identifier: Apache-2.0
// Where rules act on commands and completions.

internal import Linux
internal import NVMeSpec

extension Controller {
    /// Applies a rule to a fetched command. True when the command is dealt with.
    func interfere(_ entry: SubmissionEntry, from id: UInt16) -> Bool {
        guard let action = faults.action(at: .command, queue: id, entry: entry) else {
            return false
        }
        counters.faultsInjected &+= 1
        switch action {
        case .status(let status): complete(entry, from: id, Status(rawValue: status), 0)
        case .delay(let milliseconds):
            let outcome = id == 0 ? executeAdmin(entry) : executeIO(entry)
            guard case .done(let status, let dword0) = outcome else { return true }
            let due = MonotonicClock.nowNanoseconds &+ milliseconds &* 1_000_000
            hold(entry, from: id, until: due, status, dword0)
        case .postpone(let milliseconds):
            let due = MonotonicClock.nowNanoseconds &+ milliseconds &* 1_000_000
            hold(entry, from: id, until: due, .success, 0, isPostponed: true)
        case .hang: hold(entry, from: id, until: nil, .success, 0)
        case .drop: _ = id == 0 ? executeAdmin(entry) : executeIO(entry)
        case .fatal: fail("fault: fatal at \(entry.opcode)")
        case .gone: isGone = true
        case .disconnect: wantsDisconnect = true
        default: return false
        }
        return true
    }

    private func hold(
        _ entry: SubmissionEntry, from id: UInt16, until due: UInt64?, _ status: Status,
        _ dword0: UInt32, isPostponed: Bool = false
    ) {
        guard held.count < Self.maxHeldCommands else {
            return complete(entry, from: id, .internalError, 0)
        }
        held.append(
            HeldCommand(
                submissionQueue: id, commandID: entry.commandID, dueNanoseconds: due,
                status: status.rawValue, dword0: dword0, entry: entry.opcode,
                postponed: isPostponed ? entry : nil))
    }

    /// Lets the delayed commands end now; how many there are.
    func releaseHeld() -> Int {
        var count = 0
        for index in held.indices where held[index].dueNanoseconds != nil {
            held[index].dueNanoseconds = 0
            count += 1
        }
        return count
    }

    /// Applies a rule to a completion. False when it has been posted here.
    func falsify(
        _ record: inout CompletionEntry, _ entry: SubmissionEntry, _ id: UInt16, _ queue: Int
    ) -> Bool {
        guard let action = faults.action(at: .completion, queue: id, entry: entry) else {
            return true
        }
        counters.faultsInjected &+= 1
        switch action {
        case .wrongPhase:
            post(record, to: queue, invertPhase: true)
            return false
        case .commandID(let commandID): record.commandID = commandID ?? ~record.commandID
        case .duplicate: if completion[queue].room > 1 { post(record, to: queue) }
        case .submissionQueueID(let value): record.sqID = value
        case .submissionQueueHead(let value): record.sqHead = value
        case .dword0(let value): record.dw0 = value
        default: break
        }
        return true
    }
}
