// SPDX-License-Identifier: Apache-2.0
// What the driver knows of a namespace (NVM Express Base Specification 2.0, 5.17.2; NVM Command Set
// 1.0, 4.1.5).

public import NVMeSpec

/// A namespace with the limits of its commands.
public struct NamespaceInfo: Sendable, Equatable {
    /// The namespace id.
    public var namespaceID: UInt32
    /// Bytes of a block as a power of two, 9…16.
    public var blockShift: UInt8 = 9
    /// Blocks: NSZE.
    public var blockCount: UInt64 = 0
    /// The most blocks of one Read, Write or Compare.
    public var maxTransferBlocks: UInt32 = 1
    /// The most blocks of one Write Zeroes; 0 when the controller has no such command.
    public var maxWriteZeroesBlocks: UInt32 = 0
    /// The most blocks of one Verify; 0 when the controller has no such command.
    public var maxVerifyBlocks: UInt32 = 0
    /// The most blocks of one Deallocate range; 0 when the controller has no such command.
    public var maxDeallocateBlocks: UInt32 = 0
    /// Whether Compare exists.
    public var canCompare = false
    /// Whether there is a volatile write cache, so that Flush matters.
    public var hasVolatileWriteCache = false
    /// The granularity of Deallocate in blocks, 0 when the namespace does not say.
    public var deallocateGranularityBlocks: UInt32 = 0
    /// The alignment of Deallocate in blocks, 0 when the namespace does not say.
    public var deallocateAlignmentBlocks: UInt32 = 0
    /// What deallocated blocks read as.
    public var deallocatedReadBehavior: DeallocatedReadBehavior = .unknown
    /// Whether Write Zeroes may deallocate (DLFEAT bit 3).
    public var writeZeroesMayDeallocate = false
    /// The preferred write granularity in blocks, 0 when the namespace does not say.
    public var optimalWriteBlocks: UInt32 = 0
    /// Blocks that are written atomically in normal operation, at least 1.
    public var atomicWriteBlocks: UInt32 = 1
    /// Blocks that are written atomically over a power failure, at least 1.
    public var atomicWritePowerFailBlocks: UInt32 = 1
    /// NMIC: it may be attached to other controllers too, whose hosts may write to it.
    public var isShared = false
    /// NSATTR: write protected now.
    public var isWriteProtected = false
    /// 16 bytes, nil when there is none.
    public var nguid: [UInt8]?
    /// 8 bytes, nil when there is none.
    public var eui64: [UInt8]?
    /// 16 bytes, nil when there is none.
    public var uuid: [UInt8]?
    /// Why the driver does not serve this namespace; nil when it does.
    public var refusal: String?

    /// Bytes of a block.
    public var blockByteCount: UInt32 { 1 << UInt32(blockShift) }

    /// A namespace that is not served.
    init(namespaceID: UInt32, refusal: String) {
        self.namespaceID = namespaceID
        self.refusal = refusal
    }

    /// Why a namespace of another command set is not served.
    static func commandSetRefusal(_ csi: UInt8) -> String {
        let name =
            switch csi {
            case 1: "the key value command set"
            case 2: "the zoned namespace command set"
            default: "an unknown command set"
            }
        return "it belongs to \(name) (CSI \(csi)); only the NVM command set is served"
    }

    /// Reads the identify pages. Nothing in them is trusted: what cannot be served gives a
    /// `refusal`.
    init(
        namespaceID: UInt32, identify: IdentifyNamespace, descriptors: NamespaceDescriptors,
        controller: ControllerLimits
    ) {
        self.namespaceID = namespaceID
        blockCount = identify.nsze
        isShared = identify.isShared
        isWriteProtected = identify.isWriteProtected
        deallocatedReadBehavior = identify.deallocatedReadBehavior
        writeZeroesMayDeallocate = identify.writeZeroesDeallocates
        hasVolatileWriteCache = controller.hasVolatileWriteCache
        canCompare = controller.commands.contains(.compare)
        nguid = Self.nonZero(descriptors.nguid ?? identify.nguid)
        eui64 = Self.nonZero(descriptors.eui64 ?? identify.eui64)
        uuid = Self.nonZero(descriptors.uuid ?? [])
        refusal = Self.refusal(identify, descriptors)
        guard refusal == nil, let bytes = identify.blockByteCount else { return }
        blockShift = UInt8(bytes.trailingZeroBitCount)
        takeLimits(controller)
        takeSizes(identify, controller)
    }

    private static func refusal(
        _ identify: IdentifyNamespace, _ descriptors: NamespaceDescriptors
    ) -> String? {
        guard identify.nsze > 0 else { return "NSZE is 0: the namespace has no blocks" }
        if let csi = descriptors.csi, csi != 0 { return commandSetRefusal(csi) }
        guard identify.formatIndex <= Int(identify.nlbaf), let format = identify.format else {
            return "FLBAS names format \(identify.formatIndex), but there are \(identify.nlbaf) + 1"
        }
        guard format.lbads >= 9, format.lbads <= 16 else {
            return "LBADS is \(format.lbads); blocks from 2^9 to 2^16 bytes are served"
        }
        guard !identify.hasMetadata else {
            return "its format has \(format.ms) bytes of metadata a block, which are not served; "
                + "format it without metadata"
        }
        guard identify.protectionType == 0 else {
            return "protection information type \(identify.protectionType) is on, which is not "
                + "served; format it without protection"
        }
        guard identify.nsze <= UInt64(Int64.max) >> UInt64(format.lbads) else {
            return "NSZE is \(identify.nsze): more bytes than 2^63"
        }
        return nil
    }

    private mutating func takeLimits(_ controller: ControllerLimits) {
        let shift = UInt64(blockShift)
        // NLB is 16 bits wide and zero-based.
        func blocks(_ byteCount: UInt64?) -> UInt32 {
            guard let byteCount else { return 65536 }
            return UInt32(max(1, min(65536, byteCount >> shift)))
        }
        maxTransferBlocks = blocks(controller.maxTransferByteCount)
        if controller.commands.contains(.writeZeroes) {
            maxWriteZeroesBlocks = blocks(controller.maxWriteZeroesByteCount)
        }
        if controller.commands.contains(.verify) {
            maxVerifyBlocks = blocks(controller.maxVerifyByteCount)
        }
        if controller.commands.contains(.datasetManagement) {
            let limit = controller.maxDeallocateBlocks
            maxDeallocateBlocks = limit == 0 ? UInt32.max : limit
        }
    }

    private mutating func takeSizes(
        _ identify: IdentifyNamespace, _ controller: ControllerLimits
    ) {
        if identify.hasOptimalSizes {
            // All of these are zero-based (NVM Command Set 1.0, 4.1.5.1).
            deallocateGranularityBlocks = UInt32(identify.npdg) + 1
            deallocateAlignmentBlocks = UInt32(identify.npda) + 1
            optimalWriteBlocks = UInt32(identify.npwg) + 1
        }
        atomicWriteBlocks =
            UInt32(identify.hasAtomicUnits ? identify.nawun : controller.awun) + 1
        atomicWritePowerFailBlocks =
            UInt32(identify.hasAtomicUnits ? identify.nawupf : controller.awupf) + 1
    }

    private static func nonZero(_ bytes: [UInt8]) -> [UInt8]? {
        bytes.contains { $0 != 0 } ? bytes : nil
    }
}

/// What of the controller limits the commands of its namespaces.
public struct ControllerLimits: Sendable, Equatable {
    /// ONCS.
    public var commands: OptionalNVMCommands = []
    /// The most bytes of one transfer: the lesser of MDTS and what the PRP lists are made for.
    public var maxTransferByteCount: UInt64 = 4096
    /// WZSL in bytes; nil is unlimited.
    public var maxWriteZeroesByteCount: UInt64?
    /// VSL in bytes; nil is unlimited.
    public var maxVerifyByteCount: UInt64?
    /// DMRSL in blocks; 0 is unlimited.
    public var maxDeallocateBlocks: UInt32 = 0
    /// VWC.
    public var hasVolatileWriteCache = false
    /// AWUN, zero-based.
    public var awun: UInt16 = 0
    /// AWUPF, zero-based.
    public var awupf: UInt16 = 0
}

/// Says which namespaces are the same disks as before, of all that were known and all that are
/// found.
public typealias NamespaceComparison = (
    _ known: [UInt32: NamespaceInfo], _ found: [UInt32: NamespaceInfo]
) -> Set<UInt32>

extension NamespaceInfo {
    /// Whether somebody who had `other` open can go on with this one. A namespace that is not
    /// served is nobody's.
    public func isSameDisk(as other: NamespaceInfo) -> Bool {
        refusal == nil && other.refusal == nil && nguid == other.nguid && eui64 == other.eui64
            && uuid == other.uuid && blockShift == other.blockShift
    }

    /// The namespaces that are served, and were before as the same disks.
    public static func sameDisks(
        _ known: [UInt32: NamespaceInfo], _ found: [UInt32: NamespaceInfo]
    ) -> Set<UInt32> {
        Set(
            found.keys.filter { id in
                guard let before = known[id], let now = found[id] else { return false }
                return now.isSameDisk(as: before)
            })
    }
}
