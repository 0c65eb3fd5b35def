// SPDX-License-Identifier: Apache-2.0
// The descriptors of a kernel VFIO device: found in the fd store, or opened; kept; let go of.

internal import CLinux
internal import DMA
internal import Linux
internal import NVMeDriver
internal import Systemd
internal import VFIO
internal import Wire

/// What came back from the fd store for the device.
struct StoredDevice: ~Copyable, Sendable {
    fileprivate var container: OwnedFD?
    fileprivate var iommufd: OwnedFD?
    fileprivate var addressSpace: UInt32 = 0
    fileprivate var group: OwnedFD?
    fileprivate var device: OwnedFD?
    fileprivate var error: OwnedFD?
    fileprivate var request: OwnedFD?
    fileprivate var userSocket: OwnedFD?
    fileprivate var userLog: OwnedFD?
    fileprivate var pool: OwnedFD?
    /// Holds the lock of the pool's file.
    fileprivate var poolLock: OwnedFD?
    /// The eventfds of vectors 0…, as far as they came without a gap.
    fileprivate var interrupts: [CInt] = []

    /// Takes what belongs to a device out of what the manager handed over.
    init(from fds: inout ListenFDs) {
        container = fds.take("vfio-container")
        group = fds.take("vfio-group")
        device = fds.take("vfio-device")
        error = fds.take("vfio-err")
        request = fds.take("vfio-req")
        if let named = fds.take(prefix: KernelVFIO.iommufdPrefix),
            let number = UInt32(named.name.dropFirst(KernelVFIO.iommufdPrefix.count))
        {
            addressSpace = number
            iommufd = named.takeFD()
        }
        userSocket = fds.take("vfio-user")
        userLog = fds.take("vfio-user-log")
        pool = fds.take("pool")
        poolLock = fds.take(DeviceKeeper.lockName)
        while let interrupt = fds.take("irq-\(interrupts.count)") {
            interrupts.append(interrupt.release())
        }
    }

    /// Nothing came.
    init() {}

    deinit { for raw in interrupts { _ = OwnedFD(adopting: raw) } }

    /// Puts a descriptor under the name that it has in the store.
    fileprivate mutating func put(_ name: String, _ fd: consuming OwnedFD) {
        switch name {
        case "vfio-container": container = consume fd
        case "vfio-group": group = consume fd
        case "vfio-device": device = consume fd
        case "vfio-err": error = consume fd
        case "vfio-req": request = consume fd
        case "vfio-user": userSocket = consume fd
        case "vfio-user-log": userLog = consume fd
        default:
            guard name.hasPrefix(KernelVFIO.iommufdPrefix),
                let number = UInt32(name.dropFirst(KernelVFIO.iommufdPrefix.count))
            else { return }
            addressSpace = number
            iommufd = consume fd
        }
    }

    fileprivate mutating func put(pool: consuming OwnedFD, interrupts: [CInt]) {
        self.pool = consume pool
        self.interrupts = interrupts
    }

    /// The pool and the interrupts with a device to which they belong; nil without a pool.
    fileprivate mutating func takeLive(_ device: any DeviceBacking) -> LiveDevice? {
        guard let pool = pool.take() else { return nil }
        let interrupts = self.interrupts
        self.interrupts = []
        return LiveDevice(device: device, pool: pool, interrupts: interrupts)
    }

    /// The eventfds by which the kernel speaks first.
    fileprivate mutating func takeEvents() throws(VFIOError) -> DeviceEvents {
        try DeviceEvents(error: error.take(), request: request.take())
    }

    /// The device, when enough of it came to use it.
    mutating func takeDevice() -> VFIODescriptors? {
        let container = self.container.take()
        let iommufd = self.iommufd.take()
        guard let device = self.device.take() else { return nil }
        if let iommufd {
            return VFIODescriptors(
                interface: .iommufd, memory: iommufd, group: nil, device: device,
                addressSpace: addressSpace)
        }
        guard let container, let group = group.take() else { return nil }
        let interface = KernelVFIO.interface(ofContainer: container)
        return VFIODescriptors(
            interface: interface, memory: container, group: group, device: device)
    }
}

/// A device that works on although the worker that used it died, with what belongs to it. It has
/// not been asked anything yet.
struct LiveDevice: ~Copyable {
    /// The device: first `adoptWindow`, then `checkAdoptable`.
    let device: any DeviceBacking
    /// The memory file of the DMA pool.
    private var pool: OwnedFD?
    /// The eventfds of vectors 0….
    private var interrupts: [CInt]

    init(device: any DeviceBacking, pool: consuming OwnedFD, interrupts: [CInt]) {
        self.device = device
        self.pool = consume pool
        self.interrupts = interrupts
    }

    deinit { for raw in interrupts { _ = OwnedFD(adopting: raw) } }

    /// Gives the pool's memory file up, once.
    mutating func takePool() -> OwnedFD? { pool.take() }

    /// Gives the eventfds up; whoever takes them closes them.
    mutating func takeInterrupts() -> [CInt] {
        defer { interrupts = [] }
        return interrupts
    }
}

/// Holds a device's descriptors on behalf of the process and of its successor.
@Control
final class DeviceKeeper {
    private let device: String
    private let log: Log
    private let store: FDStore
    private let notifier = Notifier()
    private var stored: StoredDevice
    /// Opened, and not yet made a device.
    private var opened: VFIODescriptors?
    /// The names that are in the store now.
    private var storedNames: Set<String>
    /// The device, also while no controller uses it.
    private var current: KernelVFIODevice?
    /// Where that device, or the stored one, is; nil: nobody has said yet.
    private var place: Transport?
    /// The server of a vfio-user device.
    private var server: VFIOUserDevice?
    /// Rises with each worker of the device.
    private let generation: UInt64

    /// The file of the pool, where it lies in one.
    private let pools: PoolKeeper
    /// Under which the lock of the pool's file is stored.
    nonisolated static let lockName = "pool-lock"

    /// What is counted: a successor goes on with it.
    var statistics: Statistics?
    private var statisticsAreStored = false
    /// Under which that is stored.
    nonisolated static let statisticsName = "stats"

    /// The configured guest memory, once somebody asked for it.
    private var guestMemory: Result<GuestMemory, WireError>?
    /// When it is looked for again after a failure.
    private var guestMemoryRetryNanoseconds: UInt64 = 0

    /// Takes over what a predecessor left.
    init(
        device: String, log: Log, store: FDStore, stored: consuming StoredDevice, names: [String],
        generation: UInt64
    ) {
        self.device = device
        self.generation = generation
        self.log = log
        self.store = store
        pools = PoolKeeper(device: device, log: log)
        self.stored = stored
        storedNames = Set(names.filter(Self.isOfDevice))
    }

    private nonisolated static func isOfDevice(_ name: String) -> Bool {
        ["pool", lockName, statisticsName].contains(name)
            || ["vfio-", "irq-", "iommufd-"].contains { name.hasPrefix($0) }
    }

    // MARK: Adopting

    /// The predecessor's device, as it is, when enough of it came back; nothing is done to it. nil:
    /// it has to be brought up, by `prepare` and `open`, as also when its adoption fails.
    func adopt(_ config: DeviceConfig) -> LiveDevice? {
        keepStatistics()
        if let place = config.poolPlace, let pool = stored.pool?.raw {
            do throws(PoolFileError) {
                try pools.adopt(place, pool, stored.poolLock.take())
            } catch {
                log.warning("\(error): what the device does there is nobody's; it is opened anew")
                return nil
            }
        }
        do throws(VFIOError) {
            switch config.transport {
            case .pci:
                guard let found = stored.takeDevice() else { return nil }
                place = config.transport
                let live = try KernelVFIODevice(
                    found, events: stored.takeEvents(), name: device, origin: .live)
                current = live
                return stored.takeLive(WatchedDevice(translated(live)))
            case .vfioUser:
                guard let socket = stored.userSocket.take(), let log = stored.userLog.take() else {
                    return nil
                }
                let live = try VFIOUserDevice(
                    adopting: socket, log: log, name: device, generation: generation)
                server = live
                return stored.takeLive(WatchedDevice(live))
            // Its queues died with the process that it lived in.
            case .null: return nil
            }
        } catch {
            log.warning("the stored device is of no use: \(error); it is opened anew")
            return nil
        }
    }

    /// Keeps what came back from touching memory, which nobody goes on with: its controller is
    /// disabled; one that does not obey loses bus mastering, or its connection, or is closed.
    /// Bounded. Without a device nothing happens. `prepare` and `open` may follow.
    func silence() {
        do throws(VFIOError) {
            if let found = stored.takeDevice() {
                let live = try KernelVFIODevice(
                    found, events: stored.takeEvents(), name: device, origin: .live)
                current = live
                guard !WatchedDevice(live).disableController() else { return }
                log.warning("the controller does not stop: it is kept from all memory")
                try live.beginAgain()
            } else if let socket = stored.userSocket.take(), let log = stored.userLog.take() {
                let live = try VFIOUserDevice(
                    adopting: socket, log: log, name: device, generation: generation)
                server = live
                try live.checkAdoptable()
                guard !WatchedDevice(live).disableController() else { return }
                self.log.warning("the controller does not stop: its connection is ended")
                forgetServer()
            }
        } catch {
            log.warning("what a predecessor had is of no use: \(error); it is closed")
            forget(keepsPool: true)
        }
    }

    /// The memory file of a predecessor's DMA pool, once, when `adopt` gave no device: what lay in
    /// it is needed also when the device is brought up again.
    func takePool() -> OwnedFD? { stored.pool.take() }

    // MARK: Opening

    /// Sees to it that `open` finds a device: a predecessor's, the one that is open, or a new one
    /// from the opener. With `reset` it is opened anew in any case, after a reset of the function.
    func prepare(_ config: DeviceConfig, reset: Bool) async throws(DriverError) {
        guard case .pci(let address) = config.transport else { return }
        // The one that failed stays open, and must not stand for one at another address.
        if let place, place != config.transport { forget() }
        place = config.transport
        if !reset {
            if let current, !current.isGone { return }
            if takeStored() { return }
        }
        // Whoever still holds the group keeps it from being opened. The pool is memory: what
        // sessions have in it is needed again.
        forget(keepsPool: true)
        opened = try await openAnew(config, address, reset)
    }

    private func takeStored() -> Bool {
        guard let found = stored.takeDevice() else { return false }
        log.info("the device comes from the fd store; it is started afresh")
        do throws(VFIOError) {
            current = try KernelVFIODevice(
                found, events: stored.takeEvents(), name: device, origin: .inherited)
            return true
        } catch {
            log.warning("the stored device is of no use: \(error); it is opened anew")
            return false
        }
    }

    private func openAnew(
        _ config: DeviceConfig, _ address: String, _ reset: Bool
    ) async throws(DriverError) -> VFIODescriptors {
        let client: OpenerClient?
        do throws(SystemCallError) {
            client = try OpenerClient.connect(OpenerClient.path)
        } catch { throw .system(error) }
        if let client { return try await openThrough(client, reset) }
        do throws(VFIOError) {
            return try KernelVFIO.open(
                address, mode: config.iommu.mode,
                reset: reset || config.alwaysResets ? .flr : .none,
                afterwards: config.alwaysResets ? .flr : .none, staysAwake: config.keepAlive)
        } catch { throw .device(error) }
    }

    private func openThrough(
        _ client: OpenerClient, _ reset: Bool
    ) async throws(DriverError) -> VFIODescriptors {
        do throws(WireError) {
            let answer = try await client.ask(
                .openDevice(name: device, reset: reset), device: device)
            guard case .deviceOpened(let told) = answer.reply,
                let descriptors = Self.descriptors(told, answer)
            else { throw WireError(.internalError, "the opener answered something else") }
            return descriptors
        } catch {
            // The opener's words, which begin as ours would.
            let words = error.message.trimmingPrefix("not usable: ")
            throw .device(.unsupported(String(words)))
        }
    }

    private static func descriptors(
        _ told: DeviceOpened, _ answer: OpenerAnswer
    ) -> VFIODescriptors? {
        guard let memory = answer.take(0) else { return nil }
        if told.interface == .iommufd {
            guard let device = answer.take(1) else { return nil }
            return VFIODescriptors(
                interface: .iommufd, memory: memory, group: nil, device: device,
                addressSpace: told.addressSpace)
        }
        guard let group = answer.take(1), let device = answer.take(2) else { return nil }
        return VFIODescriptors(
            interface: told.interface == .noiommu ? .noiommu : .type1, memory: memory,
            group: group, device: device)
    }

    /// The device that `prepare` found, ready for a bring-up.
    func open() throws(DriverError) -> any DeviceBacking {
        do throws(VFIOError) {
            if let descriptors = opened.take() {
                current = try KernelVFIODevice(
                    descriptors, events: DeviceEvents(), name: device, origin: .fresh)
            } else {
                try current?.beginAgain()
            }
        } catch { throw .device(error) }
        guard let current else { throw .exhausted("the device was not opened") }
        return translated(current)
    }

    private func translated(_ current: KernelVFIODevice) -> KernelVFIODevice {
        if current.usesPhysicalAddresses, Files.exists(OpenerClient.path) {
            let (path, name) = (OpenerClient.path, device)
            current.translate = { fd, offset, byteCount throws(VFIOError) in
                try OpenerClient.translate(
                    fd, offset: offset, byteCount, device: name, path: path)
            }
        }
        return current
    }

    /// Connects to a vfio-user server, with a connection of its own: the last one is ended, whoever
    /// still holds it, because servers have one client at a time, and begin afresh with each.
    func connect(
        _ path: String, keepsState: Bool = false
    ) throws(DriverError) -> any DeviceBacking {
        forgetServer()
        do throws(VFIOError) {
            let connected = try VFIOUserDevice(path: path, name: device, generation: generation)
            // A server that keeps its state has what whoever was there before had mapped.
            connected.mayHaveMappings = keepsState
            server = connected
            return connected
        } catch { throw .device(error) }
    }

    /// The file of a pool that begins, of at least so many bytes, best on a NUMA node.
    func poolFile(
        _ place: PoolPlace, _ byteCount: Int, _ node: Int?
    ) throws(PoolFileError) -> PoolFile {
        dropLock(unlessOf: place)
        return try pools.begin(place, byteCount, node)
    }

    /// Lets go of a lock that a predecessor left, which would keep this process out too: the pool
    /// begins, here or somewhere else.
    private func dropLock(unlessOf place: PoolPlace) {
        guard !pools.has(place) else { return }
        stored.poolLock = nil
        guard storedNames.remove(Self.lockName) != nil else { return }
        removeStored(Self.lockName)
        barrier()
    }

    private func forgetServer() {
        if let server { server.disconnect() }
        server = nil
        if let socket = stored.userSocket.take() { UnixSocket.shutdown(socket) }
        stored.userLog = nil
        for name in ["vfio-user", "vfio-user-log"] where storedNames.remove(name) != nil {
            removeStored(name)
        }
    }

    /// The guest memory that clients may register; nil: none is configured. Blocks, bounded, the
    /// first time: the opener knows, because a worker does not see device nodes.
    func guestMemory(_ config: DeviceConfig) throws(WireError) -> GuestMemory? {
        guard let place = config.guestMemory else { return nil }
        let now = MonotonicClock.nowNanoseconds
        if case .success(let found) = guestMemory { return found }
        // Clients cause this: they must not make the worker wait again and again.
        if case .failure(let error) = guestMemory, now < guestMemoryRetryNanoseconds { throw error }
        do throws(WireError) {
            let found =
                Files.exists(OpenerClient.path)
                ? try OpenerClient.findGuestMemory(device, path: OpenerClient.path)
                : try GuestMemory(place)
            guestMemory = .success(found)
            return found
        } catch {
            log.warning("clients cannot register guest memory: \(error.message)")
            guestMemory = .failure(error)
            guestMemoryRetryNanoseconds = now + WorkerLimits.guestMemoryRetryNanoseconds
            throw error
        }
    }

    /// Sends the interrupts to the configured processors; what goes wrong is logged.
    func setAffinity(_ config: DeviceConfig) async {
        guard case .pci(let address) = config.transport, !config.interruptAffinity.isEmpty
        else { return }
        do {
            if let client = try OpenerClient.connect(OpenerClient.path) {
                _ = try await client.ask(.setInterruptAffinity(name: device), device: device)
            } else {
                _ = try KernelInterrupts.setAffinity(
                    address, processors: config.interruptAffinity)
            }
        } catch {
            log.warning("InterruptAffinity= has no effect: \(error); continuing")
        }
    }

    // MARK: Restoring

    /// The file of a pool that a saved state tells of, and nothing of it changed. `reconnect` and
    /// `keepReconnected` follow, and then `adopt`.
    func savedPool(_ config: DeviceConfig, _ byteCount: UInt64) throws(DriverError) -> OwnedFD {
        guard let place = config.poolPlace else {
            throw .notAdoptable("its pool lies in no file")
        }
        dropLock(unlessOf: place)
        do throws(PoolFileError) {
            let found = try pools.find(place, Int(clamping: byteCount))
            do throws(SystemCallError) {
                return try found.fd.duplicate()
            } catch { throw .system(place: place, error) }
        } catch { throw .notAdoptable(error.description) }
    }

    /// Connects to a device that works on although nobody has anything of it; `prepare` was called.
    /// Nothing is done to it.
    func reconnect(_ config: DeviceConfig) throws(DriverError) -> any DeviceBacking {
        switch config.transport {
        case .vfioUser(let path): return WatchedDevice(try connect(path))
        case .pci:
            guard let descriptors = opened.take() else {
                throw .exhausted("the device was not opened")
            }
            do throws(VFIOError) {
                let device = try KernelVFIODevice(
                    descriptors, events: DeviceEvents(), name: device, origin: .fresh)
                current = device
                return WatchedDevice(translated(device))
            } catch { throw .device(error) }
        case .null: throw .notAdoptable("a null device keeps nothing")
        }
    }

    /// Stores what `reconnect` gave, its pool and its interrupts, as a predecessor would have left
    /// it, and waits until the manager has it. From here on `adopt` finds it, in this process or
    /// the next. Blocks, bounded.
    func keepReconnected(
        pool: consuming OwnedFD, interrupts: consuming [CInt]
    ) throws(DriverError) {
        replace("pool", pool.raw)
        keepLock()
        for (index, raw) in interrupts.enumerated() { replace("irq-\(index)", raw) }
        let kept = (current?.kept ?? []) + (server?.kept ?? [])
        for entry in kept { replace(entry.name, entry.raw) }
        barrier()
        stored = StoredDevice()
        do throws(SystemCallError) {
            for entry in kept {
                stored.put(entry.name, try OwnedFD.duplicate(ofRaw: entry.raw))
            }
        } catch { throw .system(error) }
        stored.put(pool: pool, interrupts: interrupts)
        // Not ended: the descriptors go on in `stored`.
        (current, server) = (nil, nil)
    }

    // MARK: Keeping

    /// Stores what a successor needs, and waits until the manager has it. Blocks, bounded.
    func keep(_ controller: NVMeController) {
        // What is there already stays: who died between its removal and its return would have lost
        // it.
        if let pool = controller.poolFD, !(controller.poolIsInherited && has("pool")) {
            replace("pool", pool)
        }
        keepLock()
        let interrupts = controller.interruptDescriptors
        for (index, raw) in interrupts.enumerated()
        where !(controller.interruptsAreInherited && has("irq-\(index)")) {
            replace("irq-\(index)", raw)
        }
        keepStatistics()
        // A predecessor may have had more.
        var surplus = interrupts.count
        while storedNames.remove("irq-\(surplus)") != nil {
            removeStored("irq-\(surplus)")
            surplus += 1
        }
        for entry in (current?.kept ?? []) + (server?.kept ?? [])
        where !storedNames.contains(entry.name) {
            replace(entry.name, entry.raw)
        }
        barrier()
    }

    /// Stores the lock of the pool's file beside the pool: while the one is there nobody else gets
    /// the other, also when no worker lives.
    private func keepLock() {
        guard let lock = pools.lock else {
            if storedNames.remove(Self.lockName) != nil { removeStored(Self.lockName) }
            return
        }
        guard !(pools.lockIsStored && has(Self.lockName)) else { return }
        replace(Self.lockName, lock)
        pools.noteStored()
    }

    /// Stores what is counted in place of what a predecessor counted, once. Nobody waits for that:
    /// who dies now loses numbers.
    private func keepStatistics() {
        guard let statistics, !(statisticsAreStored && has(Self.statisticsName)) else { return }
        replace(Self.statisticsName, statistics.fd.raw)
        statisticsAreStored = has(Self.statisticsName)
    }

    private func has(_ name: String) -> Bool { storedNames.contains(name) }

    private func barrier() {
        do throws(SystemCallError) {
            try notifier.barrier(timeoutMicroseconds: WorkerLimits.barrierNanoseconds / 1000)
        } catch {
            log.warning(
                "the manager has not confirmed what it keeps: \(error); continuing",
                id: .storeFailed)
        }
    }

    private func replace(_ name: String, _ raw: CInt) {
        let copy = nv_dup_cloexec(raw)
        guard copy >= 0 else { return }
        let fd = OwnedFD(adopting: copy)
        do throws(FDStoreError) {
            if storedNames.contains(name) {
                try store.remove(name)
                storedNames.remove(name)
            }
            try store.store(name, fd)
            storedNames.insert(name)
        } catch {
            let loses = name == Self.statisticsName ? "counts" : "opens the device"
            log.warning(
                "\(error); continuing without: a restarted worker \(loses) anew",
                id: .storeFailed)
        }
    }

    /// The device's descriptor and that of the kernel's requests, for the supervisor.
    var watched: [CInt] { current?.watched ?? [] }

    /// Lets go of the device, here and in the store: after this the kernel has it, as soon as the
    /// controller that uses it is gone too. Blocks, bounded.
    ///
    /// The last close of the device may sleep for a minute in a reset that a dead function does not
    /// answer. It is ours, after the manager's, and in a thread of its own.
    func forget(keepsPool: Bool = false) {
        let last = current.map { nv_dup_cloexec($0.watched[0]) } ?? -1
        current = nil
        opened = nil
        forgetServer()
        stored = StoredDevice()
        forgetStored(keepsPool)
        guard last >= 0, nv_close_within(last, WorkerLimits.closeMilliseconds) == 0 else { return }
        log.warning("the kernel is still resetting the device; continuing")
    }

    private func forgetStored(_ keepsPool: Bool) {
        let names = storedNames.filter {
            !keepsPool || !["pool", Self.lockName, Self.statisticsName].contains($0)
        }
        guard !names.isEmpty else { return }
        for name in names.sorted() { removeStored(name) }
        storedNames.subtract(names)
        barrier()
    }

    private func removeStored(_ name: String) {
        do throws(FDStoreError) {
            try store.remove(name)
        } catch {
            log.warning("\(error); continuing")
        }
    }
}

extension Transport {
    /// Whether it is a device of the machine, which can be taken away.
    var isHardware: Bool { if case .pci = self { true } else { false } }
}

extension TranslationMode? {
    /// The mode as the kernel's side has it.
    var mode: IOMMUMode {
        switch self {
        case nil, .auto: .auto
        case .type1: .type1
        case .iommufd: .iommufd
        case .noiommu: .noiommu
        }
    }
}
