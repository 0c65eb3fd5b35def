// SPDX-License-Identifier: Apache-2.0
// Memory that a client offers: whether it can be trusted to stay, and what of it is in use.

internal import Linux
internal import Wire

/// Registered memory of a session.
struct ClientRegion {
    /// Its index in the driver's region table.
    let driverRegion: UInt32
    /// Its length.
    let byteCount: UInt64
    /// The device may not write it.
    let isReadOnly: Bool
    /// Requests with the device that point at it.
    var inFlight = 0
    /// The UnregisterMemory that waits for those.
    var unregisterRequestID: UInt64?
}

/// The checks of RegisterMemory.
enum ClientMemory {
    /// Throws unless `fd` is a memory file that cannot change its size and has `byteCount` bytes.
    static func check(_ fd: borrowing OwnedFD, byteCount: UInt64) throws(WireError) {
        guard byteCount > 0, byteCount & 4095 == 0 else {
            throw WireError(
                .invalidArgument, "\(byteCount) is not a positive multiple of 4096 bytes",
                field: "register_memory.byte_count")
        }
        guard byteCount <= WorkerLimits.regionByteCountPerSession else {
            throw WireError(
                .resourceExhausted,
                "\(byteCount) bytes are more than a session may register: "
                    + "\(WorkerLimits.regionByteCountPerSession)",
                field: "register_memory.byte_count")
        }
        guard let seals = try? MemFD.seals(of: fd) else {
            throw WireError(
                .invalidArgument, "the descriptor is not a memfd: it cannot be sealed",
                field: "register_memory.fd")
        }
        guard seals.isSuperset(of: [.shrink, .grow]) else {
            throw WireError(
                .invalidArgument, "the memfd is not sealed with F_SEAL_SHRINK and F_SEAL_GROW",
                field: "register_memory.fd")
        }
        // Huge pages would be another page size to guard and to punch; only ordinary shared memory
        // is taken.
        guard let isShmem = try? MemFD.isShmem(fd), isShmem else {
            throw WireError(
                .invalidArgument, "the memfd is not ordinary shared memory",
                field: "register_memory.fd")
        }
        try checkSize(fd, byteCount, seals)
    }

    private static func checkSize(
        _ fd: borrowing OwnedFD, _ byteCount: UInt64, _ seals: Seals
    ) throws(WireError) {
        guard !seals.contains(.write), !seals.contains(.futureWrite) else {
            throw WireError(
                .invalidArgument, "the memfd is sealed against writing and cannot be shared",
                field: "register_memory.fd")
        }
        guard MemFD.isReadWrite(fd) else {
            throw WireError(
                .invalidArgument, "the memfd was not opened for reading and writing",
                field: "register_memory.fd")
        }
        guard let size = try? MemFD.byteCount(of: fd), UInt64(clamping: size) >= byteCount else {
            throw WireError(
                .invalidArgument, "the memfd is smaller than \(byteCount) bytes",
                field: "register_memory.byte_count")
        }
    }
}
