// SPDX-License-Identifier: Apache-2.0
// What the driver knows of a controller and its namespaces, as the wire tells it.

internal import NVMeDriver
internal import NVMeSpec
internal import Wire

extension NVMeDriver.NamespaceInfo {
    /// The identifiers.
    var identity: NamespaceIdentity {
        NamespaceIdentity(nguid: nguid ?? [], eui64: eui64 ?? [], uuid: uuid ?? [])
    }

    /// The namespace for the supervisor.
    var onWire: Wire.NamespaceInfo {
        Wire.NamespaceInfo(
            nsid: namespaceID, blockByteCount: blockByteCount, blockCount: blockCount,
            identity: identity, writeProtected: isWriteProtected, refusal: refusal)
    }

    /// Several for one message: when the reasons for refusals become too long together, the rest
    /// only says that there is one. The inspection tree has them all.
    static func onWire(_ all: some Sequence<NVMeDriver.NamespaceInfo>) -> [Wire.NamespaceInfo] {
        var left = WireLimits.refusalsByteCount
        return all.prefix(WireLimits.namespaceCount).map { namespace in
            var info = namespace.onWire
            if let refusal = info.refusal {
                left -= refusal.utf8.count
                if left < 0 { info.refusal = "see nvmectl inspect" }
            }
            return info
        }
    }

}

extension DiskInfo {
    /// A namespace as one session sees it.
    init(
        _ namespace: NVMeDriver.NamespaceInfo, controller: IdentifyController, device: String,
        session: OpenSession, generation: UInt64, bounced: Bool
    ) {
        self.init()
        // Without an IOMMU the device never gets to a client's memory.
        self.bounced = bounced
        name = session.disk
        self.device = device
        takeSizes(namespace)
        takeUnmap(namespace)
        fua = true
        volatileWriteCache = namespace.hasVolatileWriteCache
        writeZeroes = namespace.maxWriteZeroesBlocks > 0
        compare = namespace.canCompare
        verify = namespace.maxVerifyBlocks > 0
        writeProtected = namespace.isWriteProtected
        readOnly = session.access == .readOnly
        nsid = namespace.namespaceID
        identity = namespace.identity
        serial = Self.trimmed(controller.sn)
        model = Self.trimmed(controller.mn)
        firmware = Self.trimmed(controller.fr)
        shared = session.shared
        self.generation = generation
    }

    private mutating func takeSizes(_ namespace: NVMeDriver.NamespaceInfo) {
        let block = namespace.blockByteCount
        blockByteCount = block
        // What Linux does: a write of this size and alignment is neither slow nor torn by a power
        // failure.
        let whole = min(
            max(namespace.optimalWriteBlocks, 1), max(namespace.atomicWritePowerFailBlocks, 1))
        physicalBlockByteCount = block.multipliedClamping(by: whole)
        optimalByteCount = max(
            physicalBlockByteCount,
            block.multipliedClamping(by: max(namespace.optimalWriteBlocks, 1)))
        blockCount = namespace.blockCount
        maxTransferByteCount = WorkerLimits.requestByteCount
        maxInlineByteCount = UInt32(WireLimits.payloadByteCount)
        maxSegments = UInt32(Engine.maxSegments)
        alignmentByteCount = 1
        atomicBlockCount = namespace.atomicWriteBlocks
        atomicPowerFailBlockCount = namespace.atomicWritePowerFailBlocks
    }

    private mutating func takeUnmap(_ namespace: NVMeDriver.NamespaceInfo) {
        unmap = namespace.maxDeallocateBlocks > 0
        unmapMaxRanges = unmap ? UInt32(WireLimits.unmapRangeCount) : 0
        unmapGranularityBlockCount = max(namespace.deallocateGranularityBlocks, 1)
        unmapAlignmentBlockCount = namespace.deallocateAlignmentBlocks
        unmapReadsAs = UInt32(namespace.deallocatedReadBehavior.rawValue)
    }

    /// Identify pads its strings with spaces.
    static func trimmed(_ text: String) -> String {
        var view = Substring(text)
        while view.last == " " { view.removeLast() }
        return String(view)
    }
}

extension ControllerInfo {
    /// A controller for the supervisor.
    init(_ controller: NVMeController) {
        self.init()
        let identify = controller.identify
        serial = DiskInfo.trimmed(identify.sn)
        model = DiskInfo.trimmed(identify.mn)
        firmware = DiskInfo.trimmed(identify.fr)
        vendorID = UInt32(identify.vid)
        controllerID = UInt32(identify.cntlid)
        nvmeVersion = controller.version.rawValue
        maxTransferByteCount = controller.limits.maxTransferByteCount
        queueCount = UInt32(clamping: controller.queueCount)
        queueDepth = UInt32(clamping: controller.options.queueDepth)
        volatileWriteCache = identify.hasVolatileWriteCache
    }
}

extension UInt32 {
    /// The product, or the largest number when it does not fit.
    fileprivate func multipliedClamping(by factor: UInt32) -> UInt32 {
        UInt32(clamping: UInt64(self) * UInt64(factor))
    }
}
