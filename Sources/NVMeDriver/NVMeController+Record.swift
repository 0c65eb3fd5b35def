// SPDX-License-Identifier: Apache-2.0
// What is written down of a controller and its queues, and whether what is found is the same.

internal import CMemory
internal import DMA
internal import NVMeSpec
internal import VFIO

extension NVMeController {
    /// Writes down how the controller was set up: from now on it can be adopted.
    func writeRecord() throws(DriverError) {
        guard let plan, let reads = pool?.deviceReadsIOVA, let writes = pool?.deviceWritesIOVA
        else { throw .exhausted("there is no DMA pool") }
        let admin = plan.queues[0]
        state.setPoolPageOrder(pool?.pageOrder ?? [])
        state.setController(
            ControllerRecord(
                epoch: state.epoch, configuration: try read32(RegisterOffset.cc, "CC"),
                adminQueueAttributes: try read32(RegisterOffset.aqa, "AQA"),
                adminSubmissionAddress: reads + UInt64(admin.submission.offset),
                adminCompletionAddress: writes + UInt64(admin.completion.offset),
                poolReadsIOVA: reads, poolWritesIOVA: writes,
                poolByteCount: UInt64(poolByteCount),
                plannedQueues: UInt32(plan.queues.count - 1),
                entries: plan.queues.last?.entries ?? 0,
                maxTransferByteCount: UInt64(options.maxTransferByteCount),
                bouncePoolByteCount: UInt64(options.bouncePoolByteCount),
                queueCount: UInt32(queueCount), interruptCount: UInt32(interrupts.count),
                hasShadowDoorbells: hasShadowDoorbells, eventRequests: UInt32(eventRequests),
                inventoryCount: UInt32(inventoryCount)))
    }

    /// Writes down what can change while the controller runs. Nothing before bring-up is complete;
    /// but while a controller is brought up again, in the record of before, which still counts.
    func updateRecord() {
        guard var record = state.controller.record,
            record.epoch == state.epoch || record.epoch == state.salvageEpoch
        else { return }
        record.inventoryCount = UInt32(inventoryCount)
        state.setController(record)
    }

    /// Writes down where a queue pair is, before the controller gets it.
    func logQueue(_ queueID: Int) {
        guard let words = queueWords(queueID) else { return }
        let record = unsafe state.address(state.layout.queueRecordOffset(queueID))
        for (index, word) in words.enumerated() { unsafe nv_store64(record + index * 8, word) }
        unsafe nv_store64(record + 56, Self.seal(words, queueID, state.epoch))
    }

    /// Whether a queue pair is where this controller would have put it.
    func isLogged(_ queueID: Int) -> Bool {
        guard let words = queueWords(queueID) else { return false }
        let record = unsafe state.address(state.layout.queueRecordOffset(queueID))
        for (index, word) in words.enumerated() {
            guard unsafe nv_load64(record + index * 8) == word else { return false }
        }
        return unsafe nv_load64(record + 56) == Self.seal(words, queueID, state.epoch)
    }

    /// {queue id (16) | entries (32) | vector (16), SQ address, CQ address, lists' address, bytes
    /// of a command's list}
    func queueWords(_ queueID: Int) -> [UInt64]? {
        guard let plan, plan.queues.indices.contains(queueID), let reads = pool?.deviceReadsIOVA,
            let writes = pool?.deviceWritesIOVA
        else { return nil }
        let part = plan.queues[queueID]
        return [
            UInt64(queueID) | UInt64(part.entries) << 16
                | UInt64(vector(ofQueue: queueID)) << 48,
            reads + UInt64(part.submission.offset), writes + UInt64(part.completion.offset),
            reads + UInt64(part.lists.offset), part.listByteCount,
        ]
    }

    static func seal(_ words: [UInt64], _ queueID: Int, _ epoch: UInt32) -> UInt64 {
        var crc = Checksum.key(Checksum.queueKind, queue: UInt32(queueID), epoch: epoch)
        for word in words { crc = nv_crc32c_64(crc, word) }
        return UInt64(crc)
    }
}
