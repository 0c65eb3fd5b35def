// SPDX-License-Identifier: Apache-2.0
// Where everything is in the state area: the memory file that outlives a worker and judges its
// device.
//
// All numbers are little-endian; there are no pointers, enums or padding that a compiler chose.
// Every record carries a CRC-32C keyed by what it is, its index and the device epoch, so that a
// record in the wrong place, or one from before a controller reset, does not pass for a valid one.

internal import CMemory

/// The offsets of the state area for a number of queues and slots.
///
/// ```
/// 0                what never changes: magic, version, numbers (32 B)
/// 64               what changes rarely: header, controller, pending events, configuration
/// 4096             device configuration as the supervisor sent it: two halves of 16 KiB
/// 36864            sessions: 2 KiB each
///                  regions of registered memory: 256 B each
///                  owed replies: 128 B each
///                  queues: a record of 64 B and an index line of 64 B each; queue 0 is the
///                  admin queue
///                  rings: `ringsPerQueue` × 256 B for each queue
///                  ages of commands: `slotsPerQueue` × 16 B for each queue
///                  two banks, for even and odd epochs, so that what was in flight before a reset
///                  is still there when the next epoch has begun; each has
///                      slots: `slotsPerQueue` × 64 B for each queue
///                      requests: `requestsPerQueue` × 128 B for each queue
///                      segment lists of requests: `requestsPerQueue` × 8 KiB for each queue, whole
///                      pages; those that were never used take no memory
///                  inventory: pages of the controller, and two of each namespace
/// ```
///
/// Everything that changes is a `TwinRecord`, or is changed by one store.
public struct StateLayout: Sendable, Equatable {
    /// "NVMEDST1" read as a little-endian number.
    public static let magic: UInt64 = 0x3154_5344_454D_564E
    /// Raised with every change of this layout.
    public static let version: UInt32 = 5
    /// Bytes of a slot, of a queue's record and of its index line.
    public static let recordByteCount = 64
    /// Bytes kept for the device configuration.
    public static let configurationByteCount = 16384
    /// Sessions that may be open at one time.
    public static let sessionCapacity = 256
    /// Regions of registered memory that may exist at one time, of all sessions.
    public static let regionCapacity = 1024
    /// What may be owed at one time, of all sessions.
    public static let owedCapacity = 4096
    /// Rings that one queue pair serves.
    public static let ringsPerQueue = 64
    /// Requests of several commands that may be under way at one time, for each queue.
    public static let requestsPerQueue = 64
    /// Bytes of a request record.
    public static let requestByteCount = 128
    /// Bytes of the segment list of one request: as many segments as a request can have.
    public static let segmentListByteCount = Engine.maxSegments * 16
    /// Pages about the controller: Identify Controller, the limits of the command set, and the
    /// order of the pool's huge pages where the device uses physical addresses.
    static let controllerPages = 3
    /// Places for namespaces: one more than are served, so that one can be written anew beside the
    /// old.
    static let inventoryCapacity = NVMeController.maxNamespaces + 1

    static let headerOffset = 64
    static let headerWords = 8
    static let controllerOffset = 256
    static let controllerWords = 16
    static let eventsOffset = 576
    static let configurationRecordOffset = 640
    static let configurationOffset = 4096
    static let sessionsOffset = configurationOffset + 2 * configurationByteCount
    static let sessionByteCount = 2048
    /// What a session has done, behind its record.
    static let countersOffset = 1024
    static let regionsOffset = sessionsOffset + sessionCapacity * sessionByteCount
    static let regionByteCount = 256
    static let owedOffset = regionsOffset + regionCapacity * regionByteCount
    static let owedByteCount = 128
    static let queuesOffset = owedOffset + owedCapacity * owedByteCount
    static let ringByteCount = 256
    static let inventoryByteCount = 64 + 2 * 4096

    /// Queue pairs, the admin queue included.
    public let queueCount: Int
    /// Command slots of each queue.
    public let slotsPerQueue: Int

    /// A layout; both numbers must be positive.
    public init(queueCount: Int, slotsPerQueue: Int) {
        self.queueCount = queueCount
        self.slotsPerQueue = slotsPerQueue
    }

    /// The record of a queue: what was created.
    func queueRecordOffset(_ queue: Int) -> Int { Self.queuesOffset + queue * 128 }

    /// The index line of a queue: what was published last.
    func queueIndexOffset(_ queue: Int) -> Int { Self.queuesOffset + queue * 128 + 64 }

    /// The record of a ring of a queue; its positions are in a line of their own behind it.
    func ringOffset(_ queue: Int, _ index: Int) -> Int {
        Self.queuesOffset + queueCount * 128
            + (queue * Self.ringsPerQueue + index) * Self.ringByteCount
    }

    /// Since when the commands of a queue are in flight.
    func agesOffset(_ queue: Int) -> Int {
        ringOffset(queueCount, 0) + queue * slotsPerQueue * CommandAges.byteCount
    }

    private var bankOffset: Int { (agesOffset(queueCount) + 4095) & ~4095 }

    private var requestsOffset: Int { queueCount * slotsPerQueue * Self.recordByteCount }

    private var segmentListsOffset: Int {
        (requestsOffset + queueCount * Self.requestsPerQueue * Self.requestByteCount + 4095)
            & ~4095
    }

    private var bankByteCount: Int {
        segmentListsOffset + queueCount * Self.requestsPerQueue * Self.segmentListByteCount
    }

    private func bank(_ epoch: UInt32) -> Int { bankOffset + Int(epoch & 1) * bankByteCount }

    /// The first slot of a queue in the bank of an epoch.
    func slotsOffset(_ queue: Int, epoch: UInt32) -> Int {
        bank(epoch) + queue * slotsPerQueue * Self.recordByteCount
    }

    /// The first request record of a queue in the bank of an epoch.
    func requestsOffset(_ queue: Int, epoch: UInt32) -> Int {
        bank(epoch) + requestsOffset + queue * Self.requestsPerQueue * Self.requestByteCount
    }

    /// The segment list of the first request record of a queue in the bank of an epoch.
    func segmentListsOffset(_ queue: Int, epoch: UInt32) -> Int {
        bank(epoch) + segmentListsOffset
            + queue * Self.requestsPerQueue * Self.segmentListByteCount
    }

    /// A page about the controller: a seal of 64 B, then the page.
    func controllerPageOffset(_ page: Int) -> Int {
        bankOffset + 2 * bankByteCount + page * Self.inventoryByteCount
    }

    /// What is known of a namespace: a seal of 64 B, then two pages.
    func namespaceOffset(_ index: Int) -> Int {
        controllerPageOffset(Self.controllerPages) + index * Self.inventoryByteCount
    }

    /// The size of the whole area in bytes, whole pages.
    public var byteCount: Int { (namespaceOffset(Self.inventoryCapacity) + 4095) & ~4095 }
}

/// Keys of checksums: what kind of record it is, which one, of which epoch.
enum Checksum {
    static let slotKind: UInt32 = 0x534C_4F54
    static let requestKind: UInt32 = 0x5245_5154
    static let segmentsKind: UInt32 = 0x5347_4D54
    static let indexKind: UInt32 = 0x494E_4458
    static let queueKind: UInt32 = 0x5155_4555
    static let headerKind: UInt32 = 0x4845_4144
    static let sessionKind: UInt32 = 0x5345_5353
    static let regionKind: UInt32 = 0x5245_4749
    static let progressKind: UInt32 = 0x5052_4F47
    static let ringKind: UInt32 = 0x5249_4E47
    static let positionsKind: UInt32 = 0x504F_5349
    static let owedKind: UInt32 = 0x4F57_4544
    static let controllerKind: UInt32 = 0x4354_524C
    static let eventsKind: UInt32 = 0x4556_4E54
    static let configurationKind: UInt32 = 0x434F_4E46
    static let inventoryKind: UInt32 = 0x494E_564E
    static let fruitKind: UInt32 = 0x4652_5554
    static let countersKind: UInt32 = 0x434E_5452
    static let agesKind: UInt32 = 0x4147_4553

    /// One step of the checksum. `make bench` builds the driver once without the log, to tell what
    /// the log costs; nothing else is ever built so.
    @inline(__always)
    static func step(_ crc: UInt64, _ value: UInt64) -> UInt64 {
        #if NVMED_WITHOUT_LOG
            0
        #else
            nv_crc32c_step(crc, value)
        #endif
    }

    /// The seed for records of one kind in one queue in one epoch; the record's index is added to
    /// it.
    @inline(__always)
    static func key(_ kind: UInt32, queue: UInt32, epoch: UInt32) -> UInt32 {
        kind ^ (queue &* 0x9E37_79B1) ^ (epoch &* 0x85EB_CA77)
    }
}
