// SPDX-License-Identifier: Apache-2.0
// A PCI device behind kernel VFIO: BAR0, configuration space, interrupts, memory.
//
// Nothing here opens a device: the descriptors come from `KernelVFIO`, from the opener, or from the
// fd store. A device that is surprise-removed raises SIGBUS or reads as all ones; both become
// `gone`.

internal import CLinux
internal import CMemory
internal import Glibc
public import Linux

/// A device of the kernel's VFIO.
@safe
public final class KernelVFIODevice: DeviceBacking {
    /// Registers and doorbells beyond this are not mapped: 2 × 65536 queues × 4 bytes and the
    /// registers.
    private static let maxMappedByteCount: UInt64 = 1 << 20

    /// What the device is, as configured.
    public let name: String
    /// How many MSI-X vectors there are.
    public private(set) var vectorCount = 0
    /// Where memory may be mapped.
    public private(set) var addressRanges: [ClosedRange<UInt64>] = []
    /// The interface that it was opened through.
    public var interface: VFIOInterface { descriptors.interface }

    /// Finds physical addresses; nil: this process may look itself.
    public var translate:
        ((borrowing OwnedFD, _ offset: UInt64, _ byteCount: UInt64) throws(VFIOError) -> [UInt64])?

    private let kernel: any KernelCalls
    private let descriptors: VFIODescriptors
    private let events: DeviceEvents
    private var origin: DeviceOrigin
    private var registers: DeviceRegion
    private var configuration: DeviceRegion
    private var areas: [MappedRegisters] = []
    private var failure: VFIOError?

    /// Takes over the descriptors of a device; what is done to it at once depends on `origin`.
    public convenience init(
        _ descriptors: consuming VFIODescriptors, events: consuming DeviceEvents, name: String,
        origin: DeviceOrigin
    ) throws(VFIOError) {
        try self.init(
            descriptors, events: events, name: name, origin: origin, kernel: RunningKernel())
    }

    init(
        _ descriptors: consuming VFIODescriptors, events: consuming DeviceEvents, name: String,
        origin: DeviceOrigin, kernel: any KernelCalls
    ) throws(VFIOError) {
        self.name = name
        self.kernel = kernel
        self.origin = origin
        let device = descriptors.device.raw
        try Self.checkDevice(device, kernel)
        registers = try Self.region(KernelVFIONumbers.regionBAR0, of: device, kernel)
        configuration = try Self.region(KernelVFIONumbers.regionConfig, of: device, kernel)
        guard registers.byteCount >= 0x1008 else {
            throw .unsupported("BAR0 of \(registers.byteCount) bytes is no NVMe BAR")
        }
        self.descriptors = descriptors
        self.events = events
        if origin == .inherited { try setCommand(clear: Self.busMaster) }
        let space = PCIConfiguration(try readConfiguration(offset: 0, byteCount: 256))
        vectorCount = try Self.vectors(of: device, kernel)
        for area in registers.mappable(
            below: Self.maxMappedByteCount, avoiding: space.vectorTable)
        {
            map(area)
        }
        addressRanges = try self.descriptors.ranges(kernel)
        // A live device's are connected, as its interrupts are, and stay so.
        if origin != .live { connectEvents() }
    }

    deinit { for area in areas { area.unmap() } }

    // MARK: What the kernel says

    private static func checkDevice(
        _ device: CInt, _ kernel: any KernelCalls
    ) throws(VFIOError) {
        let info = try kernel.information(device, .device)
        let reader = ByteReader(info)
        guard let flags = reader.u32(4), let regions = reader.u32(8), let irqs = reader.u32(12),
            flags & KernelVFIONumbers.deviceFlagPCI != 0,
            regions > KernelVFIONumbers.regionConfig, irqs > KernelVFIONumbers.irqMSIX
        else { throw .unsupported("the descriptor is no PCI device of VFIO") }
    }

    private static func region(
        _ index: UInt32, of device: CInt, _ kernel: any KernelCalls
    ) throws(VFIOError) -> DeviceRegion {
        let info = try kernel.information(device, .region(index))
        guard let region = DeviceRegion(info) else {
            throw .unsupported("the kernel does not describe region \(index)")
        }
        return region
    }

    private static func vectors(
        of device: CInt, _ kernel: any KernelCalls
    ) throws(VFIOError) -> Int {
        let info = try kernel.information(device, .interrupt(KernelVFIONumbers.irqMSIX))
        let reader = ByteReader(info)
        guard let flags = reader.u32(4), let count = reader.u32(12),
            flags & KernelVFIONumbers.irqFlagEventFD != 0
        else { return 0 }
        return Int(min(count, KernelVFIONumbers.maxVectorCount))
    }

    /// Maps an area of BAR0; one that cannot be mapped is read and written through the file.
    private func map(_ area: DeviceRegion.Area) {
        let (position, overflow) = registers.fileOffset.addingReportingOverflow(area.offset)
        guard !overflow, let position = Int64(exactly: position),
            let mapping = try? kernel.map(
                descriptors.device, at: position, byteCount: Int(area.byteCount))
        else { return }
        areas.append(MappedRegisters(offset: Int(area.offset), mapping: mapping))
    }

    // MARK: Registers

    /// The address of mapped BAR0 bytes, or nil.
    public func mappedRegisters(offset: Int, byteCount: Int) -> UnsafeMutableRawPointer? {
        guard let area = area(offset, byteCount) else { return nil }
        return unsafe area.base + (offset - area.offset)
    }

    private func area(_ offset: Int, _ byteCount: Int) -> MappedRegisters? {
        areas.first {
            $0.offset <= offset && offset &- $0.offset <= $0.byteCount - byteCount
        }
    }

    /// Reads 4 or 8 bytes of BAR0; 8 as two halves, the lower first, which every device takes.
    public func readRegister(offset: Int, byteCount: Int) throws(VFIOError) -> UInt64 {
        let low = try readHalf(offset)
        guard byteCount == 8 else { return UInt64(low) }
        return UInt64(low) | UInt64(try readHalf(offset + 4)) << 32
    }

    /// Writes 4 or 8 bytes of BAR0; 8 as two halves, the lower first.
    public func writeRegister(offset: Int, byteCount: Int, value: UInt64) throws(VFIOError) {
        try writeHalf(offset, UInt32(truncatingIfNeeded: value))
        if byteCount == 8 { try writeHalf(offset + 4, UInt32(truncatingIfNeeded: value >> 32)) }
    }

    /// Writes a doorbell through the device's file.
    public func writeDoorbell(offset: Int, value: UInt32) throws(VFIOError) {
        try writeHalf(offset, value)
    }

    private func readHalf(_ offset: Int) throws(VFIOError) -> UInt32 {
        if let failure { throw failure }
        guard let area = area(offset, 4) else {
            let bytes = try read(registers, offset, 4)
            return ByteReader(bytes).u32(0) ?? .max
        }
        let value = unsafe nv_load32(area.base + (offset - area.offset))
        try check(area)
        return value
    }

    private func writeHalf(_ offset: Int, _ value: UInt32) throws(VFIOError) {
        if let failure { throw failure }
        guard let area = area(offset, 4) else {
            var writer = ByteWriter()
            writer.u32(value)
            return try write(registers, offset, writer.bytes)
        }
        unsafe nv_store32(area.base + (offset - area.offset), value)
        try check(area)
    }

    /// A fault put private memory in the place of the registers.
    private func check(_ area: MappedRegisters) throws(VFIOError) {
        guard area.faultCount > 0 else { return }
        throw fail(.gone("BAR0 is not there any more (SIGBUS)"))
    }

    private func fail(_ error: VFIOError) -> VFIOError {
        failure = failure ?? error
        return error
    }

    // MARK: Configuration space

    /// Bits of the command register (PCI Local Bus 3.0, 6.2.2).
    private static let memorySpace: UInt16 = 0x2
    private static let busMaster: UInt16 = 0x4
    private static let interruptDisable: UInt16 = 0x400

    /// Sets memory space enable and interrupt disable in the command register.
    public func enableMemorySpace() throws(VFIOError) {
        try setCommand(set: Self.memorySpace | Self.interruptDisable)
    }

    /// Sets bus master enable in the command register.
    public func enableBusMaster() throws(VFIOError) { try setCommand(set: Self.busMaster) }

    private func setCommand(set: UInt16 = 0, clear: UInt16 = 0) throws(VFIOError) {
        let bytes = try readConfiguration(offset: 4, byteCount: 2)
        guard let command = ByteReader(bytes).u16(0), command != 0xFFFF else {
            throw fail(.gone("the configuration space reads as all ones"))
        }
        var writer = ByteWriter()
        writer.u16(command & ~clear | set)
        try write(configuration, 4, writer.bytes)
    }

    /// The status register always has zeroes. The ids say nothing: the kernel answers those itself.
    public var isPresent: Bool {
        guard failure == nil, let bytes = try? readConfiguration(offset: 6, byteCount: 2) else {
            return false
        }
        return ByteReader(bytes).u16(0) != .max
    }

    private func readConfiguration(offset: Int, byteCount: Int) throws(VFIOError) -> [UInt8] {
        try read(configuration, offset, byteCount)
    }

    // MARK: The device's file

    private func position(
        _ region: DeviceRegion, _ offset: Int, _ byteCount: Int
    ) throws(VFIOError) -> Int64 {
        let start = UInt64(clamping: offset)
        let (end, wraps) = start.addingReportingOverflow(UInt64(clamping: byteCount))
        let (position, overflow) = region.fileOffset.addingReportingOverflow(start)
        guard offset >= 0, !wraps, end <= region.byteCount, !overflow,
            let position = Int64(exactly: position)
        else { throw .unsupported("offset \(offset) is outside of the device's region") }
        return position
    }

    private func read(
        _ region: DeviceRegion, _ offset: Int, _ byteCount: Int
    ) throws(VFIOError) -> [UInt8] {
        let position = try position(region, offset, byteCount)
        var bytes = [UInt8](repeating: 0xFF, count: byteCount)
        let count = kernel.read(descriptors.device.raw, &bytes, at: position)
        guard count == byteCount else { throw refused("read of the device", count) }
        return bytes
    }

    private func write(
        _ region: DeviceRegion, _ offset: Int, _ bytes: [UInt8]
    ) throws(VFIOError) {
        let position = try position(region, offset, bytes.count)
        let count = kernel.write(descriptors.device.raw, bytes, at: position)
        guard count == bytes.count else { throw refused("write to the device", count) }
    }

    private func refused(_ operation: String, _ count: Int) -> VFIOError {
        guard count < 0 else { return .protocolViolation(operation: operation, detail: "short") }
        let error = SystemCallError(operation, errno: CInt(clamping: -count))
        return error.errno == ENODEV ? fail(.gone(error.description)) : .system(error)
    }

    // MARK: Memory, interrupts, reset

    /// Pins memory and makes it reachable. The descriptor is not needed: the IOMMU takes what is
    /// mapped here.
    public func map(_ window: DMAWindow, fd: borrowing OwnedFD, offset: UInt64) throws(VFIOError) {
        if let failure { throw failure }
        do throws(VFIOError) {
            try descriptors.map(window, kernel)
        } catch { throw Self.explained(error, window.byteCount, Process.lockedMemoryLimit) }
    }

    /// The kernel says ENOMEM for a limit, too.
    static func explained(_ error: VFIOError, _ byteCount: UInt64, _ limit: UInt64?) -> VFIOError {
        guard case .system(let cause) = error, cause.errno == ENOMEM, let limit else {
            return error
        }
        return .system(
            SystemCallError(
                "pinning \(byteCount) bytes for the device, where \(limit) may be locked in all "
                    + "(LimitMEMLOCK= of the worker's unit, ulimit -l)", errno: ENOMEM))
    }

    /// Takes memory away; when this returns the device cannot reach it.
    public func unmap(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        try descriptors.unmap(iova: iova, byteCount: byteCount, kernel)
    }

    /// Without an IOMMU the device uses physical addresses.
    public var usesPhysicalAddresses: Bool { interface == .noiommu }

    /// Asks whoever may know.
    public func physicalAddresses(
        of fd: borrowing OwnedFD, offset: UInt64, byteCount: UInt64
    ) throws(VFIOError) -> [UInt64]? {
        guard usesPhysicalAddresses else { return nil }
        guard let translate else {
            return try PhysicalMemory.addresses(of: fd, offset: offset, byteCount: byteCount)
        }
        return try translate(fd, offset, byteCount)
    }

    /// Takes away what a predecessor mapped.
    public func forgetMappings() throws(VFIOError) {
        guard origin != .fresh else { return }
        try descriptors.unmapAll(kernel)
    }

    // MARK: Going on with a live device

    /// The IOMMU has it mapped still, for it was told of pages and not of this process.
    public func adoptWindow(_ window: DMAWindow) throws(VFIOError) {
        if let failure { throw failure }
        guard origin == .live else { throw Self.notLive }
    }

    /// Memory space and bus master are on: nobody reset the function, or had it reset.
    public func checkAdoptable() throws(VFIOError) {
        if let failure { throw failure }
        guard origin == .live else { throw Self.notLive }
        let bytes = try readConfiguration(offset: 4, byteCount: 2)
        guard let command = ByteReader(bytes).u16(0), command != 0xFFFF else {
            throw fail(.gone("the configuration space reads as all ones"))
        }
        let needed = Self.memorySpace | Self.busMaster
        guard command & needed == needed else {
            throw .unsupported(
                "the command register is 0x\(String(command, radix: 16)): the function was reset, "
                    + "or kept from touching memory")
        }
    }

    /// Takes memory away, when the device has it.
    public func unmapIfMapped(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        try descriptors.unmap(iova: iova, byteCount: byteCount, kernel, orNothing: true)
    }

    private static let notLive = VFIOError.unsupported("the device is not a predecessor's")

    /// Connects MSI-X vectors 0… with eventfds. The kernel keeps a reference to each.
    public func connectInterrupts(_ eventFDs: [CInt]) throws(VFIOError) {
        guard eventFDs.count <= vectorCount else {
            throw .unsupported("\(eventFDs.count) vectors are more than \(vectorCount)")
        }
        // Vectors of a predecessor, of which there may be more.
        setInterrupts(KernelVFIONumbers.irqMSIX, [])
        try KernelVFIO.call(
            "VFIO_DEVICE_SET_IRQS (MSI-X)", setInterrupts(KernelVFIONumbers.irqMSIX, eventFDs))
    }

    @discardableResult
    private func setInterrupts(_ index: UInt32, _ eventFDs: [CInt]) -> Int64 {
        kernel.request(
            descriptors.device.raw, .setInterrupts(index: index, eventFDs: eventFDs))
    }

    /// Resets the function, where the kernel may.
    public func resetDevice() throws(VFIOError) {
        if let failure { throw failure }
        try KernelVFIO.call("VFIO_DEVICE_RESET", kernel.request(descriptors.device.raw, .reset))
    }

    // MARK: Events

    /// Not every function reports errors; without the request nobody hears of an unbind, which then
    /// waits for the worker's end.
    private func connectEvents() {
        setInterrupts(KernelVFIONumbers.irqError, [events.error.raw])
        setInterrupts(KernelVFIONumbers.irqRequest, [events.request.raw])
    }

    /// The eventfds of errors and of the kernel's request to give the device back.
    public var eventDescriptors: [EventDescriptor] {
        [
            EventDescriptor(raw: events.error.raw),
            EventDescriptor(raw: events.request.raw, isNeverRead: true),
        ]
    }

    /// Tells what was signalled. A request is never read: it stays for whoever watches as well,
    /// and for a successor.
    public func handleEvents() throws(VFIOError) -> [DeviceNotice] {
        if let failure { throw failure }
        for area in areas { try check(area) }
        if nv_eventfd_drain(events.error.raw) > 0 {
            throw .deviceError("the PCI function reported an error (AER)")
        }
        return nv_poll1(events.request.raw, NV_POLLIN, 0) > 0 ? [.removalRequested] : []
    }

    /// Waits for an interrupt.
    public func wait(interrupt: CInt, milliseconds: Int) throws(VFIOError) {
        var descriptor = pollfd(fd: interrupt, events: Int16(POLLIN), revents: 0)
        _ = unsafe poll(&descriptor, 1, CInt(clamping: milliseconds))
        for area in areas { try check(area) }
    }

    // MARK: For the fd store and the supervisor

    /// Whether it is known to be gone.
    public var isGone: Bool { failure != nil }

    /// What the last close of a function does to it (vfio_pci_core_disable of Linux 5.15 to 6.15,
    /// without reading it all again): bus master off, interrupts disconnected, the function reset
    /// if the reset at its opening succeeded; then, when no function of its slot or bus is open any
    /// more, that slot or bus is reset, where that is possible. What its registers say stays where
    /// nothing was reset; nothing answers in D3hot, for which the opener sees to `power/control`.
    public var reasonLostByClosing: String? {
        if let failure { return failure.description }
        if let interfaceReason { return interfaceReason }
        guard let info = try? kernel.information(descriptors.device.raw, .device),
            let flags = ByteReader(info).u32(4)
        else { return "the kernel does not describe the device" }
        guard flags & KernelVFIONumbers.deviceFlagReset == 0 else {
            return "the kernel resets the function when it is closed: its reset_method was not "
                + "empty when it was opened (nvme_always_flr=, or a reset that was needed)"
        }
        guard kernel.request(descriptors.device.raw, .hotResetInformation) < 0 else {
            return "the kernel may reset the bus behind its port when it is closed: this kernel "
                + "does not regard reset_method there (Linux 6.15 and its stable versions do)"
        }
        return nil
    }

    /// Behind an IOMMU all mappings go away with the last close.
    private var interfaceReason: String? {
        guard interface != .noiommu else { return nil }
        return "behind an IOMMU (\(interface.rawValue)) it loses its memory when it is closed; "
            + "only with IOMMU=noiommu it goes on across a full stop"
    }

    /// Vendor and device, as the kernel tells them.
    public var pciID: PCIDeviceID? {
        guard let bytes = try? readConfiguration(offset: 0, byteCount: 4) else { return nil }
        return ByteReader(bytes).u32(0).flatMap { PCIDeviceID($0) }
    }

    /// Prepares for another bring-up: the device touches no memory until it is asked to, and what
    /// is mapped is taken away by `forgetMappings`.
    public func beginAgain() throws(VFIOError) {
        if let failure { throw failure }
        if origin == .live { connectEvents() }
        origin = .inherited
        try setCommand(clear: Self.busMaster)
    }

    /// The descriptors that a successor needs, with the names they are stored under.
    public var kept: [(name: String, raw: CInt)] {
        var all = descriptors.kept
        all.append(("vfio-err", events.error.raw))
        all.append(("vfio-req", events.request.raw))
        return all
    }

    /// The device and the eventfd of requests, for whoever watches over the worker.
    public var watched: [CInt] { [descriptors.device.raw, events.request.raw] }
}

/// What was done to a device before this process has it.
public enum DeviceOrigin: Sendable {
    /// Nothing: it was just opened.
    case fresh
    /// A predecessor used it, and it is to be brought up again: at once it is kept from touching
    /// memory.
    case inherited
    /// A predecessor used it, and it works on: nothing is done to it that it could notice.
    case live
}

/// The eventfds by which the kernel speaks first.
public struct DeviceEvents: ~Copyable, Sendable {
    /// The function reported an error.
    public let error: OwnedFD
    /// The kernel wants the device back.
    public let request: OwnedFD

    /// Takes over a predecessor's; makes those that are missing.
    public init(
        error: consuming OwnedFD? = nil, request: consuming OwnedFD? = nil
    ) throws(VFIOError) {
        let error = try Self.make(error)
        let request = try Self.make(request)
        self.error = error
        self.request = request
    }

    private static func make(_ found: consuming OwnedFD?) throws(VFIOError) -> OwnedFD {
        switch consume found {
        case .some(let fd): return fd
        case .none:
            let raw = try KernelVFIO.call("eventfd", Int64(nv_eventfd()))
            return OwnedFD(adopting: CInt(clamping: raw))
        }
    }
}

/// A mapped stretch of BAR0. Lives as long as its device.
@safe
private struct MappedRegisters {
    let offset: Int
    let byteCount: Int
    let base: UnsafeMutableRawPointer
    private let guardNumber: CInt

    init(offset: Int, mapping: consuming Mapping) {
        self.offset = offset
        byteCount = mapping.byteCount
        unsafe base = mapping.leak()
        guardNumber = unsafe nv_guard_add(base, byteCount, 4096)
    }

    var faultCount: UInt32 { nv_guard_faults(guardNumber) }

    func unmap() {
        nv_guard_remove(guardNumber)
        unsafe Mapping.unmap(base, byteCount: byteCount)
    }
}
