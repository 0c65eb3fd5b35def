// SPDX-License-Identifier: Apache-2.0
// The file descriptor store of the service manager: descriptors that outlive this process.

public import Linux

/// Why a descriptor cannot be stored.
public enum FDStoreError: Error, Sendable, Equatable, CustomStringConvertible {
    /// Names are 1 to 24 printable ASCII bytes without a colon.
    case badName(String)
    /// As many descriptors are stored as the manager keeps (FileDescriptorStoreMax=).
    case full(name: String, limit: Int)
    /// There is no manager that could keep it.
    case noManager(name: String)
    /// The manager could not be told.
    case system(name: String, SystemCallError)

    /// Names the descriptor and says what to do.
    public var description: String {
        switch self {
        case .badName(let name):
            "fd store: \(name.prefix(40)): a name is 1 to \(FDName.byteCountMax) printable "
                + "bytes without a colon"
        case .full(let name, let limit):
            "fd store: \(name): \(limit) descriptors are stored already; close sessions, or "
                + "raise FileDescriptorStoreMax= and NVMED_FDSTORE_MAX"
        case .noManager(let name):
            "fd store: \(name): NOTIFY_SOCKET is not set; run under systemd or nvmed --standalone"
        case .system(let name, let error):
            "fd store: \(name): \(error)"
        }
    }
}

/// The rule for names of stored descriptors.
public enum FDName {
    /// 4096 names and their separators stay below the 128 KiB of one environment variable.
    public static let byteCountMax = 24

    /// Whether a name can be stored under.
    public static func isValid(_ name: String) -> Bool {
        let colon = UInt8(ascii: ":")
        return (1...byteCountMax).contains(name.utf8.count)
            && name.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f && $0 != colon }
    }
}

/// What this process has in the manager's store: counted here, because a full store drops silently.
@Control
public final class FDStore {
    /// How many the manager keeps.
    public let limit: Int
    private let notifier = Notifier()
    private var counts: [String: Int] = [:]
    private var total = 0

    /// Counts from what was `inherited`: the names that came back at start-up.
    ///
    /// The limit is NVMED_FDSTORE_MAX, which must be FileDescriptorStoreMax= of the unit; 4096
    /// without it.
    public init(inherited: [String] = [], limit: Int? = nil) {
        self.limit =
            limit ?? Environment.value("NVMED_FDSTORE_MAX").flatMap { Int($0) }.map { max($0, 0) }
            ?? 4096
        for name in inherited { count(name) }
    }

    /// Whether there is a manager that could keep anything.
    public var hasManager: Bool { notifier.hasManager }

    /// How many descriptors are stored, evicted ones included until they are removed.
    public var storedCount: Int { total }

    /// Stores a copy of `fd` under `name`; several may share a name.
    ///
    /// With `poll` the manager drops it when its peer hangs up. Nothing may rely on it before
    /// ``barrier(timeoutNanoseconds:)`` has returned.
    public func store(
        _ name: String, _ fd: borrowing OwnedFD, poll: Bool = false
    ) throws(FDStoreError) {
        guard FDName.isValid(name) else { throw .badName(name) }
        guard total < limit else { throw .full(name: name, limit: limit) }
        let text = "FDSTORE=1\nFDNAME=\(name)" + (poll ? "" : "\nFDPOLL=0")
        do {
            guard try notifier.send(text, fds: [fd.raw]) else {
                throw FDStoreError.noManager(name: name)
            }
        } catch let error as SystemCallError {
            throw .system(name: name, error)
        } catch {
            throw .noManager(name: name)
        }
        count(name)
    }

    /// Removes everything stored under `name`.
    public func remove(_ name: String) throws(FDStoreError) {
        guard FDName.isValid(name) else { throw .badName(name) }
        do {
            try notifier.send("FDSTOREREMOVE=1\nFDNAME=\(name)")
        } catch {
            throw .system(name: name, error)
        }
        total -= counts.removeValue(forKey: name) ?? 0
    }

    /// Throws `full` unless `count` more fit beside `reserved`, which are kept free for others: to
    /// be asked before anything is begun that needs them.
    public func checkRoom(
        _ count: Int, for name: String, reserved: Int = 0
    ) throws(FDStoreError) {
        guard total + count <= limit - reserved else {
            throw .full(name: name, limit: max(limit - reserved, 0))
        }
    }

    /// Waits until the manager has done everything asked so far.
    public func barrier(timeoutNanoseconds: UInt64) async throws {
        try await notifier.barrier(timeoutNanoseconds: timeoutNanoseconds)
    }

    private func count(_ name: String) {
        counts[name, default: 0] += 1
        total += 1
    }
}
