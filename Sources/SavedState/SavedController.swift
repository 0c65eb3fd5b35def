// SPDX-License-Identifier: Apache-2.0
// What is saved of a controller: how it was set up, what it said of itself, and what is under way
// (Proto/saved.proto, SavedController). Meanings, not the words of the state area: its layout may
// change.

/// A controller as it is left.
public struct SavedController: Sendable, Hashable {
    /// How many workers have held its state area.
    public var generation: UInt64
    /// How many times it was started afresh; not 0.
    public var epoch: UInt32
    /// The highest number that a kept descriptor of the device had.
    public var lastNumber: UInt64 = 0
    /// CC as it was written.
    public var configuration: UInt32 = 0
    /// AQA as it was written.
    public var adminQueueAttributes: UInt32 = 0
    /// ASQ as it was written.
    public var adminSubmissionAddress: UInt64 = 0
    /// ACQ as it was written.
    public var adminCompletionAddress: UInt64 = 0
    /// Where the device has the part of the pool that it only reads.
    public var poolReadsAddress: UInt64 = 0
    /// Where the device has the part of the pool that it also writes.
    public var poolWritesAddress: UInt64 = 0
    /// Bytes of the pool.
    public var poolByteCount: UInt64 = 0
    /// I/O queue pairs that the pool was laid out for, 1 to 64.
    public var plannedQueueCount: UInt32 = 1
    /// Entries of each I/O queue, a power of two from 4 to 1024.
    public var queueEntries: UInt32 = 4
    /// Bytes of a transfer that the pool was laid out for.
    public var maxTransferByteCount: UInt64 = 0
    /// Bytes of bounce pages that the pool was laid out for.
    public var bounceByteCount: UInt64 = 0
    /// Interrupt vectors in use.
    public var interruptCount: UInt32 = 0
    /// The device has taken shadow doorbells.
    public var hasShadowDoorbells = false
    /// Events that were told and not acted upon: bits of the state area.
    public var pendingEvents: UInt64 = 0
    /// Identify Controller, 4096 bytes.
    public var identifyController: [UInt8] = []
    /// Identify Controller of the NVM command set, 4096 bytes; nil: the controller has none.
    public var commandSetLimits: [UInt8]?
    /// The active namespaces; at most 1025.
    public var namespaces: [SavedNamespace] = []
    /// The queue pairs that exist, in the order of their ids, from the admin queue (0) on.
    public var queues: [SavedQueue] = []
    /// Memory of clients that the device may still have mapped; at most 1023.
    public var regions: [SavedRegion] = []
    /// Without an IOMMU: which huge pages of the pool's file are in use, in the order of their
    /// physical addresses, of which `poolReadsAddress` is the first; each below 1024, none twice.
    public var poolPageOrder: [UInt32] = []
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A controller of which nothing else is known yet.
    public init(generation: UInt64, epoch: UInt32) {
        self.generation = generation
        self.epoch = epoch
    }

    /// I/O commands that are with the device.
    public var ioCommandCount: Int { queues.dropFirst().reduce(0) { $0 + $1.commands.count } }

    /// Keys of the sessions that have commands with the device.
    public var sessionKeys: Set<UInt32> {
        Set(queues.dropFirst().flatMap { $0.commands.lazy.filter(\.isIO).map(\.session) })
    }
}

/// What a controller said of a namespace.
public struct SavedNamespace: Sendable, Hashable {
    /// What there is to say.
    public enum Content: Sendable, Hashable {
        /// Identify Namespace and its descriptors, both 4096 bytes; descriptors may be absent.
        case pages(identify: [UInt8], descriptors: [UInt8]?)
        /// Why it is not served.
        case refused(String)
    }

    /// NSID; not 0.
    public var id: UInt32
    /// What it said.
    public var content: Content
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A namespace.
    public init(id: UInt32, content: Content) {
        self.id = id
        self.content = content
    }
}

/// A queue pair. Commands are counted: an ordinal is how many were pushed before, modulo 2^32.
public struct SavedQueue: Sendable, Hashable {
    /// The queue id; 0: the admin queue.
    public var id: UInt32
    /// The interrupt vector.
    public var vector: UInt32 = 0
    /// Entries of either queue, a power of two from 4 to 1024.
    public var entries: UInt32
    /// Where the submission queue is.
    public var submissionAddress: UInt64 = 0
    /// Where the completion queue is.
    public var completionAddress: UInt64 = 0
    /// Where the PRP lists are, one for each slot.
    public var listsAddress: UInt64 = 0
    /// Bytes of a slot's PRP list.
    public var listByteCount: UInt64 = 0
    /// The ordinal of the next command.
    public var tailOrdinal: UInt32 = 0
    /// The ordinal that the last doorbell told the device of.
    public var doorbellOrdinal: UInt32 = 0
    /// The next entry of the completion queue to be looked at.
    public var completionHead: UInt32 = 0
    /// The phase bit of a new entry there.
    public var phase = true
    /// The commands with the device, at most as many as there are entries less one.
    public var commands: [SavedCommand] = []
    /// The requests that some of them are parts of; at most 64.
    public var requests: [SavedRequest] = []
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A queue without commands.
    public init(id: UInt32, entries: UInt32) {
        self.id = id
        self.entries = entries
    }

    /// Slots that commands get; the one behind them is for a probe.
    public var slotCount: UInt32 { entries &- 2 }
}

/// What a command is for.
public enum SavedPurpose: Sendable, Hashable {
    /// I/O: it is all of a request.
    case whole
    /// I/O: it is a part of a request, with so many blocks of that before it.
    case part(request: UInt32, blocksBefore: UInt64)
    /// Nobody's: it was sent to have the device look at its queue.
    case probe
    /// Admin: an Asynchronous Event Request.
    case eventRequest
    /// Admin: Get Log Page of SMART / Health.
    case health
    /// Admin: an Abort of a command; the queue id is that of the device, from 1 on.
    case abort(queueID: UInt16, commandID: UInt16)
    /// Admin: any other. Nobody waits for it any more.
    case abandoned
}

/// A command that is with the device. Nobody waits for the answers of I/O commands any more.
public struct SavedCommand: Sendable, Hashable {
    /// Its slot: bits 9:0 of its command id.
    public var slot: UInt32
    /// Bits 15:10 of its command id.
    public var sequence: UInt32
    /// Its ordinal.
    public var ordinal: UInt32
    /// What it is for.
    public var purpose: SavedPurpose
    /// The opcode of its queue entry.
    public var opcode: UInt8
    /// NSID.
    public var namespaceID: UInt32 = 0
    /// I/O: the first block. Admin: dwords 10 (31:0) and 11 (63:32).
    public var lba: UInt64 = 0
    /// I/O: blocks.
    public var blockCount: UInt32 = 0
    /// I/O: bytes of a block as a power of two, 9 to 16.
    public var blockShift: UInt8 = 9
    /// I/O: the key of the session that asked.
    public var session: UInt32 = 0
    /// I/O: the first pool page that it owns.
    public var firstPage: UInt32 = 0
    /// I/O: how many it owns.
    public var pageCount: UInt16 = 0
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A command.
    public init(
        slot: UInt32, sequence: UInt32, ordinal: UInt32, purpose: SavedPurpose, opcode: UInt8
    ) {
        self.slot = slot
        self.sequence = sequence
        self.ordinal = ordinal
        self.purpose = purpose
        self.opcode = opcode
    }

    /// Whether somebody's I/O request is behind it.
    public var isIO: Bool {
        switch purpose {
        case .whole, .part: true
        default: false
        }
    }
}

/// A request that became several commands, of which some are with the device. No more are issued.
public struct SavedRequest: Sendable, Hashable {
    /// Its index in the queue, 0 to 63.
    public var index: UInt32
    /// The opcode of its commands.
    public var opcode: UInt8
    /// NSID.
    public var namespaceID: UInt32 = 0
    /// The key of the session that asked.
    public var session: UInt32 = 0
    /// Blocks of all of it; not 0.
    public var blockCount: UInt64
    /// Blocks whose commands were issued.
    public var issuedBlockCount: UInt64 = 0
    /// Bytes of a block as a power of two, 9 to 16.
    public var blockShift: UInt8 = 9
    /// The first error status of its commands; 0: none.
    public var status: UInt16 = 0
    /// The first pool page that it owns.
    public var firstPage: UInt32 = 0
    /// How many it owns.
    public var pageCount: UInt16 = 0
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A request.
    public init(index: UInt32, opcode: UInt8, blockCount: UInt64) {
        self.index = index
        self.opcode = opcode
        self.blockCount = blockCount
    }
}

/// Memory of a client that the device may still have mapped.
public struct SavedRegion: Sendable, Hashable {
    /// The device's address; not 0.
    public var address: UInt64
    /// Bytes; a multiple of 4096.
    public var byteCount: UInt64
    /// The key of the session that registered it.
    public var session: UInt32
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A region.
    public init(address: UInt64, byteCount: UInt64, session: UInt32) {
        self.address = address
        self.byteCount = byteCount
        self.session = session
    }
}
