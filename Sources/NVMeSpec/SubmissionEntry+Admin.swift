// SPDX-License-Identifier: Apache-2.0
// Building and reading admin commands. NVM Express Base Specification 2.0, section 5.

extension SubmissionEntry {
    /// Identify (5.17). The page is 4096 bytes at PRP1.
    @inlinable
    public static func identify(
        cns: IdentifyCNS, namespaceID: UInt32 = 0, controllerID: UInt16 = 0, csi: UInt8 = 0,
        cnsSpecificID: UInt16 = 0, prp1: UInt64 = 0, prp2: UInt64 = 0
    ) -> SubmissionEntry {
        SubmissionEntry(
            opcode: 0x06, namespaceID: namespaceID, prp1: prp1, prp2: prp2,
            cdw10: UInt32(cns.rawValue) | UInt32(controllerID) << 16,
            cdw11: UInt32(cnsSpecificID) | UInt32(csi) << 24)
    }

    /// Create I/O Completion Queue (5.4), physically contiguous at `address`.
    ///
    /// - Parameters:
    ///   - queueID: 1 or more.
    ///   - entryCount: 2 to 65536.
    ///   - address: the base, aligned to the host page.
    ///   - interruptVector: the MSI-X vector, or nil for a queue that is polled.
    @inlinable
    public static func createIOCompletionQueue(
        queueID: UInt16, entryCount: UInt32, address: UInt64, interruptVector: UInt16?
    ) -> SubmissionEntry {
        let interrupts: UInt32 =
            if let interruptVector { 0x2 | UInt32(interruptVector) << 16 } else { 0 }
        return SubmissionEntry(
            opcode: 0x05, prp1: address,
            cdw10: UInt32(queueID) | ((entryCount &- 1) & 0xFFFF) << 16,
            cdw11: 0x1 | interrupts)
    }

    /// Create I/O Submission Queue (5.5), physically contiguous at `address`, urgent priority.
    @inlinable
    public static func createIOSubmissionQueue(
        queueID: UInt16, entryCount: UInt32, address: UInt64, completionQueueID: UInt16
    ) -> SubmissionEntry {
        SubmissionEntry(
            opcode: 0x01, prp1: address,
            cdw10: UInt32(queueID) | ((entryCount &- 1) & 0xFFFF) << 16,
            cdw11: 0x1 | UInt32(completionQueueID) << 16)
    }

    /// Delete I/O Submission Queue (5.7).
    @inlinable
    public static func deleteIOSubmissionQueue(queueID: UInt16) -> SubmissionEntry {
        SubmissionEntry(opcode: 0x00, cdw10: UInt32(queueID))
    }

    /// Delete I/O Completion Queue (5.6).
    @inlinable
    public static func deleteIOCompletionQueue(queueID: UInt16) -> SubmissionEntry {
        SubmissionEntry(opcode: 0x04, cdw10: UInt32(queueID))
    }

    /// Set Features (5.27); `value` goes to CDW11, `save` keeps it over a power cycle.
    @inlinable
    public static func setFeatures(
        _ feature: FeatureID, value: UInt32, namespaceID: UInt32 = 0, save: Bool = false
    ) -> SubmissionEntry {
        SubmissionEntry(
            opcode: 0x09, namespaceID: namespaceID,
            cdw10: UInt32(feature.rawValue) | (save ? 0x8000_0000 : 0), cdw11: value)
    }

    /// Get Features (5.15); the value comes back in DW0 of the completion.
    @inlinable
    public static func getFeatures(
        _ feature: FeatureID, select: FeatureSelect = .current, namespaceID: UInt32 = 0,
        cdw11: UInt32 = 0
    ) -> SubmissionEntry {
        SubmissionEntry(
            opcode: 0x0A, namespaceID: namespaceID,
            cdw10: UInt32(feature.rawValue) | UInt32(select.rawValue & 7) << 8, cdw11: cdw11)
    }

    /// Get Log Page (5.16).
    ///
    /// - Parameters:
    ///   - log: which page.
    ///   - namespaceID: 0 or broadcast for the controller's own.
    ///   - dwordCount: 1-based count of 32-bit words to transfer.
    ///   - byteOffset: where in the page to start; a multiple of 4.
    ///   - retainAsynchronousEvent: RAE, keeps the event that announced the page pending.
    @inlinable
    public static func getLogPage(
        _ log: LogPageID, namespaceID: UInt32 = broadcastNamespaceID, dwordCount: UInt32,
        byteOffset: UInt64 = 0, retainAsynchronousEvent: Bool = false
    ) -> SubmissionEntry {
        let count = dwordCount &- 1
        return SubmissionEntry(
            opcode: 0x02, namespaceID: namespaceID,
            cdw10: UInt32(log.rawValue) | (retainAsynchronousEvent ? 0x8000 : 0)
                | (count & 0xFFFF) << 16,
            cdw11: count >> 16, cdw12: UInt32(truncatingIfNeeded: byteOffset),
            cdw13: UInt32(truncatingIfNeeded: byteOffset >> 32))
    }

    /// Abort (5.1) of a command on a submission queue; DW0 bit 0 is zero if it was aborted.
    @inlinable
    public static func abort(queueID: UInt16, commandID: UInt16) -> SubmissionEntry {
        SubmissionEntry(opcode: 0x08, cdw10: UInt32(queueID) | UInt32(commandID) << 16)
    }

    /// Asynchronous Event Request (5.2): completes when there is something to tell.
    @inlinable
    public static func asynchronousEventRequest() -> SubmissionEntry {
        SubmissionEntry(opcode: 0x0C)
    }

    /// Doorbell Buffer Config (5.8): pages for shadow doorbells and event indexes.
    @inlinable
    public static func doorbellBufferConfig(
        shadowDoorbells: UInt64, eventIndexes: UInt64
    ) -> SubmissionEntry {
        SubmissionEntry(opcode: 0x7C, prp1: shadowDoorbells, prp2: eventIndexes)
    }
}

extension SubmissionEntry {
    /// CNS of Identify.
    @inlinable
    public var identifyCNS: IdentifyCNS { IdentifyCNS(rawValue: UInt8(truncatingIfNeeded: cdw10)) }

    /// CNTID of Identify.
    @inlinable
    public var identifyControllerID: UInt16 { UInt16(truncatingIfNeeded: cdw10 >> 16) }

    /// CSI of Identify, the I/O command set.
    @inlinable
    public var identifyCSI: UInt8 { UInt8(truncatingIfNeeded: cdw11 >> 24) }

    /// QID of a create or delete queue command.
    @inlinable
    public var queueID: UInt16 { UInt16(truncatingIfNeeded: cdw10) }

    /// Entries of a queue to create: QSIZE plus one.
    @inlinable
    public var queueEntryCount: UInt32 { (cdw10 >> 16) &+ 1 }

    /// PC of a create queue command: the queue is physically contiguous.
    @inlinable
    public var queueIsContiguous: Bool { cdw11 & 1 != 0 }

    /// IEN of Create I/O Completion Queue: interrupts are enabled.
    @inlinable
    public var queueInterruptsEnabled: Bool { cdw11 & 2 != 0 }

    /// IV of Create I/O Completion Queue, the interrupt vector.
    @inlinable
    public var queueInterruptVector: UInt16 { UInt16(truncatingIfNeeded: cdw11 >> 16) }

    /// CQID of Create I/O Submission Queue.
    @inlinable
    public var completionQueueID: UInt16 { UInt16(truncatingIfNeeded: cdw11 >> 16) }

    /// FID of Get Features and Set Features.
    @inlinable
    public var featureID: FeatureID { FeatureID(rawValue: UInt8(truncatingIfNeeded: cdw10)) }

    /// SEL of Get Features.
    @inlinable
    public var featureSelect: FeatureSelect {
        FeatureSelect(rawValue: UInt8(truncatingIfNeeded: cdw10 >> 8) & 7)
    }

    /// SV of Set Features: keep over a power cycle.
    @inlinable
    public var featureSave: Bool { cdw10 & 0x8000_0000 != 0 }

    /// LID of Get Log Page.
    @inlinable
    public var logPageID: LogPageID { LogPageID(rawValue: UInt8(truncatingIfNeeded: cdw10)) }

    /// RAE of Get Log Page.
    @inlinable
    public var logRetainsAsynchronousEvent: Bool { cdw10 & 0x8000 != 0 }

    /// Bytes that Get Log Page asks for: (NUMD plus one) times four.
    @inlinable
    public var logByteCount: UInt64 {
        ((UInt64(cdw10 >> 16) | UInt64(cdw11 & 0xFFFF) << 16) &+ 1) &* 4
    }

    /// LPO of Get Log Page, a byte offset.
    @inlinable
    public var logByteOffset: UInt64 { UInt64(cdw12) | UInt64(cdw13) << 32 }

    /// SQID of Abort.
    @inlinable
    public var abortQueueID: UInt16 { UInt16(truncatingIfNeeded: cdw10) }

    /// CID of Abort.
    @inlinable
    public var abortCommandID: UInt16 { UInt16(truncatingIfNeeded: cdw10 >> 16) }
}
