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
/// 0                header (64 B), controller record (64 B)
/// 4096             device configuration as the supervisor sent it (16 KiB)
/// 20480            sessions: 64 B each
///                  regions of registered memory: 64 B each
///                  queues: a record of 64 B and an index line of 64 B each; queue 0 is the
///                  admin queue
///                  slots: `slotsPerQueue` × 64 B for each queue
///                  requests: `requestsPerQueue` × 64 B for each queue
///                  segment lists of requests: `requestsPerQueue` × 8 KiB for each queue, whole
///                  pages; those that were never used take no memory
/// ```
public struct StateLayout: Sendable, Equatable {
    /// "NVMEDST1" read as a little-endian number.
    public static let magic: UInt64 = 0x3154_5344_454D_564E
    /// Raised with every change of this layout.
    public static let version: UInt32 = 2
    /// Bytes of every record.
    public static let recordByteCount = 64
    /// Bytes kept for the device configuration.
    public static let configurationByteCount = 16384
    /// Sessions that may be open at one time.
    public static let sessionCapacity = 256
    /// Regions of registered memory that may exist at one time, of all sessions.
    public static let regionCapacity = 1024
    /// Requests of several commands that may be under way at one time, for each queue.
    public static let requestsPerQueue = 64
    /// Bytes of the segment list of one request: as many segments as a request can have.
    public static let segmentListByteCount = Engine.maxSegments * 16

    static let configurationOffset = 4096
    static let sessionsOffset = configurationOffset + configurationByteCount
    static let regionsOffset = sessionsOffset + sessionCapacity * recordByteCount
    static let queuesOffset = regionsOffset + regionCapacity * recordByteCount

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

    /// The first slot of a queue.
    func slotsOffset(_ queue: Int) -> Int {
        Self.queuesOffset + queueCount * 128 + queue * slotsPerQueue * Self.recordByteCount
    }

    /// The first request record of a queue.
    func requestsOffset(_ queue: Int) -> Int {
        slotsOffset(queueCount) + queue * Self.requestsPerQueue * Self.recordByteCount
    }

    /// The segment list of the first request record of a queue.
    func segmentListsOffset(_ queue: Int) -> Int {
        ((requestsOffset(queueCount) + 4095) & ~4095)
            + queue * Self.requestsPerQueue * Self.segmentListByteCount
    }

    /// The size of the whole area in bytes, whole pages.
    public var byteCount: Int { segmentListsOffset(queueCount) }
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
