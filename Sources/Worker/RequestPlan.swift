// SPDX-License-Identifier: Apache-2.0
// Whether a session's request can be done, and what has to be done: pure, so that every refusal has
// a test.

internal import NVMeDriver
internal import Wire

/// What a request comes down to.
enum RequestPlan: Equatable {
    /// Nothing for the device to do: the answer is `done`.
    case nothing
    /// Make everything durable.
    case flush
    /// Read, Write or Compare.
    case transfer(Transfer)
    /// Write Zeroes, Verify or Deallocate.
    case ranges(RangeWork)

    /// A transfer of blocks, all of them on the disk.
    struct Transfer: Equatable {
        var operation: UInt8
        var lba: UInt64
        var blockCount: UInt32
        var byteCount: Int
        var forceUnitAccess = false
        var location: DataLocation
    }

    /// Ranges of blocks, all of them on the disk.
    struct RangeWork: Equatable {
        var operation: UInt8
        var ranges: [BlockRange]
        var maxBlocksPerCommand: UInt32
        var mayDeallocate = false
        var forceUnitAccess = false
    }
}

/// The disk of a session, as far as requests depend on it.
struct RequestRules {
    /// The namespace as it is now.
    var namespace: NVMeDriver.NamespaceInfo
    /// What the session may do.
    var access: AccessMode

    /// The plan for a request, or why there is none.
    func plan(
        _ request: SessionRequest, payloadByteCount: Int
    ) throws(WireError) -> RequestPlan {
        switch request {
        case .read(let lba, let blockCount, let location):
            try refusePayload(payloadByteCount, "read")
            return try transfer(
                IOOperation.read, lba, blockCount, location, payloadByteCount: nil, "read")
        case .write(let lba, let blockCount, let fua, let location):
            try checkWritable("write")
            let plan = try transfer(
                IOOperation.write, lba, blockCount, location, payloadByteCount: payloadByteCount,
                fua: fua, "write")
            return plan
        case .compare(let lba, let blockCount, let location):
            guard namespace.canCompare else { throw unsupported("Compare", "compare") }
            return try transfer(
                IOOperation.compare, lba, blockCount, location,
                payloadByteCount: payloadByteCount, "compare")
        case .flush:
            try refusePayload(payloadByteCount, "flush")
            return namespace.hasVolatileWriteCache ? .flush : .nothing
        case .unmap, .writeZeroes, .verify:
            try refusePayload(payloadByteCount, "payload")
            return .ranges(try ranges(request))
        case .getDiskInfo, .cancel, .registerMemory, .unregisterMemory, .openRing, .closeRing:
            try refusePayload(payloadByteCount, "payload")
            return .nothing
        }
    }

    // MARK: Transfers

    private func transfer(
        _ operation: UInt8, _ lba: UInt64, _ blockCount: UInt32, _ location: DataLocation,
        payloadByteCount: Int?, fua: Bool = false, _ name: String
    ) throws(WireError) -> RequestPlan {
        let range = BlockRange(lba: lba, blockCount: UInt64(blockCount))
        try checkRange(range, name)
        // The range is on the disk, whose bytes fit 63 bits; one of 2^32 blocks of 2^16 bytes fits
        // too.
        let byteCount = UInt64(blockCount) << UInt64(namespace.blockShift)
        switch location {
        case .inline:
            guard byteCount <= UInt64(WireLimits.payloadByteCount) else {
                throw WireError(
                    .invalidArgument,
                    "\(byteCount) bytes are too many for a message; at most "
                        + "\(WireLimits.payloadByteCount) go: use registered memory, or split",
                    field: "\(name).block_count")
            }
            try checkPayload(payloadByteCount, byteCount)
        case .region:
            guard byteCount <= WorkerLimits.requestByteCount else {
                throw WireError(
                    .invalidArgument,
                    "\(byteCount) bytes are more than the disk's max_transfer_byte_count of "
                        + "\(WorkerLimits.requestByteCount)", field: "\(name).block_count")
            }
            try refusePayload(payloadByteCount ?? 0, name)
        }
        return .transfer(
            RequestPlan.Transfer(
                operation: operation, lba: lba, blockCount: blockCount, byteCount: Int(byteCount),
                forceUnitAccess: fua, location: location))
    }

    private func checkPayload(_ payloadByteCount: Int?, _ byteCount: UInt64) throws(WireError) {
        guard let payloadByteCount, UInt64(payloadByteCount) != byteCount else { return }
        let block = Int(namespace.blockByteCount)
        let problem =
            payloadByteCount % block == 0
            ? "the payload has \(payloadByteCount) bytes, the blocks have \(byteCount)"
            : "the payload's \(payloadByteCount) bytes are not a multiple of the block of \(block)"
        throw WireError(.invalidArgument, problem, field: "payload")
    }

    private func refusePayload(_ byteCount: Int, _ name: String) throws(WireError) {
        guard byteCount > 0 else { return }
        throw WireError(
            .invalidArgument, "\(byteCount) bytes of payload came with a \(name) that takes none",
            field: "payload")
    }

    // MARK: Ranges

    private func ranges(_ request: SessionRequest) throws(WireError) -> RequestPlan.RangeWork {
        switch request {
        case .unmap(let ranges):
            try checkWritable("unmap")
            guard namespace.maxDeallocateBlocks > 0 else {
                throw unsupported("Dataset Management", "unmap")
            }
            for range in ranges { try checkRange(range, "unmap.ranges") }
            return RequestPlan.RangeWork(
                operation: IOOperation.deallocate, ranges: ranges,
                maxBlocksPerCommand: namespace.maxDeallocateBlocks)
        case .writeZeroes(let range, let deallocate, let fua):
            try checkWritable("write_zeroes")
            guard namespace.maxWriteZeroesBlocks > 0 else {
                throw unsupported("Write Zeroes", "write_zeroes")
            }
            try checkRange(range, "write_zeroes")
            return RequestPlan.RangeWork(
                operation: IOOperation.writeZeroes, ranges: [range],
                maxBlocksPerCommand: namespace.maxWriteZeroesBlocks,
                mayDeallocate: deallocate && namespace.writeZeroesMayDeallocate,
                forceUnitAccess: fua)
        case .verify(let range):
            guard namespace.maxVerifyBlocks > 0 else { throw unsupported("Verify", "verify") }
            try checkRange(range, "verify")
            return RequestPlan.RangeWork(
                operation: IOOperation.verify, ranges: [range],
                maxBlocksPerCommand: namespace.maxVerifyBlocks)
        case .getDiskInfo, .read, .write, .flush, .compare, .cancel, .registerMemory,
            .unregisterMemory, .openRing, .closeRing:
            throw WireError(.internalError, "a request without ranges was taken for one with")
        }
    }

    // MARK: What all have in common

    private func checkRange(_ range: BlockRange, _ name: String) throws(WireError) {
        guard range.blockCount > 0 else {
            throw WireError(
                .invalidArgument, "a request is about 1 block or more",
                field: "\(name).block_count")
        }
        let size = namespace.blockCount
        guard range.lba < size else {
            throw WireError(
                .outOfRange, "block \(range.lba) is past the disk's \(size) blocks",
                field: "\(name).lba")
        }
        guard range.blockCount <= size - range.lba else {
            throw WireError(
                .outOfRange,
                "\(range.blockCount) blocks from \(range.lba) end past the disk's \(size) blocks",
                field: "\(name).block_count")
        }
    }

    private func checkWritable(_ name: String) throws(WireError) {
        guard access == .readWrite else {
            throw WireError(.readOnly, "this session may only read", field: name)
        }
        guard !namespace.isWriteProtected else {
            throw WireError(.readOnly, "the namespace is write protected", field: name)
        }
    }

    private func unsupported(_ command: String, _ field: String) -> WireError {
        WireError(.notSupported, "the controller has no \(command) command", field: field)
    }
}
