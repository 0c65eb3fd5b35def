// SPDX-License-Identifier: Apache-2.0
// An NVMe controller: what it is, its queues, its memory. How it is brought up and taken down is in
// the extensions.
//
// Failure model. The device may answer anything or nothing at any time, and may be gone. So every
// wait is bounded, every register and identify field is checked before it is used, and a completion
// that cannot be right ends the trust in the device (`QueueFault`). The worst outcome of all of
// this is a `DriverError`: the owner then calls `disable`, which asks the controller to stop, and
// ends all requests. Memory that a device might still write is not reused: it stays mapped until
// the device's carrier is closed.

internal import CMemory
public import DMA
internal import Linux
public import NVMeSpec
public import VFIO

/// A controller and its queues. One owner, one thread; calls block, all of them for a bounded time.
@safe
public final class NVMeController {
    /// The device's carrier.
    public let device: any DeviceBacking
    /// What was asked for, within the allowed ranges; after `adopt`: what the predecessor was asked
    /// for.
    public internal(set) var options: ControllerOptions
    /// The state area, which outlives this process.
    public var state: StateArea
    /// CAP as read at bring-up.
    public internal(set) var capabilities = ControllerCapabilities()
    /// VS as read at bring-up.
    public internal(set) var version = SpecificationVersion(rawValue: 0)
    /// Identify Controller as read at bring-up.
    public internal(set) var identify = IdentifyController()
    /// What limits commands.
    public internal(set) var limits = ControllerLimits()
    /// Active namespaces by id.
    public internal(set) var namespaces: [UInt32: NamespaceInfo] = [:]
    /// Active namespaces that were left out because there were too many.
    public internal(set) var namespacesLeftOut = 0
    /// It is a predecessor's, and was not brought up by this process.
    public internal(set) var wasAdopted = false
    /// How long `adopt` took, in nanoseconds.
    public internal(set) var adoptionNanoseconds: UInt64 = 0
    /// The pool is the one that came from the fd store, and the interrupts are: they are there
    /// already.
    public internal(set) var poolIsInherited = false
    /// See `poolIsInherited`.
    public internal(set) var interruptsAreInherited = false
    /// How the device was told of a predecessor's last commands, for each I/O queue.
    public internal(set) var adoptedDoorbells: [AdoptedDoorbell] = []
    /// How long bring-up took.
    public internal(set) var bringUpNanoseconds: UInt64 = 0
    /// Resets of the function by this controller's driver.
    public internal(set) var functionResets = 0
    /// Whether the device has taken the shadow doorbells.
    public internal(set) var hasShadowDoorbells = false
    /// Asynchronous event requests that are with the device.
    public internal(set) var eventRequests = 0
    /// What the controller last said of its health; nil: nothing yet.
    public internal(set) var health: SmartHealth?
    /// A request for the health page is with the device.
    var healthIsRequested = false

    /// Runs something while nobody else touches a queue; where data threads have queues, whoever
    /// started them sets it.
    public var exclusively: (_ queue: Int, _ body: () -> Void) -> Void = { _, body in body() }

    /// Where the memory of the DMA pool comes from when it is made; to be set before `start`.
    public var poolSource = PoolSource.memory

    /// Namespaces beyond this are left out: each costs three admin commands at start.
    public static let maxNamespaces = 1024

    var space: IOVASpace
    var plan: ControllerMemoryPlan?
    var pool: DMAPool?
    var admin: AdminQueue?
    var regions: RegionTable
    var engines: UnsafeMutablePointer<Engine>
    /// I/O queue pairs that exist.
    public internal(set) var queueCount = 0
    var interrupts: [CInt] = []
    /// Private memory of the queues, and words that stand in for doorbells that are not mapped.
    var scratch: [UInt] = []
    var clientMappings: [UInt32: ClientMapping] = [:]
    /// Where the state area has the pages of each namespace, and how many places there may be in
    /// use.
    var namespacePlaces: [UInt32: Int] = [:]
    var inventoryCount = 0
    /// What this controller needs: as configured, or by its id. An adopted device is not asked
    /// before `checkAdoptable`.
    public private(set) lazy var quirks = options.quirks ?? QuirkTable.quirks(of: pciID)
    /// PCI vendor and device; nil: it cannot tell. Looked up once, and not before it may be asked.
    public private(set) lazy var pciID = device.pciID
    /// Nothing is sent by the admin queue until the controller is brought up again: it was taken
    /// over, and is one that does not bear it (`Quirk.noAdminAfterServicing`).
    public internal(set) var adminIsClosed = false
    /// Nothing is sent by the admin queue: the controller was adopted, and no client has got an
    /// answer yet.
    public internal(set) var isQuiet = false
    /// The adopted controller has said that it is the one of before.
    var isIdentified = false

    /// A controller that is not started. The state area must have been made for these options
    /// (`options.stateLayout`).
    public init(
        device: any DeviceBacking, options: ControllerOptions, state: consuming StateArea
    ) throws(DriverError) {
        self.device = device
        space = IOVASpace(ranges: device.addressRanges)
        self.options = options.clamped
        let needed = options.stateLayout
        guard state.layout.queueCount >= needed.queueCount,
            state.layout.slotsPerQueue >= needed.slotsPerQueue
        else {
            throw .unusable(
                field: "state area", value: UInt64(state.layout.slotsPerQueue),
                rule: "it was made for fewer queues or commands than are asked for")
        }
        self.state = state
        do throws(SystemCallError) {
            regions = try RegionTable()
        } catch { throw .system(error) }
        unsafe engines = UnsafeMutablePointer<Engine>.allocate(capacity: 64)
    }

    deinit {
        unsafe engines.deinitialize(count: queueCount)
        unsafe engines.deallocate()
        for (index, address) in scratch.enumerated() where index % 2 == 0 {
            Self.unmap(address, scratch[index + 1])
        }
        for raw in interrupts { _ = OwnedFD(adopting: raw) }
        // What was registered when the device failed. Its carrier has its own hold on the pages.
        for mapping in clientMappings.values { mapping.unmap() }
    }

    // MARK: The data path

    /// The engine of an I/O queue pair, 0…`queueCount` - 1. Valid until the controller is
    /// stopped.
    public func engine(_ index: Int) -> UnsafeMutablePointer<Engine> {
        precondition(index >= 0 && index < queueCount, "no such queue")
        return unsafe engines + index
    }

    /// The eventfd that the device signals for completions of an I/O queue.
    public func interrupt(_ index: Int) -> CInt {
        interrupts.isEmpty ? -1 : interrupts[vector(ofQueue: index + 1)]
    }

    /// The eventfd that the device signals for completions of the admin queue.
    public var adminInterrupt: CInt { interrupts.first ?? -1 }

    /// The eventfds of vectors 0…, for the fd store; empty before bring-up.
    public var interruptDescriptors: [CInt] { interrupts }

    /// The descriptor of the DMA pool's memory file, for the fd store; nil before bring-up.
    public var poolFD: CInt? {
        pool?.fd.raw
    }

    /// Bytes of the DMA pool.
    public var poolByteCount: Int { pool?.byteCount ?? 0 }

    /// Who owns what of the DMA pool, for inspection and for a saved state.
    public var poolSlots: [SlotPool.Slot] { pool?.slots ?? [] }

    /// Where the DMA pool lies; nil before bring-up.
    public var poolPlace: PoolPlace? { pool?.place }

    /// Where the pages of the DMA pool came to lie; nil before bring-up.
    public var poolPlacement: PoolPlacement? { pool?.placement }

    func vector(ofQueue queueID: Int) -> Int {
        interrupts.isEmpty ? 0 : queueID % interrupts.count
    }

    /// Writes doorbells by message where they are not mapped. To be called after `ring` and
    /// `retire`.
    public func writePendingDoorbells(_ index: Int) throws(DriverError) {
        try unsafe writePendingDoorbells(of: engine(index))
    }

    /// The same for an engine at hand: a data thread calls no runtime, not even for the check of
    /// exclusive access that finding the engine takes.
    func writePendingDoorbells(of engine: UnsafeMutablePointer<Engine>) throws(DriverError) {
        try unsafe engine.pointee.queue.writePendingDoorbells(device)
    }

    // MARK: Registers

    func read32(_ offset: UInt64, _ name: String) throws(DriverError) -> UInt32 {
        UInt32(truncatingIfNeeded: try read(offset, 4, name))
    }

    func read64(_ offset: UInt64, _ name: String) throws(DriverError) -> UInt64 {
        try read(offset, 8, name)
    }

    /// All ones are what a bus answers for a device that is not there. No register that this driver
    /// reads may have that value, so that none needs a look of its own.
    private func read(_ offset: UInt64, _ count: Int, _ name: String) throws(DriverError) -> UInt64
    {
        let value: UInt64
        do throws(VFIOError) {
            value = try device.readRegister(offset: Int(offset), byteCount: count)
        } catch { throw .device(error) }
        guard value != UInt64.max >> (64 - UInt64(count) * 8) else { throw .gone(register: name) }
        return value
    }

    func write(_ offset: UInt64, _ count: Int, _ value: UInt64) throws(DriverError) {
        do throws(VFIOError) {
            try device.writeRegister(offset: Int(offset), byteCount: count, value: value)
        } catch { throw .device(error) }
    }

    /// CSTS, or an error when it says that the device is gone, has failed or has stopped.
    @discardableResult
    public func checkStatus() throws(DriverError) -> ControllerStatus {
        try device.checkStatus(during: "operation")
    }

    /// The registers that `inspect` shows, read now.
    public func inspectRegisters() throws(DriverError) -> [(name: String, value: UInt64)] {
        var values: [(name: String, value: UInt64)] = []
        values.append(("cap", try read64(RegisterOffset.cap, "CAP")))
        for (name, offset) in [
            ("vs", RegisterOffset.vs), ("cc", RegisterOffset.cc), ("csts", RegisterOffset.csts),
            ("aqa", RegisterOffset.aqa),
        ] {
            values.append((name, UInt64(try read32(offset, name))))
        }
        return values
    }

    // MARK: Admin commands

    func execute(
        _ entry: SubmissionEntry, _ operation: String, timeoutMilliseconds: Int? = nil
    ) throws(DriverError) -> UInt32 {
        if let refusal = adminRefusal(operation) { throw refusal }
        let answer = try admin?.execute(
            entry, operation: operation, device: device,
            timeoutMilliseconds: timeoutMilliseconds ?? options.adminTimeoutMilliseconds)
        guard let answer else { throw .exhausted("\(operation): there is no admin queue") }
        return answer
    }

    /// Executes a command that writes a page, and copies the page.
    func executeForPage(
        _ entry: SubmissionEntry, _ operation: String, byteCount: Int = 4096
    ) throws(DriverError) -> [UInt8] {
        guard let slice = plan?.adminBuffer, let base = pool?.deviceWritesIOVA,
            let buffer = unsafe pool?.deviceWritesAddress(slice)
        else { throw .exhausted("\(operation): there is no DMA pool") }
        if let refusal = adminRefusal(operation) { throw refusal }
        try admin?.settle(
            operation, device: device, timeoutMilliseconds: options.adminTimeoutMilliseconds)
        // A device that writes less than a page must not leave us the page before.
        for word in 0..<(byteCount / 8) { unsafe nv_store64(buffer + word * 8, 0) }
        var entry = entry
        entry.prp1 = base + UInt64(slice.offset)
        _ = try execute(entry, operation)
        // One copy; nothing is read twice from memory that the device may still write.
        return unsafe [UInt8](UnsafeRawBufferPointer(start: buffer, count: byteCount))
    }

    private static func unmap(_ address: UInt, _ byteCount: UInt) {
        guard let base = unsafe UnsafeMutableRawPointer(bitPattern: address) else { return }
        unsafe Mapping.unmap(base, byteCount: Int(byteCount))
    }
}

extension DeviceBacking {
    /// CSTS of a controller that was brought up, or an error when it says that the device is gone,
    /// has failed or has stopped: what every wait for an answer looks at.
    @discardableResult
    func checkStatus(during operation: String) throws(DriverError) -> ControllerStatus {
        let raw: UInt64
        do throws(VFIOError) {
            raw = try readRegister(offset: Int(RegisterOffset.csts), byteCount: 4)
        } catch { throw .device(error) }
        let status = ControllerStatus(rawValue: UInt32(truncatingIfNeeded: raw))
        guard !status.isGone else { throw .gone(register: "CSTS") }
        guard !status.cfs else {
            throw .fatalStatus(during: operation, status: status.rawValue)
        }
        // A reset by somebody else, or BAR memory that reads as zero: no answer will come.
        guard status.rdy else { throw .stopped(during: operation, status: status.rawValue) }
        return status
    }
}
