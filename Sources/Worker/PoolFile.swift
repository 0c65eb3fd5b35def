// SPDX-License-Identifier: Apache-2.0
// The file that a device's DMA pool lies in, when the pool is to outlive all processes.
//
// Whoever else could open it could change commands after they were checked, and two workers with
// one file would have each other's queues: so it has to be an ordinary file of memory that belongs
// to this user alone, and it is locked. The lock is on an open file of its own, which is never
// given away: what device servers and the fd store hold of the pool does not hold the lock.

internal import DMA
internal import Glibc
internal import Linux
internal import NVMeDriver
internal import Wire

/// The file of a device's pool, locked for this process.
struct PoolFile: ~Copyable {
    let path: String
    /// For the pool.
    let fd: OwnedFD
    /// Holds the lock.
    private let lock: OwnedFD

    /// Opens the file at `path`; with `creating` an absent one is made. Throws `unusable`, with the
    /// rule that the file breaks, or `system`.
    init(path: String, backing: PoolBacking, creating: Bool) throws(DriverError) {
        let flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | (creating ? O_CREAT : 0)
        let file: OwnedFD
        do throws(SystemCallError) {
            file = try OwnedFD.open(path, flags: flags, mode: 0o600)
        } catch {
            throw .system(SystemCallError("open \(path) (PoolPath=)", errno: error.errno))
        }
        try Self.check(file, path, backing)
        let own: OwnedFD
        do throws(SystemCallError) {
            // The same file, whatever is at its path by now.
            own = try OwnedFD.open("/proc/self/fd/\(file.raw)", flags: O_RDWR | O_CLOEXEC)
        } catch { throw .system(error) }
        guard flock(own.raw, LOCK_EX | LOCK_NB) == 0 else {
            throw Self.broken(path, "another process uses it; each device needs a file of its own")
        }
        self.path = path
        fd = file
        lock = own
    }

    /// A file that the opener has opened, looked at and locked.
    init(path: String, opened: consuming OpenedPool) {
        self.path = path
        fd = opened.memory
        lock = opened.lock
    }

    private static func broken(_ path: String, _ rule: String) -> DriverError {
        .unusable(field: "PoolPath=\(path)", value: 0, rule: rule)
    }

    private static func check(
        _ fd: borrowing OwnedFD, _ path: String, _ backing: PoolBacking
    ) throws(DriverError) {
        var status = stat()
        guard unsafe fstat(fd.raw, &status) == 0 else {
            throw .system(SystemCallError("fstat \(path)", errno: errno))
        }
        guard status.st_mode & S_IFMT == S_IFREG, status.st_nlink == 1 else {
            throw broken(path, "it has to be an ordinary file with one name")
        }
        guard status.st_uid == geteuid(), status.st_mode & 0o077 == 0 else {
            throw broken(path, "it has to belong to the worker's user, and to be closed to others")
        }
        do throws(SystemCallError) {
            switch backing {
            case .hugetlb:
                guard try MemFD.hugePageByteCount(of: fd) != nil else {
                    throw SystemCallError("it lies on no hugetlbfs", errno: ENOTSUP)
                }
            case .file:
                guard try MemFD.isShmem(fd) else {
                    throw SystemCallError("it lies on no tmpfs", errno: ENOTSUP)
                }
            case .memfd, .dax: throw SystemCallError("it is no file", errno: ENOTSUP)
            }
        } catch { throw broken(path, error.description) }
    }

    /// Makes the file `byteCount` bytes long at least. It never becomes shorter: a device's server
    /// may have it mapped still.
    func prepare(_ byteCount: Int) throws(DriverError) {
        do throws(SystemCallError) {
            let page = Int(clamping: try MemFD.hugePageByteCount(of: fd) ?? 4096)
            let (sum, overflow) = byteCount.addingReportingOverflow(page - 1)
            guard byteCount > 0, !overflow else {
                throw SystemCallError("a pool of \(byteCount) bytes", errno: EFBIG)
            }
            guard try MemFD.byteCount(of: fd) < byteCount else { return }
            guard ftruncate(fd.raw, sum / page * page) == 0 else {
                throw SystemCallError("ftruncate \(path)", errno: errno)
            }
        } catch { throw .system(error) }
    }

    /// Throws `notAdoptable` unless the file has what a saved state says of it.
    func checkHolds(_ byteCount: UInt64) throws(DriverError) {
        let size = (try? MemFD.byteCount(of: fd)) ?? -1
        guard size >= 0, UInt64(size) >= byteCount else {
            throw .notAdoptable("the pool's file \(path) has \(size) bytes, not \(byteCount)")
        }
    }

    /// Another descriptor of it, to be given away.
    func duplicate() throws(DriverError) -> OwnedFD {
        do throws(SystemCallError) { return try fd.duplicate() } catch { throw .system(error) }
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

    /// Makes its pool where the configuration says, in a file that `open` gives; nil: in memory of
    /// the worker.
    func poolSource(
        open: @escaping (DeviceConfig, Int) throws(DriverError) -> OwnedFD?
    ) -> PoolSource? {
        guard let place = poolPlace else { return nil }
        return PoolSource(place) { place, byteCount throws(PoolFileError) in
            let found: OwnedFD?
            do throws(DriverError) {
                found = try open(self, byteCount)
            } catch { throw .refused("\(error)") }
            // Whoever opens files says that there is none.
            guard let found else {
                return try DMA.PoolFile.create(.memory, byteCount: byteCount)
            }
            return try DMA.PoolFile(received: found, place: place)
        }
    }
}
