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
        let limit =
            region(of: buffer) != nil ? info.maxTransferByteCount : UInt64(info.maxInlineByteCount)
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
        region(of: buffer).map { UInt32(truncatingIfNeeded: $0.id) }
    }

    /// What requests may name a buffer by.
    func region(of buffer: IOBuffer) -> Region? {
        regions.first { $0.buffer === buffer && !$0.isLeaving }
    }

    private func register(_ region: Region, _ deadline: UInt64?) throws(ClientError) {
        try perform(
            .registerMemory(
                regionID: region.id, byteCount: UInt64(region.buffer.byteCount),
                readOnly: region.readOnly), deadline, fds: [region.buffer.memory.raw])
    }

    /// Gives a registered buffer back. Requests of this disk that use it finish first, and those of
    /// rings that the worker has taken.
    ///
    /// Every entry of a ring that names the buffer must have completed before: one that the worker
    /// takes afterwards ends the session, or uses other memory that got the same id meanwhile.
    ///
    /// After `timedOut` the buffer is not registered any more, and may be registered anew; what
    /// uses it may still be under way. A second call asks once more; the memory is free, whatever
    /// that says, when all requests that use it have completed.
    public func unregisterMemory(
        _ buffer: IOBuffer, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        // The one in use before those that were asked back already.
        let known = region(of: buffer) ?? regions.first { $0.buffer === buffer }
        guard let id = known?.id else { return }
        do throws(ClientError) {
            try perform(.unregisterMemory(regionID: id), deadlineNanoseconds)
        } catch .timedOut {
            // The worker may have taken it back, or will when it comes to it.
            for index in regions.indices where regions[index].id == id {
                regions[index].isLeaving = true
            }
            throw .timedOut
        } catch {
            guard error.wireError?.code == .notFound else { throw error }
            // An earlier call did it. The worker may still wait for requests that use it.
            doubtfulRegionIDs.insert(id)
        }
        regions.removeAll { $0.id == id }
    }

    // MARK: Reopening

    /// Opens the disk again after its session ended, and registers its memory again.
    ///
    /// The death of a worker does not end sessions; this is for those that could not be kept, as
    /// after a power failure of the device, and for those that were closed.
    ///
    /// Tries until the deadline while the reason is one that passes (the device starts, the old
    /// session is still held, the supervisor restarts). Requests that were in flight are not sent
    /// again: that is for the caller, who knows which of them may be repeated. They complete with
    /// the reason, also after this; ids of requests rise over sessions. Registered memory that
    /// they name may be in use by the device until the first read or write of the new session is
    /// done, if the old one could write (ring.md, "When memory is yours again").
    ///
    /// When this throws, the disk has no session, and may be reopened later.
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
                // A session that is not whole holds the disk and memory against the next try, and
                // nobody may take it for one that is.
                channel.shutdown()
                end(Self.restarted(name, "it could not be opened again: \(error)"))
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
        // Ids rise over sessions: completions of the old one may not have been taken yet.
        let (session, info) = try backend.openSession(
            name, access, deadline, firstRequestID: channel.nextRequestID)
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
