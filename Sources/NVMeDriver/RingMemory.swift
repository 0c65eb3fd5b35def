// SPDX-License-Identifier: Apache-2.0
// The memory of a ring: its shape, its file, its header (Proto/ring.md).

internal import CLinux
internal import CMemory
internal import CRing
public import Linux

/// Where things are in a ring of a size.
public struct RingShape: Sendable, Equatable {
    /// Entries of the submission ring, a power of two.
    public let submissionEntries: UInt32
    /// Entries of the completion ring, a power of two.
    public let completionEntries: UInt32

    /// The shape of a ring; nil unless both numbers are powers of two from 2 to 4096.
    public init?(submissionEntries: UInt32, completionEntries: UInt32) {
        for count in [submissionEntries, completionEntries] {
            guard count >= UInt32(NV_RING_MIN_ENTRIES), count <= UInt32(NV_RING_MAX_ENTRIES),
                count & (count - 1) == 0
            else { return nil }
        }
        self.submissionEntries = submissionEntries
        self.completionEntries = completionEntries
    }

    var submissionOffset: Int { Int(NV_RING_HEADER_BYTES) }
    var completionOffset: Int {
        let end = submissionOffset + Int(submissionEntries) * Int(NV_RING_SUBMISSION_BYTES)
        return (end + 4095) & ~4095
    }
    /// Bytes of the whole memory, whole pages.
    public var byteCount: Int {
        let end = completionOffset + Int(completionEntries) * Int(NV_RING_COMPLETION_BYTES)
        return (end + 4095) & ~4095
    }
}

/// The memory of one ring, guarded: what a client punches away reads as zeroes.
@safe
public struct RingMemory: ~Copyable {
    /// The memory file, sealed: nobody can change its size or its seals.
    public let fd: OwnedFD
    /// Its shape.
    public let shape: RingShape
    let mapping: Mapping
    private let guardNumber: CInt

    /// Makes the memory of a ring.
    public init(shape: RingShape, ringID: UInt32) throws(SystemCallError) {
        let fd = try MemFD.create(
            name: "nvmed-ring", byteCount: shape.byteCount, seals: [.shrink, .grow, .seal])
        try self.init(fd, shape: shape)
        let base = unsafe mapping.base
        unsafe nv_store64(base, NV_RING_MAGIC)
        unsafe Self.put(base, NV_RING_OFFSET_VERSION, UInt32(NV_RING_VERSION))
        unsafe Self.put(base, NV_RING_OFFSET_HEADER_BYTES, UInt32(NV_RING_HEADER_BYTES))
        unsafe Self.put(base, NV_RING_OFFSET_SUBMISSION_ENTRIES, shape.submissionEntries)
        unsafe Self.put(base, NV_RING_OFFSET_COMPLETION_ENTRIES, shape.completionEntries)
        unsafe Self.put(base, NV_RING_OFFSET_SUBMISSION_OFFSET, UInt32(shape.submissionOffset))
        unsafe Self.put(base, NV_RING_OFFSET_COMPLETION_OFFSET, UInt32(shape.completionOffset))
        unsafe nv_store64(base + Int(NV_RING_OFFSET_BYTES), UInt64(shape.byteCount))
        unsafe Self.put(base, NV_RING_OFFSET_RING_ID, ringID)
    }

    /// The memory that a predecessor made: its header and entries stay as they are. Throws EINVAL
    /// when it is not of that shape, or not sealed.
    public init(adopting fd: consuming OwnedFD, shape: RingShape) throws(SystemCallError) {
        let seals = try MemFD.seals(of: fd)
        guard seals.isSuperset(of: [.shrink, .grow, .seal]),
            try MemFD.byteCount(of: fd) == shape.byteCount
        else { throw SystemCallError("adopt a ring's memory", errno: Errno.invalid) }
        try self.init(fd, shape: shape)
    }

    private init(_ fd: consuming OwnedFD, shape: RingShape) throws(SystemCallError) {
        let mapping = try Mapping(fd, byteCount: shape.byteCount)
        mapping.excludeFromCoreDumps()
        let guardNumber = unsafe nv_guard_add(mapping.base, shape.byteCount, 4096)
        // With all guards in use the mapping goes unguarded nowhere: there is no ring then.
        try checked("guard a ring", guardNumber)
        self.shape = shape
        self.fd = fd
        self.mapping = mapping
        self.guardNumber = guardNumber
    }

    deinit { nv_guard_remove(guardNumber) }

    /// Whether pages of the memory were taken away so that an access faulted.
    public var hasFaulted: Bool { nv_guard_faults(guardNumber) != 0 }

    private static func put<Offset: BinaryInteger>(
        _ base: UnsafeMutableRawPointer, _ offset: Offset, _ value: UInt32
    ) {
        unsafe nv_store32(base + Int(offset), value)
    }
}
