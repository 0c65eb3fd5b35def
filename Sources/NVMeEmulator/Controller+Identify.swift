// SPDX-License-Identifier: Apache-2.0
// The pages of Identify. NVM Express Base Specification 2.0, section 5.17; NVM Command Set
// Specification 1.0, section 4.1.5.

internal import NVMeSpec

extension Controller {
    /// Namespace ids in one list page.
    static let listCapacity = 1024

    func identify(_ entry: SubmissionEntry) -> Status {
        counters.identifiesByCNS[Int(entry.identifyCNS.rawValue)] &+= 1
        var page = Page()
        if let status = fill(&page, entry) { return status }
        if faults.concerns(.identify) { falsifyPage(&page, entry) }
        return returnPage(entry, &page.bytes)
    }

    /// Fills the page that was asked for; a status when there is none.
    private func fill(_ page: inout Page, _ entry: SubmissionEntry) -> Status? {
        let id = entry.namespaceID
        switch entry.identifyCNS {
        case .namespace: return fillNamespace(&page, id)
        case .controller: fillController(&page)
        case .activeNamespaceList: return fillList(&page, after: id)
        case .namespaceDescriptors: return fillDescriptors(&page, id)
        case .commandSetNamespace, .commandSetController, .commandSetActiveNamespaceList:
            // Only the NVM command set exists here (CSI 0).
            guard entry.identifyCSI == 0 else { return .invalidField }
            if entry.identifyCNS == .commandSetActiveNamespaceList {
                return fillList(&page, after: id)
            }
            if entry.identifyCNS == .commandSetController { return nil }
            return activity(of: id)
        case .independentNamespace: return fillIndependentNamespace(&page, id)
        case .ioCommandSets: page.set(0, 8, 1)
        default: return .invalidField
        }
        return nil
    }

    /// Nil for an active namespace or one that could be; a status for an id that cannot be.
    private func activity(of id: UInt32) -> Status? {
        id > 0 && id <= options.maxNamespaceCount ? nil : .invalidNamespaceOrFormat
    }

    private func fillController(_ page: inout Page) {
        page.set(0, 2, UInt64(PCIConfigSpace.vendorID))
        page.set(2, 2, UInt64(PCIConfigSpace.vendorID))
        page.set(4, 20, text: identity.serial)
        page.set(24, 40, text: identity.model)
        page.set(64, 8, text: "1.0")
        page.set(77, 1, UInt64(options.mdts))
        page.set(80, 4, UInt64(SpecificationVersion.v2_0.rawValue))
        page.set(84, 4, 1_000_000)  // RTD3R: microseconds
        page.set(88, 4, 1_000_000)  // RTD3E
        page.set(92, 4, 0x100)  // OAES: namespace attribute notices
        page.set(111, 1, 1)  // CNTRLTYPE: I/O controller
        let hasShadow = options.doorbells != .message && !options.dmaByMessage
        page.set(256, 2, hasShadow ? 0x100 : 0)  // OACS: Doorbell Buffer Config
        page.set(258, 1, 3)  // ACL: four Aborts at once
        page.set(259, 1, UInt64(Self.maxEventRequests - 1))
        page.set(260, 1, 0x03)  // FRMW: one slot, read-only
        page.set(261, 1, 0x06)  // LPA: effects, extended data
        page.set(262, 1, UInt64(ControllerLog.maxErrors - 1))
        page.set(266, 2, 343)  // WCTEMP, kelvin
        page.set(268, 2, 353)  // CCTEMP
        page.set(512, 1, 0x66)  // SQES: 64 bytes
        page.set(513, 1, 0x44)  // CQES: 16 bytes
        page.set(514, 2, UInt64(min(options.maxQueueEntryCount, 65535)))
        page.set(516, 4, UInt64(options.maxNamespaceCount))
        page.set(520, 2, 0x9D)  // ONCS: compare, DSM, write zeroes, save/select, verify
        page.set(525, 1, 0x07)  // VWC: present, Flush takes the broadcast id
        page.set(540, 4, UInt64(options.maxNamespaceCount))
        let nqn = "nqn.2025-01.io.nvmed:emulator:\(identity.serial)"
        page.set(768, Array(nqn.utf8.prefix(223)))
        page.set(2048, 2, 2500)  // Power state 0: centiwatts
    }

    private func fillNamespace(_ page: inout Page, _ id: UInt32) -> Status? {
        if let status = activity(of: id) { return status }
        guard let namespace = namespaces[Int(id) - 1] else { return nil }
        let shift = UInt64(namespace.blockShift)
        page.set(0, 8, namespace.blockCount)
        page.set(8, 8, namespace.blockCount)
        page.set(16, 8, namespace.allocatedByteCount >> shift)
        page.set(24, 1, 0x11)  // NSFEAT: thin provisioning, optimal sizes valid
        page.set(25, 1, 1)  // NLBAF: two formats
        page.set(26, 1, namespace.blockShift == 12 ? 1 : 0)
        page.set(30, 1, namespace.isShared ? 1 : 0)  // NMIC
        page.set(33, 1, 0x09)  // DLFEAT: zeroes; Write Zeroes deallocates
        page.set(48, 8, UInt64(namespace.byteCount))
        let granule = UInt64(4096) >> shift &- 1
        for offset in [64, 66, 68, 70, 72] { page.set(offset, 2, granule) }
        page.set(99, 1, namespace.isReadOnly ? 1 : 0)
        page.set(104, namespace.nguid)
        page.set(120, namespace.eui64)
        page.set(130, 1, 9)  // LBA format 0: 512 bytes
        page.set(134, 1, 12)  // LBA format 1: 4096 bytes
        return nil
    }

    private func fillIndependentNamespace(_ page: inout Page, _ id: UInt32) -> Status? {
        if let status = activity(of: id) { return status }
        guard let namespace = namespaces[Int(id) - 1] else { return nil }
        page.set(0, 1, 0x11)  // NSFEAT
        page.set(13, 1, namespace.isReadOnly ? 1 : 0)  // NSATTR
        page.set(14, 1, 1)  // NSTAT: ready
        return nil
    }

    private func fillList(_ page: inout Page, after id: UInt32) -> Status? {
        guard id < 0xFFFF_FFFE else { return .invalidNamespaceOrFormat }
        var place = 0
        for namespace in namespaces {
            guard let namespace, namespace.namespaceID > id, place < Self.listCapacity else {
                continue
            }
            page.set(place * 4, 4, UInt64(namespace.namespaceID))
            place += 1
        }
        return nil
    }

    private func fillDescriptors(_ page: inout Page, _ id: UInt32) -> Status? {
        if let status = activity(of: id) { return status }
        guard let namespace = namespaces[Int(id) - 1] else { return .invalidNamespaceOrFormat }
        var at = 0
        let descriptors: [(UInt8, [UInt8])] = [
            (1, namespace.eui64), (2, namespace.nguid), (3, namespace.uuid), (4, [0]),
        ]
        for (type, value) in descriptors {
            page.set(at, [type, UInt8(value.count), 0, 0] + value)
            at += 4 + value.count
        }
        return nil
    }

    private func falsifyPage(_ page: inout Page, _ entry: SubmissionEntry) {
        guard let action = faults.action(at: .identify, entry: entry) else { return }
        counters.faultsInjected &+= 1
        switch action {
        case .truncated(let count): page.bytes.removeLast(max(0, page.bytes.count - count))
        case .zeroed: page = Page()
        case .garbage:
            // The same for every run: the upper bits of a linear congruence.
            var state: UInt64 = 0x9E37_79B9_7F4A_7C15
            for index in page.bytes.indices {
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                page.bytes[index] = UInt8(truncatingIfNeeded: state >> 56)
            }
        case .patch(let patches):
            for patch in patches { page.set(patch.offset, patch.width, patch.value) }
        default: break
        }
    }
}
