// SPDX-License-Identifier: Apache-2.0
// What the state area says of clients' memory: which part of the device's address space it has, and
// how far mapping it had come.
//
// The words of a record:
//
//   0  the device's address
//   1  length, bytes
//   2  offset in the client's file, bytes
//   3  session (32) | flags of the region (16) | state (16)
//   4  the client's id of the region
//   5  bytes of a page of the file
//   6  1: the offset is a physical address
//   7  the number of the file in the fd store; 0: it is not there
//   8  the request that registered it
//   9  the request that gives it back, which is not answered; 0: none
//
// Order: MAPPING → the device maps it → MAPPED → the client is answered; UNMAPPING → the device
// unmaps it → FREE. A successor takes off the device what is neither MAPPED nor FREE.

internal import CMemory

/// How far the mapping of a region had come.
public enum RegionState: UInt16, Sendable {
    /// The record says nothing.
    case free = 0
    /// The device may or may not have it.
    case mapping = 1
    /// The device has it.
    case mapped = 2
    /// The device may or may not have it any more.
    case unmapping = 3
}

/// The record of a region.
public struct RegionRecord: Equatable, Sendable {
    static let wordCount = 14

    /// How far mapping it had come.
    public var state: RegionState
    /// The device's address; 0: it has none (bounced).
    public var iova: UInt64
    /// Which part of the client's file it is.
    public var stretch: ClientMemoryStretch
    /// Whose it is: the engine's key of the session.
    public var session: UInt32
    /// What may be done with it.
    public var flags: RegionFlags
    /// What the client calls the region.
    public var clientID: UInt64
    /// The number of the file's name in the fd store; 0: it is not there.
    public var number: UInt64 = 0
    /// The request that registered it.
    public var registerRequestID: UInt64 = 0
    /// The request that gives it back and is not answered; 0: none.
    public var unregisterRequestID: UInt64 = 0

    /// Whether it is of before a full stop, so that its memory is gone, while one of these sessions
    /// had it: commands that are still with the device may name its address.
    func isLeftOver(by busy: Set<UInt32>) -> Bool {
        state == .mapping && number == 0 && busy.contains(session)
    }

    var words: [UInt64] {
        [
            iova, stretch.byteCount, stretch.offset,
            UInt64(session) | UInt64(flags.rawValue) << 32 | UInt64(state.rawValue) << 48,
            clientID, stretch.pageByteCount, stretch.isPhysical ? 1 : 0, number,
            registerRequestID, unregisterRequestID,
        ]
    }

    init(
        state: RegionState, iova: UInt64, stretch: ClientMemoryStretch, session: UInt32,
        flags: RegionFlags, clientID: UInt64
    ) {
        self.state = state
        self.iova = iova
        self.stretch = stretch
        self.session = session
        self.flags = flags
        self.clientID = clientID
    }

    init?(_ words: [UInt64]) {
        guard words.count == Self.wordCount,
            let state = RegionState(rawValue: UInt16(truncatingIfNeeded: words[3] >> 48)),
            state != .free
        else { return nil }
        self.state = state
        iova = words[0]
        flags = RegionFlags(rawValue: UInt16(truncatingIfNeeded: words[3] >> 32))
        stretch = ClientMemoryStretch(byteCount: words[1])
        stretch.offset = words[2]
        stretch.pageByteCount = words[5]
        stretch.isReadOnly = flags.contains(.readOnly)
        stretch.isPhysical = words[6] & 1 != 0
        session = UInt32(truncatingIfNeeded: words[3])
        clientID = words[4]
        number = words[7]
        registerRequestID = words[8]
        unregisterRequestID = words[9]
    }
}

extension StateArea {
    /// Writes down what is known of a region.
    public func setRegion(_ index: UInt32, _ record: RegionRecord) {
        regionRecord(index)?.write(record.words)
    }

    /// What is known of a region.
    public func regionContent(_ index: UInt32) -> RecordContent<RegionRecord> {
        guard let twin = regionRecord(index) else { return .free }
        return RecordContent(twin.read(), isFree: { $0[3] >> 48 == 0 }) { RegionRecord($0) }
    }

    /// The record of a region; nil when it is free or damaged.
    public func region(_ index: UInt32) -> RegionRecord? { regionContent(index).record }

    /// Says nothing of a region any more.
    public func clearRegion(_ index: UInt32) {
        guard let twin = regionRecord(index), twin.read() != .empty else { return }
        twin.write([])
    }

    /// Says nothing of any region: the device was started afresh and has none.
    func clearRegions() {
        for index in 0..<UInt32(StateLayout.regionCapacity) { clearRegion(index) }
    }

    private func regionRecord(_ index: UInt32) -> TwinRecord? {
        guard index < UInt32(StateLayout.regionCapacity) else { return nil }
        return unsafe TwinRecord(
            base: address(StateLayout.regionsOffset + Int(index) * StateLayout.regionByteCount),
            wordCount: RegionRecord.wordCount,
            key: Checksum.key(Checksum.regionKind, queue: index, epoch: 0))
    }
}
