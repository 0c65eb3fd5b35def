// SPDX-License-Identifier: Apache-2.0
// Opening and closing rings, and what a ring's owner hears of the session.

internal import CRing
internal import Linux
public import Wire

extension Disk {
    /// The most messages heard at once while a ring waits; the rest is heard next time.
    static var hearLimit: Int { 64 }

    /// Opens a ring of `entries` submission entries, a power of two from 2 to 4096.
    ///
    /// Requests of a ring name registered memory by the id that `registerMemory` returns. When the
    /// session ends, so do its rings; after `reopen` open new ones.
    public func openRing(
        entries: UInt32, options: RingOptions = RingOptions(), deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> DiskRing {
        let completions = options.completionEntryCount ?? entries
        guard RingLayout.isEntryCount(entries), RingLayout.isEntryCount(completions) else {
            throw .failed(
                WireError(
                    .invalidArgument,
                    "a ring of \(entries) and \(completions) entries: both have to be a power of "
                        + "two from \(NV_RING_MIN_ENTRIES) to \(NV_RING_MAX_ENTRIES)", disk: name,
                    field: "submission_entry_count"))
        }
        let id = nextRingID
        nextRingID &+= 1
        _ = openedRing.take()
        try perform(
            .openRing(
                ringID: id, submissionEntryCount: entries, completionEntryCount: completions),
            deadlineNanoseconds)
        guard let parts = openedRing.take() else {
            throw .protocolViolation("the worker opened a ring without giving it")
        }
        return try DiskRing(disk: self, id: id, parts: parts, options: options)
    }

    /// Closes a ring. Requests that the worker took finish first, and their completions can still
    /// be taken afterwards; entries that it has not taken are not done.
    public func closeRing(
        _ ring: DiskRing, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        ring.markClosed()
        try perform(.closeRing(ringID: ring.id), deadlineNanoseconds)
    }

    /// Acts on the messages of the session that are there; true: there were some.
    func hearSession() -> Bool {
        var heard = false
        for _ in 0..<Self.hearLimit where ended == nil {
            guard hearOne() else { return heard }
            heard = true
        }
        return heard
    }

    /// Why the session ended, when a ring says that it did: its last message may come a moment
    /// later.
    func waitForEnd(graceNanoseconds: UInt64) -> WireError {
        let deadline = MonotonicClock.nowNanoseconds &+ graceNanoseconds
        while ended == nil, MonotonicClock.nowNanoseconds < deadline {
            do throws(ClientError) { try receiveOne(deadline) } catch { break }
        }
        return ended ?? Self.restarted(name, "its ring ended")
    }
}

/// A piece of a request's data, as lists in registered memory name it.
public struct RingSegment: Sendable, Equatable {
    /// Where the piece starts in its region, in bytes.
    public var offset: UInt64
    /// The region.
    public var region: UInt32
    /// Its length in bytes, 1 or more.
    public var byteCount: UInt32

    /// Bytes of a segment in a list.
    public static var byteCount: Int { NV_RING_SEGMENT_BYTES }

    /// A piece.
    public init(region: UInt32, offset: UInt64, byteCount: UInt32) {
        self.region = region
        self.offset = offset
        self.byteCount = byteCount
    }
}

extension IOBuffer {
    /// Writes segment `index` of a list that starts at `listOffset`, a multiple of 8; false: it
    /// does not fit.
    public func storeSegment(_ segment: RingSegment, listOffset: Int, index: Int) -> Bool {
        guard listOffset >= 0, listOffset % 8 == 0, index >= 0, index < NV_RING_MAX_SEGMENTS,
            listOffset <= byteCount,
            byteCount - listOffset >= (index + 1) * RingSegment.byteCount
        else { return false }
        let place = unsafe slice(
            listOffset + index * RingSegment.byteCount, RingSegment.byteCount)
        unsafe place.storeBytes(of: segment.offset.littleEndian, as: UInt64.self)
        unsafe place.storeBytes(
            of: segment.region.littleEndian, toByteOffset: NV_RING_SEGMENT_REGION, as: UInt32.self)
        unsafe place.storeBytes(
            of: segment.byteCount.littleEndian, toByteOffset: NV_RING_SEGMENT_BYTE_COUNT,
            as: UInt32.self)
        return true
    }
}

extension RingCompletion {
    /// What went wrong, in words; nil: it was done.
    public func error(disk: String? = nil) -> WireError? {
        guard code != 0 else { return nil }
        let code = ErrorCode(rawValue: UInt32(code))
        return WireError(
            code, "request \(tag) failed", disk: disk,
            nvmeStatus: nvmeStatus == 0 ? nil : nvmeStatus)
    }
}
