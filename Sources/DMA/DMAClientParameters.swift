// SPDX-License-Identifier: Apache-2.0
// What a client asks of its memory, and what that memory is taken from.

/// Which trust levels must be able to touch the memory.
public enum LowerVTLPolicy: Sendable, Equatable, CaseIterable {
    /// Whichever.
    case any
    /// VTL 0 too.
    case vtl0
}

/// Who the memory is visible to.
public enum DMAVisibility: Sendable, Equatable, CaseIterable {
    /// The host and all trust levels.
    case shared
    /// This trust level.
    case `private`
}

/// Whether the pages of an allocation have to lie in a row.
public enum DMAContiguity: Sendable, Equatable, CaseIterable {
    /// They have to: a ring.
    case required
    /// As far as there is room.
    case preferred
    /// It does not matter: small holes are used up first.
    case none
}

/// What a client of memory is.
public struct DMAClientParameters: Sendable, Equatable {
    /// Whose memory it is, 1 to 64 bytes: the device's name. No two clients have one at a time.
    public var name: String
    /// Which trust levels must be able to touch it.
    public var lowerVTLPolicy: LowerVTLPolicy
    /// Who it is visible to.
    public var visibility: DMAVisibility
    /// It has to be there still when all processes were stopped and started again.
    public var isPersistent: Bool

    /// A client; by default what a device has that keeps running over servicing.
    public init(
        name: String, lowerVTLPolicy: LowerVTLPolicy = .any, visibility: DMAVisibility = .private,
        isPersistent: Bool = true
    ) {
        self.name = name
        self.lowerVTLPolicy = lowerVTLPolicy
        self.visibility = visibility
        self.isPersistent = isPersistent
    }

    /// What the memory is taken from. Nothing else is used instead when that is not there or full:
    /// who silently gets other memory is not found again after servicing.
    public var backing: DMABacking {
        switch (visibility, isPersistent) {
        case (.shared, _): DMABacking(memory: .sharedPool, changesPermissions: false)
        case (.private, true):
            DMABacking(memory: .privatePool, changesPermissions: lowerVTLPolicy == .vtl0)
        case (.private, false):
            DMABacking(memory: .lockedMemory, changesPermissions: lowerVTLPolicy == .vtl0)
        }
    }
}

/// What the memory of a client is taken from.
public struct DMABacking: Sendable, Equatable {
    /// The kinds of memory.
    public enum Memory: String, Sendable, CaseIterable {
        /// Visible to everybody.
        case sharedPool = "shared pool"
        /// Persistent.
        case privatePool = "private pool"
        /// Of this process, and gone with it.
        case lockedMemory = "locked memory"
    }

    /// Which of them.
    public var memory: Memory
    /// Each allocation is opened to lower trust levels, and closed when it is released.
    public var changesPermissions: Bool
}

/// Why a client does not get what it asks for.
public enum DMAError: Error, Sendable, Equatable, CustomStringConvertible {
    /// Memory of that kind was not set up.
    case notConfigured(client: String, memory: DMABacking.Memory)
    /// Another client has the name.
    case nameInUse(String)
    /// A number or a name is not valid.
    case malformed(field: String)
    /// The pool does not have it.
    case slots(SlotPoolError)
    /// Locked memory beyond its bound.
    case lockedMemoryLimit(client: String, wanted: Int, used: Int, limit: Int)
    /// The memory cannot be locked, or its addresses are not known.
    case lockedMemory(client: String, reason: String)
    /// The pages do not lie in a row.
    case notContiguous(client: String, byteCount: Int)
    /// Lower trust levels could not be let in.
    case permissions(client: String, VTLPermissionError)
    /// Lower trust levels could not be locked out again. The memory is never used again.
    case lost(client: String, tag: String, byteCount: Int, VTLPermissionError)
    /// It is not in use, or another's.
    case notOwned(client: String)
    /// The saved state does not fit what is there.
    case mismatch(String)

    /// The error in words, with what to do.
    public var description: String {
        switch self {
        case .notConfigured(let client, let memory):
            "\(client) needs memory of the \(memory.rawValue), which is not set up; configure it"
        case .nameInUse(let name):
            "there is a client \(name) already; every device has a name of its own"
        case .malformed(let field): "\(field) is not valid"
        case .slots(let error): error.description
        case .lockedMemoryLimit(let client, let wanted, let used, let limit):
            "\(client) wants \(wanted) bytes of locked memory, and \(used) of \(limit) are in use; "
                + "raise the limit, or make the client persistent"
        case .lockedMemory(let client, let reason):
            "\(client) gets no locked memory: \(reason); see LimitMEMLOCK="
        case .notContiguous(let client, let byteCount):
            "\(client) wants \(byteCount) bytes in a row, and locked memory is not; use a pool"
        case .permissions(let client, let error): "\(client): \(error)"
        case .lost(let client, let tag, let byteCount, let error):
            "\(client): \(byteCount) bytes (\(tag)) are never used again, because lower trust "
                + "levels can still touch them: \(error)"
        case .notOwned(let client): "\(client) does not own that memory"
        case .mismatch(let text): "the saved memory does not fit: \(text)"
        }
    }
}
