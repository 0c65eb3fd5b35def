// SPDX-License-Identifier: Apache-2.0
// What sessions, rings and regions keep in the manager's store, by kind and number: stored, taken
// again by a successor, removed.
//
// The numbers come from the state area (`StateArea.nextNumber()`) and are never used twice, so that
// a descriptor that is left over from anything that went wrong belongs to nothing else.
//
// A manager keeps the same open file once, under its first name: guest memory, which a relay
// registers for each of its disks with one descriptor, would be gone for all but the first. So
// memory that is stored already is not stored again; its number is what all who use it write down.

internal import CLinux
internal import Glibc
internal import Linux
internal import Systemd

/// What a numbered descriptor is. The name in the store is the letter and the number: `s-17`.
enum StoredKind: String, CaseIterable, Sendable {
    /// A session's socket, the worker's end. Stored polled: gone means that the client died.
    case session = "s"
    /// A ring's memory.
    case ring = "r"
    /// The eventfd by which a ring's client kicks the worker.
    case kick = "k"
    /// The worker's end of a ring's wake socket.
    case wake = "w"
    /// The client's end of it, until the client has it.
    case clientWake = "x"
    /// Registered memory.
    case memory = "m"
}

/// The numbered descriptors of this worker and of its predecessors.
///
/// Without a manager (tests, a worker started by hand) everything is counted and nothing is stored.
@Control
final class StoredFDs {
    /// The most that is stored beside sessions, rings and regions: the device (6), the pool and its
    /// lock, the state, the statistics, and an interrupt for each vector that is used (64 queues
    /// and the admin queue).
    static let reservedCount = 80

    private struct Key: Hashable {
        let kind: StoredKind
        let number: UInt64
        var name: String { "\(kind.rawValue)-\(number)" }
    }

    private struct SharedMemory {
        var number: UInt64
        var users: Int
    }

    private let store: FDStore
    private let log: Log
    /// What came back and nobody has taken.
    private var left: [Key: CInt] = [:]
    /// Stored memory by the file that it is.
    private var memory: [FileIdentity: SharedMemory] = [:]
    private var identities: [UInt64: FileIdentity] = [:]
    /// Names that mean nothing to this version.
    private var unknown: [(name: String, raw: CInt)] = []

    /// Nothing came back.
    init(store: FDStore, log: Log) {
        self.store = store
        self.log = log
    }

    /// Takes everything that is left of what the manager handed over.
    convenience init(store: FDStore, log: Log, from fds: inout ListenFDs) {
        self.init(store: store, log: log)
        fds.takeRest { named in
            let name = named.name
            let raw = named.takeFD().release()
            if let key = Self.key(name), left[key] == nil {
                left[key] = raw
            } else {
                unknown.append((name, raw))
            }
        }
    }

    deinit {
        for raw in left.values { _ = OwnedFD(adopting: raw) }
        for entry in unknown { _ = OwnedFD(adopting: entry.raw) }
    }

    private static func key(_ name: String) -> Key? {
        let parts = name.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 2, let kind = StoredKind(rawValue: String(parts[0])),
            let number = UInt64(parts[1]), Key(kind: kind, number: number).name == name
        else { return nil }
        return Key(kind: kind, number: number)
    }

    // MARK: What came back

    /// Takes what a predecessor stored; nil when it did not come back, or was taken. It stays in
    /// the store until `remove`.
    ///
    /// Memory may be taken once by each who wrote its number down.
    func take(_ kind: StoredKind, _ number: UInt64) -> OwnedFD? {
        let key = Key(kind: kind, number: number)
        guard kind == .memory else {
            return left.removeValue(forKey: key).map { OwnedFD(adopting: $0) }
        }
        guard let raw = left[key], let identity = FileIdentity(raw),
            let copy = try? OwnedFD.duplicate(ofRaw: raw)
        else { return nil }
        memory[identity, default: SharedMemory(number: number, users: 0)].users += 1
        identities[number] = identity
        return copy
    }

    /// The numbers of a kind that came back and were not taken, rising.
    func numbers(_ kind: StoredKind) -> [UInt64] {
        left.keys.filter { $0.kind == kind }.map(\.number).sorted()
    }

    /// Removes what came back and nobody has taken, here and in the store; it is closed in a thread
    /// of its own. Returns how many there were. To be called when all is adopted.
    @discardableResult
    func removeUnclaimed() -> Int {
        var entries = unknown.map { ($0.name, $0.raw) }
        for (key, raw) in left {
            // Memory that is used stays in the store.
            guard key.kind == .memory, identities[key.number] != nil else {
                entries.append((key.name, raw))
                continue
            }
            _ = OwnedFD(adopting: raw)
        }
        left = [:]
        unknown = []
        guard !entries.isEmpty else { return 0 }
        // By name, and each name once: what is stored anew under it meanwhile would go with it.
        for name in Set(entries.map(\.0)) { forget(name) }
        OwnedFD.closeInBackground(entries.map(\.1))
        log.info("\(entries.count) stored descriptors belonged to nothing and were removed")
        return entries.count
    }

    /// Nobody uses memory that came back any more: it goes with what is unclaimed.
    func disclaimMemory() {
        memory = [:]
        identities = [:]
    }

    // MARK: Storing

    /// Throws unless `count` more descriptors can be stored: to be asked before anything is begun
    /// that needs them. The answer to a client is `resourceExhausted`.
    func checkRoom(_ count: Int) throws(FDStoreError) {
        try store.checkRoom(count, for: "sessions", reserved: Self.reservedCount)
    }

    /// Stores a descriptor; a successor finds it under the same kind and number. Nothing may rely
    /// on it before `confirm` has returned.
    ///
    /// Returns the number to write down: of memory that is stored already it is that one's.
    @discardableResult
    func keep(
        _ kind: StoredKind, _ number: UInt64, _ fd: borrowing OwnedFD
    ) throws(FDStoreError) -> UInt64 {
        let identity = kind == .memory ? FileIdentity(fd.raw) : nil
        if let identity, let known = memory[identity] {
            memory[identity]?.users += 1
            return known.number
        }
        try checkRoom(1)
        if store.hasManager {
            try store.store(Key(kind: kind, number: number).name, fd, poll: kind == .session)
        }
        if let identity {
            memory[identity] = SharedMemory(number: number, users: 1)
            identities[number] = identity
        }
        return number
    }

    /// Removes a descriptor from the store: memory, when nobody uses it any more. A session's
    /// socket is shut down before, and closed after.
    func remove(_ kind: StoredKind, _ number: UInt64) {
        let key = Key(kind: kind, number: number)
        if kind == .memory, let identity = identities[number] {
            memory[identity]?.users -= 1
            guard memory[identity]?.users == 0 else { return }
            memory[identity] = nil
            identities[number] = nil
        }
        if let raw = left.removeValue(forKey: key) { OwnedFD.closeInBackground([raw]) }
        if store.hasManager { forget(key.name) }
    }

    private func forget(_ name: String) {
        do throws(FDStoreError) {
            try store.remove(name)
        } catch {
            log.warning("\(error); continuing", id: .storeFailed)
        }
    }

    /// Waits until the manager has everything that was stored so far, bounded. The loop goes on.
    func confirm() async throws {
        try await store.barrier(timeoutNanoseconds: WorkerLimits.confirmNanoseconds)
    }
}
