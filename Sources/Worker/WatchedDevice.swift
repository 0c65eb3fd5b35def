// SPDX-License-Identifier: Apache-2.0
// A device that tells the service manager's watchdog that bring-up, which blocks the loop, is under
// way.

internal import Linux
internal import Systemd
internal import VFIO

/// Sees to what is due while the loop stands still.
final class PauseWatch {
    var look: () -> Void = {}
}

/// Passes everything on, and pings while it waits: every wait of the driver is bounded, so that a
/// worker that only waits for its device is well.
final class WatchedDevice: ForwardingDevice {
    let target: any DeviceBacking
    private let notifier = Notifier()
    private let intervalNanoseconds: UInt64
    private var nextPing: UInt64 = 0
    private let pause: PauseWatch?
    private var nextLook: UInt64 = 0
    /// How often is looked whether the sessions have to be told that they wait.
    private static let lookNanoseconds: UInt64 = 50_000_000

    init(_ device: any DeviceBacking, _ pause: PauseWatch? = nil) {
        target = device
        self.pause = pause
        intervalNanoseconds = (notifier.watchdogInterval ?? 0) / 4
    }

    private func ping() {
        let now = MonotonicClock.nowNanoseconds
        if let pause, now >= nextLook {
            nextLook = now &+ Self.lookNanoseconds
            pause.look()
        }
        guard intervalNanoseconds > 0 else { return }
        guard now >= nextPing else { return }
        nextPing = now &+ intervalNanoseconds
        _ = try? notifier.watchdog()
    }

    func readRegister(offset: Int, byteCount: Int) throws(VFIOError) -> UInt64 {
        ping()
        return try target.readRegister(offset: offset, byteCount: byteCount)
    }

    func wait(interrupt: CInt, milliseconds: Int) throws(VFIOError) {
        ping()
        try target.wait(interrupt: interrupt, milliseconds: milliseconds)
    }
}
