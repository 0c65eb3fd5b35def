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
    private var readOnly = 0
    private var readWrite = 0

    /// An empty layout.
    public init() {}

    /// Reserves whole pages that the device only reads. The offset is counted within its zone.
    public mutating func reserveDeviceReads(_ byteCount: Int) -> PoolSlice {
        Self.reserve(&readOnly, byteCount)
    }

    /// Reserves whole pages that the device reads and writes. The offset is counted within its
    /// zone.
    public mutating func reserveDeviceWrites(_ byteCount: Int) -> PoolSlice {
        Self.reserve(&readWrite, byteCount)
    }

    /// Bytes of the zone that the device only reads.
    public var deviceReadsByteCount: Int { max(readOnly, Self.pageByteCount) }
    /// Bytes of the zone that the device also writes.
    public var deviceWritesByteCount: Int { max(readWrite, Self.pageByteCount) }

    /// Bytes of both.
    public var byteCount: Int { deviceReadsByteCount + deviceWritesByteCount }

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
    /// The device's address of the zone it only reads.
    public let deviceReadsIOVA: UInt64
    /// The device's address of the zone it also writes.
    public let deviceWritesIOVA: UInt64
    /// Bytes of the layout; the file may be longer.
    public let byteCount: Int
    /// Of a device that uses physical addresses: which huge pages of the file these are, in the
    /// order of their addresses. Empty: the bytes are in the order of the file.
    public let pageOrder: [UInt32]
    private let memory: Mapping
    private let deviceReadsByteCount: Int

    /// Creates the memory file, or uses `given`, and makes it reachable for the device.
    ///
    /// A file that is given must have `layout`'s bytes at least and belong to nobody else; what is
    /// in it is overwritten with zeroes.
    public init(
        layout: PoolLayout, name: String, device: any DeviceBacking, space: inout IOVASpace,
        file given: consuming OwnedFD? = nil
    ) throws(VFIOError) {
        let readBytes = layout.deviceReadsByteCount
        let writeBytes = layout.deviceWritesByteCount
        byteCount = readBytes + writeBytes
        if device.usesPhysicalAddresses {
            guard given == nil else {
                throw .unsupported("a pool in a file for a device without an IOMMU")
            }
            // Both zones are writable: there is nothing between the device and memory.
            let run = try PhysicalRun.allocate(readBytes + writeBytes, name, device)
            deviceReadsIOVA = run.address
            deviceWritesIOVA = run.address + UInt64(readBytes)
            deviceReadsByteCount = readBytes
            pageOrder = run.order
            let parts = run.takeParts()
            fd = parts.fd
            memory = parts.memory
            return
        }
        guard let reads = space.allocate(byteCount: UInt64(readBytes)),
            let writes = space.allocate(byteCount: UInt64(writeBytes))
        else { throw .unsupported("no I/O virtual addresses left for the pool") }
        let file: OwnedFD
        let bytes: Mapping
        if let given = given.take() {
            bytes = try Self.mapping(given, try Self.size(given, readBytes + writeBytes))
            unsafe bytes.base.initializeMemory(
                as: UInt8.self, repeating: 0, count: readBytes + writeBytes)
            file = given
        } else {
            file = try Self.file(name, readBytes + writeBytes)
            bytes = try Self.mapping(file, readBytes + writeBytes)
        }
        bytes.excludeFromCoreDumps()
        try device.map(
            unsafe DMAWindow(
                iova: reads, byteCount: UInt64(readBytes), base: bytes.base, access: .deviceReads),
            fd: file, offset: 0)
        do throws(VFIOError) {
            try device.map(
                unsafe DMAWindow(
                    iova: writes, byteCount: UInt64(writeBytes), base: bytes.base + readBytes,
                    access: .deviceReadsAndWrites),
                fd: file, offset: UInt64(readBytes))
        } catch {
            // The mapping goes away with this call: the carrier must not serve it any more.
            try? device.unmap(iova: reads, byteCount: UInt64(readBytes))
            throw error
        }
        fd = file
        memory = bytes
        deviceReadsByteCount = readBytes
        deviceReadsIOVA = reads
        deviceWritesIOVA = writes
        pageOrder = []
    }

    /// Takes over a predecessor's memory file, of which nothing is changed. The device has it at
    /// these addresses (`adoptWindows`), or gets it there (`mapWindows`); they must have been
    /// reserved. Throws `unsupported` when the file is not one of this layout.
    public init(
        adopting fd: consuming OwnedFD, layout: PoolLayout, readsIOVA: UInt64, writesIOVA: UInt64
    ) throws(VFIOError) {
        byteCount = layout.deviceReadsByteCount + layout.deviceWritesByteCount
        let bytes = try Self.mapping(fd, try Self.size(fd, byteCount))
        bytes.excludeFromCoreDumps()
        self.fd = fd
        memory = bytes
        deviceReadsByteCount = layout.deviceReadsByteCount
        deviceReadsIOVA = readsIOVA
        deviceWritesIOVA = writesIOVA
        pageOrder = []
    }

    /// Takes over a predecessor's memory file for a device that uses physical addresses: its huge
    /// pages in this order, the first of which is at `address`. With `checking` that device says
    /// where they are now. Throws `unsupported` when it is not the file of this layout, or the
    /// pages are not where they were.
    public init(
        adopting fd: consuming OwnedFD, layout: PoolLayout, pageOrder: [UInt32],
        address: UInt64, checking device: (any DeviceBacking)?
    ) throws(VFIOError) {
        let readBytes = layout.deviceReadsByteCount
        byteCount = layout.byteCount
        guard UInt64(byteCount) <= UInt64(pageOrder.count) * PhysicalMemory.pageByteCount else {
            throw .unsupported("\(pageOrder.count) huge pages are too few for the pool")
        }
        let run = try PhysicalRun.adopt(fd, pageOrder, at: address, checking: device)
        deviceReadsIOVA = run.address
        deviceWritesIOVA = run.address &+ UInt64(readBytes)
        deviceReadsByteCount = readBytes
        self.pageOrder = run.order
        let parts = run.takeParts()
        self.fd = parts.fd
        memory = parts.memory
    }

    private var windows: [DMAWindow] {
        unsafe [
            DMAWindow(
                iova: deviceReadsIOVA, byteCount: UInt64(deviceReadsByteCount), base: memory.base,
                access: .deviceReads),
            DMAWindow(
                iova: deviceWritesIOVA,
                byteCount: UInt64(byteCount - deviceReadsByteCount),
                base: memory.base + deviceReadsByteCount, access: .deviceReadsAndWrites),
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
        var offset: UInt64 = 0
        for window in windows {
            try device.map(window, fd: fd, offset: offset)
            offset += window.byteCount
        }
    }

    /// The size of a file that is long enough.
    private static func size(
        _ fd: borrowing OwnedFD, _ byteCount: Int
    ) throws(VFIOError) -> Int {
        let size = (try? MemFD.byteCount(of: fd)) ?? -1
        guard size >= byteCount else {
            throw .unsupported("the pool's file has \(size) bytes, not \(byteCount)")
        }
        return size
    }

    private static func file(_ name: String, _ byteCount: Int) throws(VFIOError) -> OwnedFD {
        do throws(SystemCallError) {
            return try MemFD.create(name: name, byteCount: byteCount)
        } catch {
            throw .system(error)
        }
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
        unsafe memory.base + slice.offset
    }

    /// Where a slice of the zone that the device also writes is in this process. Valid while the
    /// pool lives.
    public func deviceWritesAddress(_ slice: PoolSlice) -> UnsafeMutableRawPointer {
        unsafe memory.base + (deviceReadsByteCount + slice.offset)
    }
}
