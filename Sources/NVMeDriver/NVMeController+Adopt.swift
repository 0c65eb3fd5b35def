// SPDX-License-Identifier: Apache-2.0
// Going on with the controller of a predecessor that died: DESIGN, section 5, "Adoption".
//
// Who may have done what: the predecessor died between any two instructions; the device went on;
// the state area and the pool's file are as they were left, or damaged. Everything is checked
// against everything else first (`check…`), and only then is anything changed (`commit`).
// Whatever does not fit makes the controller one that cannot be adopted, and costs this device a
// reset.

internal import CMemory
public import DMA
public import Linux
internal import NVMeSpec
public import SavedState
internal import VFIO

/// What a predecessor left in the fd store. Each call gives a descriptor of its own, and may be
/// repeated for the same thing; nil: there is none.
public struct Inheritance {
    /// `pool`: the DMA pool's memory file, or the file that outlived all processes.
    public var pool: () -> PoolFile?
    /// What was written down of the pool's slots, which has to be what the plan of the pool says;
    /// empty: nothing was.
    public var poolSlots: [SavedSlot] = []
    /// `irq-N`: the eventfd of an interrupt vector.
    public var interrupt: (_ vector: Int) -> OwnedFD?
    /// `m-N`: the memory file of a region, with the region's record.
    public var memory: (_ region: UInt32, _ record: RegionRecord) -> OwnedFD?
    /// Nobody had the pool for a while: where its pages are is looked up, for a device that uses
    /// physical addresses, and compared with what is on record.
    public var poolMayHaveMoved = false

    /// What came from the fd store. `place`: what the pool is.
    public init(
        pool: @escaping () -> OwnedFD?, place: PoolPlace = .memory,
        interrupt: @escaping (_ vector: Int) -> OwnedFD?,
        memory: @escaping (_ region: UInt32, _ record: RegionRecord) -> OwnedFD?
    ) {
        self.init(
            poolFile: {
                guard let fd = pool() else { return nil }
                return try? PoolFile(received: fd, place: place)
            },
            interrupt: interrupt, memory: memory)
    }

    /// What came from the fd store, and a pool that may lie in a file with a name.
    public init(
        poolFile: @escaping () -> PoolFile?, interrupt: @escaping (_ vector: Int) -> OwnedFD?,
        memory: @escaping (_ region: UInt32, _ record: RegionRecord) -> OwnedFD?
    ) {
        self.pool = poolFile
        self.interrupt = interrupt
        self.memory = memory
    }
}

/// What may be done again, after a reset, of a session's requests that were with the device.
public enum Replay: Sendable {
    /// Everything: the session has its namespace for itself, so that nobody else's write can be
    /// overwritten by an older one.
    case everything
    /// What changes nothing: reads, comparisons, flushes, verifications. The others end as
    /// `outcomeUnknown`.
    case harmless
    /// Nothing: the session is over.
    case nothing
}

extension NVMeController {
    /// Goes on with the running controller of a predecessor, as the state area has it. Instead of
    /// `start`.
    ///
    /// Everything is checked first. `notAdoptable` says why it cannot be; then nothing was changed,
    /// and `startOver` of the same object follows. Other errors are the device's.
    ///
    /// Nothing is sent to the device but a probe for each queue whose last doorbell is in doubt,
    /// and the commands that it was never told of. When this returns the engines have the answers
    /// that no client got: sessions and rings must be there before `recover`, and that must come
    /// before the first `reap`. The admin queue is silent until `finishAdoption`. `namespaces`,
    /// `identify` and the regions of the state area are as the predecessor knew them; regions that
    /// were half mapped are taken off the device (a record that is UNMAPPING and has an
    /// UnregisterMemory stays until `forgetRegion`, for that is unanswered). `tick` is the coarse
    /// clock of the engines.
    public func adopt(_ inheritance: Inheritance, tick: UInt32 = 0) throws(DriverError) {
        let begin = MonotonicClock.nowNanoseconds
        do throws(DriverError) {
            let record = try checkRecord()
            try checkPool(record, inheritance)
            let unfinished = try checkRegions(inheritance)
            do throws(VFIOError) {
                try device.checkAdoptable()
            } catch {
                guard case .unsupported(let why) = error else { throw .device(error) }
                throw .notAdoptable(why)
            }
            if let refusal = adoptionRefusal() { throw .notAdoptable(refusal) }
            try checkRegisters(record)
            try checkInterrupts(record, inheritance)
            try checkInventory(record)
            hasShadowDoorbells = record.hasShadowDoorbells
            try adoptAdminQueue()
            try closeAdmin()
            for index in 0..<Int(record.queueCount) { try adoptIOQueue(index, tick) }
            try holdAborted()
            CrashPoint.hit(.adoptChecked)
            try commit(unfinished)
        } catch {
            leaveQueues()
            throw error
        }
        CrashPoint.hit(.adoptQueuesReady)
        (wasAdopted, isQuiet, isIdentified) = (true, true, false)
        adoptionNanoseconds = MonotonicClock.nowNanoseconds - begin
    }

    // MARK: What is written down

    private func checkRecord() throws(DriverError) -> ControllerRecord {
        let record = try knownController()
        guard record.epoch == state.epoch else {
            throw .notAdoptable("its bring-up did not come to an end")
        }
        // The record came last: what was to be given out again is where it belongs.
        if state.salvageEpoch != 0 { state.endSalvage() }
        let layout = options.stateLayout
        guard state.layout.queueCount >= layout.queueCount,
            state.layout.slotsPerQueue >= layout.slotsPerQueue,
            record.queueCount > 0, record.queueCount <= record.plannedQueues
        else { throw .notAdoptable("it has \(record.queueCount) queues, which have no room") }
        return record
    }

    /// The record of the controller, with its options.
    func knownController() throws(DriverError) -> ControllerRecord {
        switch state.controller {
        case .record(let record):
            try takeOptions(record)
            return record
        case .free: throw .notAdoptable("it was never brought up")
        case .damaged: throw .notAdoptable("its record is damaged")
        }
    }

    /// What the predecessor was asked for, not what this process is: the pool is as it is.
    func takeOptions(_ record: ControllerRecord) throws(DriverError) {
        var known = options
        known.queueCount = Int(record.plannedQueues)
        known.queueDepth = Int(record.entries)
        known.maxTransferByteCount = Int(clamping: record.maxTransferByteCount)
        known.bouncePoolByteCount = Int(clamping: record.bouncePoolByteCount)
        guard known == known.clamped else {
            throw .notAdoptable("its record has numbers that nobody asks for")
        }
        options = known
    }

    private func checkPool(
        _ record: ControllerRecord, _ inheritance: Inheritance
    ) throws(DriverError) {
        try takePool(record, inheritance, checking: inheritance.poolMayHaveMoved)
        do throws(VFIOError) {
            try pool?.adoptWindows(device)
        } catch { throw Self.refusal(error) }
    }

    /// Maps the predecessor's pool here, and takes its addresses. With `checking` physical ones are
    /// looked up.
    func takePool(
        _ record: ControllerRecord, _ inheritance: Inheritance, checking: Bool = true
    ) throws(DriverError) {
        let plan = ControllerMemoryPlan(
            queueCount: options.queueCount, entries: record.entries, options: options)
        guard !device.usesPhysicalAddresses else {
            return try takePhysicalPool(record, plan, inheritance, checking)
        }
        guard let file = inheritance.pool() else {
            throw .notAdoptable("its pool is not in the fd store")
        }
        let zones = plan.layout.zones(pageByteCount: file.pageByteCount)
        guard record.poolByteCount == UInt64(zones.deviceReads + zones.deviceWrites) else {
            throw .notAdoptable("its pool has \(record.poolByteCount) bytes by its record")
        }
        guard space.reserve(record.poolReadsIOVA, byteCount: UInt64(zones.deviceReads)),
            space.reserve(record.poolWritesIOVA, byteCount: UInt64(zones.deviceWrites))
        else { throw .notAdoptable("its pool is where the device reaches nothing") }
        do throws(VFIOError) {
            pool = try DMAPool(
                adopting: file, layout: plan.layout, readsIOVA: record.poolReadsIOVA,
                writesIOVA: record.poolWritesIOVA, owner: options.deviceName,
                source: poolSource)
        } catch { throw Self.refusal(error) }
        try checkSlots(inheritance.poolSlots)
        poolIsInherited = true
        usePool(plan)
    }

    /// The pool of a device without an IOMMU: its huge pages in the order that is on record.
    private func takePhysicalPool(
        _ record: ControllerRecord, _ plan: ControllerMemoryPlan, _ inheritance: Inheritance,
        _ checking: Bool
    ) throws(DriverError) {
        guard let order = state.poolPageOrder, !order.isEmpty,
            record.poolByteCount == UInt64(plan.layout.byteCount),
            record.poolWritesIOVA
                == record.poolReadsIOVA &+ UInt64(plan.layout.deviceReadsByteCount)
        else { throw .notAdoptable("the order of its pool's pages is not known") }
        guard let fd = inheritance.pool() else {
            throw .notAdoptable("its pool is not in the fd store")
        }
        do throws(VFIOError) {
            pool = try DMAPool(
                adopting: fd, layout: plan.layout, pageOrder: order,
                address: record.poolReadsIOVA,
                checking: checking ? device : nil, owner: options.deviceName,
                source: poolSource)
        } catch { throw Self.refusal(error) }
        try checkSlots(inheritance.poolSlots)
        poolIsInherited = true
        usePool(plan)
    }

    static func refusal(_ error: VFIOError) -> DriverError {
        if case .unsupported(let why) = error { .notAdoptable(why) } else { .device(error) }
    }

    // MARK: Regions

    /// Maps the regions that the device has, here, and returns those that it may have.
    private func checkRegions(_ inheritance: Inheritance) throws(DriverError) -> [UInt32] {
        var unfinished: [UInt32] = []
        for index in 1..<UInt32(StateLayout.regionCapacity) {
            switch state.regionContent(index) {
            case .free: continue
            case .damaged: throw .notAdoptable("the record of region \(index) is damaged")
            case .record(let record) where record.state == .mapped:
                try takeRegion(index, record, inheritance)
                do throws(VFIOError) {
                    if let window = window(index, record) { try device.adoptWindow(window) }
                } catch { throw Self.refusal(error) }
            case .record(let record):
                guard hasAddress(record), record.iova > 0 else { continue }
                guard space.reserve(record.iova, byteCount: record.stretch.byteCount) else {
                    throw .notAdoptable("region \(index) is where another is")
                }
                unfinished.append(index)
            }
        }
        guard state.regionContent(0) == .free else {
            throw .notAdoptable("the record of region 0 is damaged")
        }
        return unfinished
    }

    private func hasAddress(_ record: RegionRecord) -> Bool {
        !record.stretch.isPhysical && !record.flags.contains(.bounced)
    }

    /// Maps a region of a predecessor here, at its place and its address.
    func takeRegion(
        _ index: UInt32, _ record: RegionRecord, _ inheritance: Inheritance
    ) throws(DriverError) {
        do throws(DriverError) {
            try Self.check(record.stretch)
        } catch { throw .notAdoptable("region \(index): \(error)") }
        let isBounced = bouncesClientMemory && !record.stretch.isPhysical
        guard record.flags.contains(.bounced) == isBounced,
            record.flags.contains(.readOnly) == record.stretch.isReadOnly,
            !record.stretch.isPhysical || device.usesPhysicalAddresses
        else { throw .notAdoptable("region \(index) is for another kind of device") }
        let byteCount = record.stretch.byteCount
        if hasAddress(record) {
            guard space.reserve(record.iova, byteCount: byteCount) else {
                throw .notAdoptable("region \(index) is where the device reaches nothing")
            }
        }
        guard let fd = inheritance.memory(index, record) else {
            throw .notAdoptable("the memory of region \(index) is not in the fd store")
        }
        guard record.stretch.isPhysical || Self.isLongEnough(fd, record.stretch) else {
            throw .notAdoptable("the memory of region \(index) is shorter than it was")
        }
        var mapping = try map(fd, record.stretch)
        if hasAddress(record) { mapping.iova = record.iova }
        clientMappings[index] = mapping
        let place = unsafe regions.insert(
            session: record.session, iova: mapping.iova ?? record.stretch.offset,
            byteCount: byteCount, base: mapping.base, flags: record.flags,
            guardNumber: mapping.guardNumber, at: index)
        guard place == index else { throw .notAdoptable("region \(index) is taken") }
    }

    /// What the device has, or gets, of a region; nil: nothing by that way.
    func window(_ index: UInt32, _ record: RegionRecord) -> DMAWindow? {
        guard let mapping = clientMappings[index], let iova = mapping.iova else { return nil }
        return unsafe DMAWindow(
            iova: iova, byteCount: mapping.byteCount, base: mapping.base,
            access: record.stretch.isReadOnly ? .deviceReads : .deviceReadsAndWrites)
    }

    /// A file that ends before its region would give faults where bytes were.
    private static func isLongEnough(
        _ fd: borrowing OwnedFD, _ stretch: ClientMemoryStretch
    ) -> Bool {
        guard let size = try? MemFD.byteCount(of: fd), size >= 0 else { return false }
        return UInt64(size) >= stretch.byteCount
            && stretch.offset <= UInt64(size) - stretch.byteCount
    }

    // MARK: The device

    func checkRegisters(_ record: ControllerRecord) throws(DriverError) {
        try readCapabilities()
        let status = ControllerStatus(rawValue: try read32(RegisterOffset.csts, "CSTS"))
        guard status.rdy, !status.cfs, status.shst == .normal else {
            throw .notAdoptable("CSTS is 0x\(String(status.rawValue, radix: 16))")
        }
        guard let plan, let reads = pool?.deviceReadsIOVA, let writes = pool?.deviceWritesIOVA
        else { throw .notAdoptable("there is no pool") }
        let admin = plan.queues[0]
        let expected = [
            ("CC", UInt64(record.configuration), UInt64(try read32(RegisterOffset.cc, "CC"))),
            (
                "AQA", UInt64(record.adminQueueAttributes),
                UInt64(try read32(RegisterOffset.aqa, "AQA"))
            ),
            ("ASQ", record.adminSubmissionAddress, try read64(RegisterOffset.asq, "ASQ")),
            ("ACQ", record.adminCompletionAddress, try read64(RegisterOffset.acq, "ACQ")),
            (
                "ASQ", reads + UInt64(admin.submission.offset),
                record.adminSubmissionAddress
            ),
            (
                "ACQ", writes + UInt64(admin.completion.offset),
                record.adminCompletionAddress
            ),
        ]
        for (name, known, found) in expected where known != found {
            throw .notAdoptable(
                "\(name) is 0x\(String(found, radix: 16)), not 0x\(String(known, radix: 16))")
        }
        guard ControllerConfiguration(rawValue: record.configuration).en,
            plan.queues.allSatisfy({ $0.entries <= capabilities.maximumQueueEntryCount })
        else { throw .notAdoptable("CC or CAP are not those of its bring-up") }
    }

    private func checkInterrupts(
        _ record: ControllerRecord, _ inheritance: Inheritance
    ) throws(DriverError) {
        let expected = min(device.vectorCount, options.queueCount + 1)
        guard expected > 0, Int(record.interruptCount) == expected else {
            throw .notAdoptable(
                "it has \(record.interruptCount) interrupts by its record, not \(expected)")
        }
        for vector in 0..<expected {
            guard let fd = inheritance.interrupt(vector) else {
                throw .notAdoptable("interrupt \(vector) is not in the fd store")
            }
            interrupts.append(fd.release())
        }
        interruptsAreInherited = true
    }

    private func checkInventory(_ record: ControllerRecord) throws(DriverError) {
        guard let page = state.controllerPage(0), let limits = state.controllerPage(1) else {
            throw .notAdoptable("what it said of itself is damaged")
        }
        do throws(DriverError) {
            try takeIdentify(page)
        } catch { throw .notAdoptable("what it said of itself makes no sense: \(error)") }
        if !limits.isEmpty { takeCommandSetLimits(limits) }
        try takeInventory(Int(record.inventoryCount))
    }

    // MARK: Queues

    private func adoptAdminQueue() throws(DriverError) {
        guard isLogged(0) else { throw .notAdoptable("the record of the admin queue is damaged") }
        let parts = try queueParts(0).parts
        let pair = try QueuePair.adopt(
            parts.memory, queueID: 0, entries: ControllerMemoryPlan.adminEntries,
            epoch: state.epoch, doorbellsAreMapped: parts.doorbellsAreMapped)
        admin = AdminQueue(
            queue: pair, interrupt: EventFD(adopting: try duplicateInterrupt(0)),
            log: state.eventsRecord, pending: state.pendingEvents, generation: state.generation)
        admin?.keepAges()
    }

    /// A controller that takes no admin command from whoever takes over must have none under way.
    private func closeAdmin() throws(DriverError) {
        guard quirks.contains(.noAdminAfterServicing) else { return }
        guard admin?.isSilent == true, state.pendingEvents == 0 else {
            throw .notAdoptable(
                "an admin command was under way, and nobody else may send one (quirk "
                    + "\(Quirk.noAdminAfterServicing.rawValue))")
        }
        adminIsClosed = true
    }

    func adoptIOQueue(_ index: Int, _ tick: UInt32) throws(DriverError) {
        let queueID = index + 1
        guard isLogged(queueID), let plan else {
            throw .notAdoptable("the record of queue \(queueID) is damaged")
        }
        let parts = try queueParts(queueID).parts
        let held = admin?.abortedCommands(queue: index) ?? []
        let pair = try QueuePair.adopt(
            parts.memory, queueID: UInt16(queueID),
            entries: plan.queues[queueID].entries, epoch: state.epoch,
            doorbellsAreMapped: parts.doorbellsAreMapped, held: held)
        let requests = unsafe RequestRecords(
            at: state.requests(queueID), lists: state.segmentLists(queueID),
            queue: UInt32(queueID), epoch: state.epoch)
        let engine = try Engine.adopt(
            queue: pair, regions: regions.view, requests: requests,
            bouncePages: try pages(plan.bouncePagesPerQueue),
            firstBouncePage: index * plan.bouncePagesPerQueue, tick: tick)
        unsafe (engines + index).initialize(to: engine)
        queueCount = index + 1
    }

    /// Aborts name queues that exist.
    private func holdAborted() throws(DriverError) {
        guard admin?.abortsAreBelow(queueCount) == true else {
            throw .notAdoptable("an Abort names a queue that does not exist")
        }
    }

    // MARK: From here on things change

    private func commit(_ unfinished: [UInt32]) throws(DriverError) {
        // Whoever was about to be saved was not: it goes on here.
        if unsealPool() { CrashPoint.hit(.restoreUnsealed) }
        let busy = unfinished.isEmpty ? [] : busySessions()
        for index in unfinished {
            guard let record = state.region(index) else { continue }
            do throws(VFIOError) {
                try device.unmapIfMapped(
                    iova: record.iova, byteCount: record.stretch.byteCount)
            } catch { throw .device(error) }
            // Commands of before a full stop may still name these addresses: nobody gets them.
            if !record.isLeftOver(by: busy) { space.release(record.iova) }
        }
        clearUnfinishedRegions(except: busy)
        (eventRequests, healthIsRequested) = admin?.adopted() ?? (0, false)
        try admin?.ringAdopted(device)
        try ringQueues()
    }

    /// Tells the device of what it has not seen of each I/O queue.
    func ringQueues() throws(DriverError) {
        let probed = namespaces.values.filter { $0.refusal == nil }
            .min { $0.namespaceID < $1.namespaceID }
        for index in 0..<queueCount {
            adoptedDoorbells.append(
                unsafe engine(index).pointee.ringAdopted(
                    namespaceID: probed?.namespaceID ?? 1, blockShift: probed?.blockShift ?? 9))
            try writePendingDoorbells(index)
        }
    }

    /// The sessions that have requests with the device.
    private func busySessions() -> Set<UInt32> {
        var keys: Set<UInt32> = []
        for index in 0..<queueCount {
            unsafe engine(index).pointee.forEachRequest { keys.insert($0.session) }
        }
        return keys
    }

    /// Regions that the device does not have, and whose giving back nobody waits for; but for those
    /// that commands of before a full stop may name: they stay on record for the next adoption.
    func clearUnfinishedRegions(except busy: Set<UInt32> = []) {
        for index in 1..<UInt32(StateLayout.regionCapacity) {
            guard let record = state.region(index), record.state != .mapped,
                record.state == .mapping || record.unregisterRequestID == 0,
                !record.isLeftOver(by: busy)
            else { continue }
            state.clearRegion(index)
        }
    }

    /// What was adopted so far is not used. The pool and the regions stay mapped: the device may
    /// still use them.
    func leaveQueues() {
        unsafe engines.deinitialize(count: queueCount)
        queueCount = 0
        admin = nil
        eventRequests = 0
        healthIsRequested = false
        adoptedDoorbells = []
        namespaces = [:]
        hasShadowDoorbells = false
        adminIsClosed = false
        clearInventory()
    }

    // MARK: Afterwards

    /// Ends the silence of the admin queue that `adopt` began: asks for events again, and tells
    /// those that nobody has acted upon. To be called when a client has got a completion, or
    /// nothing was in flight.
    ///
    /// With `comparing` the controller is asked who it is, an error telling that it is another,
    /// and `namespacesChanged` is among the events, so that the owner compares the namespaces.
    public func finishAdoption(comparing: Bool) throws(DriverError) -> [AdminEvent] {
        guard isQuiet else { return [] }
        isQuiet = false
        guard !adminIsClosed else { return [] }
        if comparing, !isIdentified, let difference = try identityDifference() {
            throw .unusable(field: "SN", value: 0, rule: "\(difference); reload the device")
        }
        admin?.endTurn()
        let pending = PendingEvents.events(admin?.pending ?? 0)
        admin?.reportEvents()
        var events: [AdminEvent] = []
        for event in pending { events.append(try handle(event)) }
        try postEventRequests()
        let isTold = pending.contains(.namespaceAttributeChanged)
        if comparing, !isTold { events.append(.namespacesChanged) }
        return events
    }

    /// Asks the adopted controller who it is, before anybody is served: nobody was connected to it
    /// for a while. Throws `notAdoptable` when it is another; whoever adopted it then has to let go
    /// of it, and reset it. Nothing is asked of one that bears no admin command.
    public func checkIdentity() throws(DriverError) {
        guard isQuiet, !adminIsClosed else { return }
        if let difference = try identityDifference() { throw .notAdoptable(difference) }
        isIdentified = true
    }

    /// How the controller differs from the one that the predecessor knew; nil: it is the same.
    private func identityDifference() throws(DriverError) -> String? {
        let bytes = try executeForPage(.identify(cns: .controller), "Identify Controller")
        let known = identify
        try takeIdentify(bytes)
        if let difference = identify.difference(from: known) { return difference }
        keepIdentify(bytes)
        return nil
    }

    /// Keeps what the controller says of itself, when that is not what is kept.
    func keepIdentify(_ bytes: [UInt8]) {
        if state.controllerPage(0) != bytes { state.setControllerPage(0, bytes) }
    }
}

extension IdentifyController {
    /// Whether both pages are of one controller. Its firmware may have changed.
    private func isSameController(as other: IdentifyController) -> Bool {
        sn == other.sn && mn == other.mn && vid == other.vid && cntlid == other.cntlid
    }

    /// How this controller is another one than `known`, in words; nil: it is the same.
    func difference(from known: IdentifyController) -> String? {
        guard !isSameController(as: known) else { return nil }
        return "the controller was \(known.identity), and is \(identity)"
    }

    /// Who it is, for messages.
    private var identity: String {
        "\(mn) \(sn) (vendor 0x\(String(vid, radix: 16)), controller id \(cntlid))"
    }
}

extension AdminQueue {
    private func forEachStaged(_ body: (UInt32, CommandSlot) -> Void) {
        for index in 0..<queue.slotCount {
            let slot = unsafe queue.slots + Int(index) * 64
            guard unsafe nv_load64(slot + 56) & SlotState.mask == SlotState.staged else { continue }
            body(index, unsafe CommandSlot(at: slot))
        }
    }

    /// No command is with the device, none was kept from it, and it was told of all there were.
    var isSilent: Bool {
        var count = 0
        forEachStaged { _, _ in count += 1 }
        return count == 0 && queue.unseenSlots()?.isEmpty == true && !queue.doorbellIsDoubtful
    }

    /// Commands of an I/O queue that Aborts name which were not answered.
    func abortedCommands(queue index: Int) -> [UInt16] {
        var ids: [UInt16] = []
        forEachStaged { _, command in
            if command.token & ~0xFFFF_FFFF == AdminToken.abort,
                Int(command.token >> 16 & 0xFFFF) == index
            {
                ids.append(UInt16(truncatingIfNeeded: command.token))
            }
        }
        return ids
    }

    func abortsAreBelow(_ queueCount: Int) -> Bool {
        var areBelow = true
        forEachStaged { _, command in
            guard command.token & ~0xFFFF_FFFF == AdminToken.abort else { return }
            areBelow = areBelow && Int(command.token >> 16 & 0xFFFF) < queueCount
        }
        return areBelow
    }

    /// What is with the device, or comes to it by `ringAdopted`: event requests, and whether the
    /// health page is among it.
    func adopted() -> (eventRequests: Int, health: Bool) {
        var (events, health) = (0, false)
        queue.forEachInFlight { _, command in
            if command.token == AdminToken.event { events += 1 }
            if command.token == AdminToken.health { health = true }
        }
        return (events, health)
    }

    /// Tells the device of the commands that it never saw, or sends a probe when it may not have
    /// been told of the last ones.
    ///
    /// Commands that nobody ever saw, and whose entries are not known any more, become Get
    /// Features, whose answer ends them as well; event requests are themselves.
    mutating func ringAdopted(_ device: any DeviceBacking) throws(DriverError) {
        let unseen = queue.unseenSlots() ?? []
        for slot in unseen {
            let token = unsafe CommandSlot(at: queue.slots + Int(slot) * 64).token
            queue.keepSubmitted(slot)
            if token == AdminToken.event {
                queue.writeAgain(
                    slot, prp1: 0, prp2: 0, dword10And11: 0, dword12And13: 0)
            } else {
                queue.writeAgain(
                    slot, opcode: AdminOpcode.getFeatures.rawValue,
                    dword10And11: Self.probeFeature)
                replaced.insert(slot)
            }
        }
        if unseen.isEmpty, queue.doorbellIsDoubtful {
            var probe = CommandSlot()
            probe.opcode = AdminOpcode.getFeatures.rawValue
            _ = queue.pushProbe(
                probe, prp1: 0, dword10And11: Self.probeFeature, dword12And13: 0)
        }
        queue.ring()
        CrashPoint.hit(.adoptProbeRung)
        try queue.writePendingDoorbells(device)
        takeRecovered()
    }

    /// Power Management, which every controller has and which needs no memory.
    private static let probeFeature: UInt64 = 2
}
