// SPDX-License-Identifier: Apache-2.0
// The completion queue entry. NVM Express Base Specification 2.0, section 3.3.3.2.

/// A completion queue entry: 16 bytes whose fields lie in wire order, little endian.
@frozen
public struct CompletionEntry: Equatable, Sendable {
    /// DW0, command specific.
    public var dw0: UInt32
    /// DW1, command specific.
    public var dw1: UInt32
    /// SQHD, how far the controller has fetched the submission queue.
    public var sqHead: UInt16
    /// SQID, the submission queue of the command.
    public var sqID: UInt16
    /// CID, the command that completed.
    public var commandID: UInt16
    /// The phase tag in bit 0 and the status above it.
    public var statusAndPhase: UInt16

    /// An entry from raw fields.
    @inlinable
    public init(
        dw0: UInt32, dw1: UInt32, sqHead: UInt16, sqID: UInt16, commandID: UInt16,
        statusAndPhase: UInt16
    ) {
        self.dw0 = dw0
        self.dw1 = dw1
        self.sqHead = sqHead
        self.sqID = sqID
        self.commandID = commandID
        self.statusAndPhase = statusAndPhase
    }

    /// An entry as a controller posts it.
    @inlinable
    public init(
        commandID: UInt16, sqID: UInt16, sqHead: UInt16, status: Status, phase: Bool,
        dw0: UInt32 = 0, dw1: UInt32 = 0
    ) {
        self.init(
            dw0: dw0, dw1: dw1, sqHead: sqHead, sqID: sqID, commandID: commandID,
            statusAndPhase: status.rawValue << 1 | (phase ? 1 : 0))
    }

    /// An entry from the two little-endian 64-bit words it consists of.
    @inlinable
    public init(word0: UInt64, word1: UInt64) {
        self.init(
            dw0: UInt32(truncatingIfNeeded: word0), dw1: UInt32(truncatingIfNeeded: word0 >> 32),
            sqHead: UInt16(truncatingIfNeeded: word1),
            sqID: UInt16(truncatingIfNeeded: word1 >> 16),
            commandID: UInt16(truncatingIfNeeded: word1 >> 32),
            statusAndPhase: UInt16(truncatingIfNeeded: word1 >> 48))
    }

    /// P, the phase tag.
    @inlinable
    public var phase: Bool { statusAndPhase & 1 == 1 }

    /// The status field without the phase tag.
    @inlinable
    public var status: Status { Status(rawValue: statusAndPhase >> 1) }

    /// Bytes 0 to 7 as a number.
    @inlinable
    public var word0: UInt64 { UInt64(dw0) | UInt64(dw1) << 32 }

    /// Bytes 8 to 15 as a number; the phase tag is bit 48, so this word is stored last.
    @inlinable
    public var word1: UInt64 {
        UInt64(sqHead) | UInt64(sqID) << 16 | UInt64(commandID) << 32
            | UInt64(statusAndPhase) << 48
    }

    /// Bytes of an entry in a queue.
    public static let byteCount = 16
}
