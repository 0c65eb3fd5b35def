// SPDX-License-Identifier: Apache-2.0
// Admin commands: queues, Abort, Doorbell Buffer Config. NVM Express Base Specification 2.0,
// section 5.

internal import NVMeSpec

extension Controller {
    func executeAdmin(_ entry: SubmissionEntry) -> Outcome {
        counters.adminByOpcode[Int(entry.opcode)] &+= 1
        if !hasServedIO { counters.earlyAdminByOpcode[Int(entry.opcode)] &+= 1 }
        // No SGLs, no fused commands.
        guard entry.psdt == 0, entry.fuse == 0 else { return .done(.invalidField, 0) }
        switch entry.adminOpcode {
        case .deleteIOSubmissionQueue: return .done(deleteSubmissionQueue(entry), 0)
        case .createIOSubmissionQueue: return .done(createSubmissionQueue(entry), 0)
        case .deleteIOCompletionQueue: return .done(deleteCompletionQueue(entry), 0)
        case .createIOCompletionQueue: return .done(createCompletionQueue(entry), 0)
        case .getLogPage: return .done(getLogPage(entry), 0)
        case .identify: return .done(identify(entry), 0)
        case .abort: return abort(entry)
        case .setFeatures: return setFeatures(entry)
        case .getFeatures: return getFeatures(entry)
        case .asynchronousEventRequest: return executeEventRequest(entry)
        case .doorbellBufferConfig where options.doorbells != .message && !options.dmaByMessage:
            return .done(configureDoorbellBuffer(entry), 0)
        default: return .done(.invalidOpcode, 0)
        }
    }

    // MARK: Queues

    /// What both kinds of queues are checked for.
    private func checkNewQueue(
        _ entry: SubmissionEntry, entryByteCount: UInt64, write: Bool, isTaken: Bool
    ) -> Status? {
        let id = Int(entry.queueID)
        guard id > 0, id < submission.count, !isTaken else { return .invalidQueueIdentifier }
        let count = entry.queueEntryCount
        guard count >= 2, count <= cap.maximumQueueEntryCount else { return .invalidQueueSize }
        // CAP.CQR: queues are contiguous.
        guard entry.queueIsContiguous else { return .invalidField }
        let mask = UInt64(1) << UInt64(pageShift) &- 1
        guard entry.prp1 & mask == 0 else { return .prpOffsetInvalid }
        let bytes = UInt64(count) &* entryByteCount
        guard memory.isAccessible(entry.prp1, bytes, write: write) else {
            return .dataTransferError
        }
        return nil
    }

    private func createCompletionQueue(_ entry: SubmissionEntry) -> Status {
        let index = Int(entry.queueID)
        let isTaken = index < completion.count && completion[index].isActive
        guard cc.iocqes == 4 else { return .invalidQueueSize }
        if let status = checkNewQueue(entry, entryByteCount: 16, write: true, isTaken: isTaken) {
            return status
        }
        guard !entry.queueInterruptsEnabled || Int(entry.queueInterruptVector) < options.vectorCount
        else { return .invalidInterruptVector }
        completion[index] = CompletionQueue()
        completion[index].isActive = true
        completion[index].entryCount = entry.queueEntryCount
        completion[index].address = entry.prp1
        completion[index].vector = entry.queueInterruptVector
        completion[index].interruptsEnabled = entry.queueInterruptsEnabled
        clearDoorbell(index &* 8 &+ 4)
        rebindQueues()
        counters.completionQueuesCreated &+= 1
        return .success
    }

    private func createSubmissionQueue(_ entry: SubmissionEntry) -> Status {
        let index = Int(entry.queueID)
        let isTaken = index < submission.count && submission[index].isActive
        guard cc.iosqes == 6 else { return .invalidQueueSize }
        let target = Int(entry.completionQueueID)
        guard target > 0, target < completion.count, completion[target].isActive else {
            return .completionQueueInvalid
        }
        if let status = checkNewQueue(entry, entryByteCount: 64, write: false, isTaken: isTaken) {
            return status
        }
        submission[index] = SubmissionQueue()
        submission[index].isActive = true
        submission[index].entryCount = entry.queueEntryCount
        submission[index].address = entry.prp1
        submission[index].completionQueue = entry.completionQueueID
        completion[target].users &+= 1
        activeQueues.append(entry.queueID)
        clearDoorbell(index &* 8)
        rebindQueues()
        counters.submissionQueuesCreated &+= 1
        return .success
    }

    /// Forgets what an earlier queue of this number left in doorbell and shadow.
    private func clearDoorbell(_ place: Int) {
        doorbells.store32(place, 0)
        for base in [shadowAddress, eventIndexAddress] where base != 0 {
            var zero: UInt32 = 0
            _ = unsafe memory.write(base &+ UInt64(place), from: &zero, 4)
        }
    }

    private func deleteSubmissionQueue(_ entry: SubmissionEntry) -> Status {
        let index = Int(entry.queueID)
        guard index > 0, index < submission.count, submission[index].isActive else {
            return .invalidQueueIdentifier
        }
        // Commands that are still held are completed as aborted, those never fetched just go.
        let orphans = held.filter { $0.submissionQueue == entry.queueID }
        held.removeAll { $0.submissionQueue == entry.queueID }
        let target = Int(submission[index].completionQueue)
        for orphan in orphans {
            refreshHead(target)
            guard completion[target].room > 0 else { break }
            finish(orphan, .abortedQueueDeletion)
        }
        completion[target].users &-= 1
        submission[index] = SubmissionQueue()
        activeQueues.removeAll { $0 == entry.queueID }
        counters.submissionQueuesDeleted &+= 1
        return .success
    }

    private func deleteCompletionQueue(_ entry: SubmissionEntry) -> Status {
        let index = Int(entry.queueID)
        guard index > 0, index < completion.count, completion[index].isActive else {
            return .invalidQueueIdentifier
        }
        guard completion[index].users == 0 else { return .invalidQueueDeletion }
        completion[index].isActive = false
        counters.completionQueuesDeleted &+= 1
        return .success
    }

    // MARK: Abort

    /// Aborts a held command; every other is either done or not yet fetched, and is not aborted
    /// (dword 0, bit 0).
    private func abort(_ entry: SubmissionEntry) -> Outcome {
        let match = held.firstIndex {
            $0.submissionQueue == entry.abortQueueID && $0.commandID == entry.abortCommandID
        }
        guard let match else { return .done(.success, 1) }
        let command = held[match]
        let target = Int(submission[Int(command.submissionQueue)].completionQueue)
        refreshHead(target)
        // The aborted command's completion may share the queue with Abort's own.
        guard completion[target].room > 1 else { return .done(.success, 1) }
        held.remove(at: match)
        counters.aborts &+= 1
        finish(command, .abortRequested)
        return .done(.success, 0)
    }

    // MARK: Shadow doorbells

    private func configureDoorbellBuffer(_ entry: SubmissionEntry) -> Status {
        let pageBytes = 1 << pageShift
        let mask = UInt64(pageBytes) &- 1
        guard entry.prp1 & mask == 0, entry.prp2 & mask == 0, entry.prp1 != entry.prp2 else {
            return .invalidField
        }
        // They are polled: memory that is reached by messages will not do.
        guard unsafe memory.direct(entry.prp1, pageBytes, write: true) != nil,
            unsafe memory.direct(entry.prp2, pageBytes, write: true) != nil,
            pageBytes >= submission.count * 8
        else { return .dataTransferError }
        shadowAddress = entry.prp1
        eventIndexAddress = entry.prp2
        for index in 0..<submission.count {
            inherit(submission[index].isActive, index &* 8, submission[index].tail)
            inherit(completion[index].isActive, index &* 8 &+ 4, completion[index].head)
        }
        rebindQueues()
        return .success
    }

    /// Queues that exist already go on from where they are.
    private func inherit(_ isActive: Bool, _ place: Int, _ value: UInt32) {
        guard isActive else { return }
        var value = value
        _ = unsafe memory.write(shadowAddress &+ UInt64(place), from: &value, 4)
        _ = unsafe memory.write(eventIndexAddress &+ UInt64(place), from: &value, 4)
    }
}
