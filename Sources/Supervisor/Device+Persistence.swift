// SPDX-License-Identifier: Apache-2.0
// Requests to a worker that outlive it: its successor is asked again.

internal import Linux
internal import Systemd
internal import Wire

extension Device {
    /// Does something with a worker that is ready, and again with its successor when it dies
    /// meanwhile, or its device is about to be started again: `body` has to find out whether there
    /// is anything left to do.
    func persistently<Value: Sendable>(
        _ deadline: UInt64,
        _ body: @Control (WorkerLink) async throws(WireError) -> Value
    ) async throws(WireError) -> Value {
        var failure = WireError(
            .workerRestarted, "device \(name): its worker died again and again; try later",
            device: name)
        for _ in 0..<SupervisorLimits.attemptsPerRequest {
            try await becomeReady(deadline)
            guard let link, link.isOpen else { continue }
            do throws(WireError) {
                return try await body(link)
            } catch {
                failure = error
                if error.code == .deviceStarting {
                    try await startsAgain(deadline)
                } else if error.code != .workerRestarted || link.isOpen {
                    throw error
                }
            }
        }
        throw failure
    }

    /// The worker has found its device failed, and is about to be replaced or to start it again:
    /// waits until that shows, bounded.
    private func startsAgain(_ deadline: UInt64) async throws(WireError) {
        guard state == .ready, deadline > MonotonicClock.nowNanoseconds else { return }
        let end = min(deadline, Deadline.after(SupervisorLimits.noticeNanoseconds))
        do throws(WireError) {
            try await nextChange(end, "")
        } catch {
            guard error.code == .deadlineExceeded else { throw error }
        }
    }
}
