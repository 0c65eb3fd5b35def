// SPDX-License-Identifier: Apache-2.0
// Memory that a client offers: what it is, whether it can be trusted to stay, and what of it is in
// use.

internal import CLinux
internal import Glibc
internal import Linux
internal import NVMeDriver
internal import Wire

/// Registered memory of a session.
struct ClientRegion {
    /// Its index in the driver's region table.
    let driverRegion: UInt32
    /// Its length.
    let byteCount: UInt64
    /// The device may not write it.
    let isReadOnly: Bool
    /// It counts against the limits: its pages are kept in memory for it.
    let isPinned: Bool
    /// The number of its file's name in the fd store.
    let number: UInt64
    /// The RegisterMemory that made it.
    let registerRequestID: UInt64
    /// Requests with the device that point at it.
    var inFlight = 0
    /// The UnregisterMemory that waits for those.
    var unregisterRequestID: UInt64?
}

/// What a descriptor is that came with RegisterMemory, looked up once.
struct OfferedMemory: Equatable {
    enum Kind: Equatable {
        /// A memory file with its seals.
        case memoryFile(Seals, pageByteCount: UInt64)
        /// A character device, by its number.
        case node(UInt64)
        /// Anything else.
        case other
    }
    var kind: Kind
    var isReadWrite: Bool
    /// Bytes of the file.
    var byteCount: UInt64

    init(kind: Kind, isReadWrite: Bool = true, byteCount: UInt64 = 0) {
        self.kind = kind
        self.isReadWrite = isReadWrite
        self.byteCount = byteCount
    }

    init(_ fd: borrowing OwnedFD) {
        isReadWrite = MemFD.isReadWrite(fd)
        kind = Self.kind(fd)
        guard case .memoryFile = kind else {
            byteCount = 0
            return
        }
        byteCount = (try? MemFD.byteCount(of: fd)).map { UInt64(clamping: $0) } ?? 0
    }

    private static func kind(_ fd: borrowing OwnedFD) -> Kind {
        // Nothing here may wait for a file system that the client runs. Only memory files have
        // seals that can be set; on any other file of tmpfs more cannot be added.
        guard let seals = try? MemFD.seals(of: fd) else {
            let node = nv_character_device(fd.raw)
            return node > 0 ? .node(UInt64(node)) : .other
        }
        if let huge = try? MemFD.hugePageByteCount(of: fd) {
            return .memoryFile(seals, pageByteCount: huge)
        }
        guard let isShmem = try? MemFD.isShmem(fd), isShmem else { return .other }
        return .memoryFile(seals, pageByteCount: 4096)
    }
}

/// What may be registered, and how it is mapped and addressed.
struct ClientMemoryRules {
    /// The guest memory of the configuration.
    var guestMemory: GuestMemory?
    /// The device has no IOMMU.
    var usesPhysicalAddresses: Bool

    /// The stretch to register for what a client asked, whose offset, length and access it keeps.
    /// Throws when the memory could change under the device or is not for clients.
    func accept(
        _ offered: OfferedMemory, _ asked: ClientMemoryStretch
    ) throws(WireError) -> ClientMemoryStretch {
        var stretch = asked
        switch offered.kind {
        case .node(let number): try acceptNode(number, asked)
        case .memoryFile(let seals, let pageByteCount):
            stretch.pageByteCount = pageByteCount
            try Self.checkLength(stretch, limit: WorkerLimits.regionByteCountPerSession)
            try Self.checkSeals(seals)
            let end = stretch.offset.addingReportingOverflow(stretch.byteCount)
            guard !end.overflow, end.partialValue <= offered.byteCount else {
                throw Self.refusal(
                    "byte_count",
                    "the memfd has \(offered.byteCount) bytes, fewer than \(stretch.byteCount) "
                        + "from \(stretch.offset) on")
            }
        case .other:
            throw Self.refusal(
                "fd", "the descriptor is not a memfd: it cannot be sealed")
        }
        guard offered.isReadWrite else {
            throw Self.refusal("fd", "the memory was not opened for reading and writing")
        }
        if case .node = offered.kind { stretch.isPhysical = true }
        return stretch
    }

    private func acceptNode(
        _ number: UInt64, _ asked: ClientMemoryStretch
    ) throws(WireError) {
        guard let guestMemory, guestMemory.node == number else {
            throw Self.refusal(
                "fd",
                "the descriptor is a device node, and not the one of guest memory that this worker "
                    + "is configured with")
        }
        guard usesPhysicalAddresses else {
            throw Self.refusal(
                "fd", "guest memory by physical address is for devices without an IOMMU only")
        }
        try Self.checkLength(asked, limit: .max)
        guard guestMemory.contains(asked.offset, asked.byteCount) else {
            throw Self.refusal(
                "file_offset",
                "\(asked.byteCount) bytes at \(asked.offset) are not within one range of the "
                    + "configured guest memory")
        }
    }

    private static func checkLength(
        _ stretch: ClientMemoryStretch, limit: UInt64
    ) throws(WireError) {
        let page = stretch.pageByteCount
        guard stretch.byteCount > 0, stretch.byteCount % page == 0 else {
            throw refusal(
                "byte_count",
                "\(stretch.byteCount) is not a positive multiple of \(page) bytes, the size of the "
                    + "memory's pages")
        }
        guard stretch.offset % page == 0 else {
            throw refusal(
                "file_offset",
                "\(stretch.offset) is not a multiple of \(page) bytes, the size of "
                    + "the memory's pages")
        }
        guard stretch.byteCount <= limit else {
            throw WireError(
                .resourceExhausted,
                "\(stretch.byteCount) bytes are more than a session may register: \(limit)",
                field: "register_memory.byte_count")
        }
    }

    private static func checkSeals(_ seals: Seals) throws(WireError) {
        guard seals.isSuperset(of: [.shrink, .grow]) else {
            throw refusal("fd", "the memfd is not sealed with F_SEAL_SHRINK and F_SEAL_GROW")
        }
        guard !seals.contains(.write), !seals.contains(.futureWrite) else {
            throw refusal("fd", "the memfd is sealed against writing and cannot be shared")
        }
    }

    private static func refusal(_ field: String, _ text: String) -> WireError {
        WireError(.invalidArgument, text, field: "register_memory.\(field)")
    }
}

/// Memory of the guest in VTL2: a device node whose offsets are physical addresses, and the ranges
/// of it that are memory. Its pages never move, so that a device without an IOMMU uses them as they
/// are; sessions may share it.
struct GuestMemory: Equatable {
    /// The number of the device.
    let node: UInt64
    /// Physical addresses, first and last.
    let ranges: [ClosedRange<UInt64>]

    init(node: UInt64, ranges: [ClosedRange<UInt64>]) {
        self.node = node
        self.ranges = ranges
    }

    /// What a configuration names, where the node can be seen.
    init(_ place: GuestMemoryPlace) throws(WireError) {
        guard let node = Files.characterDevice(place.path) else {
            throw WireError(
                .deviceFailed, "GuestMemory=: \(place.path) is no character device",
                field: "register_memory.fd")
        }
        self.init(node: node, ranges: place.ranges)
    }

    /// Whether bytes (1 or more) lie within one range.
    func contains(_ offset: UInt64, _ byteCount: UInt64) -> Bool {
        let last = offset.addingReportingOverflow(byteCount &- 1)
        return !last.overflow
            && ranges.contains { $0.contains(offset) && $0.contains(last.partialValue) }
    }
}
