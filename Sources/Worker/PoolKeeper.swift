// SPDX-License-Identifier: Apache-2.0
// The file that a device's DMA pool lies in, when the pool is to outlive all processes, and its
// lock.
//
// Where there is an opener, it opens every pool, whatever the device's transport: the files are
// root's, and a worker in its unit may neither make nor open them. Without one (a worker that was
// started by hand) the worker opens them itself, by the same rules (`PoolFile`).
//
// The lock goes into the fd store. A worker that dies leaves it there: nobody gets the file before
// its successor has it, and the successor need not ask for it.

internal import DMA
internal import Linux
internal import NVMeDriver
internal import Systemd
internal import Wire

/// Opens the file of a device's pool once, and keeps it locked.
@Control
final class PoolKeeper {
    private let device: String
    private let log: Log
    private var file: PoolFile?
    /// The lock that this holds is in the fd store, or came from there.
    private(set) var lockIsStored = false

    init(device: String, log: Log) {
        self.device = device
        self.log = log
    }

    /// The descriptor that holds the lock, to be stored for a successor; nil: there is none.
    var lock: CInt? { file?.lockDescriptor }

    /// Notes that the lock is in the fd store.
    func noteStored() { lockIsStored = true }

    /// Whether this has the file of a place.
    func has(_ place: PoolPlace) -> Bool { file?.place == place }

    /// The file at a place for a pool that begins, with at least so many bytes, best on a NUMA node
    /// (which the opener finds itself).
    func begin(
        _ place: PoolPlace, _ byteCount: Int, _ node: Int?
    ) throws(PoolFileError) -> PoolFile {
        if has(place) {
            try file?.grow(to: byteCount)
        } else {
            try open(place, byteCount, isKept: false, node: node)
        }
        return try duplicate(place)
    }

    /// The file at a place that a saved state tells of, as it is.
    func find(_ place: PoolPlace, _ byteCount: Int) throws(PoolFileError) -> PoolFile {
        if !has(place) { try open(place, byteCount, isKept: true) }
        let found = try duplicate(place)
        guard found.byteCount >= byteCount else {
            throw .wrongSize(path: place.path, byteCount: found.byteCount, wanted: byteCount)
        }
        return found
    }

    /// Goes on with a predecessor's pool and the lock that it left. Throws `inUse` when another
    /// worker has the file by now. Without a lock it is taken anew, and not having it is no more
    /// than a warning: the memory is there.
    func adopt(
        _ place: PoolPlace, _ pool: CInt, _ lock: consuming OwnedFD?
    ) throws(PoolFileError) {
        guard !has(place) else { return }
        if let lock {
            let memory: OwnedFD
            do throws(SystemCallError) {
                memory = try OwnedFD.duplicate(ofRaw: pool)
            } catch { throw .system(place: place, error) }
            let received = try PoolFile(received: memory, lock: lock, place: place)
            guard try received.isLocked() else { throw .inUse(path: place.path) }
            file = consume received
            lockIsStored = true
            return
        }
        do throws(PoolFileError) {
            try open(place, 0, isKept: true)
            guard let raw = file?.fd.raw, FileIdentity(raw) == FileIdentity(pool) else {
                file = nil
                throw .wrongKind(path: place.path, wanted: "the file of the pool any more")
            }
        } catch {
            if case .inUse = error { throw error }
            log.warning("the pool's file is not locked: \(error); continuing")
        }
    }

    private func duplicate(_ place: PoolPlace) throws(PoolFileError) -> PoolFile {
        do throws(SystemCallError) {
            guard let copy = try file?.duplicate() else {
                throw SystemCallError("the pool's file", errno: Errno.noEntry)
            }
            return copy
        } catch { throw .system(place: place, error) }
    }

    private func open(
        _ place: PoolPlace, _ byteCount: Int, isKept: Bool, node: Int? = nil
    ) throws(PoolFileError) {
        file = nil
        lockIsStored = false
        guard Files.exists(OpenerClient.path) else {
            file =
                isKept
                ? try PoolFile.reopen(place, byteCount: byteCount)
                : try PoolFile.create(place, byteCount: byteCount, node: node)
            return
        }
        do throws(WireError) {
            file = try OpenerClient.openPool(
                device, place, byteCount: UInt64(clamping: byteCount), isKept: isKept,
                path: OpenerClient.path)
        } catch {
            if error.code == .busy { throw .inUse(path: place.path) }
            throw .refused(error.message)
        }
    }
}

extension DeviceConfig {
    /// Where its pool lies; nil: in memory of the worker.
    var poolPlace: PoolPlace? {
        guard let path = poolPath else { return nil }
        return switch poolBacking {
        case nil, .memfd: nil
        case .hugetlb: PoolPlace(.hugePages, path: path)
        case .file: PoolPlace(.file, path: path)
        case .dax: PoolPlace(.deviceMemory, path: path)
        }
    }
}
