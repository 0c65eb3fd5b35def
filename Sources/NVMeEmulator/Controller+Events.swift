// SPDX-License-Identifier: Apache-2.0
// Asynchronous events and what they are about. NVM Express Base Specification 2.0, section 5.2.

internal import NVMeSpec

/// An event as dword 0 of an Asynchronous Event Request tells it.
struct AsynchronousEvent: Equatable {
    /// 0 error, 1 SMART/health, 2 notice.
    let type: UInt8
    let information: UInt8
    let logPage: LogPageID

    static let invalidDoorbellRegister = Self(
        type: 0, information: 0, logPage: .errorInformation)
    static let invalidDoorbellValue = Self(type: 0, information: 1, logPage: .errorInformation)
    static let namespaceAttributeChanged = Self(
        type: 2, information: 0, logPage: .changedNamespaceList)

    var dword0: UInt32 {
        UInt32(type) | UInt32(information) << 8 | UInt32(logPage.rawValue) << 16
    }
}

/// What the log pages tell.
struct ControllerLog {
    /// One entry of the Error Information log.
    struct ErrorEntry {
        var count: UInt64
        var queue: UInt16
        var commandID: UInt16
        var status: UInt16
        var namespaceID: UInt32
        var lba: UInt64
    }

    /// Entries kept (ELPE + 1).
    static let maxErrors = 64

    /// The newest first.
    var errors: [ErrorEntry] = []
    var errorCount: UInt64 = 0
    var changedNamespaces: Set<UInt32> = []
    var sectorsRead: UInt64 = 0
    var sectorsWritten: UInt64 = 0
    var readCommands: UInt64 = 0
    var writeCommands: UInt64 = 0
    var mediaErrors: UInt64 = 0
    var unsafeShutdowns: UInt64 = 0
    var hadCleanShutdown = true
    /// Why CSTS.CFS was set last; for the statistics.
    var lastFatal = ""
}

extension Controller {
    /// Events waiting for a request; more are dropped: a host that does not listen misses some.
    static let maxPendingEvents = 16

    /// Reports an event: to a waiting request, or as soon as there is one.
    func report(_ event: AsynchronousEvent) {
        guard !pendingEvents.contains(event), pendingEvents.count < Self.maxPendingEvents else {
            return
        }
        pendingEvents.append(event)
        deliverEvents()
    }

    /// Completes requests with events whose type the host has not still to look at.
    func deliverEvents() {
        var index = 0
        while index < pendingEvents.count, !eventRequests.isEmpty {
            let event = pendingEvents[index]
            let bit: UInt8 = 1 << event.type
            guard maskedEventTypes & bit == 0 else {
                index &+= 1
                continue
            }
            maskedEventTypes |= bit
            pendingEvents.remove(at: index)
            answerEventRequest(event.dword0)
        }
    }

    private func answerEventRequest(_ dword0: UInt32) {
        var entry = SubmissionEntry.asynchronousEventRequest()
        entry.commandID = eventRequests.removeFirst()
        counters.asynchronousEvents &+= 1
        complete(entry, from: 0, .success, dword0)
    }

    /// The host has read a log page without RAE: events of its type may come again.
    func clearEvents(of page: LogPageID) {
        switch page {
        case .errorInformation: maskedEventTypes &= ~1
        case .smartHealth: maskedEventTypes &= ~2
        case .changedNamespaceList:
            // The page told of everything that happened so far.
            pendingEvents.removeAll { $0 == .namespaceAttributeChanged }
            maskedEventTypes &= ~4
        default: break
        }
        deliverEvents()
    }

    func executeEventRequest(_ entry: SubmissionEntry) -> Outcome {
        guard eventRequests.count < Self.maxEventRequests else {
            return .done(.asynchronousEventLimitExceeded, 0)
        }
        eventRequests.append(entry.commandID)
        if faults.concerns(.event), faults.action(at: .event, entry: entry) != nil {
            counters.faultsInjected &+= 1
            answerEventRequest(AsynchronousEvent.namespaceAttributeChanged.dword0)
            return .held
        }
        deliverEvents()
        return .held
    }

    /// Remembers that a namespace came, went or changed, and tells a host that wants to know.
    func namespaceChanged(_ namespaceID: UInt32) {
        log.changedNamespaces.insert(namespaceID)
        let wanted = AsynchronousEventConfiguration(
            rawValue: features[FeatureID.asynchronousEventConfiguration.rawValue] ?? 0)
        guard csts.rdy, wanted.contains(.namespaceAttribute) else { return }
        report(.namespaceAttributeChanged)
        if dirtyCount > 0 { settleInterrupts() }
    }

    /// Adds a failed command to the Error Information log.
    func recordError(_ entry: SubmissionEntry, _ queue: UInt16, _ status: Status) {
        log.errorCount &+= 1
        if status.type == .mediaAndDataIntegrity && status != .compareFailure {
            log.mediaErrors &+= 1
        }
        if log.errors.count == ControllerLog.maxErrors { log.errors.removeLast() }
        log.errors.insert(
            ControllerLog.ErrorEntry(
                count: log.errorCount, queue: queue, commandID: entry.commandID,
                status: status.rawValue, namespaceID: entry.namespaceID,
                lba: queue == 0 ? 0 : entry.lba), at: 0)
    }
}
