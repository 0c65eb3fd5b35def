// SPDX-License-Identifier: Apache-2.0
// Bring-up: NVM Express Base Specification 2.0, 3.5.1 "Memory-based Controller Initialization
// (PCIe)".

internal import CLinux
internal import CMemory
internal import DMA
internal import Linux
internal import NVMeSpec
internal import VFIO

extension NVMeController {
    /// What a controller gets that says it needs no time (CAP.TO = 0), in milliseconds.
    private static let leastReadyMilliseconds: UInt32 = 1_000
    /// How often CSTS is read while waiting: it has no event.
    private static let statusPollMilliseconds = 1
    /// Asynchronous event requests kept with the device.
    private static let maxEventRequests = 4

    /// Brings the controller up from any state: reset, enable, identify, queues.
    ///
    /// Blocks, but no longer than the controller's own bounds and the admin timeout for each
    /// command. On an error nothing is left running: the controller was asked to stop, as far as it
    /// still listens.
    ///
    /// `keep` is called when the pool and the interrupts exist, before the controller may use them:
    /// whoever keeps them for a successor must have them by then.
    public func start(
        keep: (NVMeController) -> Void = { _ in }
    ) throws(DriverError) {
        let begin = MonotonicClock.nowNanoseconds
        do throws(DriverError) {
            state.clearController()
            state.beginEpoch()
            state.pendingEvents = 0
            state.clearRegions()
            clearInventory()
            try resetAndCheck()
            forgetMemory()
            try checkOwnInterrupts()
            let queues = min(options.queueCount, 64)
            try makePool(queues)
            try makeAdminQueue()
            keep(self)
            try enable()
            try identifyController()
            try chooseCommandSets()
            try configureFeatures()
            let granted = try negotiateQueues(queues)
            try configureShadowDoorbells(granted)
            for index in 0..<granted { try makeIOQueue(index) }
            try refreshNamespaces()
            try postEventRequests()
            try writeRecord()
        } catch {
            disable()
            throw error
        }
        bringUpNanoseconds = MonotonicClock.nowNanoseconds - begin
    }

    // MARK: Registers

    func resetAndCheck() throws(DriverError) {
        adminIsClosed = false
        do throws(VFIOError) {
            try device.enableMemorySpace()
        } catch { throw .device(error) }
        try readCapabilities()
        do throws(DriverError) {
            try stopController()
        } catch {
            // What does not obey CC.EN may obey a reset of the function, where there is one.
            guard case .notReady = error, resetFunction() else { throw error }
            try stopController()
        }
        // After the reset: a controller that somebody left running must not go on with old
        // addresses.
        do throws(VFIOError) {
            try device.forgetMappings()
            try device.enableBusMaster()
        } catch { throw .device(error) }
    }

    /// CAP and VS, checked.
    func readCapabilities() throws(DriverError) {
        capabilities = ControllerCapabilities(rawValue: try read64(RegisterOffset.cap, "CAP"))
        guard capabilities.mpsmin == 0 else {
            throw .unusable(
                field: "CAP.MPSMIN", value: UInt64(capabilities.mpsmin),
                rule: "the host's pages have 4096 bytes, which needs 0")
        }
        guard capabilities.mpsmax >= capabilities.mpsmin else {
            throw .unusable(
                field: "CAP.MPSMAX", value: UInt64(capabilities.mpsmax),
                rule: "it cannot be less than CAP.MPSMIN")
        }
        guard capabilities.supportsNVMCommandSet || capabilities.supportsMultipleCommandSets else {
            throw .unusable(
                field: "CAP.CSS", value: UInt64(capabilities.css),
                rule: "the NVM command set (bit 0 or 6) is needed")
        }
        // A queue needs room for a command, a probe, and the entry that always stays empty.
        guard capabilities.maximumQueueEntryCount >= 4 else {
            throw .unusable(
                field: "CAP.MQES", value: UInt64(capabilities.mqes),
                rule: "queues of at least 4 entries are needed")
        }
        version = SpecificationVersion(rawValue: try read32(RegisterOffset.vs, "VS"))
        try checkDoorbellsFit()
    }

    /// A doorbell stride that puts the last queue's doorbells behind the end of any BAR is
    /// nonsense.
    private func checkDoorbellsFit() throws(DriverError) {
        guard capabilities.dstrd <= 8 else {
            throw .unusable(
                field: "CAP.DSTRD", value: UInt64(capabilities.dstrd),
                rule: "a doorbell stride above 1024 bytes is not supported")
        }
    }

    /// CC.EN to 0 and CSTS.RDY with it.
    private func stopController() throws(DriverError) {
        var configuration = ControllerConfiguration(rawValue: try read32(RegisterOffset.cc, "CC"))
        let status = ControllerStatus(rawValue: try read32(RegisterOffset.csts, "CSTS"))
        guard configuration.en || status.rdy else { return }
        if configuration.en {
            configuration.en = false
            configuration.shn = .none
            try write(RegisterOffset.cc, 4, UInt64(configuration.rawValue))
        }
        try waitReady(false, during: "reset")
    }

    func enable() throws(DriverError) {
        var configuration = ControllerConfiguration(enabled: true, mps: 0)
        // 110b: all I/O command sets the controller has. Only the NVM command set's namespaces are
        // used.
        if !capabilities.supportsNVMCommandSet { configuration.css = 6 }
        try write(RegisterOffset.cc, 4, UInt64(configuration.rawValue))
        try waitReady(true, during: "enabling")
    }

    /// Waits for CSTS.RDY, no longer than CAP.TO or, where the controller has it, CRTO.CRWMT
    /// (3.1.4.21).
    func waitReady(_ ready: Bool, during: String) throws(DriverError) {
        var bound = max(capabilities.timeoutMilliseconds, Self.leastReadyMilliseconds)
        if ready, capabilities.supportsReadyWithMedia {
            let timeouts = ControllerReadyTimeouts(
                rawValue: try read32(RegisterOffset.crto, "CRTO"))
            bound = max(bound, timeouts.readyWithMediaMilliseconds)
        }
        let deadline = MonotonicClock.nowNanoseconds + UInt64(bound) * 1_000_000
        while true {
            let status = ControllerStatus(rawValue: try read32(RegisterOffset.csts, "CSTS"))
            // A controller in a fatal state may still be reset: CFS counts only on the way up.
            guard !(ready && status.cfs) else {
                throw .fatalStatus(during: during, status: status.rawValue)
            }
            if status.rdy == ready { return }
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw .notReady(waitingFor: ready, milliseconds: bound, status: status.rawValue)
            }
            try pause(Self.statusPollMilliseconds)
        }
    }

    /// Lets time pass while the device's carrier is served.
    private func pause(_ milliseconds: Int) throws(DriverError) {
        do throws(VFIOError) {
            // Registers have no interrupt: one that was left over must not make this a busy loop.
            try device.wait(interrupt: -1, milliseconds: milliseconds)
        } catch { throw .device(error) }
    }

    // MARK: Memory and queues

    /// How much memory the controller gets for what is asked of it.
    func makePlan(_ queues: Int) throws(DriverError) -> ControllerMemoryPlan {
        let allowed = capabilities.maximumQueueEntryCount
        let largest = UInt32(1) << UInt32(31 - allowed.leadingZeroBitCount)
        return try .beginning(
            queueCount: queues, entries: min(UInt32(options.queueDepth), largest),
            options: &options,
            pageByteCount: device.usesPhysicalAddresses
                ? PoolLayout.pageByteCount : poolSource.place.medium.usualPageByteCount)
    }

    func makePool(_ queues: Int) throws(DriverError) {
        let plan = try makePlan(queues)
        do throws(VFIOError) {
            pool = try DMAPool(
                layout: plan.layout, device: device, space: &space, source: poolSource,
                owner: options.deviceName)
        } catch { throw .device(error) }
        usePool(plan)
    }

    /// What is where in the pool from now on.
    func usePool(_ plan: ControllerMemoryPlan) {
        self.plan = plan
        if let base = unsafe pool?.deviceWritesAddress(plan.bounce),
            let iova = pool?.deviceWritesIOVA
        {
            unsafe regions.setBouncePages(
                iova: iova + UInt64(plan.bounce.offset), byteCount: UInt64(plan.bounce.byteCount),
                base: base)
        }
    }

    func makeAdminQueue() throws(DriverError) {
        try connectInterrupts()
        let (queue, submission, completion) = try queueParts(0)
        let entries = ControllerMemoryPlan.adminEntries
        let attributes = AdminQueueAttributes(
            submissionEntryCount: UInt16(entries), completionEntryCount: UInt16(entries))
        logQueue(0)
        try write(RegisterOffset.aqa, 4, UInt64(attributes.rawValue))
        try write(RegisterOffset.asq, 8, submission)
        try write(RegisterOffset.acq, 8, completion)
        let pair = QueuePair(
            queueID: 0, entries: entries, epoch: state.epoch, memory: queue.memory,
            doorbellsAreMapped: queue.doorbellsAreMapped)
        admin = AdminQueue(
            queue: pair, interrupt: EventFD(adopting: try duplicateInterrupt(0)),
            log: state.eventsRecord, generation: state.generation)
    }

    /// One eventfd for each vector that will be used: the admin queue has vector 0 and shares it
    /// when there are few.
    func connectInterrupts() throws(DriverError) {
        guard device.vectorCount > 0 else {
            throw .unusable(field: "MSI-X vectors", value: 0, rule: "at least one is needed")
        }
        if interrupts.isEmpty {
            for _ in 0..<min(device.vectorCount, options.queueCount + 1) {
                do throws(SystemCallError) {
                    let event = try EventFD()
                    interrupts.append(try event.fd.duplicate().release())
                } catch { throw .system(error) }
            }
        }
        do throws(VFIOError) {
            try device.connectInterrupts(interrupts)
        } catch { throw .device(error) }
    }

    func duplicateInterrupt(_ index: Int) throws(DriverError) -> OwnedFD {
        let raw = nv_dup_cloexec(interrupts[index])
        guard raw >= 0 else { throw .system(SystemCallError("dup", errno: -raw)) }
        return OwnedFD(adopting: raw)
    }

    /// The memory of a queue pair and the device's addresses of its two queues.
    func queueParts(
        _ queueID: Int
    ) throws(DriverError) -> (parts: QueueParts, submission: UInt64, completion: UInt64) {
        guard let part = plan?.queues[queueID], let readsIOVA = pool?.deviceReadsIOVA,
            let writesIOVA = pool?.deviceWritesIOVA,
            let submission = unsafe pool?.deviceReadsAddress(part.submission),
            let lists = unsafe pool?.deviceReadsAddress(part.lists),
            let completion = unsafe pool?.deviceWritesAddress(part.completion)
        else { throw .exhausted("queue \(queueID) has no memory") }
        let doorbells = try doorbellAddresses(queueID)
        let scratch = unsafe try takeScratch(
            QueueMemory.scratchByteCount(entries: part.entries))
        let memory = unsafe QueueMemory(
            submission: submission, completion: completion, prpLists: lists,
            prpListsIOVA: readsIOVA + UInt64(part.lists.offset),
            prpListByteCount: part.listByteCount,
            slots: state.slots(queueID),
            indexLine: state.address(state.layout.queueIndexOffset(queueID)),
            scratch: scratch, submissionDoorbell: doorbells.submission,
            completionDoorbell: doorbells.completion,
            submissionDoorbellOffset: doorbells.submissionOffset,
            completionDoorbellOffset: doorbells.completionOffset,
            shadow: hasShadowDoorbells && queueID > 0 ? shadowDoorbells(queueID) : nil,
            ages: state.address(state.layout.agesOffset(queueID)))
        return (
            QueueParts(memory: memory, doorbellsAreMapped: doorbells.areMapped),
            readsIOVA + UInt64(part.submission.offset), writesIOVA + UInt64(part.completion.offset)
        )
    }

    private func doorbellAddresses(_ queueID: Int) throws(DriverError) -> DoorbellAddresses {
        let queue = UInt16(queueID)
        let submissionOffset = Int(
            Doorbell.offset(queueID: queue, isCompletion: false, dstrd: capabilities.dstrd))
        let completionOffset = Int(
            Doorbell.offset(queueID: queue, isCompletion: true, dstrd: capabilities.dstrd))
        if let submission = unsafe device.mappedRegisters(offset: submissionOffset, byteCount: 4),
            let completion = unsafe device.mappedRegisters(offset: completionOffset, byteCount: 4)
        {
            return unsafe DoorbellAddresses(
                submission: submission, completion: completion, areMapped: true,
                submissionOffset: submissionOffset, completionOffset: completionOffset)
        }
        let words = unsafe try takeScratch(8)
        return unsafe DoorbellAddresses(
            submission: words, completion: words + 4, areMapped: false,
            submissionOffset: submissionOffset, completionOffset: completionOffset)
    }

    func shadowDoorbells(_ queueID: Int) -> ShadowDoorbells? {
        guard let plan, let shadow = unsafe pool?.deviceWritesAddress(plan.shadow),
            let event = unsafe pool?.deviceWritesAddress(plan.eventIndex)
        else { return nil }
        let stride = Int(Doorbell.strideByteCount(dstrd: capabilities.dstrd))
        let offset = 2 * queueID * stride
        return unsafe ShadowDoorbells(
            submissionTail: shadow + offset, submissionEventIndex: event + offset,
            completionHead: shadow + (offset + stride),
            completionEventIndex: event + (offset + stride))
    }

    /// Private zeroed memory that lives as long as the controller.
    private func takeScratch(_ byteCount: Int) throws(DriverError) -> UnsafeMutableRawPointer {
        do throws(SystemCallError) {
            let mapping = try Mapping(anonymous: byteCount)
            let base = unsafe mapping.leak()
            scratch.append(UInt(bitPattern: base))
            scratch.append(UInt(byteCount))
            return unsafe base
        } catch { throw .system(error) }
    }

    // MARK: Identify and features

    /// Asks the controller who it is, and keeps that. Throws `notAdoptable`, and keeps nothing,
    /// when it is another one than `known`.
    func identifyController(as known: IdentifyController? = nil) throws(DriverError) {
        let bytes = try executeForPage(.identify(cns: .controller), "Identify Controller")
        try takeIdentify(bytes)
        if let known, let difference = identify.difference(from: known) {
            throw .notAdoptable(difference)
        }
        keepIdentify(bytes)
        if let limits = commandSetPage() {
            takeCommandSetLimits(limits)
            state.setControllerPage(1, limits)
        } else {
            state.setControllerPage(1, [])
        }
    }

    /// What the controller says of itself; nothing in it is trusted.
    func takeIdentify(_ bytes: [UInt8]) throws(DriverError) {
        identify = try parse { () throws(PageError) in try IdentifyController(parsing: bytes) }
        try checkEntrySizes()
        guard identify.nn > 0 else {
            throw .unusable(field: "NN", value: 0, rule: "a controller has at least one namespace")
        }
        limits.commands = identify.optionalNVMCommands
        limits.hasVolatileWriteCache = identify.hasVolatileWriteCache
        limits.awun = identify.awun
        limits.awupf = identify.awupf
        let mdts = identify.maximumTransferByteCount(capabilities: capabilities)
        limits.maxTransferByteCount = min(
            mdts ?? .max, UInt64(options.maxTransferByteCount))
    }

    /// With CC.CSS 110b a combination of command sets is in effect, the first one after a reset
    /// (Base Specification 2.0, 5.17.2.21 and 5.27.1.21): one with the NVM command set is needed.
    func chooseCommandSets() throws(DriverError) {
        guard !capabilities.supportsNVMCommandSet else { return }
        let bytes: [UInt8]
        do throws(DriverError) {
            bytes = try executeForPage(
                .identify(cns: .ioCommandSets, controllerID: .max), "Identify I/O Command Set")
        } catch {
            // Without the page there is nothing to choose; namespaces tell their command sets.
            guard case .command = error else { throw error }
            return
        }
        // 512 vectors of 64 bits; bit 0 is the NVM command set.
        guard let index = (0..<512).first(where: { bytes[$0 * 8] & 1 != 0 }) else {
            throw .unusable(
                field: "I/O Command Set vector", value: UInt64(bytes[0]),
                rule: "no combination has the NVM command set (bit 0)")
        }
        guard index > 0 else { return }
        _ = try execute(
            .setFeatures(.ioCommandSetProfile, value: UInt32(index)),
            "Set Features (I/O Command Set Profile)")
    }

    private func checkEntrySizes() throws(DriverError) {
        guard identify.minimumSubmissionEntryShift <= 6, identify.maximumSubmissionEntryShift >= 6
        else {
            throw .unusable(
                field: "SQES", value: UInt64(identify.sqes),
                rule: "submission queue entries of 2^6 bytes are needed")
        }
        guard identify.minimumCompletionEntryShift <= 4, identify.maximumCompletionEntryShift >= 4
        else {
            throw .unusable(
                field: "CQES", value: UInt64(identify.cqes),
                rule: "completion queue entries of 2^4 bytes are needed")
        }
    }

    /// CNS 06h is optional: a controller without it has no separate limits.
    private func commandSetPage() -> [UInt8]? {
        guard version >= .v2_0 else { return nil }
        return try? executeForPage(
            .identify(cns: .commandSetController), "Identify I/O Command Set Controller")
    }

    func takeCommandSetLimits(_ bytes: [UInt8]) {
        guard let page = try? IdentifyNVMController(parsing: bytes) else { return }
        limits.maxWriteZeroesByteCount = page.writeZeroesByteCount(capabilities: capabilities)
        limits.maxVerifyByteCount = page.verifyByteCount(capabilities: capabilities)
        limits.maxDeallocateBlocks = page.dmrsl
    }

    func parse<Result>(
        _ body: () throws(PageError) -> Result
    ) throws(DriverError) -> Result {
        do throws(PageError) {
            return try body()
        } catch { throw .page(error) }
    }

    func configureFeatures() throws(DriverError) {
        var wanted: AsynchronousEventConfiguration = .allSmart
        if identify.oaes & 0x100 != 0 { wanted.insert(.namespaceAttribute) }
        _ = try execute(
            .setFeatures(.asynchronousEventConfiguration, value: wanted.rawValue),
            "Set Features (Asynchronous Event Configuration)")
    }

    func negotiateQueues(_ wanted: Int) throws(DriverError) -> Int {
        let counts = QueueCounts(
            submissionQueues: UInt32(wanted), completionQueues: UInt32(wanted))
        let answer = QueueCounts(
            rawValue: try execute(
                .setFeatures(.numberOfQueues, value: counts.rawValue),
                "Set Features (Number of Queues)"))
        guard !answer.isInvalid else {
            throw .unusable(
                field: "Number of Queues", value: UInt64(answer.rawValue),
                rule: "65535 (zero-based) is not a number of queues")
        }
        return min(wanted, Int(min(answer.submissionQueues, answer.completionQueues)))
    }

    /// Shadow doorbells where the controller has them (OACS bit 8) and one page holds all that are
    /// used.
    func configureShadowDoorbells(_ queues: Int) throws(DriverError) {
        let stride = Doorbell.strideByteCount(dstrd: capabilities.dstrd)
        guard identify.optionalAdminCommands.contains(.doorbellBufferConfig),
            UInt64(2 * (queues + 1)) * stride <= 4096, let plan, let base = pool?.deviceWritesIOVA
        else { return }
        _ = try execute(
            .doorbellBufferConfig(
                shadowDoorbells: base + UInt64(plan.shadow.offset),
                eventIndexes: base + UInt64(plan.eventIndex.offset)),
            "Doorbell Buffer Config")
        hasShadowDoorbells = true
    }

    func makeIOQueue(_ index: Int) throws(DriverError) {
        let queueID = index + 1
        guard let plan else { return }
        let pair = try createIOQueue(
            queueID, timeoutMilliseconds: options.adminTimeoutMilliseconds)
        let requests = unsafe RequestRecords(
            records: state.requests(queueID), lists: state.segmentLists(queueID),
            queue: UInt32(queueID), epoch: state.epoch)
        let pages = try pages(plan.bouncePagesPerQueue)
        let engine = Engine(
            queue: pair, regions: regions.view, requests: requests, bouncePages: pages,
            firstBouncePage: index * plan.bouncePagesPerQueue)
        unsafe (engines + index).initialize(to: engine)
        queueCount = index + 1
    }

    /// Has the controller make both queues of a pair, whose memory is all zeroes.
    func createIOQueue(
        _ queueID: Int, timeoutMilliseconds: Int
    ) throws(DriverError) -> QueuePair {
        let (queue, submission, completion) = try queueParts(queueID)
        guard let part = plan?.queues[queueID] else {
            throw .exhausted("queue \(queueID) has no memory")
        }
        logQueue(queueID)
        _ = try execute(
            .createIOCompletionQueue(
                queueID: UInt16(queueID), entryCount: part.entries, address: completion,
                interruptVector: UInt16(vector(ofQueue: queueID))),
            "Create I/O Completion Queue \(queueID)", timeoutMilliseconds: timeoutMilliseconds)
        _ = try execute(
            .createIOSubmissionQueue(
                queueID: UInt16(queueID), entryCount: part.entries, address: submission,
                completionQueueID: UInt16(queueID)),
            "Create I/O Submission Queue \(queueID)", timeoutMilliseconds: timeoutMilliseconds)
        return QueuePair(
            queueID: UInt16(queueID), entries: part.entries, epoch: state.epoch,
            memory: queue.memory, doorbellsAreMapped: queue.doorbellsAreMapped)
    }

    func pages(_ count: Int) throws(DriverError) -> PageAllocator {
        do throws(SystemCallError) {
            return try PageAllocator(pageCount: count)
        } catch { throw .system(error) }
    }

    // MARK: Events

    func postEventRequests() throws(DriverError) {
        // Whoever takes over could neither take their answers nor ask again.
        guard !quirks.contains(.noAdminAfterServicing) else { return }
        let wanted = min(Int(identify.aerl) + 1, Self.maxEventRequests)
        while eventRequests < wanted {
            try admin?.post(.asynchronousEventRequest(), token: AdminToken.event, device: device)
            eventRequests += 1
        }
    }
}

/// What admin commands that nobody waits for are called.
enum AdminToken {
    static let event: UInt64 = 1
    /// The health page.
    static let health: UInt64 = 1 << 32
    /// Abort: the low bits are queue and command id.
    static let abort: UInt64 = 2 << 32
}

/// The memory of a queue pair with what does not belong to the memory.
@safe
struct QueueParts {
    var memory: QueueMemory
    var doorbellsAreMapped: Bool
}

/// Where the two doorbells of a queue pair are.
@safe
struct DoorbellAddresses {
    var submission: UnsafeMutableRawPointer
    var completion: UnsafeMutableRawPointer
    var areMapped: Bool
    var submissionOffset: Int
    var completionOffset: Int
}
