// SPDX-License-Identifier: Apache-2.0
// Building and reading commands of the NVM command set. NVM Command Set Specification 1.0,
// section 3.2; Flush: NVM Express Base Specification 2.0, section 7.1.

extension SubmissionEntry {
    /// Flush: everything completed before is on stable media afterwards.
    @inlinable
    public static func flush(namespaceID: UInt32) -> SubmissionEntry {
        SubmissionEntry(opcode: 0x00, namespaceID: namespaceID)
    }

    /// Read. `blockCount` is 1 to 65536; `fua` bypasses a volatile cache.
    @inlinable
    public static func read(
        namespaceID: UInt32, lba: UInt64, blockCount: UInt32, fua: Bool = false
    ) -> SubmissionEntry {
        blocks(0x02, namespaceID, lba, blockCount, fua ? 0x4000_0000 : 0)
    }

    /// Write. `blockCount` is 1 to 65536; with `fua` the data is on stable media when it completes.
    @inlinable
    public static func write(
        namespaceID: UInt32, lba: UInt64, blockCount: UInt32, fua: Bool = false
    ) -> SubmissionEntry {
        blocks(0x01, namespaceID, lba, blockCount, fua ? 0x4000_0000 : 0)
    }

    /// Compare: fails with Compare Failure if media and data differ. `blockCount` is 1 to 65536.
    @inlinable
    public static func compare(
        namespaceID: UInt32, lba: UInt64, blockCount: UInt32, fua: Bool = false
    ) -> SubmissionEntry {
        blocks(0x05, namespaceID, lba, blockCount, fua ? 0x4000_0000 : 0)
    }

    /// Verify: reads media without transferring data. `blockCount` is 1 to 65536.
    @inlinable
    public static func verify(
        namespaceID: UInt32, lba: UInt64, blockCount: UInt32, fua: Bool = false
    ) -> SubmissionEntry {
        blocks(0x0C, namespaceID, lba, blockCount, fua ? 0x4000_0000 : 0)
    }

    /// Write Zeroes. `deallocate` (DEAC) allows the controller to deallocate instead.
    @inlinable
    public static func writeZeroes(
        namespaceID: UInt32, lba: UInt64, blockCount: UInt32, deallocate: Bool, fua: Bool = false
    ) -> SubmissionEntry {
        blocks(
            0x08, namespaceID, lba, blockCount,
            (fua ? 0x4000_0000 : 0) | (deallocate ? 0x0200_0000 : 0))
    }

    /// Dataset Management over 1 to 256 ranges that PRP1 and PRP2 point to.
    @inlinable
    public static func datasetManagement(
        namespaceID: UInt32, rangeCount: UInt32, deallocate: Bool
    ) -> SubmissionEntry {
        SubmissionEntry(
            opcode: 0x09, namespaceID: namespaceID, cdw10: (rangeCount &- 1) & 0xFF,
            cdw11: deallocate ? 0x4 : 0)
    }

    /// The commands that name a run of blocks.
    @inlinable
    static func blocks(
        _ opcode: UInt8, _ namespaceID: UInt32, _ lba: UInt64, _ blockCount: UInt32,
        _ control: UInt32
    ) -> SubmissionEntry {
        SubmissionEntry(
            opcode: opcode, namespaceID: namespaceID, cdw10: UInt32(truncatingIfNeeded: lba),
            cdw11: UInt32(truncatingIfNeeded: lba >> 32),
            cdw12: ((blockCount &- 1) & 0xFFFF) | control)
    }
}

extension SubmissionEntry {
    /// SLBA of a command that names a run of blocks.
    @inlinable
    public var lba: UInt64 { UInt64(cdw10) | UInt64(cdw11) << 32 }

    /// Blocks of a command that names a run of blocks: 1 to 65536 (NLB plus one).
    @inlinable
    public var blockCount: UInt32 { (cdw12 & 0xFFFF) &+ 1 }

    /// FUA, force unit access.
    @inlinable
    public var fua: Bool { cdw12 & 0x4000_0000 != 0 }

    /// LR, limited retry.
    @inlinable
    public var limitedRetry: Bool { cdw12 & 0x8000_0000 != 0 }

    /// DEAC of Write Zeroes: the controller may deallocate.
    @inlinable
    public var deallocateAfterZeroing: Bool { cdw12 & 0x0200_0000 != 0 }

    /// PRINFO, protection information control: four bits.
    @inlinable
    public var protectionInformation: UInt8 { UInt8(truncatingIfNeeded: cdw12 >> 26) & 0xF }

    /// Ranges of a Dataset Management: 1 to 256 (NR plus one).
    @inlinable
    public var datasetRangeCount: UInt32 { (cdw10 & 0xFF) &+ 1 }

    /// AD of Dataset Management: deallocate the ranges.
    @inlinable
    public var datasetDeallocate: Bool { cdw11 & 0x4 != 0 }
}
