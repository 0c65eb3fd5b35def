// SPDX-License-Identifier: Apache-2.0
// What the state area says of sessions: who has the disk open, and how far its requests have come.
//
// The record of a slot has 60 words: session id; the engine's key of the session (32) | state (16)
// | bytes of the opening message (16); the number of its socket in the fd store; when it was
// opened; then the opening message. A word beside it is the highest request id taken, which changes
// with every message.

internal import CMemory

/// How far a session had come.
public enum SessionState: UInt16, Sendable {
    /// The slot is not in use.
    case free = 0
    /// Its client may or may not have its end of the socket.
    case opening = 1
    /// It is open.
    case open = 2
    /// It is over; what is with the device has to end before anything of it is given back.
    case ended = 3
}

/// The record of a session.
public struct SessionRecord: Sendable, Equatable {
    /// The most bytes of an opening message.
    public static let openingByteCountMax = 56 * 8
    static let wordCount = 60
    /// Numbers that count what a session does.
    public static let counterCount = 6

    /// How far it had come.
    public var state: SessionState
    /// The supervisor's id.
    public var id: UInt64
    /// What commands carry.
    public var key: UInt32
    /// The number of the socket's name in the fd store.
    public var number: UInt64
    /// When it was opened: CLOCK_MONOTONIC; 0: that is not known.
    public var openedNanoseconds: UInt64
    /// The message that opened it.
    public var opening: [UInt8]

    /// A record.
    public init(
        state: SessionState, id: UInt64, key: UInt32, number: UInt64,
        openedNanoseconds: UInt64 = 0, opening: [UInt8]
    ) {
        self.openedNanoseconds = openedNanoseconds
        self.state = state
        self.id = id
        self.key = key
        self.number = number
        self.opening = opening
    }

    var words: [UInt64] {
        var words = [
            id,
            UInt64(key) | UInt64(state.rawValue) << 32 | UInt64(UInt16(clamping: opening.count))
                << 48,
            number, openedNanoseconds,
        ]
        for start in stride(from: 0, to: opening.count, by: 8) {
            var word: UInt64 = 0
            for (index, byte) in opening[start..<min(start + 8, opening.count)].enumerated() {
                word |= UInt64(byte) << UInt64(index * 8)
            }
            words.append(word)
        }
        return words
    }

    init?(_ words: [UInt64]) {
        guard words.count == Self.wordCount,
            let state = SessionState(rawValue: UInt16(truncatingIfNeeded: words[1] >> 32)),
            state != .free
        else { return nil }
        let count = Int(words[1] >> 48)
        guard count <= Self.openingByteCountMax else { return nil }
        self.state = state
        id = words[0]
        key = UInt32(truncatingIfNeeded: words[1])
        number = words[2]
        openedNanoseconds = words[3]
        opening = (0..<count).map {
            UInt8(truncatingIfNeeded: words[4 + $0 / 8] >> UInt64($0 % 8 * 8))
        }
    }
}

/// What a record of the state area says.
public enum RecordContent<Record: Sendable & Equatable>: Sendable, Equatable {
    /// It is not in use.
    case free
    /// This.
    case record(Record)
    /// Nothing that can be believed.
    case damaged

    /// The record, when there is one that can be believed.
    public var record: Record? { if case .record(let record) = self { record } else { nil } }

    init(_ content: TwinRecord.Content, isFree: ([UInt64]) -> Bool, _ read: ([UInt64]) -> Record?) {
        switch content {
        case .empty: self = .free
        case .damaged: self = .damaged
        case .words(let words):
            if isFree(words) {
                self = .free
            } else if let record = read(words) {
                self = .record(record)
            } else {
                self = .damaged
            }
        }
    }
}

extension StateArea {
    /// Writes a session down. False when the slot does not exist or the opening message is too
    /// long.
    @discardableResult
    public func setSession(_ slot: Int, _ record: SessionRecord) -> Bool {
        guard let twin = sessionRecord(slot),
            record.opening.count <= SessionRecord.openingByteCountMax
        else { return false }
        // Who freed the slot may have died before it came to what lies beside it.
        if session(slot) == .free {
            setHighestRequest(slot, id: 0)
            setSessionCounters(slot, [])
        }
        twin.write(record.words)
        return true
    }

    /// What is known of a session slot.
    public func session(_ slot: Int) -> RecordContent<SessionRecord> {
        guard let twin = sessionRecord(slot) else { return .free }
        return RecordContent(twin.read(), isFree: { $0[1] >> 32 & 0xFFFF == 0 }) {
            SessionRecord($0)
        }
    }

    /// A session slot is free again.
    public func clearSession(_ slot: Int) {
        guard let twin = sessionRecord(slot), twin.read() != .empty else { return }
        twin.write([])
    }

    /// The highest request id that was taken off a session's socket, or is about to be.
    public func setHighestRequest(_ slot: Int, id: UInt64) {
        progressRecord(slot)?.write([id])
    }

    /// The highest request id that was taken; nil when it cannot be believed.
    public func highestRequest(_ slot: Int) -> UInt64? {
        switch progressRecord(slot)?.read() {
        case nil, .empty: 0
        case .words(let words): words[0]
        case .damaged: nil
        }
    }

    /// What a session has done so far, in `counterCount` numbers that only the caller understands.
    public func setSessionCounters(_ slot: Int, _ counters: [UInt64]) {
        countersRecord(slot)?.write(counters)
    }

    /// What a session had done; zeroes when that is not known.
    public func sessionCounters(_ slot: Int) -> [UInt64] {
        countersRecord(slot)?.words
            ?? Array(repeating: 0, count: SessionRecord.counterCount)
    }

    private func countersRecord(_ slot: Int) -> TwinRecord? {
        guard slot >= 0, slot < StateLayout.sessionCapacity else { return nil }
        let offset = StateLayout.sessionsOffset + slot * StateLayout.sessionByteCount
        return unsafe TwinRecord(
            base: address(offset + StateLayout.countersOffset),
            wordCount: SessionRecord.counterCount,
            key: Checksum.key(Checksum.countersKind, queue: UInt32(slot), epoch: 0))
    }

    private func sessionRecord(_ slot: Int) -> TwinRecord? {
        guard slot >= 0, slot < StateLayout.sessionCapacity else { return nil }
        return unsafe TwinRecord(
            base: address(StateLayout.sessionsOffset + slot * StateLayout.sessionByteCount),
            wordCount: SessionRecord.wordCount,
            key: Checksum.key(Checksum.sessionKind, queue: UInt32(slot), epoch: 0))
    }

    private func progressRecord(_ slot: Int) -> TwinRecord? {
        guard slot >= 0, slot < StateLayout.sessionCapacity else { return nil }
        return unsafe TwinRecord(
            base: address(StateLayout.sessionsOffset + slot * StateLayout.sessionByteCount + 976),
            wordCount: 1,
            key: Checksum.key(Checksum.progressKind, queue: UInt32(slot), epoch: 0))
    }
}
