// SPDX-License-Identifier: Apache-2.0
// The less common entries of a ring, and those that are wrong.

internal import CMemory
internal import CRing
internal import NVMeSpec

/// Codes of completions: the raw values of `ErrorCode` in Proto/common.proto, for rings and
/// messages alike.
public enum RingCode {
    static let invalidArgument: UInt16 = 1
    static let readOnly: UInt16 = 10
    static let outOfRange: UInt16 = 11
    static let deviceRemoved: UInt16 = 14
    static let nvmeStatus: UInt16 = 19
    static let mediaError: UInt16 = 20
    static let compareFailed: UInt16 = 21
    static let notSupported: UInt16 = 24
    static let outcomeUnknown: UInt16 = 25

    /// What a status other than success means to a client, which has cancelled nothing.
    @inline(never)
    public static func of(_ raw: UInt16) -> UInt16 {
        let status = Status(rawValue: raw)
        if status.matches(.lbaOutOfRange) { return outOfRange }
        if status.matches(.namespaceWriteProtected) { return readOnly }
        // The client has cancelled nothing: the worker's own ladder did, or deleted the queue, and
        // the effect may have happened.
        if status.matches(.abortRequested) || status.matches(.abortedQueueDeletion) {
            return outcomeUnknown
        }
        // Compare Failure and Attempted Write to Read Only Range (NVM Command Set 1.0, 3.1.2).
        if status.matches(Status(.mediaAndDataIntegrity, 0x85)) { return compareFailed }
        if status.matches(Status(.commandSpecific, 0x82)) { return readOnly }
        if status.matches(.invalidNamespaceOrFormat) { return deviceRemoved }
        return status.type == .mediaAndDataIntegrity ? mediaError : nvmeStatus
    }
}

extension RingPort {
    /// Flags that an operation may have; nil for an opcode that is not on the list.
    private static func allowedFlags(_ operation: UInt8) -> UInt8? {
        let fua = UInt8(NV_RING_FLAG_FUA)
        let deallocate = UInt8(NV_RING_FLAG_DEALLOCATE)
        let indirect = UInt8(NV_RING_FLAG_INDIRECT)
        return switch operation {
        case IOOperation.read, IOOperation.compare: indirect
        case IOOperation.write: indirect | fua
        case IOOperation.writeZeroes: fua | deallocate
        case IOOperation.flush, IOOperation.deallocate, IOOperation.verify: 0
        default: nil
        }
    }

    /// Takes an entry that `takeSome` leaves to this; false when it has to stay, or is at fault.
    @inline(never)
    mutating func takeOther(
        _ entry: Entry, _ engine: UnsafeMutablePointer<Engine>
    ) -> Bool {
        guard let flags = Self.allowedFlags(entry.operation) else { return faulty(.opcode) }
        let isIndirect = entry.flags & UInt8(NV_RING_FLAG_INDIRECT) != 0
        guard entry.flags & ~flags == 0, entry.head & 0xFFFF_0000 == 0, entry.reserved == 0,
            isIndirect || entry.segmentCount == 0
        else { return faulty(.reserved) }
        guard rules.blockCount > 0 else {
            return unsafe answer(entry, RingCode.deviceRemoved, engine)
        }
        if entry.operation == IOOperation.flush { return unsafe takeFlush(entry, engine) }
        if let code = refusal(entry) { return unsafe answer(entry, code, engine) }
        guard Engine.movesData(entry.operation) else { return unsafe takeRange(entry, engine) }
        guard entry.blockCount <= rules.maxRequestBlocks else {
            return unsafe answer(entry, RingCode.invalidArgument, engine)
        }
        guard !isIndirect else { return unsafe takeIndirect(entry, engine) }
        var request = request(entry)
        request.maxBlocksPerCommand = rules.maxTransferBlocks
        request.region = regions.driverRegion(
            entry.region, isWritten: entry.operation == IOOperation.read)
        request.offset = entry.offset
        guard request.region != 0 else { return faulty(.region) }
        return unsafe submit(&request, engine)
    }

    /// What the disk or the session does not allow; nil when it does.
    private func refusal(_ entry: Entry) -> UInt16? {
        let limit: UInt32
        switch entry.operation {
        case IOOperation.compare: limit = rules.canCompare ? 1 : 0
        case IOOperation.writeZeroes: limit = rules.maxWriteZeroesBlocks
        case IOOperation.deallocate: limit = rules.maxDeallocateBlocks
        case IOOperation.verify: limit = rules.maxVerifyBlocks
        default: limit = 1
        }
        guard limit > 0 else { return RingCode.notSupported }
        switch entry.operation {
        case IOOperation.read, IOOperation.compare, IOOperation.verify: break
        default: if !rules.isWritable { return RingCode.readOnly }
        }
        guard entry.blockCount > 0 else { return RingCode.invalidArgument }
        guard entry.lba < rules.blockCount,
            UInt64(entry.blockCount) <= rules.blockCount - entry.lba
        else { return RingCode.outOfRange }
        return nil
    }

    private func request(_ entry: Entry) -> IORequest {
        var request = IORequest(
            operation: entry.operation, namespaceID: rules.namespaceID, session: session,
            token: entry.tag)
        request.ring = number
        request.position = entry.position
        request.blockShift = rules.blockShift
        request.lba = entry.lba
        request.blockCount = entry.blockCount
        request.forceUnitAccess = entry.flags & UInt8(NV_RING_FLAG_FUA) != 0
        return request
    }

    private mutating func takeFlush(
        _ entry: Entry, _ engine: UnsafeMutablePointer<Engine>
    ) -> Bool {
        guard entry.blockCount == 0, entry.lba == 0, entry.place == 0, entry.offset == 0 else {
            return faulty(.reserved)
        }
        guard rules.hasVolatileWriteCache else { return unsafe answer(entry, 0, engine) }
        var request = request(entry)
        return unsafe submit(&request, engine)
    }

    private mutating func takeRange(
        _ entry: Entry, _ engine: UnsafeMutablePointer<Engine>
    ) -> Bool {
        guard entry.place == 0, entry.offset == 0 else { return faulty(.reserved) }
        var request = request(entry)
        switch entry.operation {
        case IOOperation.writeZeroes:
            request.maxBlocksPerCommand = rules.maxWriteZeroesBlocks
            request.mayDeallocate =
                entry.flags & UInt8(NV_RING_FLAG_DEALLOCATE) != 0 && rules.writeZeroesMayDeallocate
        case IOOperation.deallocate: request.maxBlocksPerCommand = rules.maxDeallocateBlocks
        default: request.maxBlocksPerCommand = rules.maxVerifyBlocks
        }
        return unsafe submit(&request, engine)
    }

    mutating func submit(
        _ request: inout IORequest, _ engine: UnsafeMutablePointer<Engine>
    ) -> Bool {
        let result = unsafe engine.pointee.submitOne(&request)
        guard result == .accepted else {
            return result == .full ? false : faulty(.range)
        }
        countStarted(request)
        return true
    }

    mutating func faulty(_ fault: RingFault) -> Bool {
        setFault(fault)
        return false
    }

    /// Completes an entry that the device does not see. No slot remembers it, so that what was
    /// taken and completed is written down at once.
    mutating func answer(
        _ entry: Entry, _ code: UInt16, _ engine: UnsafeMutablePointer<Engine>
    ) -> Bool {
        let position = unsafe engine.pointee.takePosition(UInt8(truncatingIfNeeded: number))
        write(at: position, tag: entry.tag, status: 0, code: code, result: 0)
        log.write(head: entry.position &+ 1, tail: completionTail)
        statistics.submitted(operation: entry.operation, byteCount: 0)
        statistics.completed(operation: entry.operation, age: 0, failed: code != 0)
        return true
    }

    /// Takes an entry whose data a segment list describes.
    private mutating func takeIndirect(
        _ entry: Entry, _ engine: UnsafeMutablePointer<Engine>
    ) -> Bool {
        let count = entry.segmentCount
        guard count > 0, count <= UInt32(NV_RING_MAX_SEGMENTS), entry.offset & 7 == 0 else {
            return faulty(.segments)
        }
        let list = regions.driverRegion(entry.region, isWritten: false)
        guard list != 0 else { return faulty(.region) }
        guard
            let source = unsafe engine.pointee.regions.localBytes(
                region: list, offset: entry.offset, byteCount: UInt64(count) &* 16,
                session: session)
        else { return faulty(.range) }
        let fault = unsafe copySegments(
            source, count: Int(count), isWritten: entry.operation == IOOperation.read,
            byteCount: UInt64(entry.blockCount) &<< UInt64(rules.blockShift))
        // First of all: a page that is gone reads as a list that does not add up.
        guard unsafe !engine.pointee.hasFaulted(region: list) else { return faulty(.memory) }
        guard fault == .none else { return faulty(fault) }
        var request = request(entry)
        request.maxBlocksPerCommand = rules.maxTransferBlocks
        switch unsafe engine.pointee.submit(request, segments: segments, count: Int(count)) {
        case .accepted:
            countStarted(request)
            return true
        case .full: return false
        case .invalid: return faulty(.range)
        }
    }

    /// Copies a list out of the client's memory, each word once, and names the driver's regions.
    private func copySegments(
        _ source: UnsafeMutableRawPointer, count: Int, isWritten: Bool, byteCount: UInt64
    ) -> RingFault {
        var left = byteCount
        for index in 0..<count {
            let place = unsafe source + index &* Int(NV_RING_SEGMENT_BYTES)
            let offset = unsafe nv_load64(place)
            let word = unsafe nv_load64(place + Int(NV_RING_SEGMENT_REGION))
            let length = UInt32(truncatingIfNeeded: word >> 32)
            guard length > 0, UInt64(length) <= left else { return .segments }
            let region = regions.driverRegion(
                UInt32(truncatingIfNeeded: word), isWritten: isWritten)
            guard region != 0 else { return .region }
            unsafe segments[index] = DataSegment(
                region: region, offset: offset, byteCount: length)
            left = left &- UInt64(length)
        }
        return left == 0 ? .none : .segments
    }
}
