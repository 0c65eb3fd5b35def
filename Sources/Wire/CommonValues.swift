// SPDX-License-Identifier: Apache-2.0
// Values that several protocols share (Proto/common.proto): disks, devices, sessions, inspection.

/// What a session may do with its disk.
public enum AccessMode: UInt32, Sendable, Hashable {
    /// Reads only; never exclusive.
    case readOnly = 1
    /// Reads and writes; exclusive unless the disk is shared.
    case readWrite = 2
}

/// Where a device is in its life.
public enum DeviceState: UInt32, Sendable, Hashable, CaseIterable {
    /// A state of a newer peer, or none told.
    case unknown = 0
    /// Configured; no worker runs for it.
    case absent = 1
    /// The controller is being brought up.
    case starting = 2
    /// I/O flows.
    case ready = 3
    /// Commands in flight finish; new ones wait.
    case draining = 4
    /// The controller or the worker is being restored.
    case recovering = 5
    /// Given up; the reason says why.
    case failed = 6
    /// The hardware is gone.
    case removed = 7
}

/// The identifiers of a namespace; an empty one is absent.
public struct NamespaceIdentity: Sendable, Hashable {
    /// 16 bytes, or none.
    public var nguid: [UInt8]
    /// 8 bytes, or none.
    public var eui64: [UInt8]
    /// 16 bytes, or none.
    public var uuid: [UInt8]
    /// Collects identifiers.
    public init(nguid: [UInt8] = [], eui64: [UInt8] = [], uuid: [UInt8] = []) {
        self.nguid = nguid
        self.eui64 = eui64
        self.uuid = uuid
    }
}

/// A disk as its client sees it. Counts are logical blocks unless the name says bytes.
public struct DiskInfo: Sendable, Hashable {
    /// The configured name.
    public var name = ""
    /// The device that holds it.
    public var device = ""
    /// Bytes in a logical block.
    public var blockByteCount: UInt32 = 512
    /// Bytes in a physical block.
    public var physicalBlockByteCount: UInt32 = 512
    /// Bytes of the best transfer.
    public var optimalByteCount: UInt32 = 512
    /// Logical blocks of the disk.
    public var blockCount: UInt64 = 0
    /// The most bytes of one request that uses a region.
    public var maxTransferByteCount: UInt64 = 0
    /// The most bytes of one request with inline data.
    public var maxInlineByteCount: UInt32 = UInt32(WireLimits.payloadByteCount)
    /// The most memory segments of one request.
    public var maxSegments: UInt32 = 1
    /// The alignment in bytes that a region offset must have.
    public var alignmentByteCount: UInt32 = 1
    /// Writes may ask for force unit access.
    public var fua = false
    /// There is a volatile write cache: flush for durability.
    public var volatileWriteCache = false
    /// Unmap is supported.
    public var unmap = false
    /// Blocks that unmap frees at once.
    public var unmapGranularityBlockCount: UInt32 = 1
    /// The block address modulo the granularity at which freeable groups begin.
    public var unmapAlignmentBlockCount: UInt32 = 0
    /// The most blocks of one range of an unmap; nil: no limit beside the disk.
    public var unmapMaxBlockCount: UInt64?
    /// The most ranges of one unmap.
    public var unmapMaxRanges: UInt32 = 0
    /// What an unmapped block reads as (DLFEAT 2:0): 0 not reported, 1 zeroes, 2 ones.
    public var unmapReadsAs: UInt32 = 0
    /// Write zeroes is supported.
    public var writeZeroes = false
    /// The most blocks of one write zeroes; nil: no limit beside the disk.
    public var writeZeroesMaxBlockCount: UInt64?
    /// Compare is supported.
    public var compare = false
    /// Verify is supported.
    public var verify = false
    /// Blocks that one write changes atomically even when power fails.
    public var atomicPowerFailBlockCount: UInt32 = 1
    /// Blocks that one write changes atomically for other readers.
    public var atomicBlockCount: UInt32 = 1
    /// The namespace is write protected.
    public var writeProtected = false
    /// This session may only read.
    public var readOnly = false
    /// The namespace id.
    public var nsid: UInt32 = 0
    /// The namespace's identifiers.
    public var identity = NamespaceIdentity()
    /// The controller's serial number.
    public var serial = ""
    /// The controller's model.
    public var model = ""
    /// The controller's firmware revision.
    public var firmware = ""
    /// Region I/O is copied through the worker's memory.
    public var bounced = false
    /// Several clients may write.
    public var shared = false
    /// Rises whenever the worker starts afresh.
    public var generation: UInt64 = 0
    /// A disk of no blocks; set what is known.
    public init() {}
}

/// A namespace as the controller reports it.
public struct NamespaceInfo: Sendable, Hashable {
    /// The namespace id, 1 or more.
    public var nsid: UInt32
    /// Bytes in a logical block.
    public var blockByteCount: UInt32
    /// Logical blocks.
    public var blockCount: UInt64
    /// Its identifiers.
    public var identity: NamespaceIdentity
    /// It is write protected.
    public var writeProtected: Bool
    /// Why it is not served; nil: it is.
    public var refusal: String?
    /// Describes a namespace.
    public init(
        nsid: UInt32, blockByteCount: UInt32, blockCount: UInt64,
        identity: NamespaceIdentity = NamespaceIdentity(), writeProtected: Bool = false,
        refusal: String? = nil
    ) {
        self.nsid = nsid
        self.blockByteCount = blockByteCount
        self.blockCount = blockCount
        self.identity = identity
        self.writeProtected = writeProtected
        self.refusal = refusal
    }
}

/// A device as the supervisor knows it.
public struct DeviceInfo: Sendable, Hashable {
    /// The configured name.
    public var name: String
    /// Where it is in its life.
    public var state: DeviceState
    /// Why it is in this state; empty: nothing to say.
    public var reason = ""
    /// How often it was brought up without success since the last success.
    public var attempts: UInt32 = 0
    /// When it entered this state: CLOCK_MONOTONIC nanoseconds.
    public var sinceNanoseconds: UInt64 = 0
    /// How it is reached: `vfio-user:/run/x.sock`, `pci:0000:01:00.0`, `null`.
    public var transport = ""
    /// The controller's serial number; empty: never seen ready.
    public var serial = ""
    /// The controller's model; empty: never seen ready.
    public var model = ""
    /// The controller's firmware revision; empty: never seen ready.
    public var firmware = ""
    /// Its namespaces when it was last ready; the first `WireLimits.namespaceCount` are told.
    public var namespaces: [NamespaceInfo] = []
    /// The worker's process id; nil: none runs.
    public var workerPID: Int32?
    /// How often the worker died and was started again.
    public var restarts: UInt64 = 0
    /// Open sessions.
    public var sessionCount: UInt32 = 0
    /// What the controller last said of itself; nil: nothing yet.
    public var health: Health?
    /// How it got over the deaths of its workers; nil: never seen ready.
    public var continuity: Continuity?
    /// Why the last worker that took over had to reset the controller; empty: it had not.
    public var resetReason = ""
    /// A device of which nothing else is known.
    public init(name: String, state: DeviceState) {
        self.name = name
        self.state = state
    }
}

/// The health of a controller (SMART / Health Information).
public struct Health: Sendable, Hashable {
    /// Critical Warning bits.
    public var criticalWarning: UInt32 = 0
    /// Composite temperature.
    public var temperatureKelvin: UInt32 = 0
    /// Available spare.
    public var availableSparePercent: UInt32 = 0
    /// Percentage used; may exceed 100.
    public var usedPercent: UInt32 = 0
    /// Errors of the medium or of data integrity, since ever.
    public var mediaErrors: UInt64 = 0
    /// Losses of power without an orderly shutdown, since ever.
    public var unsafeShutdowns: UInt64 = 0
    /// Hours under power, since ever.
    public var powerOnHours: UInt64 = 0
    /// All zero.
    public init() {}

    /// The critical warnings in words (Base Specification 2.0, figure 207).
    public var warnings: [String] {
        let names = [
            "spare below its threshold", "temperature out of bounds", "reliability degraded",
            "medium read-only", "backup of volatile memory failed",
            "persistent memory region read-only or unreliable",
        ]
        return names.enumerated().filter { criticalWarning >> UInt32($0.offset) & 1 == 1 }
            .map(\.element)
    }
}

/// What a session did so far.
public struct SessionCounters: Sendable, Hashable {
    /// Reads that ended, by messages and rings.
    public var reads: UInt64 = 0
    /// Writes that ended.
    public var writes: UInt64 = 0
    /// Bytes that were read; of rings, also those of reads that failed or have not ended.
    public var readBytes: UInt64 = 0
    /// Bytes that were written, in the same way.
    public var writtenBytes: UInt64 = 0
    /// Requests of other kinds that ended.
    public var others: UInt64 = 0
    /// Requests that ended with an error.
    public var errors: UInt64 = 0
    /// Requests in flight.
    public var inFlight: UInt32 = 0
    /// All zero.
    public init() {}
}

/// An open session.
public struct SessionInfo: Sendable, Hashable {
    /// Its id, chosen by the supervisor.
    public var sessionID: UInt64
    /// The disk.
    public var disk: String
    /// The device.
    public var device = ""
    /// The namespace.
    public var nsid: UInt32 = 0
    /// What it may do.
    public var access: AccessMode
    /// It does not exclude other writers.
    public var shared = false
    /// The client's process id when it opened the disk.
    public var clientPID: Int32 = 0
    /// The client's user id when it opened the disk.
    public var clientUID: UInt32 = 0
    /// When it was opened: CLOCK_MONOTONIC nanoseconds.
    public var openedNanoseconds: UInt64 = 0
    /// What it did.
    public var counters = SessionCounters()
    /// How it got over the deaths of workers; nil: not known.
    public var continuity: Continuity?
    /// A session of which nothing else is known.
    public init(sessionID: UInt64, disk: String, access: AccessMode) {
        self.sessionID = sessionID
        self.disk = disk
        self.access = access
    }
}

/// One value of the inspection tree, which is a flat list of paths.
public struct InspectEntry: Sendable, Hashable {
    /// Names joined by slashes.
    public var path: String
    /// The value, in text.
    public var value: String
    /// Pairs a path with its value.
    public init(_ path: String, _ value: String) {
        self.path = path
        self.value = value
    }
}

/// One page of a list. `more`: ask again with `after` = the key of the last entry.
public struct Page<Entry: Sendable & Hashable>: Sendable, Hashable {
    /// The entries, by rising key.
    public var entries: [Entry]
    /// There are more.
    public var more: Bool
    /// Makes a page.
    public init(_ entries: [Entry], more: Bool = false) {
        self.entries = entries
        self.more = more
    }
}
