// SPDX-License-Identifier: Apache-2.0
// The less common requests: without data, larger than a command, or at an address that PRP entries
// cannot express.

internal import CLinux
internal import CMemory
internal import DMA
internal import Glibc
internal import NVMeSpec

extension Engine {
    /// What `submitOne` does not do itself.
    @inline(never)
    mutating func submitOther(_ request: UnsafePointer<IORequest>, _ slot: UInt32) -> SubmitResult {
        let operation = unsafe request.pointee.operation
        var command = unsafe CommandSlot(request)
        if operation == IOOperation.flush {
            command.blockCount = 0
            queue.push(slot, command, prp1: 0, prp2: 0, dword10And11: 0, dword12And13: 0)
            countSubmitted()
            return .accepted
        }
        guard command.blockCount > 0, unsafe request.pointee.maxBlocksPerCommand > 0 else {
            return .invalid
        }
        if !Self.movesData(operation) {
            guard Self.isRange(operation) else { return .invalid }
            if unsafe command.blockCount <= request.pointee.maxBlocksPerCommand {
                pushRange(slot, command)
                countSubmitted()
                return .accepted
            }
        }
        return unsafe submitLarge(request, &command)
    }

    private static func isRange(_ operation: UInt8) -> Bool {
        operation == IOOperation.writeZeroes || operation == IOOperation.verify
            || operation == IOOperation.deallocate
    }

    private mutating func submitLarge(
        _ request: UnsafePointer<IORequest>, _ command: inout CommandSlot
    ) -> SubmitResult {
        let shift = unsafe request.pointee.blockShift
        var maxBlocks = unsafe request.pointee.maxBlocksPerCommand
        guard shift >= 9, shift <= 16 else { return .invalid }
        if Self.movesData(command.opcode) {
            let byteCount = UInt64(command.blockCount) << UInt64(shift)
            let flags = regions.flags(command.region)
            guard
                unsafe regions.localBytes(
                    region: command.region, offset: command.offset, byteCount: byteCount,
                    session: command.session) != nil,
                command.opcode != IOOperation.read || !flags.contains(.readOnly)
            else { return .invalid }
            if command.offset & 3 != 0 || flags.contains(.bounced) {
                // PRP entries are dword aligned (Base Specification 2.0, 4.1.1), and need an
                // address: such data takes a detour.
                command.flags |= CommandSlot.flagBounced
                maxBlocks = min(maxBlocks, UInt32(Self.maxBounceByteCount >> UInt64(shift)))
            }
        }
        guard requests.insert(command, maxBlocks: maxBlocks, tick: queue.tick) != nil else {
            return .full
        }
        countSubmitted()
        pump()
        return .accepted
    }

    /// Issues commands of the requests in turn, as far as slots and bounce pages go.
    @inline(never)
    mutating func pump() { pump(limit: queue.freeCount) }

    /// The same, with at most half of the free slots, and a single one every other time: the rest
    /// is for requests of one command, which otherwise waited until these are issued to the last.
    @inline(never)
    mutating func pumpHalf() {
        pumpTurn ^= 1
        let half = (queue.freeCount &+ pumpTurn) / 2
        // With nothing in flight no end of a command would call this again.
        pump(limit: queue.inFlight == 0 ? max(half, 1) : half)
    }

    private mutating func pump(limit: UInt32) {
        var left = limit
        // Each turn issues a command or passes over a record: bounded by slots and records. Pages
        // that are short now are short for the rest of this call.
        var passedOver: UInt64 = 0
        while left > 0, let slot = queue.nextFreeSlot(),
            let index = requests.nextToIssue(passedOver: passedOver)
        {
            if issueChild(of: index, slot) {
                left -= 1
            } else {
                passedOver |= 1 &<< UInt64(index)
            }
        }
    }

    private mutating func issueChild(of index: UInt32, _ slot: UInt32) -> Bool {
        let record = requests.load(index)
        if record.command.flags & CommandSlot.flagSegmented != 0 {
            return issueSegments(of: index, record, slot)
        }
        var command = record.command
        Self.makePart(&command, of: index, record)
        guard Self.movesData(command.opcode) else {
            return issueRange(of: index, record, command, slot)
        }
        command.blockCount = record.nextBlockCount
        let shift = record.blockShift
        command.offset = record.command.offset &+ record.issued << shift
        let address: UInt64
        if command.flags & CommandSlot.flagBounced != 0 {
            guard let pages = takeBouncePages(&command, shift) else { return false }
            address = pages
            if command.opcode != IOOperation.read {
                copy(command, shift, toClient: false)
                noteMemoryFaults()
                CrashPoint.hit(.bounceFilled)
            }
        } else {
            address = regions.deviceAddress(
                region: command.region, offset: command.offset,
                byteCount: UInt64(command.blockCount) << shift, session: command.session)
        }
        pushData(
            slot, command, address: address, byteCount: UInt64(command.blockCount) << shift)
        requests.didIssue(index, blocks: command.blockCount)
        return true
    }

    /// What all parts of a request have in common.
    static func makePart(
        _ command: inout CommandSlot, of index: UInt32, _ record: RequestRecords.Record
    ) {
        command.lba = record.command.lba &+ record.issued
        command.request = UInt8(truncatingIfNeeded: index)
        command.position = UInt32(truncatingIfNeeded: record.issued)
        // The request's pages are the record's; a part owns only what it bounces through.
        command.firstPage = 0
        command.pageCount = 0
    }

    /// Issues the next part of a request without data.
    private mutating func issueRange(
        of index: UInt32, _ record: RequestRecords.Record, _ part: CommandSlot, _ slot: UInt32
    ) -> Bool {
        var command = part
        command.offset = record.issued
        command.blockCount = record.nextBlockCount
        var place = requests.place(index)
        if record.hasRanges {
            guard let range = requests.range(index, place) else { return false }
            command.lba = range.lba
            if range.blockCount <= UInt64(command.blockCount) {
                command.blockCount = UInt32(truncatingIfNeeded: range.blockCount)
                place = ListPlace(index: place.index &+ 1)
            } else {
                place.offset &+= UInt64(command.blockCount)
            }
        }
        pushRange(slot, command)
        requests.didIssue(index, blocks: command.blockCount)
        requests.setPlace(index, place)
        return true
    }

    /// Takes one Write Zeroes, Deallocate or Verify of several ranges, or of one that is too long
    /// for an `IORequest`; the request's own `lba` and `blockCount` are not used. The list is
    /// private memory of the caller, and copied.
    ///
    /// `invalid`: there are none or more than `maxSegments`, one is empty, or all together have
    /// 2^63 blocks or more.
    public mutating func submit(
        _ request: IORequest, ranges: UnsafePointer<BlockSpan>, count: Int
    ) -> SubmitResult {
        guard Self.isRange(request.operation), request.maxBlocksPerCommand > 0, count > 0,
            count <= Self.maxSegments
        else { return .invalid }
        var total: UInt64 = 0
        for index in 0..<count {
            let range = unsafe ranges[index]
            let (sum, overflow) = total.addingReportingOverflow(range.blockCount)
            guard range.blockCount > 0, !overflow, sum < 1 << 63,
                range.lba <= .max - range.blockCount
            else { return .invalid }
            total = sum
        }
        var request = request
        if count == 1, total <= UInt64(UInt32.max) {
            request.lba = unsafe ranges.pointee.lba
            request.blockCount = UInt32(truncatingIfNeeded: total)
            return submit(request)
        }
        var command = CommandSlot(value: request)
        command.lba = total
        command.blockCount = 0
        command.flags |= CommandSlot.flagRanges
        guard
            unsafe requests.insert(
                command, list: UnsafeRawPointer(ranges), count: UInt32(count),
                maxBlocks: request.maxBlocksPerCommand, tick: queue.tick) != nil
        else { return .full }
        countSubmitted()
        pump()
        return .accepted
    }

    /// Takes bounce pages for a command; for fewer of its blocks when there are not enough pages in
    /// a row. Returns the device's address, or nil when there is no room for one block.
    mutating func takeBouncePages(_ command: inout CommandSlot, _ shift: UInt64) -> UInt64? {
        while command.blockCount > 0 {
            let byteCount = UInt64(command.blockCount) << shift
            let pages = Int((byteCount + 4095) / 4096)
            guard let first = takePages(pages) else {
                command.blockCount /= 2
                continue
            }
            command.firstPage = UInt32(truncatingIfNeeded: first)
            command.pageCount = UInt16(truncatingIfNeeded: pages)
            return regions.deviceAddress(
                region: RegionTable.bounceRegion, offset: UInt64(first) * 4096,
                byteCount: byteCount, session: RegionTable.anySession)
        }
        return nil
    }

    /// Copies between the bounce pages of a command and the client's memory.
    private func copy(_ command: CommandSlot, _ shift: UInt64, toClient: Bool) {
        let byteCount = UInt64(command.blockCount) << shift
        guard
            let pages = unsafe regions.localAddress(
                region: RegionTable.bounceRegion, offset: UInt64(command.firstPage) * 4096)
        else { return }
        let client = unsafe regions.localBytes(
            region: command.region, offset: command.offset, byteCount: byteCount,
            session: command.session)
        if let client = unsafe client {
            unsafe memcpy(toClient ? client : pages, toClient ? pages : client, Int(byteCount))
        } else if !toClient {
            // As for segments: nothing that another client left goes out.
            unsafe memset(pages, 0, Int(byteCount))
        }
    }

    /// A command of a larger request was answered. True when the request is complete, and
    /// `completion` filled. The answer of a probe is nobody's.
    @inline(never)
    mutating func childEnded(
        _ answer: QueuePair.Answer, _ completion: UnsafeMutablePointer<IOCompletion>
    ) -> Bool {
        let command = unsafe CommandSlot(at: queue.slots + Int(answer.slot) * 64)
        let status = answer.status
        let index = UInt32(command.request) & (RequestRecords.capacity - 1)
        // The data is the client's before the slot says COMPLETING: who finds it so does not copy
        // again, and the pages may be somebody else's by then.
        if command.isPart, command.flags & CommandSlot.flagBounced != 0 {
            deliverBounce(command, status, index)
            bouncedRecords |= 1 &<< UInt64(index)
        }
        queue.setCompleting(answer, position: 0)
        releaseOwnPages(command)
        guard command.isPart else { return false }
        requests.childEnded(index, status: status)
        let record = requests.load(index)
        guard record.isIssued, record.children == 0 else { return false }
        unsafe finish(index, record, completion)
        return true
    }

    /// Ends a request of several commands; where its completion goes is part of the record.
    mutating func finish(
        _ index: UInt32, _ record: RequestRecords.Record,
        _ completion: UnsafeMutablePointer<IOCompletion>
    ) {
        requests.markDone(index, position: takePosition(record.command.ring))
        unsafe Self.fill(completion, record.command, record.status)
        if bouncedRecords & 1 &<< UInt64(index) != 0 { unsafe completion.pointee.isBounced = true }
        bouncedRecords &= ~(1 &<< UInt64(index))
        unsafe completion.pointee.age = queue.tick &- requests.tick(index)
        if record.status != 0 { countFailed() }
    }

    private mutating func deliverBounce(
        _ command: CommandSlot, _ status: UInt16, _ index: UInt32
    ) {
        guard command.opcode == IOOperation.read, status == 0 else { return }
        if command.flags & CommandSlot.flagSegmented != 0 {
            scatter(command, index)
        } else {
            copy(command, command.blockShift, toClient: true)
        }
        noteMemoryFaults()
        CrashPoint.hit(.bounceDelivered)
    }

    /// `retire`, which follows, goes on with requests that wait for pages.
    private mutating func releaseOwnPages(_ command: CommandSlot) {
        guard command.pageCount > 0 else { return }
        bouncePages.release(Int(command.firstPage) - firstBouncePage, Int(command.pageCount))
    }

    /// To be called after this process has touched registered memory: looks whether some of it was
    /// gone. Counts for the process, so that `memoryFaults` only says that it is time to look.
    public mutating func noteMemoryFaults() {
        let count = nv_sigbus_count()
        guard count != seenFaults else { return }
        seenFaults = count
        countMemoryFaults()
    }

    /// Write Zeroes, Verify, and Deallocate of one range (NVM Command Set 1.0, 3.2.3: the range
    /// list in PRP1).
    private mutating func pushRange(_ slot: UInt32, _ command: CommandSlot) {
        let entry = rangeEntry(slot, command)
        queue.push(
            slot, command, prp1: entry.prp1, prp2: 0, dword10And11: entry.dword10And11,
            dword12And13: entry.dword12And13)
    }

    /// What the queue entry of such a command has.
    func rangeEntry(
        _ slot: UInt32, _ command: CommandSlot
    ) -> (prp1: UInt64, dword10And11: UInt64, dword12And13: UInt64) {
        guard command.opcode == IOOperation.deallocate else {
            return (0, command.lba, command.dword12)
        }
        let range = unsafe queue.list(slot)
        unsafe nv_store32(range, 0)
        unsafe nv_store32(range + 4, command.blockCount)
        unsafe nv_store64(range + 8, command.lba)
        // NR is zero-based: one range. AD is bit 2 of dword 11.
        return (queue.listIOVA(slot), 4 << 32, 0)
    }

    // MARK: Pages of inline transfers

    /// Takes pool pages for a transfer whose data comes or goes in a message. Returns the first
    /// page's index; its bytes are at that index × 4096 in region 0.
    public mutating func takePages(byteCount: Int) -> Int? {
        takePages((byteCount + 4095) / 4096)
    }

    private mutating func takePages(_ count: Int) -> Int? {
        bouncePages.allocate(count).map { $0 + firstBouncePage }
    }

    /// Gives back what `takePages` gave. A request that waits for bounce pages goes on at once:
    /// with nothing in flight there is no completion that would let it. Rings the doorbell then.
    public mutating func releasePages(first: Int, count: Int) {
        guard count > 0 else { return }
        bouncePages.release(first - firstBouncePage, count)
        guard requests.hasWork else { return }
        pump()
        queue.ring()
    }

    /// Bounce pages that are free.
    public var freePageCount: Int { bouncePages.freeCount }

    /// The address of a pool page in this process.
    public func pageAddress(_ first: Int) -> UnsafeMutableRawPointer? {
        guard first >= firstBouncePage, first < firstBouncePage + bouncePages.pageCount else {
            return nil
        }
        return unsafe regions.localAddress(
            region: RegionTable.bounceRegion, offset: UInt64(first) * 4096)
    }

    /// Ends everything in flight without the device: each request once, with `status`. For a device
    /// that was reset or is gone; nothing may be in flight there any more.
    public mutating func abandon(status: UInt16, _ deliver: (IOCompletion) -> Void) {
        var completion = IOCompletion()
        for index in 0..<RequestRecords.capacity {
            let record = requests.load(index)
            guard record.state == RequestRecords.stateActive else { continue }
            unsafe Self.fill(&completion, record.command, status)
            deliver(completion)
        }
        queue.forEachInFlight { _, command in
            guard command.request == CommandSlot.noRequest else { return }
            unsafe Self.fill(&completion, command, status)
            deliver(completion)
        }
    }

    /// Whether a command that is with the device, or a request that will become one, points at a
    /// region.
    public func uses(region: UInt32) -> Bool {
        var isUsed = false
        let owner = regions.owner(region)
        // A list may name any region of its session: it is taken to.
        func names(_ command: CommandSlot) -> Bool {
            command.region == region
                || command.flags & CommandSlot.flagSegmented != 0 && command.session == owner
        }
        queue.forEachInFlight { _, command in if names(command) { isUsed = true } }
        for index in 0..<RequestRecords.capacity where !isUsed {
            let record = requests.load(index)
            isUsed =
                record.state == RequestRecords.stateActive && names(record.command)
        }
        return isUsed
    }

    /// Issues no more commands of a request: what is left of it ends as aborted (Command Abort
    /// Requested) when those with the device have ended.
    public mutating func stopIssuing(session: UInt32, token: UInt64) {
        requests.stopIssuing(session: session, token: token, status: Status.abortRequested.rawValue)
    }

    /// The commands of a request that are with the device, for aborting them.
    public func commandIDs(session: UInt32, token: UInt64) -> [UInt16] {
        var found: [UInt16] = []
        queue.forEachStaged(session: session, token: token) { found.append($0) }
        return found
    }

    /// The commands that were submitted before the coarse clock showed `limit`: their command ids.
    public func commandIDs(olderThan limit: UInt32) -> [UInt16] {
        var found: [UInt16] = []
        queue.forEachOlder(than: limit) { _, commandID in found.append(commandID) }
        return found
    }
}
