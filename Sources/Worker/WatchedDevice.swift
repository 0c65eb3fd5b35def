// SPDX-License-Identifier: Apache-2.0
// A device that tells the service manager's watchdog that bring-up, which blocks the loop, is under
// way.

internal import Linux
internal import Systemd
internal import VFIO

/// Passes everything on, and pings while it waits: every wait of the driver is bounded, so that a
/// worker that only waits for its device is well.
final class WatchedDevice: ForwardingDevice {
    let target: any DeviceBacking
    private let notifier = Notifier()
    private let intervalNanoseconds: UInt64
    private var nextPing: UInt64 = 0

    init(_ device: any DeviceBacking) {
        target = device
        intervalNanoseconds = (notifier.watchdogInterval ?? 0) / 4
    }

    private func ping() {
        guard intervalNanoseconds > 0 else { return }
        let now = MonotonicClock.nowNanoseconds
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
