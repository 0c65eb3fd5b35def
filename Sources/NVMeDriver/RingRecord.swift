// SPDX-License-Identifier: Apache-2.0
// What the state area says of rings: whose they are, where their memory is, and what they have
// taken and completed.
//
// The words of a record:
//
//   0  the engine's key of the session (32) | the client's id of the ring (32)
//   1  state (16) | 0 (48)
//   2  submission entries (32) | completion entries (32)
//   3  the number of its descriptors in the fd store: r-N, k-N, w-N, and x-N while it is opened
//   4  the request that opened it
//   5  the request that closes it and is not answered; 0: none
//
// The positions are in a line of their own: the data path writes them once a round, between the
// entries and what the client sees (DESIGN, section 5).

internal import CMemory

/// How far a ring had come.
public enum RingState: UInt16, Sendable {
    /// The place is not in use.
    case free = 0
    /// Its descriptors may or may not be stored, its client may or may not have them.
    case opening = 1
    /// It is open, or closes when its last request has ended.
    case open = 2
}

/// The record of a ring.
public struct RingRecord: Sendable, Equatable {
    static let wordCount = 8

    /// How far it had come.
    public var state: RingState
    /// Whose it is: the engine's key of the session.
    public var session: UInt32
    /// The client's id.
    public var id: UInt32
    /// Entries of the submission ring.
    public var submissionEntries: UInt32
    /// Entries of the completion ring.
    public var completionEntries: UInt32
    /// The number of its descriptors' names in the fd store.
    public var number: UInt64
    /// The request that opened it.
    public var openRequestID: UInt64
    /// The request that closes it and is not answered; 0: none.
    public var closeRequestID: UInt64

    /// A record.
    public init(
        state: RingState, session: UInt32, id: UInt32, submissionEntries: UInt32,
        completionEntries: UInt32, number: UInt64, openRequestID: UInt64,
        closeRequestID: UInt64 = 0
    ) {
        self.state = state
        self.session = session
        self.id = id
        self.submissionEntries = submissionEntries
        self.completionEntries = completionEntries
        self.number = number
        self.openRequestID = openRequestID
        self.closeRequestID = closeRequestID
    }

    var words: [UInt64] {
        [
            UInt64(session) | UInt64(id) << 32, UInt64(state.rawValue),
            UInt64(submissionEntries) | UInt64(completionEntries) << 32, number, openRequestID,
            closeRequestID,
        ]
    }

    init?(_ words: [UInt64]) {
        guard words.count == Self.wordCount,
            let state = RingState(rawValue: UInt16(truncatingIfNeeded: words[1])), state != .free
        else { return nil }
        self.state = state
        session = UInt32(truncatingIfNeeded: words[0])
        id = UInt32(truncatingIfNeeded: words[0] >> 32)
        submissionEntries = UInt32(truncatingIfNeeded: words[2])
        completionEntries = UInt32(truncatingIfNeeded: words[2] >> 32)
        number = words[3]
        openRequestID = words[4]
        closeRequestID = words[5]
    }
}

extension StateArea {
    /// Writes a ring down. `queue` is the NVMe queue id, `index` its place there. The positions of
    /// a ring that is new there start at 0.
    public func setRing(queue: Int, index: Int, _ record: RingRecord) {
        // Who freed the place may have died before it came to the positions.
        if ring(queue: queue, index: index) == .free,
            var positions = ringPositions(queue: queue, index: index)
        {
            positions.write(head: 0, tail: 0)
        }
        ringRecord(queue, index)?.write(record.words)
    }

    /// What is known of a ring.
    public func ring(queue: Int, index: Int) -> RecordContent<RingRecord> {
        guard let twin = ringRecord(queue, index) else { return .free }
        return RecordContent(twin.read(), isFree: { $0[1] & 0xFFFF == 0 }) { RingRecord($0) }
    }

    /// The place of a ring is free again.
    public func clearRing(queue: Int, index: Int) {
        guard let twin = ringRecord(queue, index), twin.read() != .empty else { return }
        twin.write([])
    }

    /// All places are free: nothing of any ring can be gone on with.
    public func clearRings() {
        for queue in 0..<layout.queueCount {
            for index in 0..<StateLayout.ringsPerQueue { clearRing(queue: queue, index: index) }
        }
    }

    /// Where the data path writes the positions of a ring.
    func ringPositions(queue: Int, index: Int) -> TwinPositions? {
        guard let base = unsafe positionsAddress(queue, index) else { return nil }
        return unsafe TwinPositions(base: base, key: positionsKey(queue, index))
    }

    /// What a ring had taken and completed; nil when that cannot be believed, (0, 0) when nothing
    /// was written.
    func knownPositions(queue: Int, index: Int) -> (head: UInt32, tail: UInt32)? {
        guard let base = unsafe positionsAddress(queue, index) else { return nil }
        let key = positionsKey(queue, index)
        switch unsafe TwinRecord(base: base, wordCount: 1, key: key).read() {
        case .empty: return (0, 0)
        case .damaged: return nil
        case .words: return unsafe TwinPositions.read(at: base, key: key)
        }
    }

    private func positionsAddress(_ queue: Int, _ index: Int) -> UnsafeMutableRawPointer? {
        guard isPlace(queue, index) else { return nil }
        return unsafe address(layout.ringOffset(queue, index) + 192)
    }

    private func positionsKey(_ queue: Int, _ index: Int) -> UInt32 {
        let place = UInt32(queue * StateLayout.ringsPerQueue + index)
        return Checksum.key(Checksum.positionsKind, queue: place, epoch: 0)
    }

    private func ringRecord(_ queue: Int, _ index: Int) -> TwinRecord? {
        guard isPlace(queue, index) else { return nil }
        let place = UInt32(queue * StateLayout.ringsPerQueue + index)
        return unsafe TwinRecord(
            base: address(layout.ringOffset(queue, index)), wordCount: RingRecord.wordCount,
            key: Checksum.key(Checksum.ringKind, queue: place, epoch: 0))
    }

    private func isPlace(_ queue: Int, _ index: Int) -> Bool {
        queue >= 0 && queue < layout.queueCount && index >= 0 && index < StateLayout.ringsPerQueue
    }
}
