// SPDX-License-Identifier: Apache-2.0
// A device that tells the service manager's watchdog that bring-up, which blocks the loop, is under
// way.

internal import Linux
internal import Systemd
internal import VFIO

/// Passes everything on, and pings while it waits: every wait of the driver is bounded, so that a
/// worker that only waits for its device is well.
final class WatchedDevice: DeviceBacking {
    private let device: any DeviceBacking
    private let notifier = Notifier()
    private let intervalNanoseconds: UInt64
    private var nextPing: UInt64 = 0

    init(_ device: any DeviceBacking) {
        self.device = device
        intervalNanoseconds = (notifier.watchdogInterval ?? 0) / 4
    }

    private func ping() {
        guard intervalNanoseconds > 0 else { return }
        let now = MonotonicClock.nowNanoseconds
        guard now >= nextPing else { return }
        nextPing = now &+ intervalNanoseconds
        _ = try? notifier.watchdog()
    }

    var name: String { device.name }
    var vectorCount: Int { device.vectorCount }
    var eventDescriptors: [EventDescriptor] { device.eventDescriptors }
    var isPresent: Bool { device.isPresent }
    var addressRanges: [ClosedRange<UInt64>] { device.addressRanges }

    func readRegister(offset: Int, byteCount: Int) throws(VFIOError) -> UInt64 {
        ping()
        return try device.readRegister(offset: offset, byteCount: byteCount)
    }

    func writeRegister(offset: Int, byteCount: Int, value: UInt64) throws(VFIOError) {
        try device.writeRegister(offset: offset, byteCount: byteCount, value: value)
    }

    func mappedRegisters(offset: Int, byteCount: Int) -> UnsafeMutableRawPointer? {
        unsafe device.mappedRegisters(offset: offset, byteCount: byteCount)
    }

    func writeDoorbell(offset: Int, value: UInt32) throws(VFIOError) {
        try device.writeDoorbell(offset: offset, value: value)
    }

    func enableMemorySpace() throws(VFIOError) { try device.enableMemorySpace() }
    func enableBusMaster() throws(VFIOError) { try device.enableBusMaster() }

    func map(_ window: DMAWindow, fd: borrowing OwnedFD, offset: UInt64) throws(VFIOError) {
        try device.map(window, fd: fd, offset: offset)
    }

    func unmap(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        try device.unmap(iova: iova, byteCount: byteCount)
    }

    func connectInterrupts(_ eventFDs: [CInt]) throws(VFIOError) {
        try device.connectInterrupts(eventFDs)
    }

    func resetDevice() throws(VFIOError) { try device.resetDevice() }

    func handleEvents() throws(VFIOError) -> [DeviceNotice] { try device.handleEvents() }

    var usesPhysicalAddresses: Bool { device.usesPhysicalAddresses }

    func physicalAddresses(
        of fd: borrowing OwnedFD, byteCount: UInt64
    ) throws(VFIOError) -> [UInt64]? {
        try device.physicalAddresses(of: fd, byteCount: byteCount)
    }

    func forgetMappings() throws(VFIOError) { try device.forgetMappings() }

    func wait(interrupt: CInt, milliseconds: Int) throws(VFIOError) {
        ping()
        try device.wait(interrupt: interrupt, milliseconds: milliseconds)
    }
}
