// SPDX-License-Identifier: Apache-2.0
// What the supervisor asks of a service manager, whichever it is.

public import Systemd

/// What a unit is doing.
public enum UnitState: String, Sendable {
    /// A process runs (or is just being stopped).
    case active
    /// No process runs; a connection starts one.
    case inactive
    /// It keeps failing: no process runs, and the next start waits for its back-off.
    case failed
}

/// The state of a unit.
public struct UnitStatus: Sendable, Equatable {
    /// What it is doing.
    public var state: UnitState
    /// Its process, 0 when none runs.
    public var pid: Int32
    /// Whether that said READY=1.
    public var isReady: Bool
    /// How often it was started again since the manager began.
    public var restarts: Int
    /// How many descriptors are stored.
    public var stored: Int
    /// Its last STATUS=.
    public var status: String
}

/// What happened to a unit.
public enum UnitEvent: Sendable, Equatable {
    /// A process was started.
    case started(UnitName, pid: Int32)
    /// It said READY=1.
    case ready(UnitName, pid: Int32)
    /// It exited.
    case exited(UnitName, pid: Int32, code: Int32)
    /// A signal ended it.
    case killed(UnitName, pid: Int32, signal: Int32)
    /// It was stopped on request; what it had stored is gone.
    case stopped(UnitName)

    /// The unit it happened to.
    public var unit: UnitName {
        switch self {
        case .started(let unit, _), .ready(let unit, _), .exited(let unit, _, _),
            .killed(let unit, _, _), .stopped(let unit):
            unit
        }
    }
}

/// Why a service manager did not do what it was asked.
public enum UnitManagerError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The connection to the manager is gone, or never was.
    case disconnected
    /// The manager said no, and why.
    case refused(request: String, reason: String)
    /// The manager did not answer in time.
    case timedOut(request: String)
    /// The manager's answer makes no sense.
    case badReply(request: String, reply: String)

    /// Says what was asked and what came back.
    public var description: String {
        switch self {
        case .disconnected: "service manager: the connection is gone; restart nvmed"
        case .refused(let request, let reason): "service manager: \(request): \(reason)"
        case .timedOut(let request): "service manager: \(request): no answer in time"
        case .badReply(let request, let reply):
            "service manager: \(request): strange answer: \(reply.prefix(100))"
        }
    }
}

/// A service manager, as the supervisor sees it.
@Control
public protocol UnitManager: AnyObject {
    /// Called for each event of any unit.
    var onEvent: (@Control (UnitEvent) -> Void)? { get set }
    /// Called once when the manager is gone; nothing more can be asked.
    var onDisconnect: (@Control () -> Void)? { get set }

    /// Listens for the unit, which starts at the first connection; the path to connect to.
    /// Asking again is harmless.
    func listen(_ unit: UnitName) async throws(UnitManagerError) -> String
    /// Stops the unit and throws its stored descriptors away; returns when it is stopped. It
    /// still listens.
    func stop(_ unit: UnitName) async throws(UnitManagerError)
    /// Stops the unit's process and starts another, which gets the stored descriptors.
    func restart(_ unit: UnitName) async throws(UnitManagerError)
    /// Sends a signal to the unit's process.
    func kill(_ unit: UnitName, signal: Int32) async throws(UnitManagerError)
    /// The state of the unit.
    func status(_ unit: UnitName) async throws(UnitManagerError) -> UnitStatus
    /// Stops the unit and its listening, removes its socket, forgets it.
    func forget(_ unit: UnitName) async throws(UnitManagerError)
    /// The units that exist, for a supervisor that comes back.
    func list() async throws(UnitManagerError) -> [UnitName]
}
