// SPDX-License-Identifier: Apache-2.0
// The messages of a session: a client and the worker of one device (Proto/session.proto).

/// Where the data of a request is.
public enum DataLocation: Sendable, Hashable {
    /// In the message's payload.
    case inline
    /// In registered memory, from a byte offset on.
    case region(id: UInt64, byteOffset: UInt64)
}

/// A range of logical blocks.
public struct BlockRange: Sendable, Hashable {
    /// The first block.
    public var lba: UInt64
    /// How many.
    public var blockCount: UInt64
    /// Makes a range.
    public init(lba: UInt64, blockCount: UInt64) {
        self.lba = lba
        self.blockCount = blockCount
    }
}

/// What a client asks of a session. Values are as sent: the worker validates ranges and ids.
public enum SessionRequest: Sendable, Hashable {
    /// Reply: `.diskInfo`.
    case getDiskInfo
    /// Reply: `.read`, with the payload when the location is inline.
    case read(lba: UInt64, blockCount: UInt32, location: DataLocation)
    /// The payload is the data when the location is inline. Reply: `.done`.
    case write(lba: UInt64, blockCount: UInt32, fua: Bool, location: DataLocation)
    /// Reply: `.done`.
    case flush
    /// 1 to 256 ranges (checked when decoded). Reply: `.done`.
    case unmap([BlockRange])
    /// Reply: `.done`.
    case writeZeroes(BlockRange, deallocate: Bool, fua: Bool)
    /// The payload is the data when the location is inline. Reply: `.done` or `compareFailed`.
    case compare(lba: UInt64, blockCount: UInt32, location: DataLocation)
    /// Reply: `.done`.
    case verify(BlockRange)
    /// Reply: `.cancelled`.
    case cancel(requestID: UInt64)
    /// One descriptor travels along, of which the region is a stretch. Reply: `.done`.
    case registerMemory(
        regionID: UInt64, byteCount: UInt64, readOnly: Bool, fileOffset: UInt64 = 0)
    /// Reply: `.done`.
    case unregisterMemory(regionID: UInt64)
    /// Reply: `.ringOpened`, with three descriptors: memory, kick, wake.
    case openRing(ringID: UInt32, submissionEntryCount: UInt32, completionEntryCount: UInt32)
    /// Reply: `.done`.
    case closeRing(ringID: UInt32)
}

/// What a worker answers on a session.
public enum SessionReply: Sendable, Hashable {
    /// It was done; there is nothing to return.
    case done
    /// The disk.
    case diskInfo(DiskInfo)
    /// The blocks were read; the payload has them when the request was inline.
    case read
    /// Whether the request was given up before it reached the device.
    case cancelled(Bool)
    /// The ring is open; its memory has so many bytes. Three descriptors travel along.
    case ringOpened(ringID: UInt32, byteCount: UInt64)
}

/// What changed about a disk.
public enum DiskChange: UInt32, Sendable, Hashable {
    /// Something of a newer peer: compare the information.
    case unspecified = 0
    /// The number of blocks.
    case resized = 1
    /// The disk is gone.
    case removed = 2
    /// Another namespace answers: do not write.
    case identity = 3
    /// A limit or attribute.
    case attributes = 4
}

/// What a worker tells a client unasked.
public enum SessionEvent: Sendable, Hashable {
    /// The disk changed; what it is like now, unless it is gone.
    case diskChanged(DiskChange, DiskInfo?)
    /// Requests wait. Nothing has to be done.
    case stalled(reason: String)
    /// Requests flow again, after so many nanoseconds.
    case resumed(stalledNanoseconds: UInt64)
    /// The last message: the session is over.
    case ended(WireError)
}

/// The protocol of a session: client ↔ worker.
public enum SessionProtocol: WireProtocol {
    /// What the client sends.
    public typealias Request = SessionRequest
    /// What the worker answers.
    public typealias Reply = SessionReply
    /// What the worker sends unasked.
    public typealias Event = SessionEvent
}
