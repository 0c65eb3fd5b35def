// SPDX-License-Identifier: Apache-2.0
// The device of a worker: its controller, its life, and the sessions that are open on it.
//
// Everything runs on the one control thread. What may block (bring-up, admin commands, mapping
// memory) is bounded by the driver. Failures of the device are noted at once (`failure`) and acted
// upon in a turn of the loop of their own, so that nobody's engine disappears under him.

internal import CLinux
internal import DMA
internal import Glibc
internal import Linux
internal import NVMeDriver
internal import Systemd
internal import VFIO
internal import Wire

/// Who hears what happens to the device: the supervisor's harness, or a test.
@Control
protocol DeviceObserver: AnyObject {
    /// Something happened.
    func tell(_ event: WorkerEvent)
}

/// What a service needs from outside.
struct DeviceEnvironment {
    /// The device's name, from the command line.
    var name: String
    /// The log.
    var log: Log
    /// Finds the guest memory that may be registered; nil: none.
    var guestMemory: @Control (DeviceConfig) throws(WireError) -> GuestMemory? = {
        _ throws(WireError) in nil
    }
    /// Connects to a device, for which `prepare` was called.
    var open: @Control (DeviceConfig) throws(DriverError) -> any DeviceBacking
    /// Keeps a predecessor's controller, which nobody goes on with, from touching memory.
    var silence: @Control () -> Void = {}
    /// There was a predecessor, of which nothing is known.
    var stateIsLost = false
    /// A predecessor's device, which works on, when it came back; nil: it has to be brought up.
    var adopt: @Control (DeviceConfig) -> LiveDevice? = { _ in nil }
    /// A predecessor's DMA pool, once, when `adopt` gave no device.
    var takePool: @Control () -> OwnedFD? = { nil }
    /// What sessions, rings and regions keep for a successor; nil in tests without one.
    var stored: StoredFDs?
    /// Sees to what takes time before a device can be opened; with `reset`, after the function was
    /// reset.
    var prepare: @Control (DeviceConfig, _ reset: Bool) async throws(DriverError) -> Void = {
        _, _ async throws(DriverError) in
    }
    /// Gives the file of a pool that begins, of at least so many bytes, best on a NUMA node.
    var poolFile: @Control (PoolPlace, Int, _ node: Int?) throws(PoolFileError) -> PoolFile = {
        place, byteCount, node throws(PoolFileError) in
        try PoolFile.create(place, byteCount: byteCount, node: node)
    }
    /// Knows where devices are.
    var machine = MachineNodes()
    /// Gives the file of the pool that a saved state of so many bytes tells of.
    var savedPool: @Control (DeviceConfig, UInt64) throws(DriverError) -> OwnedFD = {
        _, _ throws(DriverError) in throw .notAdoptable("there is no pool")
    }
    /// Connects to a device that works on although nobody has anything of it.
    var reconnect: @Control (DeviceConfig) throws(DriverError) -> any DeviceBacking = {
        _ throws(DriverError) in throw .notAdoptable("there is no device")
    }
    /// Keeps the device that `reconnect` gave, with its pool and its interrupts, as a predecessor
    /// would have left it: `adopt` finds it.
    var keepReconnected: @Control (consuming OwnedFD, [CInt]) throws(DriverError) -> Void = {
        _, _ throws(DriverError) in
    }
    /// Keeps another state area.
    var replaceState: @Control (borrowing OwnedFD) -> Void = { _ in }
    /// Called when the device has been brought up.
    var started: @Control (DeviceConfig) async -> Void = { _ in }
    /// Keeps the device, its pool and its interrupts for a successor, before the controller may use
    /// them.
    var keep: @Control (NVMeController) -> Void = { _ in }
    /// Lets go of what is kept: the device is given back.
    var forget: @Control () -> Void = {}
    /// The device and the eventfd of the kernel's requests, for the supervisor; empty: none.
    var watched: @Control () -> [CInt] = { [] }
    /// What is counted, in memory that everybody may read; nil: there is none for it.
    var statistics: Statistics?
    /// How many failures of the controller are left to successors.
    var failureLimit = WorkerLimits.failures
    /// After how long without service sessions end, in nanoseconds.
    var stallLimitNanoseconds = WorkerLimits.stallLimitNanoseconds
}

/// Events counted since the worker started.
struct DeviceCounters {
    var interrupts: UInt64 = 0
    var missedInterrupts: UInt64 = 0
    var adminInterrupts: UInt64 = 0
    var aborts: UInt64 = 0
    var queueDeletions: UInt64 = 0
    var functionResets: UInt64 = 0
    var faults: UInt64 = 0
    var bringUps: UInt64 = 0
    var sessionsOpened: UInt64 = 0
    var queueFull: UInt64 = 0
    var rejectedMessages: UInt64 = 0
    var ringsOpened: UInt64 = 0
    var adoptions: UInt64 = 0
    var sessionsInherited: UInt64 = 0
}

/// The device and its sessions.
@Control
@safe
final class DeviceService {
    let environment: DeviceEnvironment
    let loop = EventLoop.current
    /// Hears what happens.
    weak var observer: (any DeviceObserver)?
    /// Rises with each worker that takes the state area over.
    var generation: UInt64
    private(set) var lifecycle = Lifecycle(nowNanoseconds: MonotonicClock.nowNanoseconds)
    /// The state area while no controller has it.
    var idleState: StateArea?
    /// A command was completed, so that this start does not count as fruitless.
    var isFruitful = false
    /// This process has counted its start.
    var isCounted = false
    /// What the device was loaded with, kept over failures.
    var config: DeviceConfig?
    /// The controller while the device is ready or draining.
    var controller: NVMeController?
    /// A controller that is being brought up, and has the state area already.
    var bringingUp: NVMeController?
    /// Why the device cannot be used any more; acted upon in the next turn.
    private(set) var failure: DriverError?

    var sessions: [Session?] = Array(repeating: nil, count: StateLayout.sessionCapacity)
    var sessionSerial: UInt32 = 0
    /// Gives a session that a predecessor opened its socket.
    var attach: @Control (Session, HeldDescriptor) -> Void = { _, _ in }
    /// Places for owed answers that are free.
    var freeOwed = Array((0..<StateLayout.owedCapacity).reversed())
    /// Cancels of a predecessor that were not answered.
    var owedCancels: [(place: Int, record: OwedRecord)] = []
    /// Descriptors of rings that were taken out of the store, until all are adopted.
    var adoptedRings: [UInt64: RingDescriptors] = [:]
    /// What a predecessor left for the controller, until that is up.
    var inherited: InheritedDescriptors?
    /// Since when the sessions are not served; nil: they are.
    var stalledSince: UInt64?
    /// The sessions were told.
    var stallIsTold = false
    var stallTimer: Timer?
    /// How long requests waited the last time.
    var lastPauseNanoseconds: UInt64?
    /// Why this worker had to reset the controller that it found; empty: it had not.
    var resetReason = ""
    /// A save that is under way.
    var servicing: Servicing?
    /// The controller was taken over as a saved state has it.
    var isRestored = false
    /// Why the saved state that came was of no use; empty: there was none, or it was used.
    var coldReason = ""
    /// The adopted controller's admin queue is silent until a client has got a completion.
    var adoptionIsOpen = false
    var adoptionTimer: Timer?
    /// It is known whether the predecessor's controller can be gone on with.
    let looked = OneShot<Void>()
    /// Who waits until a bring-up has ended.
    var settling: [OneShot<Void>] = []
    /// Pages of clients' memory that were found to be gone, in all, when `endFaultedSessions` last
    /// looked.
    var seenFaults: UInt64 = 0
    /// Sessions that are over and have not been finished.
    var dyingSessions = 0
    /// Connections of sessions that are over and could not be told yet.
    var farewells = 0 { didSet { if farewells == 0 { allTold?.succeed(()) } } }
    /// Who waits until they are; nil: nobody.
    var allTold: OneShot<Void>?
    var counters = DeviceCounters()
    /// What everybody reads; nil: there was no memory for it.
    var statistics: Statistics? { environment.statistics }
    /// Where queue pairs are counted, by queue.
    var queueStatistics: [StatisticsBlock] = []
    /// Engine requests that have not ended.
    var requestsInFlight = 0
    /// Sessions that wait for each queue, first come first served.
    var waiting: [[UInt32]] = []
    /// Commands that are being aborted, with the time until which they are waited for, for each
    /// queue.
    var aborts: [[UInt16: UInt64]] = []
    /// Queues of this controller that were deleted and made anew.
    var queueReplacements = 0
    /// Cancels that wait for their Aborts.
    var cancels: [PendingCancel] = []
    nonisolated(unsafe) let completions: UnsafeMutablePointer<IOCompletion>
    var tickTimer: Timer?
    var healthTimer: Timer?
    /// What the controller last said of its health.
    var lastHealth: Health?
    /// Queues with an answer and no interrupt, with what they had completed when that was seen.
    var suspects: [Int: UInt64] = [:]
    var suspectTimer: Timer?
    /// Interrupts of each queue.
    private(set) var interruptCounts: [UInt64] = []
    /// Queues whose answers were found before their interrupt, with their interrupts at that time.
    var accused: [Int: UInt64] = [:]
    var accusationTimer: Timer?
    var tickIsArmed = false
    var settleIsScheduled = false
    /// The threads of the queues 1…, in that order.
    var threads: [DataThread] = []
    /// The rounds of the threads when the watchdog looked last.
    var roundsSeen: [UInt64] = []
    /// Data queues with a command that was not answered in time.
    var overdue: Set<Int> = []
    /// The data threads tell when requests end.
    var progressIsWatched = false
    var watches: [DescriptorWatch] = []
    var drainTimer: Timer?
    /// Ends the process for a successor that resets the controller and goes on with the sessions;
    /// nil: there will be none.
    var leaveToSuccessor: (@Control () -> Void)?
    /// Who waits until nothing is with the device, or the time for that is over.
    var whenDrained: (@Control (Bool) -> Void)?

    /// A device that is not loaded.
    init(environment: DeviceEnvironment, state: consuming StateArea) {
        self.environment = environment
        generation = state.generation
        unsafe completions = .allocate(capacity: WorkerLimits.completionsPerReap)
        unsafe completions.initialize(
            repeating: IOCompletion(), count: WorkerLimits.completionsPerReap)
        idleState = consume state
    }

    deinit {
        // They count in `statistics`, which would go first.
        for thread in threads { thread.stop() }
        unsafe completions.deallocate()
    }

    /// The device's name.
    var name: String { environment.name }
    /// The log.
    var log: Log { environment.log }
    /// Milliseconds after which an I/O command is taken to be lost.
    var ioTimeoutMilliseconds: UInt32 {
        let asked = config?.ioTimeoutMilliseconds ?? WorkerLimits.ioTimeoutMilliseconds
        return min(max(asked, 20), Tick.maxMilliseconds)
    }

    // MARK: Life

    /// Brings the device up for the supervisor; answers at once when it is up with the same
    /// configuration.
    ///
    /// The loop goes on while the device is opened; bring-up itself blocks.
    ///
    /// With `saved`, the section of a saved state, the controller is taken over, or else started
    /// cold.
    func load(
        _ config: DeviceConfig, saved: HeldDescriptor? = nil
    ) async throws(WireError) -> DeviceReady {
        if saved != nil, controller?.wasAdopted == true { isRestored = true }
        if let ready, let known = self.config {
            guard known == config else {
                throw WireError(
                    .alreadyExists,
                    "the device is loaded with another configuration; shut the worker down first",
                    device: name, field: "load_driver.config")
            }
            return ready
        }
        if isStarting || isReleasing { await settled() }
        if let ready, config == self.config { return ready }
        try checkPlace(config)
        if !isFruitful { try countStart() }
        guard case .enter = step(.load, "asked for by the supervisor") else { throw unavailable() }
        (isRestored, coldReason) = (false, "")
        if let saved, await restore(config, saved) {
            guard let ready else { throw unavailable() }
            return ready
        }
        do throws(DriverError) {
            try await bringUp(config)
        } catch {
            throw startFailed(error)
        }
        guard let ready else { throw unavailable() }
        return ready
    }

    /// Brings the device up; hardware that does not come up is tried once more after a reset of the
    /// function.
    func bringUp(_ config: DeviceConfig) async throws(DriverError) {
        self.config = config
        let resets = try await prepare(config)
        do throws(DriverError) {
            try start(config)
        } catch {
            guard config.transport.isHardware, !resets, error.isCuredByReset, isStarting else {
                throw error
            }
            log.warning("does not come up: \(error); once more after a function level reset")
            do throws(DriverError) {
                try await environment.prepare(config, true)
                counters.functionResets += 1
            } catch let second {
                log.warning("could not be reset: \(second)")
                throw error
            }
            try start(config)
        }
        await environment.started(config)
    }

    /// Sees to it that the device can be opened, after a reset of the function if one is due.
    /// Returns whether there was one: some functions have none, and are told by CSTS.RDY whether
    /// they can be used.
    private func prepare(_ config: DeviceConfig) async throws(DriverError) -> Bool {
        if needsFunctionReset, config.transport.isHardware {
            inheritPool()
            do throws(DriverError) {
                try await environment.prepare(config, true)
                counters.functionResets += 1
                needsFunctionReset = false
                return true
            } catch { log.warning("could not be reset: \(error); continuing") }
        }
        try await environment.prepare(config, false)
        needsFunctionReset = false
        return false
    }

    var isStarting: Bool { lifecycle.state == .starting || lifecycle.state == .recovering }

    func startFailed(_ error: DriverError) -> WireError {
        let isRemoved = isRemoval(error)
        log.error(
            "cannot be started: \(error)", id: isRemoved ? .deviceRemoved : error.startEvent)
        step(isRemoved ? .remove : .startFailed, error.description)
        let wire = error.onWire(isRemoved ? .deviceRemoved : .deviceFailed, device: name)
        // What is open would keep the kernel from clearing up after it.
        if isRemoved {
            environment.forget()
            endInherited(wire)
        }
        return wire
    }

    /// Whether an error says that the hardware was taken away. A server in another process that is
    /// gone may come back.
    private func isRemoval(_ error: DriverError) -> Bool {
        switch error {
        case .gone: true
        case .device(.gone): config?.transport.isHardware == true
        default: false
        }
    }

    private func start(_ config: DeviceConfig) throws(DriverError) {
        // The worker may have been asked to leave while the device was being opened.
        guard isStarting else { throw .exhausted("the worker is leaving") }
        counters.bringUps += 1
        let device = try environment.open(config)
        let controller = try NVMeController(
            device: device, options: options(config), state: try takeState())
        controller.poolSource = poolSource(config)
        bringingUp = controller
        defer { bringingUp = nil }
        do throws(DriverError) {
            let keepsSessions = try start(controller)
            try use(controller, config, adopting: keepsSessions)
        } catch {
            putAway(controller)
            throw error
        }
        started(controller, config)
        let milliseconds = Double(controller.bringUpNanoseconds / 10_000) / 100
        log.notice(
            "ready after \(milliseconds) ms: \(controller.namespaces.count) namespaces, "
                + "\(controller.queueCount) I/O queues", id: .controllerReady)
        // What happened during bring-up may have left no edge to see.
        afterAdminCommand()
    }

    /// Has this process use a controller that is up. With `adopting` a predecessor's sessions go
    /// on.
    func use(
        _ controller: NVMeController, _ config: DeviceConfig, adopting: Bool
    ) throws(DriverError) {
        self.controller = controller
        failure = nil
        waiting = Array(repeating: [], count: controller.queueCount)
        aborts = Array(repeating: [:], count: controller.queueCount)
        interruptCounts = Array(repeating: 0, count: controller.queueCount)
        queueReplacements = 0
        cancels = []
        try startThreads(controller, config, adopting: adopting)
        countQueues(controller)
        if adopting { try adoptSessions(controller) }
        countAdopted()
        try watch(controller)
    }

    /// Undoes `use`; the state area is there for another try.
    func putAway(_ controller: NVMeController) {
        stopThreads()
        forgetAdopted()
        dropThreads()
        unwatch()
        reclaimState(controller)
        self.controller = nil
    }

    /// The controller works: so do the sessions.
    func started(_ controller: NVMeController, _ config: DeviceConfig) {
        counters.functionResets += UInt64(controller.functionResets)
        keep(config, controller)
        step(.started, "")
        tellSettled()
        armHealth()
        resumeSessions()
    }

    func options(_ config: DeviceConfig) -> ControllerOptions {
        var options = ControllerOptions(deviceName: name)
        options.queueCount = min(
            Int(config.queueCount ?? WorkerLimits.standardQueueCount), WorkerLimits.queueCount)
        options.queueDepth = min(Int(config.queueDepth ?? 256), WorkerLimits.queueDepth)
        if let bytes = config.maxTransferByteCount {
            options.maxTransferByteCount = Int(clamping: bytes)
        }
        options.poolByteCount = config.poolByteCount.map { Int(clamping: $0) }
        if let milliseconds = config.adminTimeoutMilliseconds {
            options.adminTimeoutMilliseconds = Int(milliseconds)
        }
        options.quirks = config.quirks.map { Set($0.map(Quirk.init)) }
        return options
    }

    private func keep(_ config: DeviceConfig, _ controller: NVMeController) {
        if let bytes = KeptConfiguration.encode(config), controller.state.setConfiguration(bytes) {
        } else {
            log.warning("the configuration is too long to be kept; continuing without")
        }
    }

    /// Takes the step and tells the supervisor; a refused one changes nothing.
    @discardableResult
    func step(_ event: LifecycleEvent, _ reason: String) -> LifecycleStep {
        let step = lifecycle.handle(
            event, reason: reason, nowNanoseconds: MonotonicClock.nowNanoseconds)
        if case .enter(let state) = step {
            observer?.tell(.stateChanged(state.onWire, reason: reason))
            if !isStarting { tellSettled() }
        }
        return step
    }

    /// Waits until a bring-up that is under way has ended, or the device is given back.
    private func settled() async {
        let change = OneShot<Void>()
        settling.append(change)
        _ = try? await change.value()
    }

    func tellSettled() {
        let waiting = settling
        settling = []
        for one in waiting { one.succeed(()) }
    }

    /// Why requests are not taken in this state.
    func unavailable() -> WireError {
        let reason = lifecycle.reason.isEmpty ? "" : ": \(lifecycle.reason)"
        // A successor, or the next attempt of the supervisor, begins at once.
        if let failure, lifecycle.state == .ready {
            return failure.onWire(
                isRemoval(failure) ? .deviceRemoved : .deviceStarting, device: name)
        }
        return switch lifecycle.state {
        case .absent:
            WireError(.deviceStarting, "the device has not been loaded yet", device: name)
        case .starting, .recovering, .ready:
            WireError(.deviceStarting, "the device is being brought up", device: name)
        case .draining: WireError(.shuttingDown, "the worker is leaving", device: name)
        case .failed: WireError(.deviceFailed, "the device has failed\(reason)", device: name)
        case .removed: WireError(.deviceRemoved, "the device is gone\(reason)", device: name)
        }
    }

    /// The controller, when requests may go to it.
    var usableController: NVMeController? {
        failure == nil && lifecycle.state == .ready ? controller : nil
    }

    /// What LoadDriver answers; nil unless ready.
    var ready: DeviceReady? {
        guard let controller = usableController else { return nil }
        let namespaces = controller.namespaces.values.sorted { $0.namespaceID < $1.namespaceID }
        var ready = DeviceReady(
            controller: ControllerInfo(controller),
            namespaces: NVMeDriver.NamespaceInfo.onWire(namespaces),
            bringUpNanoseconds: controller.bringUpNanoseconds, generation: generation)
        var continuity = Continuity(generation: generation)
        // Each worker but the first took over, and each epoch but the first began with a reset.
        continuity.resets = UInt64(max(controller.state.epoch, 1) - 1)
        continuity.adoptions = generation &- 1 - min(generation &- 1, continuity.resets)
        continuity.lastPauseNanoseconds = lastPauseNanoseconds
        ready.continuity = continuity
        ready.resetReason = resetReason
        ready.restored = isRestored
        ready.coldReason = coldReason
        return ready
    }

    // MARK: The state area

    func takeState() throws(DriverError) -> StateArea {
        if let state = idleState.take() { return state }
        do throws(StateAreaError) {
            return try StateArea.create(layout: Self.stateLayout)
        } catch {
            throw .exhausted("no state area: \(error)")
        }
    }

    /// The layout that serves every configuration: memory that is not touched costs nothing.
    nonisolated static let stateLayout = StateLayout(
        queueCount: WorkerLimits.queueCount + 1, slotsPerQueue: WorkerLimits.queueDepth)

    /// Takes the state area out of a controller that will not be used again, a tiny one put in its
    /// place.
    func reclaimState(_ controller: NVMeController) {
        let tiny = StateLayout(queueCount: 1, slotsPerQueue: 1)
        guard var other = try? StateArea.create(layout: tiny) else { return }
        swap(&other, &controller.state)
        idleState = consume other
    }

    // MARK: Events of the device

    func watch(_ controller: NVMeController) throws(DriverError) {
        do throws(SystemCallError) {
            var seen: Set<CInt> = []
            let raw = controller.interrupt(Self.messageQueue)
            if seen.insert(raw).inserted {
                let watch = try DescriptorWatch(raw, [.readable, .edgeTriggered]) { [weak self] _ in
                    self?.interrupted(raw)
                }
                watches.append(watch)
            }
            if seen.insert(controller.adminInterrupt).inserted {
                let watch = try DescriptorWatch(
                    controller.adminInterrupt, [.readable, .edgeTriggered]
                ) { [weak self] _ in self?.adminInterrupted() }
                watches.append(watch)
            }
            for descriptor in controller.device.eventDescriptors {
                let events: Events =
                    descriptor.isNeverRead ? [.readable, .edgeTriggered] : .readable
                let watch = try DescriptorWatch(descriptor.raw, events) { [weak self] _ in
                    self?.deviceSpoke()
                }
                watches.append(watch)
            }
        } catch {
            unwatch()
            throw .system(error)
        }
    }

    func unwatch() {
        for watch in watches { watch.cancel() }
        watches.removeAll()
        tickTimer?.disarm()
        healthTimer?.disarm()
        suspectTimer?.disarm()
        suspects = [:]
        accusationTimer?.disarm()
        accused = [:]
        tickIsArmed = false
    }

    private func interrupted(_ raw: CInt) {
        guard let controller, failure == nil, !isQuiet else { return }
        counters.interrupts += 1
        if raw == controller.adminInterrupt { takeAdminEvents() }
        if interruptCounts.indices.contains(Self.messageQueue) {
            interruptCounts[Self.messageQueue] &+= 1
        }
        reap(Self.messageQueue)
    }

    private func adminInterrupted() {
        counters.adminInterrupts += 1
        takeAdminEvents()
    }

    private func deviceSpoke() {
        guard let controller, failure == nil else { return }
        do throws(VFIOError) {
            for notice in try controller.device.handleEvents() { act(on: notice) }
        } catch {
            note(.device(error))
        }
    }

    // MARK: Failure

    /// Notes that an operation failed; when that means the device has failed, it is taken out of
    /// service.
    func note(_ error: DriverError) {
        if error.isFatal { giveUp(error) }
    }

    /// Notes that the device cannot be used any more; it is taken out of service.
    func giveUp(_ error: DriverError) {
        guard failure == nil, controller != nil else { return }
        failure = error
        counters.faults += 1
        if case .device(.deviceError) = error { needsFunctionReset = true }
        soon { [weak self] in self?.fail() }
    }

    /// Runs `body` in a turn of the loop of its own.
    func soon(_ body: @escaping @Control () -> Void) {
        do throws(SystemCallError) {
            try loop.defer(body).keep()
        } catch {
            // Out of memory: now is better than never.
            body()
        }
    }

    /// Takes a device that cannot be trusted out of service. A successor resets it and goes on with
    /// the sessions; where there is none, or too often, every request ends, once.
    private func fail() {
        guard var failure, let controller else { return }
        if !failure.isGone, !controller.device.isPresent {
            // Registers of what is not there need not read as all ones.
            failure = .device(.gone("it does not answer on its bus any more; \(failure)"))
            self.failure = failure
        }
        let isRemoved = isRemoval(failure)
        log.error(
            "\(isRemoved ? "removed" : "failed"): \(failure)",
            id: isRemoved ? .deviceRemoved : failure.failureEvent)
        thaw("\(failure)")
        unwatch()
        stopThreads()
        // First of all the device must stop touching memory that others will get.
        let stopped = controller.disable()
        if !failure.isGone {
            if !stopped {
                resetFunction(controller, "the controller did not confirm its reset")
            } else if case .device(.deviceError) = failure {
                resetFunction(controller, "\(failure)")
            }
        }
        if !failure.isGone, isLeftToSuccessor(controller) {
            log.warning(
                "leaving for a successor, which resets the controller: the sessions go on",
                id: .controllerFailed)
            leaveToSuccessor?()
            return
        }
        step(isRemoved ? .remove : .fault, failure.description)
        endEverything(
            controller,
            failure.onWire(isRemoved ? .deviceRemoved : .deviceFailed, device: name))
        reclaimState(controller)
        self.controller = nil
        forgetQueues()
        if isRemoved { environment.forget() }
        finishDrain(false)
    }
}
