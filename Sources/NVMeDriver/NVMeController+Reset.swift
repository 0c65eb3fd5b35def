// SPDX-License-Identifier: Apache-2.0
// The reset path: a controller that cannot be gone on with is brought up again, and what was with
// it is given out again or ends, once. DESIGN, section 5, "Reset path".
//
// The epoch rises before the controller is reset: from then on the bank of the old epoch is what
// has to be given out again, and nothing in the other bank counts. When the new queues have it all
// and the controller is up, its record makes the new epoch count, by one store. Who dies before
// that begins again; who dies after it is taken over like anybody.

internal import CMemory
internal import DMA
internal import Linux
internal import NVMeSpec
internal import VFIO

extension NVMeController {
    /// Brings the controller up again with the regions and the requests of the state area. After
    /// `adopt` threw `notAdoptable`, or instead of it.
    ///
    /// `replay` says of a session (the engine's key) what may be given out again, in order; the
    /// rest ends as `outcomeUnknown`. As after `adopt`, sessions and rings must be there before
    /// `recover`, which delivers what ended. `keep` is as for `start`; `poolIsInherited` and
    /// `interruptsAreInherited` say what is in the store already.
    ///
    /// `compare` gets the namespaces as they are on record (without those of which the record is
    /// damaged) and as they are now, and says which are the same disks as before: commands of the
    /// others are not given out again, whatever `replay` says. When it returns, the record of the
    /// old ones is replaced: what follows from a difference has to be durable by then, because a
    /// further attempt, of a successor too, does not find it again.
    ///
    /// Throws `notAdoptable` when nothing can be kept, also when the controller is another one:
    /// `start` follows, and all sessions end. Other errors are the device's, which was asked to
    /// stop; what was to be given out again is still there, for another attempt.
    public func startOver(
        _ inheritance: Inheritance, compare: NamespaceComparison = NamespaceInfo.sameDisks,
        replay: (_ session: UInt32) -> Replay, tick: UInt32 = 0,
        keep: (NVMeController) -> Void = { _ in }
    ) throws(DriverError) {
        let begin = MonotonicClock.nowNanoseconds
        leaveQueues()
        let record = try beginSalvage()
        let known = try knownIdentity()
        try takeMemory(record, inheritance)
        unsealPool()
        do throws(DriverError) {
            CrashPoint.hit(.resetEpochRaised)
            try resetAndCheck()
            CrashPoint.hit(.resetDisabled)
            if poolIsInherited { try takeLastAnswers(record) }
            try showMemory(record, inheritance)
            clearUnfinishedRegions()
            clearQueues()
            try checkOwnInterrupts()
            try makeAdminQueue()
            keep(self)
            try enable()
            CrashPoint.hit(.resetEnabled)
            try identifyController(as: known)
            try chooseCommandSets()
            try configureFeatures()
            let granted = try negotiateQueues(options.queueCount)
            guard granted >= Int(record.queueCount) else {
                throw .notAdoptable(
                    "it has \(granted) queues since its reset, and had \(record.queueCount)")
            }
            try configureShadowDoorbells(granted)
            let same = try compareNamespaces(Int(clamping: record.inventoryCount), compare)
            for index in 0..<granted {
                try moveQueue(index, known: Int(record.queueCount), tick, same, replay)
            }
            CrashPoint.hit(.resetQueuesReady)
            try postEventRequests()
            try writeRecord()
            state.endSalvage()
            CrashPoint.hit(.resetDone)
            try ringQueues()
        } catch {
            disable()
            throw error
        }
        bringUpNanoseconds = MonotonicClock.nowNanoseconds - begin
    }

    // MARK: What there is

    /// Sees to it that the old epoch's bank is the one that has to be given out again, and returns
    /// the record of the controller that it belongs to.
    private func beginSalvage() throws(DriverError) -> ControllerRecord {
        let record = try knownController()
        if state.salvageEpoch != 0, record.epoch == state.epoch { state.endSalvage() }
        if state.salvageEpoch == 0 {
            guard record.epoch == state.epoch else {
                throw .notAdoptable("its bring-up did not come to an end")
            }
            CrashPoint.hit(.resetBegun)
            state.beginEpoch(salvaging: true)
        }
        guard record.epoch == state.salvageEpoch, record.queueCount > 0,
            Int(record.queueCount) <= options.queueCount,
            state.layout.queueCount > options.queueCount,
            state.layout.slotsPerQueue >= Int(record.entries)
        else { throw .notAdoptable("its record is not that of epoch \(state.salvageEpoch)") }
        return record
    }

    /// Who the controller was. What was with it must not go to another.
    private func knownIdentity() throws(DriverError) -> IdentifyController {
        guard let page = state.controllerPage(0), let known = try? IdentifyController(parsing: page)
        else {
            throw .notAdoptable("what it said of itself is damaged: it may have been another")
        }
        return known
    }

    /// Identifies the namespaces, and has them compared with those on record. Returns those that
    /// are the same disks.
    private func compareNamespaces(
        _ count: Int, _ compare: NamespaceComparison
    ) throws(DriverError) -> Set<UInt32> {
        let known = takeKnownNamespaces(count)
        let found = try findNamespaces()
        let same = compare(known.infos, found.infos)
        for place in known.surplus { state.clearNamespace(place) }
        keepNamespaces(found)
        return same
    }

    /// Pool and regions, where they are not mapped here yet.
    private func takeMemory(
        _ record: ControllerRecord, _ inheritance: Inheritance
    ) throws(DriverError) {
        if pool == nil {
            forgetMemory()
            // Who died in an earlier reset may have stored another pool than the one on record.
            try? takePool(record, inheritance, checking: true)
            // Without its pool, what lies in it is lost; the rest is not.
            if pool == nil { space = IOVASpace(ranges: device.addressRanges) }
        }
        for index in 1..<UInt32(StateLayout.regionCapacity) where clientMappings[index] == nil {
            switch state.regionContent(index) {
            case .free: continue
            case .damaged: throw .notAdoptable("the record of region \(index) is damaged")
            case .record(let region):
                guard region.state == .mapped else { continue }
                try takeRegion(index, region, inheritance)
            }
        }
    }

    /// Lets go of pool and regions, which the device cannot reach any more.
    func forgetMemory() {
        pool = nil
        plan = nil
        poolIsInherited = false
        for index in clientMappings.keys { regions.remove(index) }
        for mapping in clientMappings.values { mapping.unmap() }
        clientMappings = [:]
        space = IOVASpace(ranges: device.addressRanges)
    }

    /// Makes pool and regions reachable for the device, which has been stopped.
    private func showMemory(
        _ record: ControllerRecord, _ inheritance: Inheritance
    ) throws(DriverError) {
        if !poolIsInherited { try makePool(options.queueCount) }
        guard plan?.queues.last?.entries == record.entries else {
            throw .notAdoptable("it takes other queues than it did")
        }
        do throws(VFIOError) {
            if poolIsInherited { try pool?.mapWindows(device) }
            for index in clientMappings.keys.sorted() {
                guard let region = state.region(index), let window = window(index, region) else {
                    continue
                }
                guard let fd = inheritance.memory(index, region) else {
                    throw .unsupported("the memory of region \(index) is not in the fd store")
                }
                try device.map(window, fd: fd, offset: region.stretch.offset)
            }
        } catch { throw Self.refusal(error) }
    }

    /// The interrupts of a predecessor, when they are all there.
    func checkOwnInterrupts() throws(DriverError) {
        let expected = min(device.vectorCount, options.queueCount + 1)
        guard interrupts.count != expected else { return }
        for raw in interrupts { _ = OwnedFD(adopting: raw) }
        interrupts = []
        interruptsAreInherited = false
    }

    // MARK: Queues

    /// What the device had answered when it was stopped.
    private func takeLastAnswers(_ record: ControllerRecord) throws(DriverError) {
        hasShadowDoorbells = false
        for index in 0..<Int(record.queueCount) {
            var old = try SalvagedQueue(index + 1, entries: record.entries, in: state)
            // Another attempt has looked before, when the queue's indexes are not the old epoch's.
            guard var pair = try? oldPair(index + 1) else { continue }
            old.takeAnswers(&pair)
        }
        CrashPoint.hit(.resetScanned)
    }

    private func oldPair(_ queueID: Int) throws(DriverError) -> QueuePair {
        guard let plan else { throw .exhausted("there is no DMA pool") }
        var parts = try queueParts(queueID).parts
        unsafe parts.memory.slots = state.address(
            state.layout.slotsOffset(queueID, epoch: state.salvageEpoch))
        return try QueuePair.adopt(
            parts.memory, queueID: UInt16(queueID),
            entries: plan.queues[queueID].entries, epoch: state.salvageEpoch,
            doorbellsAreMapped: parts.doorbellsAreMapped)
    }

    /// A new queue begins with entries and doorbells of 0. Lists and bounce pages stay: commands
    /// that are given out again need them.
    private func clearQueues() {
        guard let plan else { return }
        for queue in plan.queues {
            pool?.clearDeviceReads(queue.submission)
            pool?.clearDeviceWrites(queue.completion)
        }
        pool?.clearDeviceWrites(plan.shadow)
        pool?.clearDeviceWrites(plan.eventIndex)
        pool?.clearDeviceWrites(plan.adminBuffer)
    }

    /// Makes a queue pair, with what the old one had.
    private func moveQueue(
        _ index: Int, known: Int, _ tick: UInt32, _ same: Set<UInt32>,
        _ replay: (_ session: UInt32) -> Replay
    ) throws(DriverError) {
        guard index < known else { return try makeIOQueue(index) }
        guard let plan else { throw .exhausted("there is no DMA pool") }
        let queueID = index + 1
        let entries = plan.queues[queueID].entries
        var old = try SalvagedQueue(queueID, entries: entries, in: state)
        old.hasPool = poolIsInherited
        old.sameNamespaces = same
        old.sharedNamespaces = Set(namespaces.filter { $0.value.isShared }.keys)
        let empty = try createIOQueue(
            queueID, timeoutMilliseconds: options.adminTimeoutMilliseconds)
        var records = unsafe RequestRecords(
            records: state.requests(queueID), lists: state.segmentLists(queueID),
            queue: UInt32(queueID), epoch: state.epoch)
        try old.move(to: empty, &records, replay: replay)
        try adoptIOQueue(index, tick)
    }
}
