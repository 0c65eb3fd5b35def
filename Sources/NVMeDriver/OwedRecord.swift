// SPDX-License-Identifier: Apache-2.0
// What the state area says of answers that are owed: requests that were taken off their sockets and
// have neither a command slot nor a request record.
//
// The words of a record:
//
//   0  the engine's key of the session (32) | kind (8) | opcode (8) | status (16)
//   1  request id
//   2  what it is about: bytes of data, the request to be cancelled, or how the disk changed
//   3  first owned pool page (32) | owned pages (16) | error code (16)

/// What kind of answer is owed.
public enum OwedKind: UInt8, Sendable {
    /// Nothing.
    case free = 0
    /// The end of an I/O request, which the socket had no room for.
    case completion = 1
    /// Whether a request was cancelled.
    case cancel = 2
    /// `done`, or an error, of a request that is no I/O.
    case answer = 3
    /// An event, which the socket had no room for: the disk changed. It has no request id.
    case change = 4
}

/// The record of an answer that is owed.
public struct OwedRecord: Sendable, Equatable {
    static let wordCount = 7

    /// What kind.
    public var kind: OwedKind
    /// To whom: the engine's key of the session.
    public var session: UInt32
    /// The request that is to be answered.
    public var requestID: UInt64
    /// The operation of an I/O request.
    public var opcode: UInt8 = 0
    /// The NVMe status; 0: success.
    public var status: UInt16 = 0
    /// The error code of an answer; 0: none.
    public var code: UInt16 = 0
    /// Bytes of data, the request to be cancelled, or how the disk changed.
    public var argument: UInt64 = 0
    /// The first pool page that has the data.
    public var firstPage: UInt32 = 0
    /// How many.
    public var pageCount: UInt16 = 0

    /// A record.
    public init(kind: OwedKind, session: UInt32, requestID: UInt64) {
        self.kind = kind
        self.session = session
        self.requestID = requestID
    }

    var words: [UInt64] {
        [
            UInt64(session) | UInt64(kind.rawValue) << 32 | UInt64(opcode) << 40
                | UInt64(status) << 48,
            requestID, argument,
            UInt64(firstPage) | UInt64(pageCount) << 32 | UInt64(code) << 48,
        ]
    }

    init?(_ words: [UInt64]) {
        guard words.count == Self.wordCount,
            let kind = OwedKind(rawValue: UInt8(truncatingIfNeeded: words[0] >> 32)), kind != .free
        else { return nil }
        self.kind = kind
        session = UInt32(truncatingIfNeeded: words[0])
        opcode = UInt8(truncatingIfNeeded: words[0] >> 40)
        status = UInt16(truncatingIfNeeded: words[0] >> 48)
        requestID = words[1]
        argument = words[2]
        firstPage = UInt32(truncatingIfNeeded: words[3])
        pageCount = UInt16(truncatingIfNeeded: words[3] >> 32)
        code = UInt16(truncatingIfNeeded: words[3] >> 48)
    }
}

extension StateArea {
    /// Writes down what is owed.
    public func setOwed(_ index: Int, _ record: OwedRecord) {
        owedRecord(index)?.write(record.words)
    }

    /// What is owed.
    public func owed(_ index: Int) -> RecordContent<OwedRecord> {
        guard let twin = owedRecord(index) else { return .free }
        return RecordContent(twin.read(), isFree: { $0[0] >> 32 & 0xFF == 0 }) { OwedRecord($0) }
    }

    /// It was paid.
    public func clearOwed(_ index: Int) {
        guard let twin = owedRecord(index), twin.read() != .empty else { return }
        twin.write([])
    }

    private func owedRecord(_ index: Int) -> TwinRecord? {
        guard index >= 0, index < StateLayout.owedCapacity else { return nil }
        return unsafe TwinRecord(
            base: address(StateLayout.owedOffset + index * StateLayout.owedByteCount),
            wordCount: OwedRecord.wordCount,
            key: Checksum.key(Checksum.owedKind, queue: UInt32(index), epoch: 0))
    }
}
