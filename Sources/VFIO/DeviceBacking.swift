// SPDX-License-Identifier: Apache-2.0
// The hardware boundary: what the driver asks of whatever carries its PCI device.
//
// Three backings exist: the vfio-user client (a server in another process), kernel VFIO, and the
// null device in this process. Everything here is slow and rare; the queues and, where the backing
// allows it, the doorbells are plain memory.

public import Linux

/// How a device may touch a stretch of memory.
public enum DMAAccess: Sendable {
    /// The device only reads: submission queues, PRP lists.
    case deviceReads
    /// The device reads and writes.
    case deviceReadsAndWrites
}

/// A stretch of a memory file that a device reaches at an I/O virtual address.
@safe
public struct DMAWindow: Sendable {
    /// The device's address of the first byte.
    public let iova: UInt64
    /// The length in bytes, a multiple of 4096.
    public let byteCount: UInt64
    /// Where this process has the same bytes.
    public let base: UInt
    /// What the device may do.
    public let access: DMAAccess

    /// Describes a window; `base` must stay mapped until the window is unmapped.
    public init(iova: UInt64, byteCount: UInt64, base: UnsafeMutableRawPointer, access: DMAAccess) {
        self.iova = iova
        self.byteCount = byteCount
        self.base = UInt(bitPattern: base)
        self.access = access
    }
}

/// A PCI device as VFIO shows it. One owner, one thread.
///
/// Every operation is bounded in time and throws `VFIOError`; `gone` is final.
public protocol DeviceBacking: AnyObject {
    /// For messages: what the device is, as configured.
    var name: String { get }

    /// How many MSI-X vectors there are.
    var vectorCount: Int { get }

    /// Reads 4 or 8 bytes of BAR0.
    func readRegister(offset: Int, byteCount: Int) throws(VFIOError) -> UInt64

    /// Writes 4 or 8 bytes of BAR0.
    func writeRegister(offset: Int, byteCount: Int, value: UInt64) throws(VFIOError)

    /// A pointer through which doorbells can be written as memory: the address of `offset` in BAR0
    /// when all `byteCount` bytes from there are mapped, or nil when a doorbell needs
    /// `writeDoorbell`.
    func mappedRegisters(offset: Int, byteCount: Int) -> UnsafeMutableRawPointer?

    /// Writes a doorbell of a device whose doorbells are not mapped. Does not wait for an answer.
    func writeDoorbell(offset: Int, value: UInt32) throws(VFIOError)

    /// Switches memory space on, so that BAR0 can be read and written.
    func enableMemorySpace() throws(VFIOError)

    /// Switches bus mastering on, so that the device can read and write memory.
    func enableBusMaster() throws(VFIOError)

    /// Makes memory reachable for the device.
    func map(_ window: DMAWindow, fd: borrowing OwnedFD, offset: UInt64) throws(VFIOError)

    /// Takes memory away from the device.
    func unmap(iova: UInt64, byteCount: UInt64) throws(VFIOError)

    /// Connects MSI-X vectors 0… with eventfds. The backing keeps no reference.
    func connectInterrupts(_ eventFDs: [CInt]) throws(VFIOError)

    /// Resets the function.
    func resetDevice() throws(VFIOError)

    /// Descriptors to watch while the device is in use, on which the other side speaks first: a
    /// vfio-user server that asks for DMA by message, or dies; the kernel, which wants the device
    /// back.
    var eventDescriptors: [EventDescriptor] { get }

    /// Handles what waits on `eventDescriptors`, without blocking, and tells what the owner has to
    /// act on. Throws `gone` when the device is.
    func handleEvents() throws(VFIOError) -> [DeviceNotice]

    /// The addresses that the device can reach, rising and apart: where memory may be mapped.
    var addressRanges: [ClosedRange<UInt64>] { get }

    /// For a device without an IOMMU: the physical address of each huge page of a stretch of a
    /// file, which the device uses as they are, and all that it can reach. nil: addresses are
    /// translated, and memory is mapped. Pages that the file does not have yet it has afterwards.
    func physicalAddresses(
        of fd: borrowing OwnedFD, offset: UInt64, byteCount: UInt64
    ) throws(VFIOError) -> [UInt64]?

    /// Whether the device uses physical addresses.
    var usesPhysicalAddresses: Bool { get }

    /// Whether the function still answers its bus; looked up now. A backing that cannot tell says
    /// that it does.
    var isPresent: Bool { get }

    /// Takes away all memory that a predecessor of this process left with the device, which must
    /// have been stopped.
    func forgetMappings() throws(VFIOError)

    /// Waits until one of the device's interrupts was raised on `interrupt`, the backing itself had
    /// something to do, or the time is up. Returns at the latest after `milliseconds`.
    func wait(interrupt: CInt, milliseconds: Int) throws(VFIOError)

    // Going on with the device of a predecessor that died: first `adoptWindow` for all memory that
    // it had made reachable, then `checkAdoptable`, and only then anything else. Nothing of this
    // changes the device.

    /// Notes memory that a predecessor made reachable and that the device reaches still, at the
    /// same address, where this process has it mapped. The device is not asked.
    func adoptWindow(_ window: DMAWindow) throws(VFIOError)

    /// Looks whether the device is as a predecessor of this process used it: it may touch memory,
    /// and its interrupts are armed as they were. Throws why not; a controller can then only be
    /// brought up again.
    func checkAdoptable() throws(VFIOError)

    /// Takes memory away that a predecessor may have been giving or taking when it died: as
    /// `unmap`, and no error when the device does not reach it.
    func unmapIfMapped(iova: UInt64, byteCount: UInt64) throws(VFIOError)

    /// Why the controller would not go on when the last descriptor of the device is closed, and
    /// the device is opened again later; nil: nothing is known against it. Looked up now.
    var reasonLostByClosing: String? { get }

    /// PCI vendor and device; nil: it cannot tell.
    var pciID: PCIDeviceID? { get }
}

/// What kind of device it is: vendor and device of a PCI function.
public struct PCIDeviceID: Sendable, Hashable, CustomStringConvertible {
    /// Who made it.
    public let vendor: UInt16
    /// What it is, by the vendor's own numbers.
    public let device: UInt16

    /// Describes a kind of device.
    public init(vendor: UInt16, device: UInt16) {
        self.vendor = vendor
        self.device = device
    }

    /// The first 32 bits of the configuration space; nil: nothing answers there.
    public init?(_ word: UInt32) {
        guard word != 0, word != .max else { return nil }
        self.init(
            vendor: UInt16(truncatingIfNeeded: word), device: UInt16(truncatingIfNeeded: word >> 16)
        )
    }

    /// As lspci writes it: `1414:b111`.
    public var description: String {
        [vendor, device].map { number in
            let digits = String(number, radix: 16)
            return String(repeating: "0", count: 4 - digits.count) + digits
        }.joined(separator: ":")
    }
}

extension DeviceBacking {
    /// What lives in this process died with its predecessor.
    public func adoptWindow(_ window: DMAWindow) throws(VFIOError) { try checkAdoptable() }

    /// What lives in this process died with its predecessor.
    public func checkAdoptable() throws(VFIOError) {
        throw .unsupported("\(name) did not outlive the worker that used it")
    }

    /// What lives in this process ends with it.
    public var reasonLostByClosing: String? { "\(name) does not outlive whoever uses it" }

    /// Nobody knows.
    public var pciID: PCIDeviceID? { nil }

    /// Nothing can have been left.
    public func unmapIfMapped(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        try unmap(iova: iova, byteCount: byteCount)
    }

    /// All that the device's own address width allows.
    public var addressRanges: [ClosedRange<UInt64>] { [0...((1 << 47) - 1)] }

    /// Addresses are translated.
    public var usesPhysicalAddresses: Bool { false }

    /// Addresses are translated.
    public func physicalAddresses(
        of fd: borrowing OwnedFD, offset: UInt64, byteCount: UInt64
    ) throws(VFIOError) -> [UInt64]? { nil }

    /// Nobody can tell.
    public var isPresent: Bool { true }

    /// Nothing was left.
    public func forgetMappings() throws(VFIOError) {}
}

/// A descriptor that becomes readable when the other side has something to say.
public struct EventDescriptor: Sendable, Equatable {
    /// The descriptor's number; it stays the backing's.
    public let raw: CInt
    /// It is an eventfd that is never read, so that all its watchers hear of every signal: to be
    /// watched for edges.
    public let isNeverRead: Bool

    /// Describes a descriptor.
    public init(raw: CInt, isNeverRead: Bool = false) {
        self.raw = raw
        self.isNeverRead = isNeverRead
    }
}

/// What a device's carrier tells its owner.
public enum DeviceNotice: Sendable, Equatable {
    /// The kernel wants the device back (unbind, hot-unplug): let go of it soon.
    case removalRequested
}
