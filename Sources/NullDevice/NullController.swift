// SPDX-License-Identifier: Apache-2.0
// A controller in this process that does nothing and says at once that it is done, like the
// kernel's null_blk. What is left of an I/O is everything around the device.
//
// It speaks NVMe (Base Specification 1.4) as far as the driver asks, with one namespace. Writes,
// reads, comparisons, flushes and the like all succeed and move no byte; what is read is whatever
// the memory held. Doorbells are not mapped: an I/O command is completed within the call of
// `writeDoorbell` that tells of it, so that no interrupt is ever raised.
//
// It cannot be adopted (`checkAdoptable` says so): registers and queue positions live in the
// worker's own memory and die with it. A worker that follows takes the path of a reset: it brings a
// new one up, and what was in flight is sent again, which does no harm to a device that keeps
// nothing. Sessions, rings and registered memory go on as with any other device.

internal import CMemory
public import Linux
internal import NVMeSpec
public import VFIO

/// The null device. Admin queue and registers belong to one thread; each I/O queue to the thread
/// that writes its doorbells, which may be another for each.
@safe
public final class NullController: DeviceBacking {
    /// For messages.
    public let name: String
    /// One for each queue pair: nobody is ever told by them.
    public let vectorCount = queueCount + 1
    /// Nobody speaks first.
    public let eventDescriptors: [EventDescriptor] = []

    /// I/O queue pairs at most.
    public static let queueCount = 64
    /// Bytes of the namespace when nothing else is said: 1 TiB.
    public static let defaultByteCount: UInt64 = 1 << 40
    /// Bytes of a block when nothing else is said.
    public static let defaultBlockByteCount: UInt32 = 512

    /// The last register before the doorbells ends here.
    private static let doorbells = 0x1000
    /// MQES: what the driver takes at most.
    private static let queueEntryCount: UInt64 = 1024
    private static let version = SpecificationVersion(rawValue: 0x0001_0400)

    private let blockByteCount: UInt32
    private let blockCount: UInt64
    /// Queue 0, which is the admin queue, and the I/O queues.
    private let queues: UnsafeMutableRawPointer
    private var windows: [DMAWindow] = []
    private var configuration: UInt64 = 0
    private var adminAttributes: UInt64 = 0
    private var adminSubmission: UInt64 = 0
    private var adminCompletion: UInt64 = 0

    /// A namespace of `byteCount` bytes, rounded down to whole blocks (at least one) of
    /// `blockByteCount` bytes, a power of two from 512 to 65536; other sizes become 512.
    public init(
        name: String, byteCount: UInt64 = defaultByteCount,
        blockByteCount: UInt32 = defaultBlockByteCount
    ) throws(VFIOError) {
        self.name = name
        let isPowerOfTwo = blockByteCount != 0 && blockByteCount & (blockByteCount - 1) == 0
        let isAllowed = isPowerOfTwo && (512...65_536).contains(blockByteCount)
        self.blockByteCount = isAllowed ? blockByteCount : Self.defaultBlockByteCount
        blockCount = max(1, byteCount / UInt64(self.blockByteCount))
        do throws(SystemCallError) {
            let bytes = (Self.queueCount + 1) * NullQueue.strideByteCount
            unsafe queues = try Mapping(anonymous: bytes).leak()
        } catch { throw .system(error) }
    }

    deinit {
        let bytes = (Self.queueCount + 1) * NullQueue.strideByteCount
        unsafe Mapping.unmap(queues, byteCount: bytes)
    }

    @inline(__always)
    private func queue(_ index: Int) -> UnsafeMutablePointer<NullQueue> {
        unsafe (queues + index &* NullQueue.strideByteCount).assumingMemoryBound(
            to: NullQueue.self)
    }

    // MARK: Registers

    /// What the register has; 0 for those that do not matter.
    public func readRegister(offset: Int, byteCount: Int) throws(VFIOError) -> UInt64 {
        switch UInt64(truncatingIfNeeded: offset) {
        case RegisterOffset.cap:
            // MQES, CQR, TO 500 ms, the NVM command set
            (Self.queueEntryCount - 1) | 1 << 16 | 1 << 24 | 1 << 37
        case RegisterOffset.vs: UInt64(Self.version.rawValue)
        case RegisterOffset.cc: configuration
        case RegisterOffset.csts: status
        case RegisterOffset.aqa: adminAttributes
        case RegisterOffset.asq: adminSubmission
        case RegisterOffset.acq: adminCompletion
        default: 0
        }
    }

    /// RDY follows CC.EN, SHST follows CC.SHN, both at once.
    private var status: UInt64 {
        (configuration & 1) | (configuration >> 14 & 3 != 0 ? 2 << 2 : 0)
    }

    /// Takes a register; enabling makes the admin queue, disabling forgets all queues.
    public func writeRegister(offset: Int, byteCount: Int, value: UInt64) throws(VFIOError) {
        switch UInt64(truncatingIfNeeded: offset) {
        case RegisterOffset.cc: configure(value)
        case RegisterOffset.aqa: adminAttributes = value
        case RegisterOffset.asq: adminSubmission = value
        case RegisterOffset.acq: adminCompletion = value
        default: break
        }
    }

    private func configure(_ value: UInt64) {
        let wasEnabled = configuration & 1 != 0
        configuration = value
        guard (value & 1 != 0) != wasEnabled else { return }
        for index in 0...Self.queueCount { unsafe queue(index).pointee = NullQueue() }
        guard !wasEnabled else { return }
        // ASQS and ACQS are zero-based.
        let (submissions, completions) = (
            (adminAttributes & 0xFFF) + 1, (adminAttributes >> 16 & 0xFFF) + 1
        )
        let admin = unsafe NullQueue(
            queueID: 0, submission: memory(adminSubmission, byteCount: submissions * 64),
            completion: memory(adminCompletion, byteCount: completions * 16),
            submissionEntries: UInt32(submissions), completionEntries: UInt32(completions))
        unsafe queue(0).pointee = admin
    }

    // MARK: Doorbells

    /// Doorbells are written by call.
    public func mappedRegisters(offset: Int, byteCount: Int) -> UnsafeMutableRawPointer? { nil }

    /// Completes every command up to the doorbell of a submission queue; the doorbell of a
    /// completion queue changes nothing, because no more is with the device than fits there.
    public func writeDoorbell(offset: Int, value: UInt32) throws(VFIOError) {
        let word = (offset &- Self.doorbells) >> 2
        guard word & 1 == 0, word >= 0, word <= 2 &* Self.queueCount else { return }
        if word == 0 { return serveAdmin(value) }
        unsafe NullQueue.serve(queue(word >> 1), upTo: value)
    }

    private func serveAdmin(_ tail: UInt32) {
        let admin = unsafe queue(0)
        while let command = unsafe admin.pointee.take(upTo: tail) {
            // Nothing ever happens that an event could tell of.
            guard command.adminOpcode != .asynchronousEventRequest else { continue }
            let (status, result) = answer(command)
            unsafe admin.pointee.post(command.commandID, status: status, result: result)
        }
    }

    // MARK: The rest of the boundary

    /// Nothing to do.
    public func enableMemorySpace() throws(VFIOError) {}
    /// Nothing to do.
    public func enableBusMaster() throws(VFIOError) {}
    /// Notes where the memory is.
    public func map(
        _ window: DMAWindow, fd: borrowing OwnedFD, offset: UInt64
    ) throws(VFIOError) { windows.append(window) }
    /// Forgets the memory.
    public func unmap(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        windows.removeAll { $0.iova == iova }
    }
    /// Nobody will be told.
    public func connectInterrupts(_ eventFDs: [CInt]) throws(VFIOError) {}
    /// As after power on.
    public func resetDevice() throws(VFIOError) { configure(0) }
    /// Nothing ever waits.
    public func handleEvents() throws(VFIOError) -> [DeviceNotice] { [] }
    /// Forgets all memory.
    public func forgetMappings() throws(VFIOError) { windows.removeAll() }
    /// Whatever is waited for has happened already.
    public func wait(interrupt: CInt, milliseconds: Int) throws(VFIOError) {}
}

// MARK: Admin commands

extension NullController {
    private typealias Answer = (status: Status, result: UInt32)

    private func answer(_ command: SubmissionEntry) -> Answer {
        switch command.adminOpcode {
        case .identify: return (identify(command), 0)
        case .createIOCompletionQueue: return (createCompletionQueue(command), 0)
        case .createIOSubmissionQueue: return (createSubmissionQueue(command), 0)
        case .deleteIOSubmissionQueue, .deleteIOCompletionQueue:
            return (deleteQueue(command), 0)
        case .getLogPage: return (log(command), 0)
        case .setFeatures, .getFeatures:
            // As many queues as there are, zero-based; the other features change nothing.
            let count = UInt32(Self.queueCount - 1)
            return (.success, command.featureID == .numberOfQueues ? count | count << 16 : 0)
        // Bit 0 set: not aborted, for it has ended.
        case .abort: return (.success, 1)
        case .keepAlive: return (.success, 0)
        default: return (.invalidOpcode, 0)
        }
    }

    private func createCompletionQueue(_ command: SubmissionEntry) -> Status {
        guard let queue = unsafe ioQueue(command) else { return .invalidQueueIdentifier }
        guard let memory = unsafe queueMemory(command, entryByteCount: 16) else {
            return .invalidQueueSize
        }
        unsafe queue.pointee = unsafe NullQueue(
            queueID: command.queueID, submission: nil, completion: memory,
            submissionEntries: 1, completionEntries: command.queueEntryCount)
        return .success
    }

    /// A submission queue completes into the completion queue of its own number.
    private func createSubmissionQueue(_ command: SubmissionEntry) -> Status {
        guard let queue = unsafe ioQueue(command), command.completionQueueID == command.queueID
        else { return .invalidQueueIdentifier }
        guard let memory = unsafe queueMemory(command, entryByteCount: 64) else {
            return .invalidQueueSize
        }
        unsafe queue.pointee.setSubmission(memory, entries: command.queueEntryCount)
        return .success
    }

    private func deleteQueue(_ command: SubmissionEntry) -> Status {
        guard let queue = unsafe ioQueue(command) else { return .invalidQueueIdentifier }
        unsafe queue.pointee = NullQueue()
        return .success
    }

    private func ioQueue(_ command: SubmissionEntry) -> UnsafeMutablePointer<NullQueue>? {
        let id = Int(command.queueID)
        guard id >= 1, id <= Self.queueCount else { return nil }
        return unsafe queue(id)
    }

    private func queueMemory(
        _ command: SubmissionEntry, entryByteCount: UInt64
    ) -> UnsafeMutableRawPointer? {
        let count = UInt64(command.queueEntryCount)
        guard count >= 2, count <= Self.queueEntryCount, count & (count - 1) == 0 else {
            return nil
        }
        return unsafe memory(command.prp1, byteCount: count * entryByteCount)
    }

    /// Memory of the driver's, all of it within one window.
    private func memory(_ address: UInt64, byteCount: UInt64) -> UnsafeMutableRawPointer? {
        for window in windows
        where address >= window.iova && address - window.iova <= window.byteCount
            && byteCount <= window.byteCount - (address - window.iova)
        {
            return unsafe UnsafeMutableRawPointer(
                bitPattern: window.base + UInt(address - window.iova))
        }
        return nil
    }

    // MARK: Pages

    private func identify(_ command: SubmissionEntry) -> Status {
        switch command.identifyCNS {
        case .controller: return write(controllerPage.encode(), command.prp1)
        case .namespace where command.namespaceID == 1:
            return write(namespacePage.encode(), command.prp1)
        case .namespace: return write([UInt8](repeating: 0, count: 4096), command.prp1)
        case .activeNamespaceList:
            let ids: [UInt32] = command.namespaceID < 1 ? [1] : []
            return write(
                NamespaceList(ids, after: command.namespaceID).encode(), command.prp1)
        case .namespaceDescriptors:
            return write([UInt8](repeating: 0, count: 4096), command.prp1)
        default: return .invalidField
        }
    }

    private var controllerPage: IdentifyController {
        var page = IdentifyController()
        page.sn = String(decoding: name.utf8.prefix(20), as: UTF8.self)
        page.mn = "nvmed null device"
        page.fr = "1"
        page.ver = Self.version
        page.cntrltype = 1
        page.acl = 3
        page.aerl = 3
        page.sqes = 0x66
        page.cqes = 0x44
        page.nn = 1
        page.oncs =
            OptionalNVMCommands([.compare, .datasetManagement, .writeZeroes, .verify]).rawValue
        return page
    }

    private var namespacePage: IdentifyNamespace {
        var page = IdentifyNamespace()
        page.nsze = blockCount
        page.ncap = blockCount
        page.lbaf[0] = LBAFormat(lbads: UInt8(blockByteCount.trailingZeroBitCount))
        return page
    }

    private func log(_ command: SubmissionEntry) -> Status {
        let count = Int(min(command.logByteCount, 4096))
        switch command.logPageID {
        case .smartHealth:
            var page = SmartHealth()
            page.compositeTemperature = 300
            page.availableSpare = 100
            return write(Array(page.encode().prefix(count)), command.prp1)
        case .errorInformation, .firmwareSlot:
            return write([UInt8](repeating: 0, count: count), command.prp1)
        default: return .invalidLogPage
        }
    }

    /// Writes a page, which may not cross into a second one.
    private func write(_ bytes: [UInt8], _ address: UInt64) -> Status {
        guard UInt64(bytes.count) <= 4096 - (address & 4095),
            let target = unsafe memory(address, byteCount: UInt64(bytes.count))
        else { return .invalidField }
        for (index, byte) in bytes.enumerated() { unsafe nv_store8(target + index, byte) }
        return .success
    }
}
