// SPDX-License-Identifier: Apache-2.0
// Get Log Page. NVM Express Base Specification 2.0, section 5.16.

internal import Linux
internal import NVMeSpec

extension Controller {
    /// The log pages that exist here.
    private static let supportedLogPages: [LogPageID] = [
        .supportedLogPages, .errorInformation, .smartHealth, .firmwareSlot,
        .changedNamespaceList, .commandsSupportedAndEffects, .featureIdentifiersSupported,
    ]

    func getLogPage(_ entry: SubmissionEntry) -> Status {
        let id = entry.logPageID
        guard var bytes = logPage(id, entry)?.bytes else { return .invalidLogPage }
        let offset = entry.logByteOffset
        guard offset & 3 == 0, offset <= UInt64(bytes.count) else { return .invalidField }
        // Beyond the page's end is nothing to return; hosts may ask for more than there is.
        let end = min(UInt64(bytes.count), offset &+ entry.logByteCount)
        bytes = Array(bytes[Int(offset)..<Int(end)])
        let status = returnPage(entry, &bytes)
        if status.isSuccess, !entry.logRetainsAsynchronousEvent {
            if id == .changedNamespaceList { log.changedNamespaces.removeAll() }
            clearEvents(of: id)
        }
        return status
    }

    private func logPage(_ id: LogPageID, _ entry: SubmissionEntry) -> Page? {
        switch id {
        case .supportedLogPages:
            var page = Page(byteCount: 1024)
            for id in Self.supportedLogPages { page.set(Int(id.rawValue) * 4, 4, 1) }
            return page
        case .errorInformation: return errorPage()
        case .smartHealth: return smartPage()
        case .firmwareSlot:
            var page = Page(byteCount: 512)
            page.set(0, 1, 1)
            page.set(8, 8, text: "1.0")
            return page
        case .changedNamespaceList: return changedNamespacePage()
        case .commandsSupportedAndEffects: return effectsPage()
        case .featureIdentifiersSupported: return featurePage()
        default: return nil
        }
    }

    private func errorPage() -> Page {
        var page = Page(byteCount: 64 * ControllerLog.maxErrors)
        for (index, error) in log.errors.enumerated() {
            let at = index * 64
            page.set(at, 8, error.count)
            page.set(at + 8, 2, UInt64(error.queue))
            page.set(at + 10, 2, UInt64(error.commandID))
            page.set(at + 12, 2, UInt64(error.status) << 1)
            page.set(at + 16, 8, error.lba)
            page.set(at + 24, 4, UInt64(error.namespaceID))
        }
        return page
    }

    private func smartPage() -> Page {
        var page = Page(byteCount: 512)
        page.set(1, 2, 313)  // composite temperature, kelvin
        page.set(3, 1, 100)  // available spare
        page.set(4, 1, 10)  // its threshold
        // Data units are thousands of 512-byte sectors, rounded up.
        page.set(32, 8, (log.sectorsRead &+ 999) / 1000)
        page.set(48, 8, (log.sectorsWritten &+ 999) / 1000)
        page.set(64, 8, log.readCommands)
        page.set(80, 8, log.writeCommands)
        page.set(112, 8, 1)  // power cycles
        page.set(128, 8, MonotonicClock.nowNanoseconds / 3_600_000_000_000)
        page.set(144, 8, log.unsafeShutdowns)
        page.set(160, 8, log.mediaErrors)
        page.set(176, 8, log.errorCount)
        return page
    }

    private func changedNamespacePage() -> Page {
        var page = Page()
        guard log.changedNamespaces.count <= Self.listCapacity else {
            page.set(0, 4, 0xFFFF_FFFF)
            return page
        }
        for (index, id) in log.changedNamespaces.sorted().enumerated() {
            page.set(index * 4, 4, UInt64(id))
        }
        return page
    }

    private func effectsPage() -> Page {
        var page = Page()
        let admin: [AdminOpcode] = [
            .deleteIOSubmissionQueue, .createIOSubmissionQueue, .getLogPage,
            .deleteIOCompletionQueue, .createIOCompletionQueue, .identify, .abort, .setFeatures,
            .getFeatures, .asynchronousEventRequest, .doorbellBufferConfig,
        ]
        for opcode in admin { page.set(Int(opcode.rawValue) * 4, 4, 1) }
        let harmless: [IOOpcode] = [.flush, .read, .compare, .verify]
        let changing: [IOOpcode] = [.write, .writeZeroes, .datasetManagement]
        for opcode in harmless { page.set(1024 + Int(opcode.rawValue) * 4, 4, 1) }
        // CSUPP and LBCC: these change logical block contents.
        for opcode in changing { page.set(1024 + Int(opcode.rawValue) * 4, 4, 3) }
        return page
    }

    private func featurePage() -> Page {
        var page = Page(byteCount: 1024)
        for id in Self.supportedFeatures { page.set(Int(id.rawValue) * 4, 4, 1) }
        return page
    }
}
