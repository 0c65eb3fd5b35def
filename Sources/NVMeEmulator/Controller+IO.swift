// SPDX-License-Identifier: Apache-2.0
// I/O commands. NVM Command Set Specification 1.0, section 3.2.

internal import NVMeSpec

/// What the I/O path needs of a namespace.
@safe
struct NamespaceSlot {
    var base: UnsafeMutableRawPointer?
    var blockCount: UInt64 = 0
    var blockShift: UInt8 = 9
    var isReadOnly = false
}

/// A range of blocks as bytes of the backing.
@safe
struct BlockRange {
    let start: UnsafeMutableRawPointer
    let offset: Int
    let byteCount: Int
}

extension Controller {
    func executeIO(_ entry: SubmissionEntry) -> Outcome {
        counters.ioByOpcode[Int(entry.opcode)] &+= 1
        guard entry.psdt == 0, entry.fuse == 0 else { return .done(.invalidField, 0) }
        let status =
            switch entry.ioOpcode {
            case .read: read(entry)
            case .write: write(entry)
            case .flush: flush(entry)
            case .compare: compare(entry)
            case .writeZeroes: writeZeroes(entry)
            case .datasetManagement: datasetManagement(entry)
            case .verify: verify(entry)
            default: Status.invalidOpcode
            }
        return .done(status, 0)
    }

    /// The index of the slot a command names; nil when there is no such namespace.
    @inline(__always)
    private func slot(_ entry: SubmissionEntry) -> Int? {
        let id = entry.namespaceID
        guard id > 0, id <= options.maxNamespaceCount else { return nil }
        let index = Int(id) &- 1
        return unsafe slots[index].base == nil ? nil : index
    }

    /// The blocks from `lba` on; nil beyond the end.
    @inline(__always)
    private func range(_ index: Int, _ lba: UInt64, _ count: UInt64) -> BlockRange? {
        let blocks = slots[index].blockCount
        guard let base = unsafe slots[index].base, lba < blocks, count <= blocks &- lba else {
            return nil
        }
        let shift = UInt64(slots[index].blockShift)
        let offset = Int(lba << shift)
        return unsafe BlockRange(
            start: base + offset, offset: offset, byteCount: Int(count << shift))
    }

    /// The blocks a transferring command is about, or why there are none.
    @inline(__always)
    private func dataRange(
        _ entry: SubmissionEntry, _ body: (BlockRange, Int) -> Status
    ) -> Status {
        guard let index = slot(entry) else { return .invalidNamespaceOrFormat }
        guard let range = range(index, entry.lba, UInt64(entry.blockCount)) else {
            return .lbaOutOfRange
        }
        // Protection information needs metadata, which no namespace here has.
        guard entry.protectionInformation == 0 else { return .invalidField }
        return body(range, index)
    }

    /// Whether a transfer is larger than MDTS allows.
    @inline(__always)
    private func isTooLarge(_ byteCount: Int) -> Bool {
        options.mdts != 0 && byteCount > 4096 << Int(options.mdts)
    }

    private func read(_ entry: SubmissionEntry) -> Status {
        dataRange(entry) { range, _ in
            guard !isTooLarge(range.byteCount) else { return .invalidField }
            let status = unsafe transfer(entry, range.start, range.byteCount, .toHost)
            if status.isSuccess {
                counters.bytesRead &+= UInt64(range.byteCount)
                log.sectorsRead &+= UInt64(range.byteCount) >> 9
                log.readCommands &+= 1
            }
            return status
        }
    }

    private func write(_ entry: SubmissionEntry) -> Status {
        dataRange(entry) { range, index in
            guard !slots[index].isReadOnly else { return .namespaceWriteProtected }
            guard !isTooLarge(range.byteCount) else { return .invalidField }
            let status = unsafe transfer(entry, range.start, range.byteCount, .fromHost)
            guard status.isSuccess else { return status }
            counters.bytesWritten &+= UInt64(range.byteCount)
            log.sectorsWritten &+= UInt64(range.byteCount) >> 9
            log.writeCommands &+= 1
            return harden(index, range, entry.fua)
        }
    }

    /// Force Unit Access, or the write cache is off: durable before the completion.
    private func harden(_ index: Int, _ range: BlockRange, _ fua: Bool) -> Status {
        let isCached = features[FeatureID.volatileWriteCache.rawValue] ?? 1 != 0
        guard fua || !isCached else { return .success }
        let isDurable =
            namespaces[index]?.flush(offset: range.offset, byteCount: range.byteCount) ?? false
        return isDurable ? .success : .writeFault
    }

    private func flush(_ entry: SubmissionEntry) -> Status {
        if entry.namespaceID == SubmissionEntry.broadcastNamespaceID {
            var isDurable = true
            for namespace in namespaces where namespace?.flush() == false { isDurable = false }
            return isDurable ? .success : .writeFault
        }
        guard let index = slot(entry) else { return .invalidNamespaceOrFormat }
        return namespaces[index]?.flush() == true ? .success : .writeFault
    }

    private func compare(_ entry: SubmissionEntry) -> Status {
        dataRange(entry) { range, _ in
            guard !isTooLarge(range.byteCount) else { return .invalidField }
            return unsafe transfer(entry, range.start, range.byteCount, .compare)
        }
    }

    private func verify(_ entry: SubmissionEntry) -> Status {
        dataRange(entry) { _, _ in .success }
    }

    private func writeZeroes(_ entry: SubmissionEntry) -> Status {
        dataRange(entry) { range, index in
            guard !slots[index].isReadOnly else { return .namespaceWriteProtected }
            namespaces[index]?.zero(
                offset: range.offset, byteCount: range.byteCount,
                deallocate: entry.deallocateAfterZeroing)
            return harden(index, range, entry.fua)
        }
    }

    private func datasetManagement(_ entry: SubmissionEntry) -> Status {
        guard let index = slot(entry) else { return .invalidNamespaceOrFormat }
        guard !slots[index].isReadOnly else { return .namespaceWriteProtected }
        let count = Int(entry.datasetRangeCount)
        let status = unsafe transfer(entry, scratch.base, count &* 16, .fromHost)
        guard status.isSuccess, entry.datasetDeallocate else { return status }
        // Checked whole before anything is changed.
        for number in 0..<count {
            let (lba, blocks) = datasetRange(number)
            guard blocks == 0 || range(index, lba, blocks) != nil else { return .lbaOutOfRange }
        }
        for number in 0..<count {
            let (lba, blocks) = datasetRange(number)
            guard blocks > 0, let range = range(index, lba, blocks) else { continue }
            namespaces[index]?.zero(
                offset: range.offset, byteCount: range.byteCount, deallocate: true)
        }
        return .success
    }

    /// A range descriptor: context attributes (4 bytes), length (4), starting LBA (8).
    private func datasetRange(_ number: Int) -> (UInt64, UInt64) {
        (scratch.load64(number &* 16 &+ 8), UInt64(scratch.load32(number &* 16 &+ 4)))
    }
}
