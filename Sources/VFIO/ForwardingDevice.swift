// SPDX-License-Identifier: Apache-2.0
// A device that passes on what it is asked to another one: what wrappers and the doubles of tests
// have in common, so that a new operation of `DeviceBacking` cannot be forgotten in one of them.

public import Linux

/// Passes everything on to `target`; an implementation replaces what it wants to see or to change.
public protocol ForwardingDevice: DeviceBacking {
    /// The device that is asked.
    var target: any DeviceBacking { get }
}

extension ForwardingDevice {
    /// Passed on.
    public var name: String { target.name }
    /// Passed on.
    public var vectorCount: Int { target.vectorCount }
    /// Passed on.
    public var eventDescriptors: [EventDescriptor] { target.eventDescriptors }
    /// Passed on.
    public var addressRanges: [ClosedRange<UInt64>] { target.addressRanges }
    /// Passed on.
    public var usesPhysicalAddresses: Bool { target.usesPhysicalAddresses }
    /// Passed on.
    public var isPresent: Bool { target.isPresent }

    /// Passed on.
    public func readRegister(offset: Int, byteCount: Int) throws(VFIOError) -> UInt64 {
        try target.readRegister(offset: offset, byteCount: byteCount)
    }

    /// Passed on.
    public func writeRegister(offset: Int, byteCount: Int, value: UInt64) throws(VFIOError) {
        try target.writeRegister(offset: offset, byteCount: byteCount, value: value)
    }

    /// Passed on.
    public func mappedRegisters(offset: Int, byteCount: Int) -> UnsafeMutableRawPointer? {
        unsafe target.mappedRegisters(offset: offset, byteCount: byteCount)
    }

    /// Passed on.
    public func writeDoorbell(offset: Int, value: UInt32) throws(VFIOError) {
        try target.writeDoorbell(offset: offset, value: value)
    }

    /// Passed on.
    public func enableMemorySpace() throws(VFIOError) { try target.enableMemorySpace() }

    /// Passed on.
    public func enableBusMaster() throws(VFIOError) { try target.enableBusMaster() }

    /// Passed on.
    public func map(_ window: DMAWindow, fd: borrowing OwnedFD, offset: UInt64) throws(VFIOError) {
        try target.map(window, fd: fd, offset: offset)
    }

    /// Passed on.
    public func unmap(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        try target.unmap(iova: iova, byteCount: byteCount)
    }

    /// Passed on.
    public func connectInterrupts(_ eventFDs: [CInt]) throws(VFIOError) {
        try target.connectInterrupts(eventFDs)
    }

    /// Passed on.
    public func resetDevice() throws(VFIOError) { try target.resetDevice() }

    /// Passed on.
    public func handleEvents() throws(VFIOError) -> [DeviceNotice] { try target.handleEvents() }

    /// Passed on.
    public func physicalAddresses(
        of fd: borrowing OwnedFD, offset: UInt64, byteCount: UInt64
    ) throws(VFIOError) -> [UInt64]? {
        try target.physicalAddresses(of: fd, offset: offset, byteCount: byteCount)
    }

    /// Passed on.
    public func forgetMappings() throws(VFIOError) { try target.forgetMappings() }

    /// Passed on.
    public func wait(interrupt: CInt, milliseconds: Int) throws(VFIOError) {
        try target.wait(interrupt: interrupt, milliseconds: milliseconds)
    }

    /// Passed on.
    public func adoptWindow(_ window: DMAWindow) throws(VFIOError) {
        try target.adoptWindow(window)
    }

    /// Passed on.
    public var reasonLostByClosing: String? { target.reasonLostByClosing }
    /// Passed on.
    public var pciID: PCIDeviceID? { target.pciID }

    /// Passed on.
    public func checkAdoptable() throws(VFIOError) { try target.checkAdoptable() }

    /// Passed on.
    public func unmapIfMapped(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        try target.unmapIfMapped(iova: iova, byteCount: byteCount)
    }
}
