// SPDX-License-Identifier: Apache-2.0
// The client's memory as the controller sees it: DMA regions, mapped here or reached by messages.

internal import CLinux
internal import CMemory
internal import Glibc
internal import Linux

/// Why a region was refused; the error number goes into the reply.
struct RegionError: Error, Equatable {
    let errno: CInt
    let reason: String
}

/// One DMA region.
struct Region {
    let address: UInt64
    let byteCount: UInt64
    /// Where the region is mapped; 0 when it is reached by messages only.
    let base: UInt
    let isReadable: Bool
    let isWritable: Bool
    /// The SIGBUS guard; -1 without a mapping.
    let guardNumber: CInt
    /// What is mapped; nil when the region is reached by messages only.
    let source: RegionSource?
    /// The client that mapped it has gone, and its successor has not mapped it again.
    var isUnclaimed = false

    @inline(__always)
    func contains(_ address: UInt64, _ byteCount: UInt64) -> Bool {
        let offset = address &- self.address
        return offset < self.byteCount && byteCount <= self.byteCount &- offset
    }
}

/// Which memory a region is: the same file by its identity, not by its descriptor.
struct RegionSource: Equatable {
    let device: UInt64
    let inode: UInt64
    let offset: UInt64
}

/// Reaches memory that is not mapped here (DMA_READ and DMA_WRITE messages).
@safe
struct RemoteMemory {
    var read: (UInt64, UnsafeMutableRawPointer, Int) -> Bool
    var write: (UInt64, UnsafeRawPointer, Int) -> Bool
}

/// The regions of one client, sorted by address. Lookups allocate nothing.
///
/// Concrete and final on purpose: it is on the path of every command.
@safe
final class AddressSpace {
    /// The most regions a client may have mapped at once; what VERSION announces as `max_dma_maps`.
    static let maxRegions = 4096
    /// The granularity of regions.
    static let pageByteCount: UInt64 = 4096

    private var regions: [Region] = []
    private var lastHit = 0
    /// Rises with each removal: cached pointers of an older generation are stale.
    private(set) var generation = 0
    var remote: RemoteMemory?

    var count: Int { regions.count }
    var byteCount: UInt64 { regions.reduce(0) { $0 &+ $1.byteCount } }
    /// Regions of a client that has gone, which no successor has mapped again.
    var unclaimedCount: Int { regions.count(where: \.isUnclaimed) }

    deinit { removeAll() }

    /// Adds a region, mapping `fd` (which may then be closed) unless there is none.
    ///
    /// A region that a gone client has left may be added again, exactly as it was: then it stays as
    /// it is, and its new owner has it. Anything else at its place is refused, for commands may
    /// still use it; they end with the controller's reset, and so do such regions.
    func add(
        address: UInt64, byteCount: UInt64, fd: CInt?, offset: UInt64, isReadable: Bool,
        isWritable: Bool
    ) throws(RegionError) {
        let length = try fd.map { fd throws(RegionError) in
            try Self.checkFile(fd, offset: offset, byteCount: byteCount)
        }
        let source = fd.flatMap { Self.source($0, offset: offset) }
        if let source, let index = regions.firstIndex(where: { $0.address == address }) {
            let old = regions[index]
            if old.isUnclaimed, old.source == source, old.byteCount == byteCount,
                old.isReadable == isReadable, old.isWritable == isWritable
            {
                regions[index].isUnclaimed = false
                return
            }
        }
        let index = try admit(address, byteCount)
        var base: UInt = 0
        var guardNumber: CInt = -1
        if let fd, let length {
            var error: CInt = 0
            guard
                let pointer = unsafe nv_map_shared(
                    fd, Int64(bitPattern: offset), length, isWritable ? 1 : 0, &error)
            else { throw RegionError(errno: -error, reason: "mmap failed") }
            guardNumber = unsafe nv_guard_add(pointer, length, 4096)
            guard guardNumber >= 0 else {
                _ = unsafe nv_unmap(pointer, length)
                throw RegionError(errno: ENOSPC, reason: "no SIGBUS guard left")
            }
            _ = unsafe nv_dont_dump(pointer, length)
            base = UInt(bitPattern: pointer)
        }
        regions.insert(
            Region(
                address: address, byteCount: byteCount, base: base, isReadable: isReadable,
                isWritable: isWritable, guardNumber: guardNumber, source: source), at: index)
        lastHit = 0
    }

    /// Where the region would go; throws when it may not exist.
    private func admit(_ address: UInt64, _ byteCount: UInt64) throws(RegionError) -> Int {
        let mask = Self.pageByteCount &- 1
        guard byteCount > 0, address & mask == 0, byteCount & mask == 0 else {
            throw RegionError(errno: EINVAL, reason: "address and size must be whole pages")
        }
        guard !address.addingReportingOverflow(byteCount &- 1).overflow else {
            throw RegionError(errno: EINVAL, reason: "the region wraps around")
        }
        guard regions.count < Self.maxRegions else {
            throw RegionError(errno: ENOSPC, reason: "more than \(Self.maxRegions) regions")
        }
        let last = address &+ (byteCount &- 1)
        for (index, region) in regions.enumerated() {
            if region.address > last { return index }
            if region.address &+ (region.byteCount &- 1) >= address {
                throw RegionError(errno: EEXIST, reason: "the region overlaps another")
            }
        }
        return regions.count
    }

    private static func checkFile(
        _ fd: CInt, offset: UInt64, byteCount: UInt64
    ) throws(RegionError) -> Int {
        guard offset & (pageByteCount &- 1) == 0 else {
            throw RegionError(errno: EINVAL, reason: "the file offset is not a whole page")
        }
        let end = offset.addingReportingOverflow(byteCount)
        guard !end.overflow, end.partialValue <= UInt64(Int64.max),
            let length = Int(exactly: byteCount)
        else { throw RegionError(errno: EINVAL, reason: "the file range wraps around") }
        var status = stat()
        guard unsafe fstat(fd, &status) == 0 else {
            throw RegionError(errno: EBADF, reason: "the descriptor is no file")
        }
        // Device nodes have no size; a file that is too short would only raise SIGBUS later.
        let isFile = status.st_mode & S_IFMT == S_IFREG
        guard !isFile || UInt64(clamping: status.st_size) >= end.partialValue else {
            throw RegionError(errno: EINVAL, reason: "the file is shorter than the region")
        }
        return length
    }

    private static func source(_ fd: CInt, offset: UInt64) -> RegionSource? {
        var status = stat()
        guard unsafe fstat(fd, &status) == 0 else { return nil }
        return RegionSource(
            device: UInt64(status.st_dev), inode: UInt64(status.st_ino), offset: offset)
    }

    /// The client goes, and its regions stay for the commands that use them.
    func disown() {
        for index in regions.indices { regions[index].isUnclaimed = true }
    }

    /// Removes what a gone client has left: nothing uses it any more.
    func removeUnclaimed() {
        guard unclaimedCount > 0 else { return }
        for region in regions where region.isUnclaimed { Self.release(region) }
        regions.removeAll { $0.isUnclaimed }
        lastHit = 0
        generation &+= 1
    }

    /// Removes the region with exactly this address and size.
    func remove(address: UInt64, byteCount: UInt64) throws(RegionError) {
        guard
            let index = regions.firstIndex(where: {
                $0.address == address && $0.byteCount == byteCount
            })
        else { throw RegionError(errno: ENOENT, reason: "no region has this address and size") }
        Self.release(regions.remove(at: index))
        lastHit = 0
        generation &+= 1
    }

    func removeAll() {
        for region in regions { Self.release(region) }
        regions.removeAll()
        lastHit = 0
        generation &+= 1
    }

    private static func release(_ region: Region) {
        guard let pointer = unsafe UnsafeMutableRawPointer(bitPattern: region.base) else { return }
        nv_guard_remove(region.guardNumber)
        _ = unsafe nv_unmap(pointer, Int(clamping: region.byteCount))
    }

    @inline(__always)
    private func find(_ address: UInt64) -> Region? {
        if lastHit < regions.count, regions[lastHit].contains(address, 1) {
            return regions[lastHit]
        }
        return search(address)
    }

    private func search(_ address: UInt64) -> Region? {
        var low = 0
        var high = regions.count
        while low < high {
            let middle = (low &+ high) / 2
            if regions[middle].address <= address { low = middle &+ 1 } else { high = middle }
        }
        guard low > 0, regions[low &- 1].contains(address, 1) else { return nil }
        lastHit = low &- 1
        return regions[lastHit]
    }

    /// A pointer to a range that one mapped region holds whole; nil otherwise.
    @inline(__always)
    func direct(_ address: UInt64, _ byteCount: Int, write: Bool) -> UnsafeMutableRawPointer? {
        guard let region = find(address), byteCount >= 0,
            region.contains(address, UInt64(truncatingIfNeeded: byteCount)),
            write ? region.isWritable : region.isReadable, region.base != 0
        else { return nil }
        return unsafe UnsafeMutableRawPointer(
            bitPattern: region.base &+ UInt(truncatingIfNeeded: address &- region.address))
    }

    /// Whether a range is covered by regions that allow the access.
    func isAccessible(_ address: UInt64, _ byteCount: UInt64, write: Bool) -> Bool {
        var at = address
        var left = byteCount
        while left > 0 {
            guard let region = find(at), write ? region.isWritable : region.isReadable else {
                return false
            }
            let here = min(left, region.byteCount &- (at &- region.address))
            left &-= here
            at &+= here
        }
        return true
    }

    /// Copies from the client's memory. False when part of the range is not accessible.
    @inline(__always)
    func read(_ address: UInt64, into target: UnsafeMutableRawPointer, _ byteCount: Int) -> Bool {
        if let source = unsafe direct(address, byteCount, write: false) {
            unsafe memcpy(target, source, byteCount)
            return true
        }
        return unsafe readSlowly(address, into: target, byteCount)
    }

    /// Copies to the client's memory. False when part of the range is not accessible.
    @inline(__always)
    func write(_ address: UInt64, from source: UnsafeRawPointer, _ byteCount: Int) -> Bool {
        if let target = unsafe direct(address, byteCount, write: true) {
            unsafe memcpy(target, source, byteCount)
            return true
        }
        return unsafe writeSlowly(address, from: source, byteCount)
    }

    private func readSlowly(
        _ address: UInt64, into target: UnsafeMutableRawPointer, _ byteCount: Int
    ) -> Bool {
        forEachPart(address, byteCount) { address, done, count, region in
            guard region.isReadable else { return false }
            guard let pointer = unsafe UnsafeMutableRawPointer(bitPattern: region.base) else {
                return unsafe remote?.read(address, target + done, count) ?? false
            }
            unsafe memcpy(
                target + done, pointer + Int(clamping: address &- region.address), count)
            return true
        }
    }

    private func writeSlowly(
        _ address: UInt64, from source: UnsafeRawPointer, _ byteCount: Int
    ) -> Bool {
        forEachPart(address, byteCount) { address, done, count, region in
            guard region.isWritable else { return false }
            guard let pointer = unsafe UnsafeMutableRawPointer(bitPattern: region.base) else {
                return unsafe remote?.write(address, source + done, count) ?? false
            }
            unsafe memcpy(pointer + Int(clamping: address &- region.address), source + done, count)
            return true
        }
    }

    /// Cuts a range at the borders of regions.
    private func forEachPart(
        _ address: UInt64, _ byteCount: Int, _ body: (UInt64, Int, Int, Region) -> Bool
    ) -> Bool {
        var done = 0
        while done < byteCount {
            let at = address &+ UInt64(truncatingIfNeeded: done)
            guard let region = find(at) else { return false }
            let room = region.byteCount &- (at &- region.address)
            let count = min(byteCount &- done, Int(clamping: room))
            guard body(at, done, count, region) else { return false }
            done &+= count
        }
        return true
    }
}
