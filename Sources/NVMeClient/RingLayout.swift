// SPDX-License-Identifier: Apache-2.0
// The header of a ring's memory (Proto/ring.md, "Memory"), read and checked once.

internal import CMemory
internal import CRing
internal import Linux
internal import Wire

/// Where the parts of a ring lie. Every number was checked: the entries are inside of the memory.
struct RingLayout: Equatable {
    /// Entries of the submission ring, a power of two.
    var submissionEntryCount: UInt32
    /// Entries of the completion ring, a power of two.
    var completionEntryCount: UInt32
    /// The byte at which the submission entries start.
    var submissionOffset: Int
    /// The byte at which the completion entries start.
    var completionOffset: Int

    /// The most bytes a ring can need: header and entries of the largest, and as much again for
    /// alignment.
    static let byteCountMax: UInt64 = 1 << 20

    /// The descriptor's file holds a ring of so many bytes and cannot lose them.
    static func checkFile(_ fd: borrowing OwnedFD, byteCount: UInt64) throws(ClientError) {
        guard byteCount >= UInt64(NV_RING_HEADER_BYTES), byteCount <= byteCountMax else {
            throw bad("its memory has \(byteCount) bytes")
        }
        let seals: Seals
        let size: Int
        do {
            seals = try MemFD.seals(of: fd)
            size = try MemFD.byteCount(of: fd)
        } catch { throw bad("its memory is no memory file: \(error)") }
        guard seals.contains([.shrink, .grow, .seal]) else {
            throw bad("its memory is not sealed")
        }
        guard size >= Int(byteCount) else {
            throw bad("its memory has \(size) bytes of \(byteCount)")
        }
    }

    /// Reads the header at `base`, which has `byteCount` bytes, at least those of a header.
    init(
        at base: UnsafeMutableRawPointer, byteCount: Int, ringID: UInt32
    ) throws(ClientError) {
        func word(_ offset: Int) -> UInt32 { unsafe nv_load32(base + offset) }
        guard unsafe nv_load64(base + NV_RING_OFFSET_MAGIC) == NV_RING_MAGIC else {
            throw Self.bad("magic")
        }
        let version = word(NV_RING_OFFSET_VERSION)
        guard version == NV_RING_VERSION else { throw Self.bad("version \(version)") }
        guard word(NV_RING_OFFSET_HEADER_BYTES) == NV_RING_HEADER_BYTES else {
            throw Self.bad("header_byte_count")
        }
        guard unsafe nv_load64(base + NV_RING_OFFSET_BYTES) == UInt64(byteCount) else {
            throw Self.bad("byte_count")
        }
        guard word(NV_RING_OFFSET_RING_ID) == ringID else { throw Self.bad("ring_id") }
        submissionEntryCount = word(NV_RING_OFFSET_SUBMISSION_ENTRIES)
        completionEntryCount = word(NV_RING_OFFSET_COMPLETION_ENTRIES)
        guard Self.isEntryCount(submissionEntryCount) else {
            throw Self.bad("submission_entry_count \(submissionEntryCount)")
        }
        guard Self.isEntryCount(completionEntryCount) else {
            throw Self.bad("completion_entry_count \(completionEntryCount)")
        }
        submissionOffset = Int(word(NV_RING_OFFSET_SUBMISSION_OFFSET))
        completionOffset = Int(word(NV_RING_OFFSET_COMPLETION_OFFSET))
        let submissions = Self.span(
            submissionOffset, submissionEntryCount, NV_RING_SUBMISSION_BYTES)
        let completions = Self.span(
            completionOffset, completionEntryCount, NV_RING_COMPLETION_BYTES)
        guard Self.isPlace(submissions, byteCount), Self.isPlace(completions, byteCount),
            !submissions.overlaps(completions)
        else {
            throw Self.bad(
                "submission_offset \(submissionOffset), completion_offset \(completionOffset)")
        }
    }

    /// Whether a number of entries is one that a ring can have.
    static func isEntryCount(_ count: UInt32) -> Bool {
        count >= UInt32(NV_RING_MIN_ENTRIES) && count <= UInt32(NV_RING_MAX_ENTRIES)
            && count & (count - 1) == 0
    }

    // Numbers of 32 bits: nothing here overflows.
    private static func span(_ offset: Int, _ count: UInt32, _ bytes: Int) -> Range<Int> {
        offset..<offset + Int(count) * bytes
    }

    private static func isPlace(_ span: Range<Int>, _ byteCount: Int) -> Bool {
        span.lowerBound >= NV_RING_HEADER_BYTES && span.lowerBound % 64 == 0
            && span.upperBound <= byteCount
    }

    private static func bad(_ what: String) -> ClientError {
        .protocolViolation("the worker's ring is not one of version 1: \(what)")
    }
}
