// SPDX-License-Identifier: Apache-2.0
// What a SIGTERM means: systemd sends the same one for a stop, a restart and an upgrade.

internal import Linux
internal import Systemd

/// Asks the system's manager what becomes of this process's unit.
@Control
enum EndOrRestart {
    /// Whether the unit is being stopped, or the machine; false for a restart, and when the bus
    /// does not answer in time: leaving the controller as it is can be mended, resetting it cannot.
    static func isEnd(_ log: Log) async -> Bool {
        // Outside of systemd there is nobody to ask.
        guard let unit = UnitBus.ownUnit else { return false }
        let units = UnitBus(Bus())
        let (sum, overflow) = MonotonicClock.nowNanoseconds.addingReportingOverflow(
            WorkerLimits.busNanoseconds)
        let deadline = overflow ? .max : sum
        do throws(BusError) {
            // A unit that nobody stops has a job to restart it, or none when it was sent a signal.
            if let job = try await units.job(of: unit, deadline) { return job.type == "stop" }
            return try await units.isSystemStopping(deadline)
        } catch {
            log.warning(
                "\(error); whether this is a restart is unknown, so the controller stays as it is")
            return false
        }
    }
}
