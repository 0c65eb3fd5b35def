// SPDX-License-Identifier: Apache-2.0
// The memory of a pool as an open file: a sealed memory file, a file that outlives the processes,
// or the node of a DAX device.
//
// A file by a path is opened without following links, looked at through its descriptor, and
// locked, so that no two workers use one: whoever else could open it could change commands after
// they were checked, and two workers with one file would have each other's queues. The same rules
// hold whoever opens it, the privileged opener or a worker that has none.
//
// A lock (flock) belongs to an open file, not to a process: it lasts until the last descriptor of
// that open file is closed, in whichever process that is. So it is on another open file than the
// one that device servers map, which may outlive everybody; a worker puts it into the fd store
// beside the memory, and it holds over the worker's death and its successor's adoption.

public import Linux
internal import VFIO

/// An open pool.
public struct PoolFile: ~Copyable, Sendable {
    /// The memory.
    public let fd: OwnedFD
    /// What keeps others from using it; nil for a memory file, which has no name.
    public let lock: OwnedFD?
    private let rawLock: CInt
    /// Where it lies.
    public let place: PoolPlace
    /// Its length in bytes, a multiple of `pageByteCount`.
    public private(set) var byteCount: Int
    /// Mappings begin and end at multiples of this many bytes.
    public let pageByteCount: Int
    /// It is all zeroes.
    public private(set) var isClean: Bool

    /// Pages of ordinary memory.
    public static let smallPageByteCount = 4096
    /// The most bytes of a pool: beyond it a number is a mistake.
    public static let byteCountMax = 1 << 40
    /// A service manager closes what it kept of a worker that was stopped in its own time, which is
    /// milliseconds; then its lock ends. Longer, and somebody uses the pool.
    private static let lockMilliseconds: Int32 = 1000

    private init(
        fd: consuming OwnedFD, lock: consuming OwnedFD?, place: PoolPlace, byteCount: Int,
        pageByteCount: Int, isClean: Bool
    ) {
        self.fd = fd
        switch consume lock {
        case .some(let held):
            rawLock = held.raw
            self.lock = consume held
        case .none:
            rawLock = -1
            self.lock = nil
        }
        self.place = place
        self.byteCount = byteCount
        self.pageByteCount = pageByteCount
        self.isClean = isClean
    }

    /// Memory of at least `byteCount` bytes for a pool that begins. What lay there before is not
    /// needed any more: its device must have been stopped.
    ///
    /// A file that is there is used again, and made longer when it has to be. A missing directory
    /// is made, when the one above it is there.
    ///
    /// With `node` its pages are made on that NUMA node, as long as there is room.
    public static func create(
        _ place: PoolPlace, name: String = "nvmed-pool", byteCount: Int, node: Int? = nil,
        nodes: NodeMemory = .kernel, devices: DeviceMemoryLookup = .kernel
    ) throws(PoolFileError) -> PoolFile {
        guard byteCount > 0, byteCount <= byteCountMax else {
            throw .noMemory(place: place, byteCount: byteCount, pageByteCount: smallPageByteCount)
        }
        switch place.medium {
        case .memory: return try memoryFile(name, byteCount, node: node, nodes: nodes)
        case .deviceMemory: return try device(place, atLeast: byteCount, devices)
        case .hugePages, .file: return try namedFile(place, byteCount, node, nodes)
        }
    }

    /// The memory that a predecessor left at a path, as it is. `byteCount`: what of it was used.
    public static func reopen(
        _ place: PoolPlace, byteCount: Int, devices: DeviceMemoryLookup = .kernel
    ) throws(PoolFileError) -> PoolFile {
        guard place.medium.outlivesProcesses else { throw .missing(path: place.description) }
        if place.medium == .deviceMemory {
            return try device(place, atLeast: byteCount, devices)
        }
        let (parent, name) = try split(place)
        let directory = try open(directory: parent, place)
        guard let found = try locked(name, in: directory, place) else {
            throw .missing(path: place.path)
        }
        let file = try adopt(found, place)
        guard file.byteCount >= byteCount else {
            throw .wrongSize(path: place.path, byteCount: file.byteCount, wanted: byteCount)
        }
        return file
    }

    /// A pool's memory by a descriptor that somebody else opened: the privileged opener, or a
    /// predecessor. `isClean`: whoever opened it says that it is all zeroes.
    public init(
        received fd: consuming OwnedFD, lock: consuming OwnedFD? = nil, place: PoolPlace,
        isClean: Bool = false, devices: DeviceMemoryLookup = .kernel
    ) throws(PoolFileError) {
        let facts = try Self.facts(fd, place)
        let (byteCount, page) = try Self.shape(facts, place, devices)
        self.init(
            fd: fd, lock: lock, place: place, byteCount: byteCount, pageByteCount: page,
            isClean: isClean)
    }

    /// The descriptors, for whoever takes the pool over.
    public struct Parts: ~Copyable {
        /// The memory.
        public let fd: OwnedFD
        /// The lock.
        public let lock: OwnedFD?
    }

    /// The numbers of the descriptors, for a message: the memory, and the lock where there is one.
    public var descriptors: [CInt] { rawLock < 0 ? [fd.raw] : [fd.raw, rawLock] }

    /// The number of the descriptor that holds the lock; nil: there is none.
    public var lockDescriptor: CInt? { rawLock < 0 ? nil : rawLock }

    /// Whether the lock holds: it is of this very file, and nobody else has it. To be asked of what
    /// came from somebody else.
    public func isLocked() throws(PoolFileError) -> Bool {
        guard rawLock >= 0, FileIdentity(rawLock) == FileIdentity(fd.raw) else { return false }
        do throws(SystemCallError) {
            return try TrustedFile.lock(OwnedFD.duplicate(ofRaw: rawLock))
        } catch { throw .system(place: place, error) }
    }

    /// Gives the descriptors up.
    public consuming func takeParts() -> Parts { Parts(fd: fd, lock: lock) }

    /// The same file, with descriptors of its own and under the same lock.
    public func duplicate() throws(SystemCallError) -> PoolFile {
        let copy = rawLock < 0 ? nil : try OwnedFD.duplicate(ofRaw: rawLock)
        return PoolFile(
            fd: try fd.duplicate(), lock: copy, place: place, byteCount: byteCount,
            pageByteCount: pageByteCount, isClean: isClean)
    }

    // MARK: Memory files

    /// A sealed memory file, of huge pages (2 MiB) where the place of its pages matters.
    static func memoryFile(
        _ name: String, _ byteCount: Int, hugePages: Bool = false, node: Int? = nil,
        nodes: NodeMemory = .kernel
    ) throws(PoolFileError) -> PoolFile {
        let page = hugePages ? Int(PhysicalMemory.pageByteCount) : smallPageByteCount
        let size = roundUp(byteCount, page)
        do throws(SystemCallError) {
            let fd = try MemFD.create(name: name, byteCount: size, hugePages: hugePages)
            prefer(node, fd, size, nodes)
            return PoolFile(
                fd: fd, lock: nil, place: .memory, byteCount: size, pageByteCount: page,
                isClean: true)
        } catch { throw refusal(error, hugePages ? PoolPlace(.hugePages) : .memory, size, page) }
    }

    /// Says where pages of a file are to be made, before they are. What comes of it is found when
    /// the pool is mapped (`PoolPlacement`): it works on any node.
    private static func prefer(
        _ node: Int?, _ fd: borrowing OwnedFD, _ byteCount: Int, _ nodes: NodeMemory
    ) {
        guard let node, let mapping = try? Mapping(fd, byteCount: byteCount) else { return }
        try? nodes.prefer(mapping, node)
    }

    // MARK: Files with a name

    private static func namedFile(
        _ place: PoolPlace, _ byteCount: Int, _ node: Int?, _ nodes: NodeMemory
    ) throws(PoolFileError) -> PoolFile {
        let (parent, name) = try split(place)
        let directory = try openOrMake(directory: parent, place)
        let page = try pageByteCount(ofDirectory: directory, place)
        let size = roundUp(byteCount, page)
        if let found = try locked(name, in: directory, place) {
            var file = try adopt(found, place)
            prefer(node, file.fd, size, nodes)
            try file.grow(to: size)
            return file
        }
        do throws(SystemCallError) {
            let fd = try TrustedFile.create(name, in: directory)
            do throws(SystemCallError) {
                prefer(node, fd, size, nodes)
                try TrustedFile.reserve(fd, byteCount: size)
                let lock = try TrustedFile.open(name, in: directory, writable: false)
                guard FileIdentity(fd.raw) == FileIdentity(lock.raw), try TrustedFile.lock(lock)
                else { throw PoolFile.taken }
                return PoolFile(
                    fd: fd, lock: lock, place: place, byteCount: size, pageByteCount: page,
                    isClean: true)
            } catch {
                // Half a pool is of no use, and holds memory.
                try? TrustedFile.remove(name, in: directory)
                throw error
            }
        } catch {
            if error == taken { throw .inUse(path: place.path) }
            throw refusal(error, place, size, page)
        }
    }

    private static let notPrivate = "it is not root's or this user's alone, and closed to others"
    private static let taken = SystemCallError("flock", errno: Errno.busy)

    /// Makes it used memory of at least so many bytes, for a pool that begins once more. It never
    /// becomes shorter: whoever still has pages of it mapped, a server of the device for one, would
    /// lose them under its hands.
    public mutating func grow(to wanted: Int) throws(PoolFileError) {
        isClean = false
        // A device has the memory that it has.
        let isFixed = place.medium == .deviceMemory
        guard wanted > 0, wanted <= (isFixed ? byteCount : Self.byteCountMax) else {
            throw .noMemory(place: place, byteCount: wanted, pageByteCount: pageByteCount)
        }
        guard !isFixed else { return }
        // Also where it is long enough: it may have holes.
        let size = Self.roundUp(wanted, pageByteCount)
        do throws(SystemCallError) {
            try TrustedFile.reserve(fd, byteCount: size)
        } catch { throw Self.refusal(error, place, size, pageByteCount) }
        byteCount = max(byteCount, size)
    }

    /// The directory and the name in it.
    private static func split(
        _ place: PoolPlace
    ) throws(PoolFileError) -> (parent: String, name: String) {
        guard place.path.hasPrefix("/"), let slash = place.path.lastIndex(of: "/") else {
            throw .badPath(place.path)
        }
        let name = String(place.path[place.path.index(after: slash)...])
        guard !name.isEmpty, name != ".", name != "..", !place.path.utf8.contains(0) else {
            throw .badPath(place.path)
        }
        let parent = String(place.path[..<slash])
        return (parent.isEmpty ? "/" : parent, name)
    }

    private static func open(
        directory path: String, _ place: PoolPlace
    ) throws(PoolFileError) -> OwnedFD {
        let fd: OwnedFD
        do throws(SystemCallError) {
            fd = try TrustedFile.directory(path)
        } catch { throw Self.explained(error, path, place) }
        guard try facts(fd, place).isTrusted else {
            throw .unsafe(path: path, reason: "others may change names in this directory")
        }
        return fd
    }

    private static func openOrMake(
        directory path: String, _ place: PoolPlace
    ) throws(PoolFileError) -> OwnedFD {
        do throws(PoolFileError) {
            return try open(directory: path, place)
        } catch {
            guard case .missing = error else { throw error }
        }
        let (above, name) = try split(PoolPlace(place.medium, path: path))
        let directory = try open(directory: above, place)
        do throws(SystemCallError) {
            try TrustedFile.makeDirectory(name, in: directory)
        } catch { throw .system(place: place, error) }
        return try open(directory: path, place)
    }

    /// The file of a name with its lock; nil: there is none.
    private static func locked(
        _ name: String, in directory: borrowing OwnedFD, _ place: PoolPlace
    ) throws(PoolFileError) -> Parts? {
        do throws(SystemCallError) {
            let fd = try TrustedFile.open(name, in: directory)
            // Whoever is given this one can change nothing by it. (And a manager that cannot ask
            // whether two descriptors are one open file sees by it that these are not.)
            let lock = try TrustedFile.open(name, in: directory, writable: false)
            // Between the two the name may have come to be another's.
            guard FileIdentity(fd.raw) == FileIdentity(lock.raw) else {
                throw SystemCallError("open \(place.path) twice", errno: Errno.again)
            }
            guard try TrustedFile.lock(lock, withinMilliseconds: lockMilliseconds) else {
                throw taken
            }
            return Parts(fd: fd, lock: lock)
        } catch {
            if error.errno == Errno.noEntry { return nil }
            if error == taken { throw .inUse(path: place.path) }
            throw explained(error, place.path, place)
        }
    }

    private static func adopt(
        _ parts: consuming Parts, _ place: PoolPlace
    ) throws(PoolFileError) -> PoolFile {
        let facts = try facts(parts.fd, place)
        guard facts.isPrivate else { throw .unsafe(path: place.path, reason: notPrivate) }
        guard facts.linkCount == 1 else {
            throw .unsafe(path: place.path, reason: "it has \(facts.linkCount) names")
        }
        let (byteCount, page) = try shape(facts, place, .kernel)
        return PoolFile(
            fd: parts.fd, lock: parts.lock, place: place, byteCount: byteCount,
            pageByteCount: page, isClean: false)
    }

    /// Length and page size of a file, which must be of the medium.
    private static func shape(
        _ facts: FileFacts, _ place: PoolPlace, _ devices: DeviceMemoryLookup
    ) throws(PoolFileError) -> (byteCount: Int, pageByteCount: Int) {
        switch place.medium {
        case .deviceMemory:
            guard let found = devices.find(facts) else {
                throw .wrongKind(path: place.path, wanted: "a DAX device")
            }
            return (found.byteCount & ~(found.alignment - 1), found.alignment)
        case .hugePages:
            guard facts.kind == .regular, let page = facts.hugePageByteCount else {
                throw .wrongKind(path: place.path, wanted: "a file on a hugetlbfs")
            }
            return (facts.byteCount, page)
        case .memory:
            guard facts.kind == .regular, facts.isTmpfs || facts.hugePageByteCount != nil else {
                throw .wrongKind(path: "what came as the pool", wanted: "a memory file")
            }
            return (facts.byteCount, facts.hugePageByteCount ?? smallPageByteCount)
        case .file:
            guard facts.kind == .regular, facts.isTmpfs else {
                throw .wrongKind(path: place.path, wanted: "a file on a tmpfs")
            }
            return (facts.byteCount, smallPageByteCount)
        }
    }

    private static func pageByteCount(
        ofDirectory directory: borrowing OwnedFD, _ place: PoolPlace
    ) throws(PoolFileError) -> Int {
        let facts = try facts(directory, place)
        if place.medium == .hugePages {
            guard let page = facts.hugePageByteCount else {
                throw .wrongKind(path: place.path, wanted: "on a hugetlbfs")
            }
            return page
        }
        guard facts.isTmpfs else { throw .wrongKind(path: place.path, wanted: "on a tmpfs") }
        return smallPageByteCount
    }

    // MARK: Devices

    private static func device(
        _ place: PoolPlace, atLeast byteCount: Int, _ devices: DeviceMemoryLookup
    ) throws(PoolFileError) -> PoolFile {
        let (parent, name) = try split(place)
        let directory = try open(directory: parent, place)
        guard let parts = try locked(name, in: directory, place) else {
            throw .missing(path: place.path)
        }
        let facts = try facts(parts.fd, place)
        guard facts.isPrivate else { throw .unsafe(path: place.path, reason: notPrivate) }
        let (size, page) = try shape(facts, place, devices)
        guard size >= byteCount else {
            throw .noMemory(place: place, byteCount: byteCount, pageByteCount: page)
        }
        return PoolFile(
            fd: parts.fd, lock: parts.lock, place: place, byteCount: size, pageByteCount: page,
            isClean: false)
    }

    // MARK: Errors

    private static func facts(
        _ fd: borrowing OwnedFD, _ place: PoolPlace
    ) throws(PoolFileError) -> FileFacts {
        do throws(SystemCallError) {
            return try FileFacts(fd)
        } catch { throw .system(place: place, error) }
    }

    private static func explained(
        _ error: SystemCallError, _ path: String, _ place: PoolPlace
    ) -> PoolFileError {
        switch error.errno {
        case Errno.noEntry: .missing(path: path)
        case Errno.tooManyLinks: .unsafe(path: path, reason: "a part of it is a symbolic link")
        case Errno.noDevice, Errno.noSuchDevice, Errno.isDirectory:
            .wrongKind(path: path, wanted: "a file")
        case Errno.notDirectory: .badPath(path)
        default: .system(place: place, error)
        }
    }

    private static func refusal(
        _ error: SystemCallError, _ place: PoolPlace, _ byteCount: Int, _ page: Int
    ) -> PoolFileError {
        switch error.errno {
        case Errno.noMemory, Errno.noSpace, Errno.tooLarge:
            .noMemory(place: place, byteCount: byteCount, pageByteCount: page)
        default: .system(place: place, error)
        }
    }

    private static func roundUp(_ value: Int, _ multiple: Int) -> Int {
        (value &+ (multiple &- 1)) & ~(multiple &- 1)
    }
}
