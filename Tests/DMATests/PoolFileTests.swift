// SPDX-License-Identifier: Apache-2.0
// Files that a pool lies in: made, kept, found again, and refused when they are not what they
// should be. On a tmpfs and a memory file; on a hugetlbfs where there is one with free pages; a DAX
// device is a double.

import Glibc
import Linux
import TestSupport
import Testing

@testable import DMA

/// A directory on a tmpfs of this machine, removed afterwards.
struct MemoryDirectory {
    private let directory: TemporaryDirectory
    var path: String { directory.path }

    init() throws { directory = try TemporaryDirectory(in: "/dev/shm") }

    func file(_ name: String = "disk0.pool") -> String { "\(path)/\(name)" }
    func place(_ name: String = "disk0.pool") -> PoolPlace {
        PoolPlace(.file, path: file(name))
    }
}

@Suite("Files of pools")
struct PoolFileTests {
    let directory: MemoryDirectory

    init() throws { directory = try MemoryDirectory() }

    static func error<Value: ~Copyable>(
        _ body: () throws(PoolFileError) -> Value
    ) -> PoolFileError? {
        do throws(PoolFileError) {
            _ = try body()
            return nil
        } catch { return error }
    }

    @Test("a memory file is clean, of whole pages, and cannot shrink")
    func memory() throws {
        // When
        let file = try PoolFile.create(.memory, byteCount: 5000)
        // Then
        let (size, clean) = (file.byteCount, file.isClean)
        let seals = try MemFD.seals(of: file.fd)
        #expect(size == 8192)
        #expect(clean)
        #expect(seals.contains(.shrink))
    }

    @Test("what was written into a file is found again when nothing of the process is left")
    func reopen() throws {
        // Given
        let place = directory.place()
        do {
            let file = try PoolFile.create(place, byteCount: 10_000)
            let bytes = try Mapping(file.fd, byteCount: file.byteCount)
            unsafe bytes.base.storeBytes(of: 0x5EED, toByteOffset: 8192, as: UInt64.self)
        }
        // When
        let file = try PoolFile.reopen(place, byteCount: 12_288)
        // Then
        let bytes = try Mapping(file.fd, byteCount: file.byteCount)
        let word = unsafe bytes.base.load(fromByteOffset: 8192, as: UInt64.self)
        let clean = file.isClean
        #expect(word == 0x5EED)
        #expect(!clean)
    }

    @Test("one file has one user at a time; when the first is gone the next has it")
    func lock() throws {
        // Given
        let place = directory.place()
        var first: PoolFile? = try PoolFile.create(place, byteCount: 4096)
        // A copy of the descriptor, as the service manager or a vfio-user server has one.
        let copy = try OwnedFD.duplicate(ofRaw: first?.fd.raw ?? -1)
        first = nil
        first = try PoolFile.reopen(place, byteCount: 4096)
        // When
        let again = Self.error { () throws(PoolFileError) in
            try PoolFile.create(place, byteCount: 4096)
        }
        let restored = Self.error { () throws(PoolFileError) in
            try PoolFile.reopen(place, byteCount: 4096)
        }
        // Then
        #expect(again == .inUse(path: place.path))
        #expect(restored == .inUse(path: place.path))
        first = nil
        let last = Self.error { () throws(PoolFileError) in
            try PoolFile.create(place, byteCount: 4096)
        }
        withExtendedLifetime(copy) {}
        #expect(last == nil)
    }

    @Test("the lock belongs to an open file: it lasts with whoever was handed a descriptor of it")
    func lockIsHandedOn() throws {
        // Given: what the fd store has when its worker has died.
        let place = directory.place()
        var first: PoolFile? = try PoolFile.create(place, byteCount: 4096)
        let memory = try OwnedFD.duplicate(ofRaw: first?.fd.raw ?? -1)
        let lock = try OwnedFD.duplicate(ofRaw: first?.lockDescriptor ?? -1)
        first = nil
        // When
        let meanwhile = Self.error { () throws(PoolFileError) in
            try PoolFile.create(place, byteCount: 4096)
        }
        var next: PoolFile? = try PoolFile(received: memory, lock: lock, place: place)
        let holds = try next?.isLocked()
        let adopted = Self.error { () throws(PoolFileError) in
            try PoolFile.create(place, byteCount: 4096)
        }
        next = nil
        let afterwards = Self.error { () throws(PoolFileError) in
            try PoolFile.create(place, byteCount: 4096)
        }
        // Then
        #expect(meanwhile == .inUse(path: place.path))
        #expect(holds == true)
        #expect(adopted == .inUse(path: place.path))
        #expect(afterwards == nil)
    }

    @Test("what came as a lock is none when another has the file, or when it is another file's")
    func noLock() throws {
        // Given
        let (place, other) = (directory.place("a"), directory.place("b"))
        let holder = try PoolFile.create(place, byteCount: 4096)
        _ = try PoolFile.create(other, byteCount: 4096)
        func received(_ lockOf: PoolPlace?) throws -> Bool {
            let memory = try OwnedFD.open(place.path, flags: O_RDWR)
            let lock = try lockOf.map { try OwnedFD.open($0.path, flags: O_RDONLY).release() }
            let file = try PoolFile(
                received: memory, lock: lock.map { OwnedFD(adopting: $0) }, place: place)
            return try file.isLocked()
        }
        // When
        let locks = try (received(nil), received(other), received(place))
        // Then
        #expect(locks == (false, false, false))
        withExtendedLifetime(holder) {}
    }

    @Test("a pool that begins once more in its file is longer, and not clean any more")
    func grows() throws {
        // Given
        var file = try PoolFile.create(directory.place(), byteCount: 4096)
        // When
        try file.grow(to: 10_000)
        let (grown, clean) = (file.byteCount, file.isClean)
        try file.grow(to: 5000)
        let (kept, size) = (file.byteCount, try MemFD.byteCount(of: file.fd))
        // Then
        #expect(grown == 12_288)
        #expect(!clean)
        #expect(kept == 12_288)
        #expect(size == 12_288)
    }

    @Test("a file that is there is used again: it becomes longer, and never shorter")
    func sameFile() throws {
        // Given
        let place = directory.place()
        let made = try Self.look(PoolFile.create(place, byteCount: 8192)).identity
        // When
        let longer = try Self.look(PoolFile.create(place, byteCount: 20_000))
        let shorter = try Self.look(PoolFile.create(place, byteCount: 4096))
        // Then
        #expect(made != nil)
        #expect(longer.byteCount == 20_480)
        #expect(shorter.byteCount == 20_480)
        #expect(longer.identity == made)
        #expect(shorter.identity == made)
        #expect(!shorter.isClean)
    }

    static func look(
        _ file: consuming PoolFile
    ) -> (byteCount: Int, identity: FileIdentity?, isClean: Bool) {
        (file.byteCount, FileIdentity(file.fd.raw), file.isClean)
    }

    @Test("a directory that is missing is made, for this user only")
    func makesDirectory() throws {
        // When
        let place = directory.place("pools/disk0.pool")
        let error = Self.error { () throws(PoolFileError) in
            try PoolFile.create(place, byteCount: 4096)
        }
        // Then
        let facts = try FileFacts(TrustedFile.directory(directory.file("pools")))
        #expect(error == nil)
        #expect(facts.permissions == 0o700)
    }

    @Test(
        "a path that names no file is refused", arguments: ["", "pool", "/", "/dev/shm/..", "a/b"])
    func badPath(path: String) {
        // When
        let error = Self.error { () throws(PoolFileError) in
            try PoolFile.create(PoolPlace(.file, path: path), byteCount: 4096)
        }
        // Then
        #expect(error == .badPath(path))
    }

    @Test("links are not followed: neither the file's name nor a directory on the way")
    func links() throws {
        // Given
        #expect(unsafe symlink("/etc/passwd", directory.file("link.pool")) == 0)
        #expect(unsafe symlink(directory.path, directory.file("way")) == 0)
        // When
        let file = Self.error { () throws(PoolFileError) in
            try PoolFile.create(directory.place("link.pool"), byteCount: 4096)
        }
        let way = Self.error { () throws(PoolFileError) in
            try PoolFile.create(directory.place("way/disk0.pool"), byteCount: 4096)
        }
        // Then
        #expect(
            file
                == .unsafe(
                    path: directory.file("link.pool"), reason: "a part of it is a symbolic link"))
        #expect(
            way
                == .unsafe(path: directory.file("way"), reason: "a part of it is a symbolic link"))
    }

    @Test("a file that others may read, or that has another name, is refused")
    func untrusted() throws {
        // Given
        let (open, linked) = (directory.place("open"), directory.place("linked"))
        for place in [open, linked] { _ = try PoolFile.create(place, byteCount: 4096) }
        #expect(unsafe chmod(open.path, 0o640) == 0)
        #expect(unsafe link(linked.path, directory.file("other")) == 0)
        // When
        let errors = [open, linked].map { place in
            Self.error { () throws(PoolFileError) in
                try PoolFile.reopen(place, byteCount: 4096)
            }
        }
        // Then
        #expect(
            errors == [
                .unsafe(
                    path: open.path,
                    reason: "it is not root's or this user's alone, and closed to others"),
                .unsafe(path: linked.path, reason: "it has 2 names"),
            ])
    }

    @Test("a directory in which others may rename files is refused, unless it is sticky")
    func openDirectory() throws {
        // Given
        #expect(unsafe chmod(directory.path, 0o777) == 0)
        // When
        let open = Self.error { () throws(PoolFileError) in
            try PoolFile.create(directory.place(), byteCount: 4096)
        }
        #expect(unsafe chmod(directory.path, 0o1777) == 0)
        let sticky = Self.error { () throws(PoolFileError) in
            try PoolFile.create(directory.place(), byteCount: 4096)
        }
        // Then
        #expect(
            open
                == .unsafe(
                    path: directory.path, reason: "others may change names in this directory"))
        #expect(sticky == nil)
    }

    @Test("a FIFO, a directory and a device are no pool, and nothing waits for them")
    func kinds() throws {
        // Given
        #expect(unsafe mkfifo(directory.file("fifo"), 0o600) == 0)
        #expect(unsafe mkdir(directory.file("directory"), 0o700) == 0)
        // When
        let fifo = Self.error { () throws(PoolFileError) in
            try PoolFile.reopen(directory.place("fifo"), byteCount: 4096)
        }
        let folder = Self.error { () throws(PoolFileError) in
            try PoolFile.reopen(directory.place("directory"), byteCount: 4096)
        }
        let device = Self.error { () throws(PoolFileError) in
            try PoolFile.reopen(PoolPlace(.file, path: "/dev/zero"), byteCount: 4096)
        }
        // Then
        #expect(fifo != nil)
        #expect(folder == .wrongKind(path: directory.file("directory"), wanted: "a file"))
        #expect(device != nil)
    }

    @Test("nothing at the path, or a shorter file, is not what was kept")
    func notKept() throws {
        // Given
        let place = directory.place()
        let missing = Self.error { () throws(PoolFileError) in
            try PoolFile.reopen(place, byteCount: 4096)
        }
        _ = try PoolFile.create(place, byteCount: 4096)
        // When
        let size = Self.error { () throws(PoolFileError) in
            try PoolFile.reopen(place, byteCount: 8192)
        }
        // Then
        #expect(missing == .missing(path: place.path))
        #expect(size == .wrongSize(path: place.path, byteCount: 4096, wanted: 8192))
    }

    @Test("a tmpfs is no hugetlbfs, and the message says what to correct")
    func wrongFileSystem() {
        // When
        let error = Self.error { () throws(PoolFileError) in
            try PoolFile.create(
                PoolPlace(.hugePages, path: directory.file()), byteCount: 4096)
        }
        // Then
        #expect(error == .wrongKind(path: directory.file(), wanted: "on a hugetlbfs"))
        #expect(error?.description.contains("correct Pool= or PoolPath=") == true)
    }

    @Test("more than the file system has is refused, and leaves no half a pool behind")
    func tooLarge() throws {
        // Given
        let place = directory.place()
        // When
        let error = Self.error { () throws(PoolFileError) in
            try PoolFile.create(place, byteCount: 1 << 40)
        }
        let beyond = Self.error { () throws(PoolFileError) in
            try PoolFile.create(place, byteCount: (1 << 40) + 1)
        }
        // Then
        #expect(error == .noMemory(place: place, byteCount: 1 << 40, pageByteCount: 4096))
        #expect(beyond != nil)
        #expect(!Files.exists(place.path))
    }

    @Test("a pool of huge pages lies in a hugetlbfs where there is one", .enabled(if: hasHugetlbfs))
    func hugePages() throws {
        // Given
        let place = PoolPlace(.hugePages, path: "/dev/hugepages/nvmed-test-\(getpid()).pool")
        defer { _ = unsafe unlink(place.path) }
        // When
        let (size, page) = try {
            let file = try PoolFile.create(place, byteCount: 5000)
            return (file.byteCount, file.pageByteCount)
        }()
        let clean = try PoolFile.reopen(place, byteCount: size).isClean
        // Then
        #expect(page == 2 << 20)
        #expect(size == 2 << 20)
        #expect(!clean)
    }

    static var hasHugetlbfs: Bool {
        HugePages.free > 0
            && (try? FileFacts(TrustedFile.directory("/dev/hugepages")))?.hugePageByteCount
                == 2 << 20
    }
}
