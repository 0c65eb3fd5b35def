// SPDX-License-Identifier: Apache-2.0
// A namespace: its blocks in a mapped file, and who it is.

internal import CLinux
internal import Glibc
public import Linux

/// A namespace could not be made or changed.
public enum NamespaceError: Error, CustomStringConvertible {
    /// The kernel refused.
    case system(SystemCallError)
    /// The request makes no sense.
    case refused(String)

    /// What happened and what to do.
    public var description: String {
        switch self {
        case .system(let error): "namespace: \(error)"
        case .refused(let reason): "namespace: \(reason)"
        }
    }
}

/// One namespace. The mapping lives as long as the object or until the next resize.
@safe
final class Namespace {
    let namespaceID: UInt32
    let blockShift: UInt8
    let isReadOnly: Bool
    let isShared: Bool
    let isFile: Bool
    let nguid: [UInt8]
    let eui64: [UInt8]
    let uuid: [UInt8]
    private let fd: OwnedFD
    private(set) var base: UnsafeMutableRawPointer
    private(set) var byteCount: Int
    private var guardNumber: CInt

    var blockCount: UInt64 { UInt64(byteCount) >> UInt64(blockShift) }

    init(
        _ options: NamespaceOptions, namespaceID: UInt32, serial: String
    ) throws(NamespaceError) {
        self.namespaceID = namespaceID
        blockShift = options.blockByteCount == 4096 ? 12 : 9
        isReadOnly = options.isReadOnly
        isShared = options.isShared
        isFile = options.backing != .memory
        let identity = Self.identity(serial: serial, namespaceID: namespaceID)
        nguid = options.nguid ?? identity
        eui64 = options.eui64 ?? Array(identity[0..<8])
        uuid = options.uuid ?? Self.uuid(from: identity)
        do throws(SystemCallError) {
            fd = try Self.open(options)
            var size = try MemFD.byteCount(of: fd)
            if size == 0 || (options.byteCount != 0 && UInt64(size) < options.byteCount) {
                size = Int(clamping: options.byteCount)
                try checked("ftruncate", nv_ftruncate(fd.raw, Int64(size)))
            } else if options.byteCount != 0 {
                size = Int(clamping: options.byteCount)
            }
            size &= ~(1 << Int(blockShift) &- 1)
            let mapping = try Mapping(fd, byteCount: size)
            byteCount = mapping.byteCount
            mapping.excludeFromCoreDumps()
            mapping.adviseRandomAccess()
            unsafe base = mapping.leak()
        } catch {
            throw .system(error)
        }
        guardNumber = unsafe nv_guard_add(base, byteCount, 4096)
    }

    deinit {
        nv_guard_remove(guardNumber)
        _ = unsafe nv_unmap(base, byteCount)
    }

    private static func open(_ options: NamespaceOptions) throws(SystemCallError) -> OwnedFD {
        switch options.backing {
        case .memory: try MemFD.create(name: "namespace", byteCount: 0, seals: [])
        // Without a size there has to be a file that has one.
        case .file(let path):
            try OwnedFD.open(
                path, flags: options.byteCount > 0 ? O_RDWR | O_CREAT : O_RDWR, mode: 0o600)
        }
    }

    /// Changes the size. Whoever holds `base` must take it again.
    func resize(byteCount: UInt64) throws(NamespaceError) {
        guard byteCount > 0, byteCount <= NamespaceOptions.maxByteCount,
            byteCount & (1 << UInt64(blockShift) &- 1) == 0
        else { throw .refused("\(byteCount) bytes are no whole number of blocks") }
        do throws(SystemCallError) {
            try checked("ftruncate", nv_ftruncate(fd.raw, Int64(clamping: byteCount)))
            let mapping = try Mapping(fd, byteCount: Int(clamping: byteCount))
            nv_guard_remove(guardNumber)
            _ = unsafe nv_unmap(base, self.byteCount)
            self.byteCount = mapping.byteCount
            mapping.excludeFromCoreDumps()
            mapping.adviseRandomAccess()
            unsafe base = mapping.leak()
        } catch {
            throw .system(error)
        }
        guardNumber = unsafe nv_guard_add(base, self.byteCount, 4096)
    }

    /// Makes everything written so far durable. Memory has no more durable place.
    func flush() -> Bool {
        guard isFile else { return true }
        return nv_fdatasync(fd.raw) == 0
    }

    /// Makes one range durable.
    func flush(offset: Int, byteCount: Int) -> Bool {
        guard isFile else { return true }
        let start = offset & ~4095
        return unsafe nv_msync(base + start, byteCount &+ (offset &- start)) == 0
    }

    /// Sets a range to zeroes; whole pages of it give their memory or disk space back.
    func zero(offset: Int, byteCount: Int, deallocate: Bool) {
        let first = (offset &+ 4095) & ~4095
        let last = (offset &+ byteCount) & ~4095
        if deallocate, last > first,
            nv_punch_hole(fd.raw, Int64(first), Int64(last &- first)) == 0
        {
            unsafe memset(base + offset, 0, first &- offset)
            unsafe memset(base + last, 0, offset &+ byteCount &- last)
            return
        }
        unsafe memset(base + offset, 0, byteCount)
    }

    /// How many bytes the backing really occupies (NUSE).
    var allocatedByteCount: UInt64 {
        var status = stat()
        guard unsafe fstat(fd.raw, &status) == 0 else { return UInt64(byteCount) }
        return min(UInt64(clamping: status.st_blocks) &* 512, UInt64(byteCount))
    }

    /// Sixteen bytes that depend on nothing but serial number and namespace id (FNV-1a, twice).
    static func identity(serial: String, namespaceID: UInt32) -> [UInt8] {
        var bytes: [UInt8] = []
        for salt: UInt8 in [0x4E, 0x56] {
            var hash: UInt64 = 0xCBF2_9CE4_8422_2325
            let input =
                [salt] + Array(serial.utf8)
                + (0..<4).map { UInt8(truncatingIfNeeded: namespaceID >> (8 * $0)) }
            for byte in input { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
            // FNV mixes its last bytes poorly; one round of a finaliser spreads them.
            hash = (hash ^ (hash >> 33)) &* 0xFF51_AFD7_ED55_8CCD
            bytes += (0..<8).map { UInt8(truncatingIfNeeded: hash >> (56 - 8 * $0)) }
        }
        return bytes
    }

    private static func uuid(from identity: [UInt8]) -> [UInt8] {
        var uuid = identity
        uuid[6] = uuid[6] & 0x0F | 0x80
        uuid[8] = uuid[8] & 0x3F | 0x80
        return uuid
    }
}
