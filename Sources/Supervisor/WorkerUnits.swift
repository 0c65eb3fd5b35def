// SPDX-License-Identifier: Apache-2.0
// The worker processes as the supervisor needs them, whoever manages them.

internal import Linux
internal import Systemd
internal import Wire

/// Whoever runs the workers: systemd, the minimal service manager, or a test.
@Control
protocol WorkerUnits: AnyObject {
    /// Connects to the worker of a device, which starts it when it does not run.
    func connect(_ device: String) async throws(WireError) -> PassedFD
    /// Whether the worker of a device runs now; connecting to it would start nothing.
    func isRunning(_ device: String) async throws(WireError) -> Bool
    /// Ends the worker of a device, releases what is stored for it, and forgets its socket.
    func stop(_ device: String) async throws(WireError)
}
