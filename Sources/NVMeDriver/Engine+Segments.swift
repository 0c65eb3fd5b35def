// SPDX-License-Identifier: Apache-2.0
// Scatter/gather: requests whose data is a list of segments, in commands whose PRP entries can
// express it (NVM Express Base Specification 2.0, 4.1.1).
//
// A command covers a maximal run of whole blocks whose inner boundaries are page aligned (or are
// none for the device, because the next stretch follows in its address space). A block that
// straddles another boundary, that begins at an address which is not dword aligned, or that lies in
// memory without a device address, is copied through bounce pages: gathered before the device reads
// it, scattered after the device wrote it.

internal import CMemory
internal import DMA
internal import Glibc

/// A stretch of a region that holds a part of a request's data: an entry of a segment list.
public struct DataSegment: Sendable, Equatable {
    /// Where it starts in the region, in bytes.
    public var offset: UInt64
    /// An index of the driver's region table.
    public var region: UInt32
    /// Its length in bytes, 1 or more.
    public var byteCount: UInt32

    /// A segment.
    public init(region: UInt32, offset: UInt64, byteCount: UInt32) {
        self.offset = offset
        self.region = region
        self.byteCount = byteCount
    }
}

/// A position in a list of segments or ranges.
struct ListPlace {
    var index: UInt32 = 0
    /// Bytes of the segment, or blocks of the range, that lie before it; below its length.
    var offset: UInt64 = 0
}

/// The segment list of a request record, in the state area.
@safe
struct SegmentList {
    private let base: UnsafeMutableRawPointer
    let count: UInt32

    init(base: UnsafeMutableRawPointer, count: UInt32) {
        unsafe self.base = base
        self.count = count
    }

    /// The rest of the segment at a place, at most `limit` bytes of it; nil behind the last one.
    func rest(_ place: ListPlace, atMost limit: UInt64) -> DataSegment? {
        guard place.index < count else { return nil }
        let entry = unsafe base + Int(place.index) &* 16
        let left = UInt64(unsafe nv_load32(entry + 12)) &- place.offset
        return DataSegment(
            region: unsafe nv_load32(entry + 8),
            offset: unsafe nv_load64(entry) &+ place.offset,
            byteCount: UInt32(truncatingIfNeeded: min(left, limit)))
    }

    /// The place `byteCount` bytes further, where `byteCount` is at most what `rest` gave.
    func after(_ place: ListPlace, _ byteCount: UInt32) -> ListPlace {
        let length = UInt64(unsafe nv_load32(base + Int(place.index) &* 16 + 12))
        let offset = place.offset &+ UInt64(byteCount)
        return offset < length
            ? ListPlace(index: place.index, offset: offset)
            : ListPlace(index: place.index &+ 1, offset: 0)
    }

    /// The place any number of bytes further.
    func skip(_ place: ListPlace, _ byteCount: UInt64) -> ListPlace {
        var place = place
        var left = byteCount
        // Bounded by the number of segments, each of 1 byte or more.
        while left > 0, let segment = rest(place, atMost: left) {
            place = after(place, segment.byteCount)
            left = left &- UInt64(segment.byteCount)
        }
        return place
    }
}

extension Engine {
    /// The most segments of one request: what guests produce (virtio-blk and StorVSP pass at most
    /// some hundred).
    public static let maxSegments = 512

    /// Takes one Read, Write or Compare whose data is a list of segments; `region` and `offset` of
    /// the request are not used. The list is private memory of the caller and copied if needed
    /// later.
    ///
    /// `invalid`: there are none or more than `maxSegments`, their bytes do not add up to the
    /// request's blocks, or one does not lie within a region of the session.
    public mutating func submit(
        _ request: IORequest, segments: UnsafePointer<DataSegment>, count: Int
    ) -> SubmitResult {
        guard let slot = queue.nextFreeSlot() else { return .full }
        let byteCount = UInt64(request.blockCount) &<< UInt64(request.blockShift)
        // One command whose list can be written straight from the segments: nearly all there are.
        guard Self.movesData(request.operation), request.blockCount != 0, count > 0,
            count <= Self.maxSegments, request.blockCount <= request.maxBlocksPerCommand
        else { return unsafe submitSplit(request, segments, count) }
        var pages = unsafe PhysicalRegionPageBuilder(
            list: queue.list(slot), listIOVA: queue.listIOVA(slot))
        var left = byteCount
        var index = 0
        repeat {
            let length = UInt64(unsafe segments[index].byteCount)
            let address = unsafe regions.deviceAddress(
                region: segments[index].region, offset: segments[index].offset, byteCount: length,
                session: request.session)
            // The length is checked before its pages are written: the list has room for no more.
            guard address != 0, length &- 1 < left, pages.add(address, byteCount: length) else {
                return unsafe submitSplit(request, segments, count)
            }
            left = left &- length
            index = index &+ 1
        } while index < count
        guard left == 0 else { return .invalid }
        var command = CommandSlot(value: request)
        command.region = unsafe segments.pointee.region
        command.offset = unsafe segments.pointee.offset
        command.flags |= CommandSlot.flagSegmented
        queue.push(
            slot, command, prp1: pages.first, prp2: pages.second, dword10And11: command.lba,
            dword12And13: command.dword12)
        countSubmitted()
        return .accepted
    }

    /// A list that is not one command, or not a good one.
    @inline(never)
    private mutating func submitSplit(
        _ request: IORequest, _ segments: UnsafePointer<DataSegment>, _ count: Int
    ) -> SubmitResult {
        let maxBlocks = request.maxBlocksPerCommand
        guard Self.movesData(request.operation), request.blockCount > 0, maxBlocks > 0,
            request.blockShift >= 9, request.blockShift <= 16, count > 0,
            count <= Self.maxSegments,
            unsafe isValid(segments, count, of: request)
        else { return .invalid }
        var command = CommandSlot(value: request)
        command.region = unsafe segments.pointee.region
        command.flags |= CommandSlot.flagSegmented
        guard
            unsafe requests.insert(
                command, list: UnsafeRawPointer(segments), count: UInt32(count),
                maxBlocks: maxBlocks, tick: queue.tick) != nil
        else { return .full }
        countSubmitted()
        pump()
        return .accepted
    }

    private func isValid(
        _ segments: UnsafePointer<DataSegment>, _ count: Int, of request: IORequest
    ) -> Bool {
        var sum: UInt64 = 0
        for index in 0..<count {
            let segment = unsafe segments[index]
            guard segment.byteCount > 0,
                unsafe regions.localBytes(
                    region: segment.region, offset: segment.offset,
                    byteCount: UInt64(segment.byteCount), session: request.session) != nil,
                request.operation != IOOperation.read
                    || !regions.flags(segment.region).contains(.readOnly)
            else { return false }
            // At most 512 × 2^32.
            sum &+= UInt64(segment.byteCount)
        }
        return sum == UInt64(request.blockCount) << UInt64(request.blockShift)
    }

    // MARK: Commands of a list

    /// Issues the next command of a record with a segment list; false when bounce pages are short.
    mutating func issueSegments(
        of index: UInt32, _ record: RequestRecords.Record, _ slot: UInt32
    ) -> Bool {
        let list = requests.segments(index)
        let place = requests.place(index)
        var command = record.command
        Self.makePart(&command, of: index, record)
        if let first = list.rest(place, atMost: .max) {
            command.region = first.region
            command.offset = first.offset
        }
        let shift = record.blockShift
        let limit = record.nextBlockCount
        let direct = directBlocks(list, place, limit, shift, command.session)
        guard direct > 0 else {
            return issueBounced(index, command, list, place, limit: limit, shift: shift, slot)
        }
        command.blockCount = direct
        var pages = unsafe PhysicalRegionPageBuilder(
            list: queue.list(slot), listIOVA: queue.listIOVA(slot))
        var end = place
        var left = UInt64(direct) << shift
        while left > 0, let segment = list.rest(end, atMost: left) {
            // `directBlocks` has seen that all of this is possible.
            _ = pages.add(
                regions.deviceAddress(
                    region: segment.region, offset: segment.offset,
                    byteCount: UInt64(segment.byteCount), session: command.session),
                byteCount: UInt64(segment.byteCount))
            end = list.after(end, segment.byteCount)
            left = left &- UInt64(segment.byteCount)
        }
        queue.push(
            slot, command, prp1: pages.first, prp2: pages.second, dword10And11: command.lba,
            dword12And13: command.dword12)
        requests.didIssue(index, blocks: direct)
        requests.setPlace(index, end)
        return true
    }

    /// How many whole blocks from a place on one command can have without a copy, at most `limit`.
    private func directBlocks(
        _ list: SegmentList, _ start: ListPlace, _ limit: UInt32, _ shift: UInt64,
        _ session: UInt32
    ) -> UInt32 {
        let wanted = UInt64(limit) << shift
        var place = start
        var found: UInt64 = 0
        var end: UInt64 = 0
        while found < wanted, let segment = list.rest(place, atMost: wanted &- found) {
            let length = UInt64(segment.byteCount)
            let address = regions.deviceAddress(
                region: segment.region, offset: segment.offset, byteCount: length, session: session)
            let fits =
                found == 0
                ? address & 3 == 0 : PhysicalRegionPageBuilder.continues(end, address)
            guard address != 0, fits else { break }
            end = address &+ length
            found = found &+ length
            place = list.after(place, segment.byteCount)
        }
        return UInt32(truncatingIfNeeded: found >> shift)
    }

    /// Issues a command for the blocks from a place on that cannot go without a copy.
    private mutating func issueBounced(
        _ index: UInt32, _ command: CommandSlot, _ list: SegmentList, _ place: ListPlace,
        limit: UInt32, shift: UInt64, _ slot: UInt32
    ) -> Bool {
        var command = command
        command.flags |= CommandSlot.flagBounced
        let most = min(limit, UInt32(Self.maxBounceByteCount >> shift))
        var next = list.skip(place, 1 << shift)
        command.blockCount = 1
        while command.blockCount < most,
            directBlocks(list, next, 1, shift, command.session) == 0
        {
            next = list.skip(next, 1 << shift)
            command.blockCount &+= 1
        }
        guard let address = takeBouncePages(&command, shift) else { return false }
        let byteCount = UInt64(command.blockCount) << shift
        if command.opcode != IOOperation.read {
            copy(list, place, byteCount, page: command.firstPage, command.session, toClient: false)
            noteMemoryFaults()
            CrashPoint.hit(.bounceFilled)
        }
        pushData(slot, command, address: address, byteCount: byteCount)
        requests.didIssue(index, blocks: command.blockCount)
        requests.setPlace(index, list.skip(place, byteCount))
        return true
    }

    /// The data of a bounced Read of a segment list has come: scatters it.
    func scatter(_ command: CommandSlot, _ index: UInt32) {
        let record = requests.load(index)
        let shift = record.blockShift
        let list = requests.segments(index)
        let place = list.skip(
            ListPlace(), (command.lba &- record.command.lba) &<< shift)
        copy(
            list, place, UInt64(command.blockCount) << shift, page: command.firstPage,
            command.session, toClient: true)
    }

    /// Copies between bounce pages and the segments from a place on.
    private func copy(
        _ list: SegmentList, _ place: ListPlace, _ byteCount: UInt64, page: UInt32,
        _ session: UInt32, toClient: Bool
    ) {
        var place = place
        var left = byteCount
        var offset = UInt64(page) * 4096
        while left > 0, let segment = list.rest(place, atMost: left),
            let pages = unsafe regions.localAddress(
                region: RegionTable.bounceRegion, offset: offset)
        {
            let count = Int(segment.byteCount)
            let client = unsafe regions.localBytes(
                region: segment.region, offset: segment.offset,
                byteCount: UInt64(segment.byteCount), session: session)
            if let client = unsafe client {
                unsafe memcpy(toClient ? client : pages, toClient ? pages : client, count)
            } else if !toClient {
                // A region is not taken back while requests point at it; should it happen, what
                // another client's data left in the pages must not go out.
                unsafe memset(pages, 0, count)
            }
            place = list.after(place, segment.byteCount)
            left = left &- UInt64(segment.byteCount)
            offset = offset &+ UInt64(segment.byteCount)
        }
    }
}
