// SPDX-License-Identifier: Apache-2.0
// The submission queue entry. NVM Express Base Specification 2.0, section 3.3.3.1.

/// A submission queue entry: 64 bytes whose fields lie in wire order, little endian.
///
/// `MemoryLayout<SubmissionEntry>.size` is 64 and there is no padding, so that the value can be
/// stored to a queue as it is.
@frozen
public struct SubmissionEntry: Equatable, Sendable {
    /// OPC, the opcode.
    public var opcode: UInt8
    /// FUSE in bits 1:0 and PSDT in bits 7:6; zero means not fused, data by PRPs.
    public var flags: UInt8
    /// CID, unique among the outstanding commands of a queue.
    public var commandID: UInt16
    /// NSID.
    public var namespaceID: UInt32
    /// CDW2, command specific.
    public var cdw2: UInt32
    /// CDW3, command specific.
    public var cdw3: UInt32
    /// MPTR, metadata pointer.
    public var metadataPointer: UInt64
    /// PRP1, the first page of the data or the base of a queue.
    public var prp1: UInt64
    /// PRP2, the second page or a list of pages.
    public var prp2: UInt64
    /// CDW10, command specific.
    public var cdw10: UInt32
    /// CDW11, command specific.
    public var cdw11: UInt32
    /// CDW12, command specific.
    public var cdw12: UInt32
    /// CDW13, command specific.
    public var cdw13: UInt32
    /// CDW14, command specific.
    public var cdw14: UInt32
    /// CDW15, command specific.
    public var cdw15: UInt32

    /// An entry with every other field zero; command id and PRPs are filled in by the queue.
    @inlinable
    public init(
        opcode: UInt8, namespaceID: UInt32 = 0, prp1: UInt64 = 0, prp2: UInt64 = 0,
        cdw10: UInt32 = 0, cdw11: UInt32 = 0, cdw12: UInt32 = 0, cdw13: UInt32 = 0,
        cdw14: UInt32 = 0, cdw15: UInt32 = 0
    ) {
        self.opcode = opcode
        flags = 0
        commandID = 0
        self.namespaceID = namespaceID
        cdw2 = 0
        cdw3 = 0
        metadataPointer = 0
        self.prp1 = prp1
        self.prp2 = prp2
        self.cdw10 = cdw10
        self.cdw11 = cdw11
        self.cdw12 = cdw12
        self.cdw13 = cdw13
        self.cdw14 = cdw14
        self.cdw15 = cdw15
    }

    /// An entry of zeroes.
    @inlinable
    public init() { self.init(opcode: 0) }

    /// Bytes of an entry in a queue.
    public static let byteCount = 64

    /// The NSID that names every namespace.
    @inlinable
    public static var broadcastNamespaceID: UInt32 { 0xFFFF_FFFF }
}

extension SubmissionEntry {
    /// FUSE, flags bits 1:0: 0 normal, 1 first, 2 second of a fused pair.
    @inlinable
    public var fuse: UInt8 { flags & 3 }

    /// PSDT, flags bits 7:6: 0 PRPs, 1 and 2 SGLs.
    @inlinable
    public var psdt: UInt8 { flags >> 6 }

    /// The opcode as one of the admin queue.
    @inlinable
    public var adminOpcode: AdminOpcode { AdminOpcode(rawValue: opcode) }

    /// The opcode as one of an I/O queue.
    @inlinable
    public var ioOpcode: IOOpcode { IOOpcode(rawValue: opcode) }
}
