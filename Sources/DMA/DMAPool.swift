// SPDX-License-Identifier: Apache-2.0
// The DMA pool of a device: one memory file, in two zones that the device may touch differently.

public import Linux
public import VFIO

/// A stretch of the pool.
public struct PoolSlice: Sendable, Equatable {
    /// Where it starts in the pool, in bytes.
    public let offset: Int
    /// Its length in bytes.
    public let byteCount: Int
}

/// Lays out a pool before it exists: first all that the device only reads, then all that it writes.
public struct PoolLayout: Sendable {
    /// The granularity of zones and of every slice.
    public static let pageByteCount = 4096
    /// What is laid out, in order.
    public private(set) var entries: [Entry] = []
    private var readOnly = 0
    private var readWrite = 0

    /// A slice with its purpose.
    public struct Entry: Sendable, Equatable {
        /// Where in its zone.
        public let slice: PoolSlice
        /// The zone: the device writes it too.
        public let deviceWrites: Bool
        /// What it is for.
        public let tag: String
    }

    /// An empty layout.
    public init() {}

    /// Reserves whole pages that the device only reads. The offset is counted within its zone.
    public mutating func reserveDeviceReads(
        _ byteCount: Int, tag: String = "memory"
    ) -> PoolSlice {
        let slice = Self.reserve(&readOnly, byteCount)
        entries.append(Entry(slice: slice, deviceWrites: false, tag: tag))
        return slice
    }

    /// Reserves whole pages that the device reads and writes. The offset is counted within its
    /// zone.
    public mutating func reserveDeviceWrites(
        _ byteCount: Int, tag: String = "memory"
    ) -> PoolSlice {
        let slice = Self.reserve(&readWrite, byteCount)
        entries.append(Entry(slice: slice, deviceWrites: true, tag: tag))
        return slice
    }

    /// Bytes of the zone that the device only reads.
    public var deviceReadsByteCount: Int { max(readOnly, Self.pageByteCount) }
    /// Bytes of the zone that the device also writes.
    public var deviceWritesByteCount: Int { max(readWrite, Self.pageByteCount) }

    /// Bytes of both.
    public var byteCount: Int { deviceReadsByteCount + deviceWritesByteCount }

    /// Bytes of the two zones in a file with pages of this size: they lie one behind the other, and
    /// each of them can be mapped by itself.
    public func zones(pageByteCount page: Int) -> (deviceReads: Int, deviceWrites: Int) {
        (
            (deviceReadsByteCount + page - 1) & ~(page - 1),
            (deviceWritesByteCount + page - 1) & ~(page - 1)
        )
    }

    /// Bytes of both zones.
    public func byteCount(pageByteCount page: Int) -> Int {
        let zones = zones(pageByteCount: page)
        return zones.deviceReads + zones.deviceWrites
    }

    private static func reserve(_ used: inout Int, _ byteCount: Int) -> PoolSlice {
        let slice = PoolSlice(
            offset: used, byteCount: (byteCount + pageByteCount - 1) & ~(pageByteCount - 1))
        used += slice.byteCount
        return slice
    }
}

/// The memory of a device: queues, PRP lists, bounce pages. Zeroed when made, left out of core
/// dumps.
///
/// Submission queues and PRP lists are mapped read-only for the device, so that a device that
/// writes where it should not cannot change a command after it was checked.
@safe
public struct DMAPool: ~Copyable {
    /// The memory file.
    public let fd: OwnedFD
    /// Where it lies.
    public let place: PoolPlace
    /// The device's address of the zone it only reads.
    public let deviceReadsIOVA: UInt64
    /// The device's address of the zone it also writes.
    public let deviceWritesIOVA: UInt64
    /// Of a device that uses physical addresses: which huge pages of the file these are, in the
    /// order of their addresses. Empty: the bytes are in the order of the file.
    public let pageOrder: [UInt32]
    private let owned: OwnedPool
    private let deviceReadsByteCount: Int
    private let deviceWritesByteCount: Int
    /// Keeps others from using a file with a name.
    private let lock: OwnedFD?

    /// Gets the memory from `source` and makes it reachable for the device.
    public init(
        layout: PoolLayout, device: any DeviceBacking, space: inout IOVASpace,
        source: PoolSource = .memory, owner: String = "device"
    ) throws(VFIOError) {
        if device.usesPhysicalAddresses {
            let (readBytes, writeBytes) = layout.zones(pageByteCount: PoolLayout.pageByteCount)
            // Both zones are writable: there is nothing between the device and memory.
            let run = try PhysicalRun.allocate(readBytes + writeBytes, device, source)
            let (address, order) = (run.address, run.order)
            let parts = run.takeParts()
            let memory = parts.memory
            let file = parts.fd
            let held = parts.lock
            // Nothing is set before the last that may throw.
            let owned = try OwnedPool(
                memory, layout, (readBytes, writeBytes), (address, address + UInt64(readBytes)),
                owner: owner, source: source)
            deviceReadsIOVA = address
            deviceWritesIOVA = address + UInt64(readBytes)
            deviceReadsByteCount = readBytes
            deviceWritesByteCount = writeBytes
            pageOrder = order
            place = source.place
            fd = file
            lock = held
            self.owned = owned
            return
        }
        let file = try source.make(layout)
        let (readBytes, writeBytes) = layout.zones(pageByteCount: file.pageByteCount)
        let alignment = UInt64(file.pageByteCount)
        guard let reads = space.allocate(byteCount: UInt64(readBytes), alignment: alignment),
            let writes = space.allocate(byteCount: UInt64(writeBytes), alignment: alignment)
        else { throw .unsupported("no I/O virtual addresses left for the pool") }
        guard file.byteCount >= readBytes + writeBytes else {
            throw .unsupported("the pool's file has \(file.byteCount) bytes")
        }
        let bytes = try Self.mapping(file.fd, readBytes + writeBytes)
        bytes.excludeFromCoreDumps()
        let owned = try OwnedPool(
            bytes, layout, (readBytes, writeBytes), (reads, writes), owner: owner,
            source: source)
        let base = unsafe owned.base
        if !file.isClean {
            unsafe base.initializeMemory(
                as: UInt8.self, repeating: 0, count: readBytes + writeBytes)
        }
        try Self.show(
            unsafe [
                DMAWindow(
                    iova: reads, byteCount: UInt64(readBytes), base: base, access: .deviceReads),
                DMAWindow(
                    iova: writes, byteCount: UInt64(writeBytes), base: base + readBytes,
                    access: .deviceReadsAndWrites),
            ], file.fd, device)
        place = file.place
        let parts = file.takeParts()
        fd = parts.fd
        lock = parts.lock
        self.owned = owned
        deviceReadsByteCount = readBytes
        deviceWritesByteCount = writeBytes
        deviceReadsIOVA = reads
        deviceWritesIOVA = writes
        pageOrder = []
    }

    /// Makes windows that lie one behind the other in a file reachable for the device: all or none.
    private static func show(
        _ windows: [DMAWindow], _ fd: borrowing OwnedFD, _ device: any DeviceBacking
    ) throws(VFIOError) {
        var offset: UInt64 = 0
        for (index, window) in windows.enumerated() {
            do throws(VFIOError) {
                try device.map(window, fd: fd, offset: offset)
            } catch {
                // The mapping goes away with this call: the carrier must not serve it any more.
                for shown in windows.prefix(index) {
                    try? device.unmap(iova: shown.iova, byteCount: shown.byteCount)
                }
                throw error
            }
            offset += window.byteCount
        }
    }

    /// Takes over a predecessor's memory file, of which nothing is changed. The device has it at
    /// these addresses (`adoptWindows`), or gets it there (`mapWindows`); they must have been
    /// reserved. Throws `unsupported` when the file is not one of this layout.
    public init(
        adopting file: consuming PoolFile, layout: PoolLayout, readsIOVA: UInt64,
        writesIOVA: UInt64, owner: String = "device", source: PoolSource = .memory
    ) throws(VFIOError) {
        let zones = layout.zones(pageByteCount: file.pageByteCount)
        let (readBytes, writeBytes) = zones
        let byteCount = readBytes + writeBytes
        guard file.byteCount >= byteCount else {
            throw .unsupported("the pool's file has \(file.byteCount) bytes, not \(byteCount)")
        }
        let bytes = try Self.mapping(file.fd, byteCount)
        bytes.excludeFromCoreDumps()
        let owned = try OwnedPool(
            adopting: bytes, layout, zones, (readsIOVA, writesIOVA), owner: owner, source: source)
        place = file.place
        let parts = file.takeParts()
        fd = parts.fd
        lock = parts.lock
        self.owned = owned
        deviceReadsByteCount = readBytes
        deviceWritesByteCount = writeBytes
        deviceReadsIOVA = readsIOVA
        deviceWritesIOVA = writesIOVA
        pageOrder = []
    }

    /// Takes over a predecessor's memory file for a device that uses physical addresses: its huge
    /// pages in this order, the first of which is at `address`. With `checking` that device says
    /// where they are now. Throws `unsupported` when it is not the file of this layout, or the
    /// pages are not where they were.
    public init(
        adopting file: consuming PoolFile, layout: PoolLayout, pageOrder: [UInt32],
        address: UInt64, checking device: (any DeviceBacking)?, owner: String = "device",
        source: PoolSource = .memory
    ) throws(VFIOError) {
        let (readBytes, writeBytes) = layout.zones(pageByteCount: PoolLayout.pageByteCount)
        guard
            UInt64(readBytes + writeBytes) <= UInt64(pageOrder.count) * PhysicalMemory.pageByteCount
        else {
            throw .unsupported("\(pageOrder.count) huge pages are too few for the pool")
        }
        let place = file.place
        let run = try PhysicalRun.adopt(file, pageOrder, at: address, checking: device)
        let (start, order) = (run.address, run.order)
        let parts = run.takeParts()
        let memory = parts.memory
        let kept = parts.fd
        let held = parts.lock
        let owned = try OwnedPool(
            adopting: memory, layout, (readBytes, writeBytes),
            (start, start &+ UInt64(readBytes)), owner: owner, source: source)
        self.place = place
        deviceReadsIOVA = start
        deviceWritesIOVA = start &+ UInt64(readBytes)
        deviceReadsByteCount = readBytes
        deviceWritesByteCount = writeBytes
        self.pageOrder = order
        fd = kept
        lock = held
        self.owned = owned
    }

    /// Who owns what of it, for inspection and for a saved state. Pages are numbered as they are
    /// mapped here: first those of the zone that the device only reads.
    public var slots: [SlotPool.Slot] { owned.slots }

    /// What is lost of it.
    public var losses: [DMALoss] { owned.losses }

    /// Where its pages came to lie.
    public var placement: PoolPlacement { owned.placement }

    private var windows: [DMAWindow] {
        unsafe [
            DMAWindow(
                iova: deviceReadsIOVA, byteCount: UInt64(deviceReadsByteCount), base: owned.base,
                access: .deviceReads),
            DMAWindow(
                iova: deviceWritesIOVA,
                byteCount: UInt64(deviceWritesByteCount),
                base: owned.base + deviceReadsByteCount, access: .deviceReadsAndWrites),
        ]
    }

    /// Notes that the device has both zones already.
    public func adoptWindows(_ device: any DeviceBacking) throws(VFIOError) {
        for window in windows { try device.adoptWindow(window) }
    }

    /// Makes both zones reachable for the device, which a device that uses physical addresses has
    /// them anyway.
    public func mapWindows(_ device: any DeviceBacking) throws(VFIOError) {
        guard pageOrder.isEmpty else { return }
        try Self.show(windows, fd, device)
    }

    private static func mapping(
        _ fd: borrowing OwnedFD, _ byteCount: Int
    ) throws(VFIOError) -> Mapping {
        do throws(SystemCallError) {
            return try Mapping(fd, byteCount: byteCount)
        } catch {
            throw .system(error)
        }
    }

    /// Bytes of both zones; the file may be longer.
    public var byteCount: Int { deviceReadsByteCount + deviceWritesByteCount }

    /// Fills a slice of the zone that the device only reads with zeroes.
    public func clearDeviceReads(_ slice: PoolSlice) {
        unsafe deviceReadsAddress(slice).initializeMemory(
            as: UInt8.self, repeating: 0, count: slice.byteCount)
    }

    /// Fills a slice of the zone that the device also writes with zeroes.
    public func clearDeviceWrites(_ slice: PoolSlice) {
        unsafe deviceWritesAddress(slice).initializeMemory(
            as: UInt8.self, repeating: 0, count: slice.byteCount)
    }

    /// Where a slice of the zone that the device only reads is in this process. Valid while the
    /// pool lives.
    public func deviceReadsAddress(_ slice: PoolSlice) -> UnsafeMutableRawPointer {
        unsafe owned.base + slice.offset
    }

    /// Where a slice of the zone that the device also writes is in this process. Valid while the
    /// pool lives.
    public func deviceWritesAddress(_ slice: PoolSlice) -> UnsafeMutableRawPointer {
        unsafe owned.base + (deviceReadsByteCount + slice.offset)
    }
}
