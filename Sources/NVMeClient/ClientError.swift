// SPDX-License-Identifier: Apache-2.0
// What can go wrong for a client, and what it may do about it.

public import Linux
public import Wire

/// An error of the client library.
public enum ClientError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The supervisor cannot be reached at this path.
    case unreachable(path: String, SystemCallError)
    /// The connection to the supervisor broke.
    case disconnected(String)
    /// The request failed, as the service (or this library, for a request that cannot be right)
    /// says. `workerRestarted` among them, when a session could not be kept over the death of its
    /// worker: reopen the disk (`Disk.reopen`) and go on.
    case failed(WireError)
    /// The deadline passed. Requests that were sent may still have their effect.
    case timedOut
    /// The peer answered something that does not belong to the request.
    case protocolViolation(String)

    /// A broken connection to the supervisor.
    init(_ error: ChannelError) {
        self =
            switch error {
            case .timedOut: .timedOut
            case .tooLarge(let wire): .failed(wire)
            case .closed, .outgoingFull, .system: .disconnected("\(error)")
            }
    }

    /// The service's error, where there is one.
    public var wireError: WireError? {
        if case .failed(let error) = self { error } else { nil }
    }

    /// The session ended because its worker was restarted and it could not be kept: `Disk.reopen`
    /// and repeat.
    public var isWorkerRestarted: Bool { wireError?.code == .workerRestarted }

    /// The same request may succeed later without anybody changing anything.
    public var isRetriable: Bool {
        switch self {
        case .failed(let error): error.isRetriable
        case .disconnected, .timedOut: true
        case .unreachable, .protocolViolation: false
        }
    }

    /// What happened, in words.
    public var description: String {
        switch self {
        case .unreachable(_, let error): "\(error). Is nvmed running, and may you use its socket?"
        case .disconnected(let reason): "the connection to nvmed broke: \(reason)"
        case .failed(let error): error.description
        case .timedOut: "no answer before the deadline"
        case .protocolViolation(let what): "\(what). Do client and service have the same version?"
        }
    }
}

/// Deadlines: CLOCK_MONOTONIC nanoseconds.
public enum Deadline {
    /// The deadline so many milliseconds from now.
    public static func after(milliseconds: UInt64) -> UInt64 {
        let (nanoseconds, overflow) = milliseconds.multipliedReportingOverflow(by: 1_000_000)
        let (sum, late) = MonotonicClock.nowNanoseconds.addingReportingOverflow(nanoseconds)
        return overflow || late ? .max : sum
    }

    /// How long a reply is waited for after its request's deadline, so that the service's own word
    /// about the deadline arrives.
    static let graceNanoseconds: UInt64 = 100_000_000

    static func withGrace(_ deadline: UInt64?) -> UInt64? {
        deadline.map { $0 > .max - graceNanoseconds ? .max : $0 + graceNanoseconds }
    }
}
