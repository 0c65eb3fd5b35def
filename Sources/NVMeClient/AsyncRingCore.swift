// SPDX-License-Identifier: Apache-2.0
// What tasks and the completing thread of an `AsyncDisk` share: the ring, who waits for what.

internal import CLinux
internal import CRing
internal import Glibc
internal import Linux
internal import Synchronization
internal import Wire

/// Nil: it was done.
typealias AsyncResult = ClientError?

/// A request whose task is suspended.
struct AsyncRequest {
    var ticket: UInt64
    /// Its region is found when it enters the ring: the buffer may be another one's by then.
    var entry: RingEntry
    /// Where the data lies, registered by then.
    var buffer: IOBuffer?
    var continuation: CheckedContinuation<AsyncResult, Never>
}

/// The shared state of an `AsyncDisk`.
///
/// Two parties use it: tasks that begin requests, and the thread that completes them. Everything
/// mutable is touched with `lock` held, but for the sleep itself, which only the thread does.
@safe
final class AsyncRingCore: @unchecked Sendable {
    /// Requests that wait for room in the ring; beyond, `resourceExhausted`: a bound on tasks that
    /// are begun without end.
    static let waitingLimit = 65_536
    /// Completions taken at once.
    static let batchCount = 256

    private let lock: UnsafeMutablePointer<pthread_mutex_t>
    /// Told when requests have left while a buffer waits for that.
    private let settled: UnsafeMutablePointer<pthread_cond_t>
    private let disk: Disk
    private let ring: DiskRing
    private let stopEvent: EventFD
    private let tickets = Atomic<UInt64>(0)
    private let batch: UnsafeMutableBufferPointer<RingCompletion>
    let listeners = EventListeners()

    /// By tag: the request in the ring.
    private var inRing: [AsyncRequest?]
    private var freeTags: [Int]
    /// Those that found no room, in order, from `waitingHead` on.
    private var waiting: [AsyncRequest] = []
    private var waitingHead = 0
    /// Cancelled before they began.
    private var cancelled: Set<UInt64> = []
    /// Buffers that are being given back, once for each call.
    private var leaving: [ObjectIdentifier] = []
    private var failure: ClientError?
    private var isStopping = false

    init(_ disk: Disk, entries: UInt32, options: RingOptions) throws(ClientError) {
        var options = options
        options.watchesSession = true
        ring = try disk.openRing(entries: entries, options: options)
        self.disk = disk
        do { stopEvent = try EventFD() } catch {
            throw .failed(WireError(.resourceExhausted, "\(error)", disk: disk.name))
        }
        let count = min(ring.submissionEntryCount, ring.completionEntryCount)
        inRing = Array(repeating: nil, count: count)
        freeTags = Array((0..<count).reversed())
        unsafe batch = UnsafeMutableBufferPointer.allocate(capacity: Self.batchCount)
        unsafe batch.initialize(repeating: RingCompletion())
        unsafe lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
        unsafe lock.initialize(to: pthread_mutex_t())
        unsafe pthread_mutex_init(lock, nil)
        unsafe settled = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
        unsafe settled.initialize(to: pthread_cond_t())
        var attributes = pthread_condattr_t()
        unsafe pthread_condattr_init(&attributes)
        unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        unsafe pthread_cond_init(settled, &attributes)
        unsafe pthread_condattr_destroy(&attributes)
        disk.onEvent = { [listeners] event in listeners.tell(event) }
    }

    deinit {
        unsafe batch.deallocate()
        unsafe pthread_mutex_destroy(lock)
        unsafe lock.deallocate()
        unsafe pthread_cond_destroy(settled)
        unsafe settled.deallocate()
    }

    // MARK: Tasks

    func newTicket() -> UInt64 { tickets.add(1, ordering: .relaxed).newValue }

    func withDisk<R, E: Error>(_ body: (Disk) throws(E) -> R) throws(E) -> R {
        unsafe pthread_mutex_lock(lock)
        defer { _ = unsafe pthread_mutex_unlock(lock) }
        return try body(disk)
    }

    /// Where in its buffer a request's data lies.
    func data(
        _ buffer: IOBuffer, _ offset: Int, _ blockCount: UInt32
    ) throws(ClientError) -> RingData {
        try withDisk { disk throws(ClientError) in
            let (bytes, overflow) = UInt64(blockCount).multipliedReportingOverflow(
                by: UInt64(disk.info.blockByteCount))
            guard !overflow, let count = Int(exactly: bytes),
                buffer.contains(offset: offset, count: count)
            else {
                throw .failed(
                    WireError(
                        .invalidArgument, "the buffer is too small for \(blockCount) blocks",
                        disk: disk.name, field: "buffer"))
            }
            return .region(0, offset: UInt64(offset))
        }
    }

    /// Puts a request into the ring, or in line for it; its continuation is resumed in any case.
    func begin(_ request: AsyncRequest) {
        let refusal: ClientError? = withDisk { _ in
            if let failure { return failure }
            if cancelled.remove(request.ticket) != nil { return Self.cancelledError }
            if let buffer = request.buffer, leaving.contains(ObjectIdentifier(buffer)) {
                return invalid("the buffer is being given back")
            }
            if waitingHead == waiting.count {
                switch enter(request) {
                case .entered:
                    ring.submit()
                    return nil
                case .refused(let error): return error
                case .full: break
                }
            }
            guard waiting.count - waitingHead < Self.waitingLimit else {
                return .failed(
                    WireError(
                        .resourceExhausted, "\(Self.waitingLimit) requests wait", disk: disk.name))
            }
            waiting.append(request)
            return nil
        }
        if let refusal { request.continuation.resume(returning: refusal) }
    }

    /// A task was cancelled: its request leaves the line if it still stands there.
    func cancel(_ ticket: UInt64) {
        let request: AsyncRequest? = withDisk { _ in
            if let index = waiting[waitingHead...].firstIndex(where: { $0.ticket == ticket }) {
                defer { tellSettled() }
                return waiting.remove(at: index)
            }
            // Not begun yet, or in the ring, or done: only the first will look here.
            let isKnown = inRing.contains { $0?.ticket == ticket }
            if !isKnown { cancelled.insert(ticket) }
            return nil
        }
        request?.continuation.resume(returning: Self.cancelledError)
    }

    /// The call of a cancelled task is over.
    func forget(_ ticket: UInt64) { withDisk { _ in _ = cancelled.remove(ticket) } }

    private static let cancelledError = ClientError.failed(
        WireError(.cancelled, "the task was cancelled before the request began"))

    private func invalid(_ what: String) -> ClientError {
        .failed(WireError(.invalidArgument, what, disk: disk.name, field: "buffer"))
    }

    /// What became of a request that was to enter the ring.
    private enum Entrance {
        case entered, full
        case refused(ClientError)
    }

    /// With the lock held: writes an entry.
    private func enter(_ request: AsyncRequest) -> Entrance {
        var entry = request.entry
        if let buffer = request.buffer {
            // What no correct client sends would end the session for all tasks.
            guard let region = disk.region(of: buffer) else {
                return .refused(invalid("register the buffer first"))
            }
            guard region.id < UInt64(NV_RING_REGIONS) else {
                return .refused(invalid("rings cannot name region \(region.id); reopen the disk"))
            }
            guard !region.readOnly || entry.opcode != RingOpcode.read else {
                return .refused(invalid("the buffer is registered for writes only"))
            }
            entry.data = .region(
                UInt32(truncatingIfNeeded: region.id), offset: entry.data.offset)
        }
        guard let tag = freeTags.last else { return .full }
        entry.tag = UInt64(tag)
        guard unsafe ring.port.pointee.prepare(entry) else { return .full }
        freeTags.removeLast()
        inRing[tag] = request
        return .entered
    }

    // MARK: Memory

    /// Takes a buffer back from the worker when no request uses it.
    ///
    /// The worker waits for what it has taken only: an entry that it takes afterwards would use
    /// whatever has the region's id by then.
    func giveBack(_ buffer: IOBuffer, _ deadline: UInt64?) throws(ClientError) {
        try withDisk { disk throws(ClientError) in
            let name = ObjectIdentifier(buffer)
            leaving.append(name)
            defer { leaving.firstIndex(of: name).map { _ = leaving.remove(at: $0) } }
            while failure == nil, isUsed(buffer) {
                guard waitUntilSettled(deadline) else { throw .timedOut }
            }
            try disk.unregisterMemory(buffer, deadlineNanoseconds: deadline)
        }
    }

    /// With the lock held: whether a request in the ring or in line uses a buffer.
    private func isUsed(_ buffer: IOBuffer) -> Bool {
        inRing.contains { $0?.buffer === buffer }
            || waiting[waitingHead...].contains { $0.buffer === buffer }
    }

    /// Lets go of the lock until requests have left; false: the deadline passed.
    private func waitUntilSettled(_ deadline: UInt64?) -> Bool {
        guard let deadline else { return unsafe pthread_cond_wait(settled, lock) == 0 }
        var time = timespec(
            tv_sec: Int(clamping: deadline / 1_000_000_000),
            tv_nsec: Int(clamping: deadline % 1_000_000_000))
        return unsafe pthread_cond_timedwait(settled, lock, &time) == 0
    }

    /// With the lock held: requests have left.
    private func tellSettled() {
        if !leaving.isEmpty { unsafe pthread_cond_broadcast(settled) }
    }

    /// How many calls wait to give a buffer back, and how many requests stand in line: for tests.
    var waitingCounts: (leaving: Int, inLine: Int) {
        withDisk { _ in (leaving.count, waiting.count - waitingHead) }
    }

    // MARK: The completing thread

    /// Starts the thread, which keeps the core alive until it ends.
    func start() throws(ClientError) {
        var thread = pthread_t()
        let context = unsafe Unmanaged.passRetained(self).toOpaque()
        // SAFETY: the thread takes over the retained core.
        let status = unsafe pthread_create(
            &thread, nil,
            { context in
                guard let context = unsafe context else { return nil }
                _ = unsafe nv_set_thread_name("nvmed-ring")
                unsafe Unmanaged<AsyncRingCore>.fromOpaque(context).takeRetainedValue().run()
                return nil
            }, context)
        guard status == 0 else {
            unsafe Unmanaged<AsyncRingCore>.fromOpaque(context).release()
            throw .failed(
                WireError(
                    .resourceExhausted, "\(SystemCallError("pthread_create", errno: status))"))
        }
        _ = pthread_detach(thread)
    }

    /// Ends the session and with it the thread.
    func stop() {
        withDisk { disk in
            guard !isStopping else { return }
            isStopping = true
            disk.close()
        }
        _ = nv_eventfd_signal(stopEvent.fd.raw)
    }

    /// Completes requests until the session ends, then fails those that are left.
    private func run() {
        while true {
            let done = withDisk { _ in reap() }
            for (request, result) in done { request.continuation.resume(returning: result) }
            if !done.isEmpty { continue }
            if let error = withDisk({ _ in endedError() }) { return fail(error) }
            if !ring.spin(nil) { rest() }
        }
    }

    /// With the lock held: takes completions, and lets requests in that waited for room.
    private func reap() -> [(AsyncRequest, AsyncResult)] {
        let count = unsafe ring.reap(into: batch)
        var done: [(AsyncRequest, AsyncResult)] = []
        done.reserveCapacity(count)
        for index in 0..<count {
            let completion = unsafe batch[index]
            // A tag that was never given is the worker's mistake, and nobody's request.
            guard completion.tag < UInt64(inRing.count),
                let request = inRing[Int(completion.tag)]
            else { continue }
            inRing[Int(completion.tag)] = nil
            freeTags.append(Int(completion.tag))
            done.append((request, completion.error(disk: disk.name).map { .failed($0) }))
        }
        admit(&done)
        if waitingHead > 1024 || (waitingHead > 0 && waitingHead == waiting.count) {
            waiting.removeFirst(waitingHead)
            waitingHead = 0
        }
        ring.submit()
        if !done.isEmpty { tellSettled() }
        return done
    }

    /// With the lock held: lets those in line into the ring while there is room.
    private func admit(_ done: inout [(AsyncRequest, AsyncResult)]) {
        while waitingHead < waiting.count {
            switch enter(waiting[waitingHead]) {
            case .entered: break
            case .full: return
            case .refused(let error): done.append((waiting[waitingHead], error))
            }
            waitingHead += 1
        }
    }

    private func endedError() -> ClientError? {
        if let ended = disk.ended { return .failed(ended) }
        return ring.isOpen ? nil : ring.reason()
    }

    /// Sleeps until a completion, a message of the session, or the end.
    private func rest() {
        unsafe ring.port.pointee.armWake()
        if unsafe ring.port.pointee.hasCompletions || ring.port.pointee.isEnded {
            return unsafe ring.port.pointee.disarmWake()
        }
        unsafe withUnsafeTemporaryAllocation(of: nv_poll_entry.self, capacity: 3) { entries in
            let fds = [ring.wakeFD.raw, disk.channel.fd.raw, stopEvent.fd.raw]
            for (index, fd) in fds.enumerated() {
                unsafe entries[index] = nv_poll_entry(fd: fd, events: NV_POLLIN, revents: 0)
            }
            guard let base = entries.baseAddress else { return }
            _ = unsafe nv_poll_many(base, 3, -1)
            unsafe ring.port.pointee.disarmWake()
            if unsafe entries[0].revents != 0 { ring.drainWake() }
            if unsafe entries[1].revents != 0 { withDisk { disk in _ = disk.hearSession() } }
            let hungUp = unsafe entries[0].revents & ~Int16(NV_POLLIN) != 0
            guard hungUp else { return }
            withDisk { disk in
                _ = disk.waitForEnd(graceNanoseconds: DiskRing.reasonGraceNanoseconds)
                if disk.ended == nil { disk.close() }
            }
        }
    }

    /// The session is over: nothing more will come.
    private func fail(_ error: ClientError) {
        let left: [AsyncRequest] = withDisk { _ in
            failure = error
            defer {
                waiting = []
                waitingHead = 0
                for tag in inRing.indices { inRing[tag] = nil }
                tellSettled()
            }
            return inRing.compactMap { $0 } + waiting[waitingHead...]
        }
        for request in left { request.continuation.resume(returning: error) }
        listeners.finish(error.wireError ?? WireError(.internalError, error.description))
    }
}
