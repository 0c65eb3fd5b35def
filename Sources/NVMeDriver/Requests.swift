// SPDX-License-Identifier: Apache-2.0
// What goes into the engine and what comes out: plain values, no references.

/// Opcodes of the NVM command set that clients may ask for (NVM Command Set Specification 1.0,
/// section 3).
public enum IOOperation {
    /// Flush: 00h.
    public static let flush: UInt8 = 0x00
    /// Write: 01h.
    public static let write: UInt8 = 0x01
    /// Read: 02h.
    public static let read: UInt8 = 0x02
    /// Compare: 05h.
    public static let compare: UInt8 = 0x05
    /// Write Zeroes: 08h.
    public static let writeZeroes: UInt8 = 0x08
    /// Dataset Management, here always Deallocate of one range: 09h.
    public static let deallocate: UInt8 = 0x09
    /// Verify: 0Ch.
    public static let verify: UInt8 = 0x0C
}

/// One request to the engine.
///
/// The order of the fields is that of a command slot's words, so that taking a request is copying
/// words; a test holds it.
public struct IORequest: Sendable {
    /// The first block.
    public var lba: UInt64
    /// How many blocks; 0 for Flush.
    public var blockCount: UInt32
    /// Which entry of its ring it was, modulo 2^32; without a ring 0.
    var position: UInt32
    /// Bytes from the start of the region.
    public var offset: UInt64
    /// What the asker calls it; given back with the completion.
    public var token: UInt64
    /// Who asks; given back with the completion and logged with the command.
    public var session: UInt32
    var shortRegion: UInt16
    var shortRing: UInt8
    private let record: UInt8
    /// The first pool page this request owns.
    public var firstPage: UInt32
    /// How many pool pages this request owns; they stay logged with its commands and come back with
    /// the completion.
    public var pageCount: UInt16
    /// An opcode of `IOOperation`.
    public var operation: UInt8
    var flags: UInt8
    /// The namespace.
    public var namespaceID: UInt32
    /// The most blocks one command may have.
    public var maxBlocksPerCommand: UInt32
    private var shift: UInt8

    /// Bytes of a block as a power of two, 9…16.
    @inline(__always)
    public var blockShift: UInt8 {
        get { shift }
        set {
            shift = newValue
            flags =
                flags & ((1 << CommandSlot.shiftOfFlags) - 1)
                | (newValue &- 9) << CommandSlot.shiftOfFlags
        }
    }

    /// Where the data is: an index of the region table.
    @inline(__always)
    public var region: UInt32 {
        get { UInt32(shortRegion) }
        // The table has fewer: this one is refused as one that does not exist.
        set { shortRegion = UInt16(clamping: newValue) }
    }

    /// The ring that it came through: its index in the data queue and 1; 0: none.
    @inline(__always)
    public var ring: UInt16 {
        get { UInt16(shortRing) }
        set { shortRing = UInt8(clamping: newValue) }
    }

    /// A request without data.
    public init(operation: UInt8, namespaceID: UInt32, session: UInt32, token: UInt64) {
        self.operation = operation
        flags = 0
        shift = 9
        shortRing = 0
        record = CommandSlot.noRequest
        self.namespaceID = namespaceID
        self.session = session
        self.token = token
        lba = 0
        blockCount = 0
        position = 0
        maxBlocksPerCommand = 1
        shortRegion = 0
        offset = 0
        firstPage = 0
        pageCount = 0
    }

    /// Force Unit Access, for Write and Write Zeroes.
    public var forceUnitAccess: Bool {
        get { flags & CommandSlot.flagForceUnitAccess != 0 }
        set { set(CommandSlot.flagForceUnitAccess, newValue) }
    }

    /// Let Write Zeroes deallocate.
    public var mayDeallocate: Bool {
        get { flags & CommandSlot.flagDeallocate != 0 }
        set { set(CommandSlot.flagDeallocate, newValue) }
    }

    private mutating func set(_ flag: UInt8, _ on: Bool) {
        flags = on ? flags | flag : flags & ~flag
    }
}

/// The end of a request. Like a request, laid out in the order of a slot's words.
public struct IOCompletion: Sendable {
    /// What the asker called it.
    public var token: UInt64
    /// Who asked.
    public var session: UInt32
    /// Dword 0 of the completion entry.
    public var result: UInt32
    /// The first pool page the request owned.
    public var firstPage: UInt32
    /// How many; the receiver releases them after `retire`.
    public var pageCount: UInt16
    /// The operation that ended.
    public var operation: UInt8
    var flags: UInt8
    /// The NVMe status without the phase bit; 0 is success. For a request of several commands, that
    /// of the first that failed.
    public var status: UInt16
    /// The ring that the request came through; 0: none.
    public var ring: UInt16
    /// How long it was under way, in ticks of 256 ns of the owner's clock.
    public var age: UInt32

    /// The device could not get at the data where it lies in registered memory, so that all or part
    /// of it was copied.
    public var isBounced: Bool {
        get { flags & CommandSlot.flagBounced != 0 }
        set {
            flags = newValue ? flags | CommandSlot.flagBounced : flags & ~CommandSlot.flagBounced
        }
    }

    /// An empty completion, to fill arrays with.
    public init() {
        token = 0
        session = 0
        result = 0
        firstPage = 0
        pageCount = 0
        operation = 0
        flags = 0
        status = 0
        ring = 0
        age = 0
    }
}

/// What became of a submission.
public enum SubmitResult: UInt8, Sendable {
    /// Taken: exactly one completion will follow.
    case accepted
    /// No slot or request record is free: try again after completions were retired.
    case full
    /// The data does not lie within a region of that session, or the request is malformed; nothing
    /// was done.
    case invalid
}

/// Why a queue pair stopped believing its device.
public enum QueueFault: UInt8, Sendable, CustomStringConvertible {
    /// Nothing is wrong.
    case none
    /// A completion names a command id that does not exist.
    case inventedCommandID
    /// A completion names a command that is not in flight: answered twice, or from the past.
    case staleCommandID
    /// A completion names another submission queue.
    case wrongQueueID
    /// A completion's SQ head pointer lies outside of what was submitted.
    case badHeadPointer

    /// The fault in words.
    public var description: String {
        switch self {
        case .none: "none"
        case .inventedCommandID: "a completion for a command id that was never in use"
        case .staleCommandID: "a completion for a command that is not in flight"
        case .wrongQueueID: "a completion that names another submission queue"
        case .badHeadPointer: "a completion whose SQ head pointer is out of range"
        }
    }
}
