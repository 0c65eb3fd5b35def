// SPDX-License-Identifier: Apache-2.0
// Values of servicing: what is asked of a worker, and how the service stands (Proto/worker.proto,
// Proto/supervisor.proto).

/// What the DMA pool of a device lies in.
public enum PoolBacking: UInt32, Sendable, Hashable {
    /// Memory of the worker that nothing but its descriptor keeps.
    case memfd = 1
    /// A file on a hugetlbfs.
    case hugetlb = 2
    /// A file on another file system of memory.
    case file = 3
    /// A DAX device.
    case dax = 4
}

/// Freezes a device, to have its state told.
public struct SaveDevice: Sendable, Hashable {
    /// 16 bytes, chosen anew for each attempt.
    public var token: [UInt8]
    /// Nanoseconds that commands in flight get to end where they cannot be carried over.
    public var drainNanoseconds: UInt64
    /// Nanoseconds after the reply at which the device goes on by itself; nil: the worker's choice.
    public var leaseNanoseconds: UInt64?
    /// Describes an attempt.
    public init(token: [UInt8], drainNanoseconds: UInt64, leaseNanoseconds: UInt64? = nil) {
        self.token = token
        self.drainNanoseconds = drainNanoseconds
        self.leaseNanoseconds = leaseNanoseconds
    }
}

/// What a frozen device told beside its state.
public struct DeviceSaved: Sendable, Hashable {
    /// Bytes of the state.
    public var byteCount: UInt64
    /// Commands in flight that are carried over.
    public var commandsInFlight: UInt32 = 0
    /// I/O queue pairs that are carried over.
    public var queueCount: UInt32 = 0
    /// Sessions that will end.
    public var sessionCount: UInt32 = 0
    /// How long it took until the queues were quiet.
    public var drainedNanoseconds: UInt64 = 0
    /// A state of so many bytes.
    public init(byteCount: UInt64) { self.byteCount = byteCount }
}

/// Where the service is in servicing.
public enum ServicingPhase: UInt32, Sendable, Hashable, CaseIterable {
    /// One that this version does not know.
    case unknown = 0
    /// Nothing is saved.
    case idle = 1
    /// The devices are being frozen and written down.
    case saving = 2
    /// The state is durable; the workers of the saved devices have ended, or are about to.
    case saved = 3
    /// The devices are being taken up again.
    case restoring = 4
}

/// Where one device is in servicing.
public enum ServicingStep: UInt32, Sendable, Hashable, CaseIterable {
    /// One that this version does not know.
    case unknown = 0
    /// It is waited for until it is ready, to be saved.
    case waiting = 1
    /// It is being frozen.
    case freezing = 2
    /// It is frozen, and its state is told.
    case frozen = 3
    /// Its state is durable; its worker is ending.
    case ending = 4
    /// Its state is durable and its worker has ended.
    case saved = 5
    /// It is left out of the save, or was started without its state.
    case cold = 6
    /// It goes on after a save that failed or was cancelled.
    case thawed = 7
    /// Its worker has its saved state and takes the controller over.
    case restoring = 8
    /// It was taken over as it was saved.
    case restored = 9
    /// It is saved, but not configured any more.
    case gone = 10
    /// It was saved, and could not be brought up at all.
    case failed = 11
    /// It is not configured to be kept alive.
    case notKept = 12
}

/// One device in servicing.
public struct ServicingDevice: Sendable, Hashable {
    /// The configured name.
    public var name: String
    /// Where it is.
    public var step: ServicingStep
    /// Why; empty: nothing to say.
    public var reason = ""
    /// Commands in flight that were carried over; nil: not known.
    public var commandsInFlight: UInt32?
    /// Bytes of its state; nil: not known.
    public var byteCount: UInt64?
    /// How long its save or restore has taken so far, or took; nil: not begun.
    public var durationNanoseconds: UInt64?
    /// I/O queue pairs that were carried over; nil: not known.
    public var queueCount: UInt32?
    /// Sessions that it had when it was saved; nil: not known.
    public var sessionCount: UInt32?
    /// A device of which nothing else is known.
    public init(name: String, step: ServicingStep) {
        self.name = name
        self.step = step
    }
}

/// How servicing stands: what is under way, or what the last save or restore came to.
public struct ServicingStatus: Sendable, Hashable {
    /// Where the service is.
    public var phase: ServicingPhase
    /// The devices that it concerns, by rising name.
    public var devices: Page<ServicingDevice>
    /// How long the save or restore has taken so far, or took; nil: there was none.
    public var durationNanoseconds: UInt64?
    /// Why the last save or restore failed; empty: it did not.
    public var problem = ""
    /// When the state was saved, CLOCK_REALTIME; nil: nothing is saved.
    public var savedAtRealtimeNanoseconds: UInt64?
    /// Bytes of the state that is written down; nil: nothing is saved.
    public var byteCount: UInt64?
    /// A service that was never serviced.
    public init(phase: ServicingPhase, devices: Page<ServicingDevice> = Page([])) {
        self.phase = phase
        self.devices = devices
    }
}
