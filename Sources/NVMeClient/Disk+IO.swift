// SPDX-License-Identifier: Apache-2.0
// Blocking I/O of any length. A range is split into pieces, many of which are in flight at once, so
// a write that was split is not atomic, and after an error it is not known which pieces were done.

internal import Linux
internal import Wire

extension Disk {
    /// The most bytes in flight of one blocking call with inline data: what sockets hold beside the
    /// queues of both ends.
    static var inlineWindowByteCount: Int { 16 * WireLimits.payloadByteCount }
    /// The most blocks of one command without data (a 16-bit field of NVMe, zero-based).
    static var commandBlockLimit: UInt64 { 65_536 }

    /// Bytes of a logical block.
    public var blockByteCount: Int { Int(info.blockByteCount) }

    /// Bytes of the disk.
    public var byteCount: UInt64 {
        let (bytes, overflow) = info.blockCount.multipliedReportingOverflow(
            by: UInt64(info.blockByteCount))
        return overflow ? .max : bytes
    }

    /// Reads bytes into a buffer. Offset and count are multiples of the block.
    public func read(
        into buffer: IOBuffer, bufferOffset: Int = 0, byteOffset: UInt64, byteCount: Int,
        deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        let range = try blocks(byteOffset, byteCount)
        try pipeline(range, pieceBlockCount(buffer), deadlineNanoseconds) { piece, done in
            .read(
                lba: piece.lba, blockCount: UInt32(clamping: piece.blockCount), into: buffer,
                bufferOffset: bufferOffset + done * blockByteCount)
        }
    }

    /// Writes bytes from a buffer. Not atomic when longer than one piece.
    public func write(
        from buffer: IOBuffer, bufferOffset: Int = 0, byteOffset: UInt64, byteCount: Int,
        fua: Bool = false, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        let range = try blocks(byteOffset, byteCount)
        try pipeline(range, pieceBlockCount(buffer), deadlineNanoseconds) { piece, done in
            .write(
                lba: piece.lba, blockCount: UInt32(clamping: piece.blockCount), from: buffer,
                bufferOffset: bufferOffset + done * blockByteCount, fua: fua)
        }
    }

    /// Compares bytes of the disk with a buffer; throws `compareFailed` when they differ.
    public func compare(
        with buffer: IOBuffer, bufferOffset: Int = 0, byteOffset: UInt64, byteCount: Int,
        deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        let range = try blocks(byteOffset, byteCount)
        try pipeline(range, pieceBlockCount(buffer), deadlineNanoseconds) { piece, done in
            .compare(
                lba: piece.lba, blockCount: UInt32(clamping: piece.blockCount), with: buffer,
                bufferOffset: bufferOffset + done * blockByteCount)
        }
    }

    /// Makes every write that was answered durable.
    public func flush(deadlineNanoseconds: UInt64? = nil) throws(ClientError) {
        try perform(.flush, deadlineNanoseconds)
    }

    /// Has the device check bytes without a transfer.
    public func verify(
        byteOffset: UInt64, byteCount: UInt64, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        let range = try blocks(byteOffset, byteCount)
        try pipeline(range, Self.commandBlockLimit, deadlineNanoseconds) { piece, _ in
            .verify(piece)
        }
    }

    /// Makes bytes read as zeroes; with `deallocate` the device may free them.
    public func writeZeroes(
        byteOffset: UInt64, byteCount: UInt64, deallocate: Bool = false, fua: Bool = false,
        deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        let range = try blocks(byteOffset, byteCount)
        let limit = min(info.writeZeroesMaxBlockCount ?? .max, Self.commandBlockLimit)
        try pipeline(range, max(limit, 1), deadlineNanoseconds) { piece, _ in
            .writeZeroes(piece, deallocate: deallocate, fua: fua)
        }
    }

    /// Tells the device that bytes are not needed.
    public func unmap(
        byteOffset: UInt64, byteCount: UInt64, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        let range = try blocks(byteOffset, byteCount)
        // The length of a range is a 32-bit field of NVMe.
        let limit = min(info.unmapMaxBlockCount ?? .max, UInt64(UInt32.max))
        try pipeline(range, max(limit, 1), deadlineNanoseconds) { piece, _ in .unmap([piece]) }
    }

    // MARK: Pieces

    /// The blocks of a byte range, checked against the disk.
    private func blocks(
        _ byteOffset: UInt64, _ byteCount: some FixedWidthInteger
    ) throws(ClientError) -> BlockRange {
        let block = UInt64(info.blockByteCount)
        guard let count = UInt64(exactly: byteCount), count > 0, count % block == 0,
            byteOffset % block == 0
        else {
            throw .failed(
                WireError(
                    .invalidArgument,
                    "offset \(byteOffset) and length \(byteCount) have to be multiples of the "
                        + "block of \(block) bytes, and the length not zero", disk: name,
                    field: "length"))
        }
        let size = self.byteCount
        guard byteOffset <= size, count <= size - byteOffset else {
            throw .failed(
                WireError(
                    .outOfRange,
                    "offset \(byteOffset) and length \(byteCount) reach past the end of the disk, "
                        + "which has \(size) bytes", disk: name, field: "length"))
        }
        return BlockRange(lba: byteOffset / block, blockCount: count / block)
    }

    /// How many blocks of a buffer one request moves.
    private func pieceBlockCount(_ buffer: IOBuffer) -> UInt64 {
        let isRegistered = regions.contains { $0.buffer === buffer }
        let limit = isRegistered ? info.maxTransferByteCount : UInt64(info.maxInlineByteCount)
        // An inline request may not exceed what the device does in one either.
        let device = info.maxTransferByteCount == 0 ? UInt64.max : info.maxTransferByteCount
        let bytes = min(limit == 0 ? UInt64(info.maxInlineByteCount) : limit, device)
        return max(bytes / UInt64(info.blockByteCount), 1)
    }

    /// Sends the pieces of a range, as many at once as there is room for, and waits for all.
    ///
    /// After the first error no more pieces are sent; it is thrown when the others have come back.
    private func pipeline(
        _ range: BlockRange, _ pieceBlockCount: UInt64, _ deadline: UInt64?,
        _ operation: (_ piece: BlockRange, _ doneBlockCount: Int) -> DiskOperation
    ) throws(ClientError) {
        let pieceByteCount = max(Int(clamping: pieceBlockCount) &* blockByteCount, 1)
        let window = min(max(Self.inlineWindowByteCount / pieceByteCount, 2), Self.windowCount / 2)
        var sent: UInt64 = 0
        var ids: [UInt64] = []
        var head = 0
        var failure: ClientError?
        while sent < range.blockCount || head < ids.count {
            let mayStart = failure == nil && sent < range.blockCount
            if mayStart, ids.count - head < window, hasRoom || head == ids.count {
                let count = min(pieceBlockCount, range.blockCount - sent)
                let piece = BlockRange(lba: range.lba + sent, blockCount: count)
                do throws(ClientError) {
                    ids.append(
                        try submit(
                            operation(piece, Int(clamping: sent)), deadlineNanoseconds: deadline))
                    sent += count
                    continue
                } catch { failure = error }
            }
            // Nothing more to wait for: an error before anything was sent.
            guard head < ids.count else { break }
            do throws(ClientError) { try wait(ids[head], deadline) } catch {
                if failure == nil { failure = error }
            }
            head += 1
            if head == 1024 {
                ids.removeFirst(head)
                head = 0
            }
        }
        if let failure { throw failure }
    }

    // MARK: Memory

    /// Registers a buffer: requests that use it move no data through messages. Returns the region's
    /// id, by which the entries of rings name it (those can name the first 64).
    ///
    /// With `readOnly` the device only reads it, so it serves writes and compares.
    @discardableResult
    public func registerMemory(
        _ buffer: IOBuffer, readOnly: Bool = false, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> UInt32 {
        if let id = regionID(of: buffer) { return id }
        let used = doubtfulRegionIDs.union(regions.map(\.id))
        var id: UInt32 = 0
        // Ends: one more id than there are regions and doubtful ones.
        while used.contains(UInt64(id)) { id += 1 }
        let region = Region(id: UInt64(id), buffer: buffer, readOnly: readOnly)
        do throws(ClientError) { try register(region, deadlineNanoseconds) } catch {
            // The worker may still do it.
            if error == .timedOut { doubtfulRegionIDs.insert(region.id) }
            throw error
        }
        regions.append(region)
        return id
    }

    /// The id of a registered buffer; nil: it is not registered.
    public func regionID(of buffer: IOBuffer) -> UInt32? {
        regions.first { $0.buffer === buffer }.map { UInt32(truncatingIfNeeded: $0.id) }
    }

    private func register(_ region: Region, _ deadline: UInt64?) throws(ClientError) {
        try perform(
            .registerMemory(
                regionID: region.id, byteCount: UInt64(region.buffer.byteCount),
                readOnly: region.readOnly), deadline, fds: [region.buffer.memory.raw])
    }

    /// Gives a registered buffer back. Requests in flight that use it, of rings too, finish first.
    public func unregisterMemory(
        _ buffer: IOBuffer, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        guard let index = regions.firstIndex(where: { $0.buffer === buffer }) else { return }
        try perform(.unregisterMemory(regionID: regions[index].id), deadlineNanoseconds)
        regions.remove(at: index)
    }

    // MARK: Reopening

    /// Opens the disk again after its session ended, and registers its memory again.
    ///
    /// The death of a worker does not end sessions; this is for those that could not be kept, as
    /// after a power failure of the device, and for those that were closed.
    ///
    /// Tries until the deadline while the reason is one that passes (the device starts, the old
    /// session is still held, the supervisor restarts). Requests that were in flight are not sent
    /// again: that is for the caller, who knows which of them may be repeated.
    public func reopen(deadlineNanoseconds: UInt64? = nil) throws(ClientError) {
        let deadline =
            deadlineNanoseconds
            ?? Deadline.after(milliseconds: NVMeBackend.defaultTimeoutMilliseconds)
        channel.shutdown()
        var pauseMilliseconds: Int32 = 1
        while true {
            do throws(ClientError) {
                return try openAgain(deadline)
            } catch {
                guard error.isRetriable || error.isUnreachable,
                    MonotonicClock.nowNanoseconds < deadline
                else { throw error }
                backend.pause(milliseconds: pauseMilliseconds)
                pauseMilliseconds = min(pauseMilliseconds * 2, 100)
                if case .failed = error { continue }
                try? backend.reconnect()
            }
        }
    }

    private func openAgain(_ deadline: UInt64) throws(ClientError) {
        let (session, info) = try backend.openSession(name, access, deadline)
        adopt(session)
        if let info { self.info = info } else { try refreshInfo(deadlineNanoseconds: deadline) }
        for region in regions { try register(region, deadline) }
    }
}

extension ClientError {
    /// Nobody listens at the supervisor's socket, which passes when it restarts.
    var isUnreachable: Bool {
        if case .unreachable = self { true } else { false }
    }
}
