// SPDX-License-Identifier: Apache-2.0
// The messages between a client or operator and the supervisor (Proto/supervisor.proto).

/// A disk as the supervisor knows it.
public struct DiskEntry: Sendable, Hashable {
    /// The configured name.
    public var name: String
    /// The device that holds it; empty: not resolved yet.
    public var device = ""
    /// The namespace; 0: not resolved yet.
    public var nsid: UInt32 = 0
    /// The most that a client may do.
    public var access: AccessMode
    /// Several clients may write.
    public var shared = false
    /// Bytes in a logical block; 0: not known yet.
    public var blockByteCount: UInt32 = 0
    /// Logical blocks; 0: not known yet.
    public var blockCount: UInt64 = 0
    /// Open sessions.
    public var sessionCount: UInt32 = 0
    /// Why it cannot be opened now; empty: it can.
    public var problem = ""
    /// How its device got over the deaths of its workers; nil: never seen ready.
    public var continuity: Continuity?
    /// A disk of which nothing else is known.
    public init(name: String, access: AccessMode) {
        self.name = name
        self.access = access
    }
}

/// What a client asks of the supervisor.
public enum SupervisorRequest: Sendable, Hashable {
    /// All devices after a name, or the one named. Reply: `.devices`.
    case listDevices(name: String?, after: String?)
    /// The caller's disks after a name, or the one named. Reply: `.disks`.
    case listDisks(name: String?, after: String?)
    /// nil access: the most that is configured. Reply: `.diskOpened`, with one descriptor.
    case openDisk(name: String, access: AccessMode?)
    /// Reply: `.sessions`.
    case listSessions(after: UInt64?)
    /// Reply: `.done`.
    case closeSession(sessionID: UInt64, reason: String)
    /// Reply: `.inspect`.
    case inspect(prefix: String, after: String?)
    /// Reads the configuration again. Reply: `.reloaded`.
    case reload
    /// Brings a failed device up again. Reply: `.done` when started.
    case retryDevice(name: String)
    /// Has nvmed let go of a device until it is retried, or until `undo`. Reply: `.done`.
    case releaseDevice(name: String, reason: String, undo: Bool)
    /// Reply: `.statistics`.
    case openStatistics(device: String)
    /// Stops everything in order. Reply: `.done`.
    case shutdown
    /// Saves all devices that are kept alive, until a point of CLOCK_MONOTONIC. Reply: `.done` when
    /// the state is durable and the workers have ended.
    case servicingSave(deadlineNanoseconds: UInt64?, allOrNothing: Bool)
    /// Gives up the save that is under way. Reply: `.done` when all devices go on.
    case servicingCancel
    /// Takes the saved devices up again. Reply: `.done` when each is dealt with.
    case servicingRestore
    /// Reply: `.servicing`.
    case getServicing(after: String?)
}

/// What the supervisor answers.
public enum SupervisorReply: Sendable, Hashable {
    /// It was done; there is nothing to return.
    case done
    /// Devices by rising name.
    case devices(Page<DeviceInfo>)
    /// Disks by rising name.
    case disks(Page<DiskEntry>)
    /// The disk is open; one descriptor travels along: the client's end of the session.
    case diskOpened(sessionID: UInt64, DiskInfo?)
    /// Sessions by rising id.
    case sessions(Page<SessionInfo>)
    /// Values by rising path.
    case inspect(Page<InspectEntry>)
    /// The configuration was read; what is odd about it.
    case reloaded(warnings: [String])
    /// Statistics of so many bytes; one descriptor travels along.
    case statistics(byteCount: UInt64)
    /// How servicing stands.
    case servicing(ServicingStatus)
}

/// The supervisor tells nothing unasked (yet).
public enum SupervisorEvent: Sendable, Hashable {}

/// The protocol of the supervisor: client ↔ nvmed.
public enum SupervisorProtocol: WireProtocol {
    /// What the client sends.
    public typealias Request = SupervisorRequest
    /// What the supervisor answers.
    public typealias Reply = SupervisorReply
    /// Nothing.
    public typealias Event = SupervisorEvent
}
