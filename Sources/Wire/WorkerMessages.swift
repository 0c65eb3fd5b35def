// SPDX-License-Identifier: Apache-2.0
// The messages between the supervisor and the worker of one device (Proto/worker.proto).

/// How a device is reached.
public enum Transport: Sendable, Hashable {
    /// A vfio-user server, by the path of its socket.
    case vfioUser(path: String)
    /// Kernel VFIO, by PCI address: `0000:01:00.0`.
    case pci(address: String)
    /// No device: I/O succeeds at once and moves nothing.
    case null
}

/// How a PCI device's accesses to memory are translated.
public enum TranslationMode: UInt32, Sendable, Hashable {
    /// Whatever the kernel has, but never without an IOMMU.
    case auto = 1
    /// Group and container, type 1.
    case type1 = 2
    /// The device's node and an iommufd.
    case iommufd = 3
    /// None: physical addresses.
    case noiommu = 4
}

/// Something that a kind of controller needs, or cannot do.
public enum DeviceQuirk: UInt32, Sendable, Hashable, CaseIterable {
    /// Whoever takes the running controller over sends it no admin command.
    case noAdminAfterServicing = 2
    /// Interrupt vectors are connected in ascending order.
    case vectorsAscending = 3
    /// Both queues of a pair have the same size.
    case equalQueueSizes = 4
    /// Whoever takes over resets the controller.
    case doNotAdopt = 5

    /// What says that there is none.
    static let none: UInt32 = 1
}

/// How to run a device; nil: the worker's default.
public struct DeviceConfig: Sendable, Hashable {
    /// The configured name.
    public var name: String
    /// How it is reached.
    public var transport: Transport
    /// I/O queue pairs wanted.
    public var queueCount: UInt32?
    /// Entries of each queue wanted.
    public var queueDepth: UInt32?
    /// The most bytes of one command.
    public var maxTransferByteCount: UInt64?
    /// Bytes of the DMA pool.
    public var poolByteCount: UInt64?
    /// Milliseconds after which an I/O command is taken to be lost.
    public var ioTimeoutMilliseconds: UInt32?
    /// Milliseconds after which an admin command is taken to be lost.
    public var adminTimeoutMilliseconds: UInt32?
    /// How a PCI device's accesses to memory are translated.
    public var iommu: TranslationMode?
    /// The function is reset whenever it is opened.
    public var alwaysResets = false
    /// The processors that the interrupts go to; empty: the kernel's choice.
    public var interruptAffinity: [UInt32] = []
    /// Nanoseconds that a data thread looks for work in vain before it sleeps.
    public var spinNanoseconds: UInt64?
    /// The processors that the data threads stay on, in turn; empty: the kernel's choice.
    public var dataAffinity: [UInt32] = []
    /// Of a null device: bytes of its namespace.
    public var nullByteCount: UInt64?
    /// Of a null device: bytes of a logical block.
    public var nullBlockByteCount: UInt32?
    /// Of a device without an IOMMU: the guest memory that clients may register.
    public var guestMemory: GuestMemoryPlace?
    /// The controller keeps running when everything above it is stopped.
    public var keepAlive = false
    /// What the DMA pool lies in; nil: memory of the worker.
    public var poolBacking: PoolBacking?
    /// Where the DMA pool is: a file, or the node of a DAX device; nil: nowhere.
    public var poolPath: String?
    /// What the controller needs or cannot do; nil: what is known of its PCI id.
    public var quirks: Set<DeviceQuirk>?
    /// A device with the worker's defaults.
    public init(name: String, transport: Transport) {
        self.name = name
        self.transport = transport
    }
}

/// What a controller is like.
public struct ControllerInfo: Sendable, Hashable {
    /// Serial number without padding.
    public var serial = ""
    /// Model without padding.
    public var model = ""
    /// Firmware revision without padding.
    public var firmware = ""
    /// PCI vendor id.
    public var vendorID: UInt32 = 0
    /// Controller id (CNTLID).
    public var controllerID: UInt32 = 0
    /// NVMe version as the VS register has it.
    public var nvmeVersion: UInt32 = 0
    /// The most bytes of one command.
    public var maxTransferByteCount: UInt64 = 0
    /// I/O queue pairs in use.
    public var queueCount: UInt32 = 0
    /// Entries of each.
    public var queueDepth: UInt32 = 0
    /// There is a volatile write cache.
    public var volatileWriteCache = false
    /// A controller of which nothing is known.
    public init() {}
}

/// A device that is up.
public struct DeviceReady: Sendable, Hashable {
    /// The controller.
    public var controller: ControllerInfo
    /// Its active namespaces; the first `WireLimits.namespaceCount` are told.
    public var namespaces: [NamespaceInfo]
    /// How long bring-up took.
    public var bringUpNanoseconds: UInt64
    /// Rises whenever the worker starts afresh.
    public var generation: UInt64
    /// Descriptors that travel along: the VFIO device and the eventfd of the kernel's requests, or
    /// none.
    public var descriptorCount: UInt32 = 0
    /// How the device got over the deaths of its workers; nil: only the generation is known.
    public var continuity: Continuity?
    /// Why this worker had to reset the controller that it found; empty: it had not.
    public var resetReason = ""
    /// The controller was taken over as a saved state has it.
    public var restored = false
    /// Why the saved state that `loadDriver` brought was of no use; empty: there was none, or it
    /// was used.
    public var coldReason = ""
    /// Describes a device that is up.
    public init(
        controller: ControllerInfo, namespaces: [NamespaceInfo], bringUpNanoseconds: UInt64,
        generation: UInt64
    ) {
        self.controller = controller
        self.namespaces = namespaces
        self.bringUpNanoseconds = bringUpNanoseconds
        self.generation = generation
    }
}

/// The state of the device in its worker.
public struct WorkerDevice: Sendable, Hashable {
    /// Where it is in its life.
    public var state: DeviceState
    /// Why; empty: nothing to say.
    public var reason = ""
    /// What `loadDriver` said; nil: never loaded.
    public var config: DeviceConfig?
    /// What `loadDriver` replied; nil unless ready.
    public var ready: DeviceReady?
    /// The worker's process id.
    public var workerPID: Int32 = 0
    /// A device of which nothing else is known.
    public init(state: DeviceState) { self.state = state }
}

/// A session to be made.
public struct OpenSession: Sendable, Hashable {
    /// Chosen by the supervisor, never used before.
    public var sessionID: UInt64
    /// The namespace.
    public var nsid: UInt32
    /// What the client may do.
    public var access: AccessMode
    /// Other writers are admitted.
    public var shared: Bool
    /// The disk's configured name.
    public var disk: String
    /// The client's process id.
    public var clientPID: Int32
    /// The client's user id.
    public var clientUID: UInt32
    /// The most requests a second; 0: no limit.
    public var requestsPerSecondMax: UInt64 = 0
    /// The most bytes read and written a second; 0: no limit.
    public var bytesPerSecondMax: UInt64 = 0
    /// Describes a session.
    public init(
        sessionID: UInt64, nsid: UInt32, access: AccessMode, shared: Bool, disk: String,
        clientPID: Int32 = 0, clientUID: UInt32 = 0
    ) {
        self.sessionID = sessionID
        self.nsid = nsid
        self.access = access
        self.shared = shared
        self.disk = disk
        self.clientPID = clientPID
        self.clientUID = clientUID
    }
}

/// What the supervisor asks of a worker.
public enum WorkerRequest: Sendable, Hashable {
    /// Brings the device up; with `savedState` one descriptor travels along: what its worker saved
    /// before everything was stopped. Reply: `.deviceReady`.
    case loadDriver(DeviceConfig, savedState: Bool = false)
    /// Reply: `.device`.
    case getDevice
    /// Reply: `.namespace`.
    case getNamespace(nsid: UInt32)
    /// Reply: `.sessionOpened`, with one descriptor: the client's end.
    case openSession(OpenSession)
    /// Reply: `.done`.
    case closeSession(sessionID: UInt64, reason: String)
    /// Reply: `.sessions`.
    case listSessions(after: UInt64?)
    /// Reply: `.inspect`.
    case inspect(prefix: String, after: String?)
    /// Orderly end; `saved`: of a frozen device whose state is durable. Reply: `.done`, then the
    /// process exits.
    case shutdown(doNotReset: Bool, saved: Bool = false)
    /// Reply: `.statistics`.
    case openStatistics
    /// Freezes the device. Reply: `.saved`, with one descriptor: its state.
    case save(SaveDevice)
    /// Lets a frozen device go on. Reply: `.done`.
    case thaw
}

/// What a worker answers its supervisor.
public enum WorkerReply: Sendable, Hashable {
    /// It was done; there is nothing to return.
    case done
    /// The device is up; `descriptorCount` descriptors travel along.
    case deviceReady(DeviceReady)
    /// The state of the device.
    case device(WorkerDevice)
    /// A namespace.
    case namespace(NamespaceInfo)
    /// The session is open; one descriptor travels along.
    case sessionOpened(DiskInfo)
    /// Sessions by rising id.
    case sessions(Page<SessionInfo>)
    /// Values by rising path.
    case inspect(Page<InspectEntry>)
    /// Statistics of so many bytes; one descriptor travels along.
    case statistics(byteCount: UInt64)
    /// The device is frozen; one descriptor travels along.
    case saved(DeviceSaved)
}

/// What a worker tells its supervisor unasked.
public enum WorkerEvent: Sendable, Hashable {
    /// The device entered a state.
    case stateChanged(DeviceState, reason: String)
    /// A namespace appeared, went, or changed.
    case namespaceChanged(nsid: UInt32)
    /// The controller's health changed.
    case health(Health)
    /// A session is over.
    case sessionEnded(sessionID: UInt64, reason: WireError, counters: SessionCounters)
}

/// The protocol of a worker: supervisor ↔ worker.
public enum WorkerProtocol: WireProtocol {
    /// What the supervisor sends.
    public typealias Request = WorkerRequest
    /// What the worker answers.
    public typealias Reply = WorkerReply
    /// What the worker sends unasked.
    public typealias Event = WorkerEvent
}
