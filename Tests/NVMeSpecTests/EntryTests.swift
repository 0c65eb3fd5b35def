// SPDX-License-Identifier: Apache-2.0
// Submission and completion entries against hand-made bytes.

import NVMeSpec
import Testing

@Suite("Queue entries")
struct EntryTests {
    @Test("entries have the size of the wire and no padding")
    func sizes() {
        #expect(MemoryLayout<SubmissionEntry>.size == 64)
        #expect(MemoryLayout<SubmissionEntry>.stride == 64)
        #expect(MemoryLayout<CompletionEntry>.size == 16)
        #expect(MemoryLayout<CompletionEntry>.stride == 16)
        #expect(MemoryLayout<DatasetRange>.size == 16)
    }

    @Test("a write with FUA is laid out as the specification says")
    func write() {
        var entry = SubmissionEntry.write(
            namespaceID: 7, lba: 0x0123_4567_89AB_CDEF, blockCount: 8, fua: true)
        entry.commandID = 0x1234
        entry.prp1 = 0x1000_2000
        entry.prp2 = 0x0000_00FF_0000_3000

        let expected = bytes(
            """
            01                          # OPC Write
            00                          # FUSE 0, PSDT 0
            34 12                       # CID
            07 00 00 00                 # NSID
            00 00 00 00                 # CDW2
            00 00 00 00                 # CDW3
            00 00 00 00 00 00 00 00     # MPTR
            00 20 00 10 00 00 00 00     # PRP1
            00 30 00 00 FF 00 00 00     # PRP2
            EF CD AB 89                 # CDW10 SLBA low
            67 45 23 01                 # CDW11 SLBA high
            07 00 00 40                 # CDW12 NLB 7 (8 blocks), FUA bit 30
            00 00 00 00                 # CDW13
            00 00 00 00                 # CDW14
            00 00 00 00                 # CDW15
            """)
        #expect(memory(of: entry) == expected)
        #expect(entry.lba == 0x0123_4567_89AB_CDEF)
        #expect(entry.blockCount == 8)
        #expect(entry.fua)
    }

    @Test("each I/O command names its opcode, blocks and control bits")
    func ioCommands() {
        let read = SubmissionEntry.read(namespaceID: 1, lba: 0, blockCount: 65536)
        let compare = SubmissionEntry.compare(namespaceID: 1, lba: 5, blockCount: 1)
        let verify = SubmissionEntry.verify(namespaceID: 1, lba: 5, blockCount: 2)
        let zero = SubmissionEntry.writeZeroes(
            namespaceID: 1, lba: 9, blockCount: 16, deallocate: true)
        let flush = SubmissionEntry.flush(namespaceID: 3)
        let trim = SubmissionEntry.datasetManagement(
            namespaceID: 1, rangeCount: 256, deallocate: true)

        #expect(read.ioOpcode == .read)
        #expect(read.cdw12 == 0x0000_FFFF)
        #expect(read.blockCount == 65536)
        #expect(!read.fua)
        #expect(compare.ioOpcode == .compare)
        #expect(compare.cdw12 == 0)
        #expect(verify.ioOpcode == .verify)
        #expect(verify.blockCount == 2)
        #expect(zero.ioOpcode == .writeZeroes)
        #expect(zero.cdw12 == 0x0200_000F)
        #expect(zero.deallocateAfterZeroing)
        #expect(flush.ioOpcode == .flush)
        #expect(flush.namespaceID == 3)
        #expect(trim.ioOpcode == .datasetManagement)
        #expect(trim.cdw10 == 0xFF)
        #expect(trim.cdw11 == 0x4)
        #expect(trim.datasetRangeCount == 256)
        #expect(trim.datasetDeallocate)
    }

    @Test("each admin command puts its parameters where the specification wants them")
    func adminCommands() {
        let identify = SubmissionEntry.identify(
            cns: .commandSetNamespace, namespaceID: 4, controllerID: 9, csi: 2)
        let createCQ = SubmissionEntry.createIOCompletionQueue(
            queueID: 3, entryCount: 1024, address: 0x8000, interruptVector: 5)
        let polledCQ = SubmissionEntry.createIOCompletionQueue(
            queueID: 3, entryCount: 65536, address: 0x8000, interruptVector: nil)
        let createSQ = SubmissionEntry.createIOSubmissionQueue(
            queueID: 6, entryCount: 2, address: 0x9000, completionQueueID: 3)
        let abort = SubmissionEntry.abort(queueID: 2, commandID: 0xBEEF)
        let doorbells = SubmissionEntry.doorbellBufferConfig(
            shadowDoorbells: 0xA000, eventIndexes: 0xB000)

        #expect(identify.adminOpcode == .identify)
        #expect(identify.cdw10 == 0x0009_0005)
        #expect(identify.cdw11 == 0x0200_0000)
        #expect(identify.identifyCNS == .commandSetNamespace)
        #expect(identify.identifyControllerID == 9)
        #expect(identify.identifyCSI == 2)
        #expect(createCQ.adminOpcode == .createIOCompletionQueue)
        #expect(createCQ.cdw10 == 0x03FF_0003)
        #expect(createCQ.cdw11 == 0x0005_0003)
        #expect(createCQ.queueInterruptVector == 5)
        #expect(polledCQ.cdw10 == 0xFFFF_0003)
        #expect(polledCQ.cdw11 == 0x1)
        #expect(polledCQ.queueEntryCount == 65536)
        #expect(!polledCQ.queueInterruptsEnabled)
        #expect(createSQ.adminOpcode == .createIOSubmissionQueue)
        #expect(createSQ.cdw10 == 0x0001_0006)
        #expect(createSQ.cdw11 == 0x0003_0001)
        #expect(createSQ.completionQueueID == 3)
        #expect(createSQ.queueEntryCount == 2)
        #expect(abort.cdw10 == 0xBEEF_0002)
        #expect(abort.abortCommandID == 0xBEEF)
        #expect(doorbells.prp1 == 0xA000)
        #expect(doorbells.prp2 == 0xB000)
        #expect(SubmissionEntry.deleteIOSubmissionQueue(queueID: 8).opcode == 0x00)
        #expect(SubmissionEntry.deleteIOCompletionQueue(queueID: 8).opcode == 0x04)
        #expect(SubmissionEntry.asynchronousEventRequest().opcode == 0x0C)
    }

    @Test("a log page is asked for by dwords less one, split over two words, with its offset")
    func logPage() {
        let entry = SubmissionEntry.getLogPage(
            .smartHealth, dwordCount: 0x0002_0001, byteOffset: 0x1_0000_0200,
            retainAsynchronousEvent: true)

        #expect(entry.cdw10 == 0x0000_8002)
        #expect(entry.cdw11 == 0x0000_0002)
        #expect(entry.cdw12 == 0x0000_0200)
        #expect(entry.cdw13 == 0x0000_0001)
        #expect(entry.namespaceID == 0xFFFF_FFFF)
        #expect(entry.logByteCount == 0x0008_0004)
        #expect(entry.logByteOffset == 0x1_0000_0200)
        #expect(entry.logRetainsAsynchronousEvent)
    }

    @Test("features carry the identifier, save, select and the value")
    func features() {
        let counts = QueueCounts(submissionQueues: 4, completionQueues: 8)
        let set = SubmissionEntry.setFeatures(.numberOfQueues, value: counts.rawValue, save: true)
        let get = SubmissionEntry.getFeatures(.volatileWriteCache, select: .supportedCapabilities)

        #expect(counts.rawValue == 0x0007_0003)
        #expect(set.cdw10 == 0x8000_0007)
        #expect(set.cdw11 == 0x0007_0003)
        #expect(set.featureSave)
        #expect(set.featureID == .numberOfQueues)
        #expect(get.cdw10 == 0x0000_0306)
        #expect(get.featureSelect == .supportedCapabilities)
        #expect(QueueCounts(rawValue: 0xFFFF_0000).isInvalid)
        #expect(QueueCounts(rawValue: 0xFFFF_FFFF).completionQueues == 65536)
    }

    @Test("a completion is laid out as the specification says, with the phase in bit 112")
    func completion() {
        let entry = CompletionEntry(
            commandID: 0x1234, sqID: 2, sqHead: 0x0011,
            status: Status.lbaOutOfRange.withDoNotRetry, phase: true, dw0: 0xA1B2_C3D4)

        let expected = bytes(
            """
            D4 C3 B2 A1     # DW0
            00 00 00 00     # DW1
            11 00           # SQHD
            02 00           # SQID
            34 12           # CID
            01 81           # P 1, SC 80h << 1, SCT 0, DNR bit 15
            """)
        #expect(memory(of: entry) == expected)
        #expect(entry.word0 == 0x0000_0000_A1B2_C3D4)
        #expect(entry.word1 == 0x8101_1234_0002_0011)
        #expect(CompletionEntry(word0: entry.word0, word1: entry.word1) == entry)
        #expect(entry.phase)
        #expect(entry.status.matches(.lbaOutOfRange))
        #expect(entry.status.doNotRetry)
    }
}
