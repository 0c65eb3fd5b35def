// SPDX-License-Identifier: Apache-2.0
// Servicing: everything above the devices is stopped and started anew, and the disks go on.

internal import Linux
public import Wire

extension NVMeBackend {
    /// How often a long operation is asked how far it has come.
    private static let lookMilliseconds: Int32 = 200

    /// How servicing stands, with all devices.
    public func servicing(
        deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> ServicingStatus {
        var whole: ServicingStatus?
        for _ in 0..<Self.pageLimit {
            let after = whole?.devices.entries.last?.name
            let (reply, _) = try call(.getServicing(after: after), deadlineNanoseconds)
            guard case .servicing(var status) = reply else {
                throw .protocolViolation("the supervisor did not tell how servicing stands")
            }
            let isLast = !status.devices.more || status.devices.entries.isEmpty
            status.devices.entries = (whole?.devices.entries ?? []) + status.devices.entries
            if isLast { return status }
            whole = status
        }
        throw .protocolViolation("the list has no end")
    }

    /// Saves all devices that are kept alive, until a point of CLOCK_MONOTONIC. Returns when their
    /// workers have ended; throws when everything goes on as before. `progress` is told how far it
    /// has come, some times a second.
    public func save(
        until: UInt64? = nil, allOrNothing: Bool = false, deadlineNanoseconds: UInt64,
        progress: (ServicingStatus) -> Void = { _ in }
    ) throws(ClientError) {
        try follow(
            .servicingSave(deadlineNanoseconds: until, allOrNothing: allOrNothing),
            deadlineNanoseconds, progress)
    }

    /// Takes the saved devices up. Returns when all are dealt with.
    public func restore(
        deadlineNanoseconds: UInt64, progress: (ServicingStatus) -> Void = { _ in }
    ) throws(ClientError) {
        try follow(.servicingRestore, deadlineNanoseconds, progress)
    }

    /// Gives the save up that is under way. Returns when all devices go on.
    public func cancelSave(deadlineNanoseconds: UInt64? = nil) throws(ClientError) {
        try done(.servicingCancel, deadlineNanoseconds)
    }

    /// Asks for something long on a connection of its own, and on this one how far it is.
    private func follow(
        _ request: SupervisorRequest, _ deadline: UInt64, _ progress: (ServicingStatus) -> Void
    ) throws(ClientError) {
        let other = try NVMeBackend.connect(path)
        let id = try other.begin(request, deadline)
        while true {
            let isAnswered: Bool
            do throws(SystemCallError) {
                isAnswered = try other.channel.fd.waitReadable(
                    timeoutMilliseconds: Self.lookMilliseconds)
            } catch { throw .disconnected("\(error)") }
            if !isAnswered, MonotonicClock.nowNanoseconds > deadline { throw .timedOut }
            progress(try servicing())
            guard isAnswered else { continue }
            guard case .done = try other.finish(id, deadline).0 else {
                throw .protocolViolation("the supervisor answered something else than Done")
            }
            return
        }
    }
}
