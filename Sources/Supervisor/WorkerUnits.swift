// SPDX-License-Identifier: Apache-2.0
// The worker processes as the supervisor needs them, whoever manages them.

internal import Linux
internal import Systemd
internal import Wire

/// Whoever runs the workers: systemd, the minimal service manager, or a test.
@Control
protocol WorkerUnits: AnyObject {
    /// Called when the worker of a device cannot run, with the reason: nothing starts it by itself
    /// any more.
    var onTrouble: (@Control (_ device: String, _ reason: String) -> Void)? { get set }
    /// Connects to the worker of a device, which starts it when it does not run.
    func connect(_ device: String) async throws(WireError) -> PassedFD
    /// Whether the worker of a device runs now; connecting to it would start nothing.
    func isRunning(_ device: String) async throws(WireError) -> Bool
    /// The devices whose workers run now, configured or not, as far as that can be known.
    func running() async throws(WireError) -> [String]
    /// The worker of a device answered: failures of its process before do not count any more.
    func answered(_ device: String)
    /// Kills the worker of a device at once, if there is a way to; it may be started again.
    func kill(_ device: String) async throws(WireError)
    /// Ends the worker of a device, releases what is stored for it, and forgets its socket.
    func stop(_ device: String) async throws(WireError)
}

/// Managers that see to failing workers themselves need none of these.
extension WorkerUnits {
    var onTrouble: (@Control (_ device: String, _ reason: String) -> Void)? {
        get { nil }
        set {}
    }
    func answered(_ device: String) {}
    func kill(_ device: String) async throws(WireError) {}
}
