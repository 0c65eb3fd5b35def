// SPDX-License-Identifier: Apache-2.0
// Statistics: who counts where, and what operators see of it without a reader of their own.

internal import Linux
internal import NVMeDriver
internal import Systemd
internal import Wire

extension DeviceService {
    /// The memory that readers map: its descriptor, which stays the worker's, and its length.
    var statisticsMemory: (raw: CInt, byteCount: UInt64)? {
        statistics.map { ($0.fd.raw, UInt64($0.byteCount)) }
    }

    /// Makes a block for each queue pair, or goes on with a predecessor's.
    func countQueues(_ controller: NVMeController) {
        guard let statistics else { return }
        queueStatistics = (1...max(controller.queueCount, 1)).map {
            statistics.assign(StatisticsIdentity(kind: .queue, queue: UInt32($0))) ?? .nowhere
        }
        for (thread, block) in zip(threads, queueStatistics.dropFirst()) {
            thread.setStatistics(block)
        }
    }

    /// The controller is gone, and its queue pairs with it.
    func forgetQueues() {
        queueStatistics = []
        statistics?.releaseQueues()
    }

    /// All that came back of a predecessor's sessions and rings is there: what others counted
    /// counts for their namespaces and queues, and what is in flight is known.
    func countAdopted() {
        let live = sessions.compactMap { $0 }
        for session in live where !session.isOrphan {
            session.statistics?.settle(inFlight: session.pending.count)
        }
        let byID = Dictionary(live.map { ($0.opening.sessionID, $0) }, uniquingKeysWith: { $1 })
        statistics?.forEach { identity, block in
            let session = byID[identity.sessionID]
            switch identity.kind {
            case .session where session == nil: break
            case .ring where session?.rings[identity.ringID] == nil: break
            default: return
            }
            statistics?.release(block)
        }
    }

    /// A session is over: what it did counts for its namespace and queue.
    func forgetStatistics(_ session: Session) {
        guard let block = session.statistics else { return }
        session.statistics = nil
        statistics?.release(block)
    }

    /// A block for a ring that is being opened.
    func ringStatistics(
        _ session: Session, _ ringID: UInt32, _ thread: DataThread
    ) -> StatisticsBlock? {
        statistics?.assign(
            StatisticsIdentity(
                kind: .ring, queue: UInt32(thread.queueNumber),
                sessionID: session.opening.sessionID, ringID: ringID,
                namespaceID: session.opening.nsid, disk: session.opening.disk))
    }

    /// A ring is closed: what it did counts for its namespace and queue.
    func forget(_ block: StatisticsBlock?) {
        if let block { statistics?.release(block) }
    }

    /// A message of a session waits for the session's limits.
    func countLimited(_ session: Session) { session.statistics?.add(.limited) }

    /// What the control thread's own queue pair does.
    func countMessageQueue(_ controller: NVMeController) {
        guard let block = queueStatistics.first, controller.queueCount > 0 else { return }
        let engine = unsafe controller.engine(Self.messageQueue)
        block.set(.doorbells, unsafe engine.pointee.doorbellCounts.register)
        block.set(.interrupts, counters.interrupts)
    }

    // MARK: Inspect

    /// The numbers of every ring, session, queue pair and namespace.
    func inspectStatistics(_ tree: inout InspectTree) {
        var sums: [UInt32: InspectedNumbers] = [:]
        statistics?.forEach { identity, block in
            let numbers = InspectedNumbers(block)
            if identity.kind != .queue {
                sums[identity.namespaceID, default: InspectedNumbers()].add(numbers)
            }
            switch identity.kind {
            case .queue: numbers.show("statistics/queues/\(identity.queue)", &tree)
            case .ring:
                numbers.show(
                    "statistics/rings/\(identity.sessionID)/\(identity.ringID)", &tree)
            case .session:
                numbers.show("statistics/sessions/\(identity.sessionID)", &tree)
            case .namespace: break
            }
        }
        for (id, numbers) in sums { numbers.show("statistics/namespaces/\(id)", &tree) }
    }
}

/// Numbers of one or several blocks.
private struct InspectedNumbers {
    private var counters = [UInt64](repeating: 0, count: StatisticsCounter.allCases.count)
    private var histograms: [[UInt64]] = []

    init() {}

    init(_ block: StatisticsBlock) {
        counters = StatisticsCounter.allCases.map { block.value($0) }
        histograms = (0..<3).map { block.histogram($0) }
    }

    mutating func add(_ other: InspectedNumbers) {
        counters = zip(counters, other.counters).map { $0 &+ $1 }
        histograms =
            histograms.isEmpty
            ? other.histograms
            : zip(histograms, other.histograms).map { zip($0, $1).map { $0 &+ $1 } }
    }

    func show(_ path: String, _ tree: inout InspectTree) {
        let names = ["reads", "writes", "others"]
        var ended: UInt64 = 0
        for (name, histogram) in zip(names, histograms) {
            let count = histogram.reduce(0, &+)
            ended = ended &+ count
            tree.add("\(path)/\(name)", count)
            for (label, share) in [("p50_ns", 0.5), ("p99_ns", 0.99), ("p99_9_ns", 0.999)] {
                guard let nanoseconds = Statistics.percentile(histogram, share) else { continue }
                tree.add("\(path)/\(name)_\(label)", nanoseconds)
            }
        }
        for (counter, value) in zip(StatisticsCounter.allCases, counters) where value > 0 {
            tree.add("\(path)/\(counter)", value)
        }
        let submitted = counters[StatisticsCounter.submitted.rawValue]
        tree.add("\(path)/in_flight", submitted > ended ? submitted - ended : 0)
    }
}
