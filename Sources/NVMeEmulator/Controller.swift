// SPDX-License-Identifier: Apache-2.0
// The controller: its state, and what changes all of it (enable, reset, shutdown, fatal status).
// NVM Express Base Specification 2.0, sections 3.1.3, 3.5 and 3.6.

internal import CLinux
internal import CMemory
internal import Linux
internal import NVMeSpec

/// An NVMe controller over an address space, without any transport.
///
/// Whoever owns it writes registers, calls `pass` as long as there is work, and asks
/// `prepareToSleep` before waiting. One thread only.
@safe
final class Controller {
    /// Asynchronous Event Requests that may be outstanding (AERL + 1).
    static let maxEventRequests = 4
    /// Commands held back at once; more than any queue has would be a leak.
    static let maxHeldCommands = 65536
    /// The byte count of the doorbell page.
    static let doorbellByteCount = 4096
    /// The scratch page for admin data and copied PRP lists; the largest memory page is 64 KiB.
    static let scratchByteCount = 65536

    let options: EmulatorOptions
    /// What it says of itself; a test may make another controller of it.
    var identity: (serial: String, model: String)
    let memory = AddressSpace()
    let interrupts: Interrupts
    var faults: FaultPlan
    var counters = Counters()

    // Registers.
    var cap: ControllerCapabilities
    var cc = ControllerConfiguration()
    var csts = ControllerStatus()
    var aqa = AdminQueueAttributes()
    var asq: UInt64 = 0
    var acq: UInt64 = 0
    var isGone = false
    var isBusMaster = true
    /// When CSTS.RDY follows CC.EN; nil when nothing is being waited for.
    var readyAtNanoseconds: UInt64?

    // Queues. Index 0 is the admin pair.
    let submission: Table<SubmissionQueue>
    let completion: Table<CompletionQueue>
    /// The I/O submission queues that exist.
    var activeQueues: [UInt16] = []
    /// Completion queues with entries of this pass.
    let dirty: Table<UInt16>
    var dirtyCount = 0
    /// Completion queues that owe an interrupt or whose last one is being watched.
    var watched: [UInt16] = []
    /// The doorbell page: what messages write and, in mapped mode, the client.
    let doorbells: MemoryWindow
    /// Shadow doorbells and event indexes in the client's memory: addresses, 0 when not configured.
    var shadowAddress: UInt64 = 0
    var eventIndexAddress: UInt64 = 0
    var queueGeneration = 0

    // Commands.
    let scratch: MemoryWindow
    let listScratch: MemoryWindow
    var held: [HeldCommand] = []
    var features: [UInt8: UInt32] = [:]
    var eventRequests: [UInt16] = []
    var pendingEvents: [AsynchronousEvent] = []
    var maskedEventTypes: UInt8 = 0
    var log = ControllerLog()
    /// Since the client came an I/O command has been completed.
    var hasServedIO = true
    /// The connection shall be closed (a fault).
    var wantsDisconnect = false
    /// The time of the current pass.
    var nowNanoseconds: UInt64 = 0

    /// Namespaces by id, index 0 for id 1.
    var namespaces: [Namespace?]
    /// What the I/O path needs of them.
    let slots: Table<NamespaceSlot>

    /// Creates a controller; `doorbellPage` is memory that the client may map.
    init(
        options: EmulatorOptions, doorbellPage: MemoryWindow? = nil
    ) throws(NamespaceError) {
        self.options = options
        identity = (options.serial, "nvmed emulated controller")
        interrupts = Interrupts(vectorCount: options.vectorCount)
        faults = FaultPlan()
        cap = Self.capabilities(options)
        let queues = options.ioQueueCount + 1
        submission = Table(repeating: SubmissionQueue(), count: queues)
        completion = Table(repeating: CompletionQueue(), count: queues)
        dirty = Table(repeating: 0, count: queues)
        namespaces = Array(repeating: nil, count: Int(options.maxNamespaceCount))
        slots = Table(repeating: NamespaceSlot(), count: Int(options.maxNamespaceCount))
        do throws(SystemCallError) {
            doorbells = try Self.pages(Self.doorbellByteCount, doorbellPage)
            scratch = try Self.pages(Self.scratchByteCount)
            listScratch = try Self.pages(Self.scratchByteCount)
        } catch {
            throw .system(error)
        }
        do {
            for text in options.faults { try faults.add(FaultRule(parsing: text)) }
        } catch {
            throw .refused("\(error)")
        }
        resetFeatures()
        for namespace in options.namespaces { _ = try addNamespace(namespace) }
        log.changedNamespaces.removeAll()
        pendingEvents.removeAll()
    }

    deinit {
        submission.free()
        completion.free()
        dirty.free()
        slots.free()
    }

    private static func pages(
        _ byteCount: Int, _ given: MemoryWindow? = nil
    ) throws(SystemCallError) -> MemoryWindow {
        if let given { return given }
        // Lives as long as the process: a controller does too, except in tests.
        let mapping = try Mapping(anonymous: byteCount)
        return unsafe MemoryWindow(base: mapping.leak(), byteCount: byteCount)
    }

    private static func capabilities(_ options: EmulatorOptions) -> ControllerCapabilities {
        var cap = ControllerCapabilities()
        cap.mqes = UInt16(truncatingIfNeeded: options.maxQueueEntryCount &- 1)
        cap.cqr = true
        cap.to = options.readyTimeout
        cap.nssrs = true
        // The NVM command set, and the choice of command sets (CC.CSS 110b).
        cap.css = 0x41
        cap.mpsmin = 0
        cap.mpsmax = 4
        cap.crms = 1
        return cap
    }

    /// The memory page size of the host: CC.MPS.
    var pageShift: Int { 12 &+ Int(cc.mps) }

    /// Whether commands are fetched at all.
    @inline(__always)
    var isRunning: Bool {
        csts.rdy && !csts.cfs && !isGone && (isBusMaster || !options.requiresBusMaster)
    }

    // MARK: Enable, reset, shutdown

    func configure(_ value: UInt32) {
        let old = cc
        cc = ControllerConfiguration(rawValue: value & ~0xFE00_000E)
        if cc.en && !old.en {
            enable()
        } else if !cc.en && old.en {
            reset()
            counters.controllerResets &+= 1
            if faults.registerAction({ $0 == .stuckReady }) != nil { csts.rdy = true }
        }
        if cc.shn != .none && old.shn == .none && cc.shn.rawValue != 3 { shutDown() }
    }

    private func enable() {
        counters.enables &+= 1
        if faults.registerAction({ $0 == .fatalAtEnable }) != nil {
            return fail("fault: fatal at enable")
        }
        guard isConfigurationValid() else { return fail("CC, AQA, ASQ or ACQ is invalid") }
        createAdminQueues()
        if faults.registerAction({ $0 == .neverReady }) != nil { return }
        let delayed = faults.registerAction {
            if case .readyDelay = $0 { true } else { false }
        }
        if case .readyDelay(let milliseconds) = delayed {
            readyAtNanoseconds =
                MonotonicClock.nowNanoseconds &+ milliseconds &* 1_000_000
            return
        }
        csts.rdy = true
    }

    private func isConfigurationValid() -> Bool {
        guard cc.mps <= cap.mpsmax, cc.ams == 0, cc.css == 0 || cc.css == 6 else { return false }
        // Zero is allowed: the sizes are needed only when I/O queues are created.
        guard cc.iosqes == 6 || cc.iosqes == 0, cc.iocqes == 4 || cc.iocqes == 0 else {
            return false
        }
        guard aqa.asqs >= 1, aqa.acqs >= 1 else { return false }
        let mask = UInt64(1) << UInt64(pageShift) &- 1
        guard asq & mask == 0, acq & mask == 0 else { return false }
        let submissionBytes = UInt64(aqa.submissionEntryCount) &* 64
        let completionBytes = UInt64(aqa.completionEntryCount) &* 16
        return memory.isAccessible(asq, submissionBytes, write: false)
            && memory.isAccessible(acq, completionBytes, write: true)
    }

    private func createAdminQueues() {
        doorbells.zero()
        completion[0] = CompletionQueue()
        completion[0].isActive = true
        completion[0].entryCount = UInt32(aqa.completionEntryCount)
        completion[0].address = acq
        completion[0].interruptsEnabled = true
        completion[0].users = 1
        submission[0] = SubmissionQueue()
        submission[0].isActive = true
        submission[0].entryCount = UInt32(aqa.submissionEntryCount)
        submission[0].address = asq
        rebindQueues()
    }

    /// What CC.EN going from 1 to 0 does: everything but AQA, ASQ and ACQ begins anew.
    func reset() {
        csts = ControllerStatus()
        readyAtNanoseconds = nil
        for index in 0..<submission.count {
            submission[index] = SubmissionQueue()
            completion[index] = CompletionQueue()
        }
        activeQueues.removeAll()
        watched.removeAll()
        dirtyCount = 0
        shadowAddress = 0
        eventIndexAddress = 0
        held.removeAll()
        eventRequests.removeAll()
        pendingEvents.removeAll()
        maskedEventTypes = 0
        interrupts.pinMask = 0
        doorbells.zero()
        resetFeatures()
        memory.removeUnclaimed()
    }

    /// A function level reset, or what a new connection begins with.
    func resetDevice() {
        cc = ControllerConfiguration()
        aqa = AdminQueueAttributes()
        asq = 0
        acq = 0
        isGone = false
        reset()
    }

    /// NSSR: everything begins anew, and CSTS.NSSRO remembers it.
    func resetSubsystem() {
        resetDevice()
        csts.nssro = true
    }

    private func shutDown() {
        counters.shutdowns &+= 1
        for namespace in namespaces { _ = namespace?.flush() }
        csts.shst = .complete
        log.hadCleanShutdown = true
    }

    /// CSTS.CFS: nothing is done any more until the host resets the controller.
    func fail(_ reason: String) {
        guard !csts.cfs else { return }
        csts.cfs = true
        readyAtNanoseconds = nil
        counters.fatals &+= 1
        log.lastFatal = reason
    }

    /// Brings CSTS.RDY about when its time has come.
    func advanceReadiness() {
        guard let due = readyAtNanoseconds, nowNanoseconds >= due else { return }
        readyAtNanoseconds = nil
        csts.rdy = cc.en && !csts.cfs
    }
}
