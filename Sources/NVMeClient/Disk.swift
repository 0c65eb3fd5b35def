// SPDX-License-Identifier: Apache-2.0
// An open disk: requests in, completions out, events on the way.
//
// Two layers. Below: `submit` gives an id, `nextCompletion` gives what is done, in any order; many
// requests may be in flight. Above (Disk+IO.swift): read, write and the others block until all of a
// range is done, and split it into pieces on the way.

internal import Linux
public import Wire

/// One request of a disk. Counts are logical blocks.
public enum DiskOperation {
    /// Reads into a buffer, from a byte offset of the buffer on.
    case read(lba: UInt64, blockCount: UInt32, into: IOBuffer, bufferOffset: Int)
    /// Writes from a buffer.
    case write(lba: UInt64, blockCount: UInt32, from: IOBuffer, bufferOffset: Int, fua: Bool)
    /// Compares the disk with a buffer.
    case compare(lba: UInt64, blockCount: UInt32, with: IOBuffer, bufferOffset: Int)
    /// Makes answered writes durable.
    case flush
    /// Tells that blocks are not needed: 1 to 256 ranges.
    case unmap([BlockRange])
    /// Makes blocks read as zeroes.
    case writeZeroes(BlockRange, deallocate: Bool, fua: Bool)
    /// Has the device check blocks.
    case verify(BlockRange)
}

/// A request that is done.
public struct DiskCompletion: Sendable, Equatable {
    /// The id that `submit` gave.
    public let id: UInt64
    /// Why it failed; nil: it did not.
    public let error: WireError?
}

/// A pause that the service told of: requests wait, and nothing has to be done about it.
public struct DiskStall: Sendable, Equatable {
    /// Why, in English.
    public let reason: String
    /// When it was told: CLOCK_MONOTONIC nanoseconds.
    public let sinceNanoseconds: UInt64
}

/// An open disk. One owner at a time: not thread-safe.
///
/// When its worker dies, the session lives on: a successor takes it over with everything that is in
/// flight, and requests only take longer. Short pauses are not told; from a second on `stall` and
/// the events tell. A session that could not be kept ends with the reason (`ended`).
public final class Disk {
    /// The most requests in flight: half of what a worker takes from one session.
    public static let windowCount = 128
    /// All requests in flight, each with the most inline data: nobody reads while a worker is being
    /// replaced, and that ends no session.
    static var outgoingByteLimit: Int { windowCount * WireLimits.messageByteCount }
    /// The most events kept for `takeEvents`; older ones are dropped.
    static let eventLimit = 64

    /// What became of a request that is in flight.
    enum Waiting {
        case plain
        case read(IOBuffer, offset: Int, byteCount: Int)
        case info
        case cancel
        case ring
        /// Its caller gave up: the completion is dropped. Holds on to the memory.
        case abandoned(IOBuffer?)
    }

    /// The configured name.
    public let name: String
    /// What the disk is like; kept up to date by events.
    public internal(set) var info: DiskInfo
    /// The pause that the service told of last and that is not over.
    public private(set) var stall: DiskStall?
    /// Whether the service said that requests wait at the moment (nothing has to be done).
    public var isStalled: Bool { stall != nil }
    /// Pauses that the service told of.
    public private(set) var stallCount: UInt64 = 0
    /// How long the last pause was that the service told of and that is over; nil: there was none.
    public private(set) var lastStallNanoseconds: UInt64?
    /// Called for every event when it is heard: within any call of this disk, or of a ring's `wait`
    /// with `watchesSession`. It must not use the disk.
    public var onEvent: ((SessionEvent) -> Void)?
    /// Why the session is over; nil while it is open.
    public private(set) var ended: WireError?
    /// Replies that nobody waited for; they are ignored, as the protocol wants it: the successor of
    /// a worker repeats what it cannot know to have been sent.
    public private(set) var ignoredReplies: UInt64 = 0

    let backend: NVMeBackend
    let access: AccessMode?
    var channel: Channel<SessionProtocol>
    var regions: [Region] = []
    /// Ids whose registration was given up: they may be taken at the worker.
    var doubtfulRegionIDs: Set<UInt64> = []
    var nextRingID: UInt32 = 0
    /// What the last `RingOpened` brought.
    var openedRing: RingParts?
    /// Rises with every session: a ring belongs to one.
    private(set) var sessionNumber: UInt64 = 0
    private var waiting: [UInt64: Waiting] = [:]
    private var ready: [DiskCompletion] = []
    private var readyHead = 0
    private var lastCancelled = false
    private var events: [SessionEvent] = []

    init(
        backend: NVMeBackend, name: String, access: AccessMode?,
        session: Channel<SessionProtocol>, info: DiskInfo?, deadlineNanoseconds: UInt64?
    ) throws(ClientError) {
        self.backend = backend
        self.name = name
        self.access = access
        channel = session
        session.outgoingByteLimit = Self.outgoingByteLimit
        self.info = info ?? DiskInfo()
        if info == nil { try refreshInfo(deadlineNanoseconds: deadlineNanoseconds) }
    }

    /// Goes on with another session: nothing is in flight on it.
    func adopt(_ session: Channel<SessionProtocol>) {
        end(Self.restarted(name, "it was opened again"))
        channel = session
        session.outgoingByteLimit = Self.outgoingByteLimit
        sessionNumber &+= 1
        ended = nil
        doubtfulRegionIDs = []
        // What was to be given back went with the session that had it.
        regions.removeAll { $0.isLeaving }
    }

    /// How many requests are in flight.
    public var inFlightCount: Int { waiting.count }

    /// Events since the last call, oldest first.
    public func takeEvents() -> [SessionEvent] {
        defer { events = [] }
        return events
    }

    /// Ends the session. Requests in flight still have their effect, and the device may use the
    /// registered memory that they name until they are done (ring.md, "When memory is yours
    /// again").
    public func close() {
        channel.shutdown()
        end(WireError(.cancelled, "the disk was closed here", disk: name))
    }

    // MARK: Submitting

    /// Sends a request and returns its id, which no other request of this disk has, also after it
    /// was reopened. Does not wait for it.
    ///
    /// Throws `invalidArgument` for a request that cannot be sent: a buffer range that does not
    /// fit, more inline data than `info.maxInlineByteCount`, or `resourceExhausted` with
    /// `windowCount` requests in flight: take a completion first.
    public func submit(
        _ operation: DiskOperation, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> UInt64 {
        guard waiting.count < Self.windowCount else {
            throw .failed(
                WireError(
                    .resourceExhausted,
                    "\(waiting.count) requests are in flight; take completions first", disk: name))
        }
        switch operation {
        case .read(let lba, let blockCount, let buffer, let offset):
            let (location, byteCount) = try place(buffer, offset, blockCount, deviceWrites: true)
            let waiting: Waiting =
                location == .inline
                ? .read(buffer, offset: offset, byteCount: byteCount) : .plain
            return try send(
                .read(lba: lba, blockCount: blockCount, location: location), waiting,
                deadlineNanoseconds)
        case .write(let lba, let blockCount, let buffer, let offset, let fua):
            let (location, byteCount) = try place(buffer, offset, blockCount, deviceWrites: false)
            return try unsafe send(
                .write(lba: lba, blockCount: blockCount, fua: fua, location: location), .plain,
                deadlineNanoseconds,
                payload: location == .inline ? buffer.slice(offset, byteCount) : Self.nothing)
        case .compare(let lba, let blockCount, let buffer, let offset):
            let (location, byteCount) = try place(buffer, offset, blockCount, deviceWrites: false)
            return try unsafe send(
                .compare(lba: lba, blockCount: blockCount, location: location), .plain,
                deadlineNanoseconds,
                payload: location == .inline ? buffer.slice(offset, byteCount) : Self.nothing)
        case .flush: return try send(.flush, .plain, deadlineNanoseconds)
        case .unmap(let ranges): return try send(.unmap(ranges), .plain, deadlineNanoseconds)
        case .writeZeroes(let range, let deallocate, let fua):
            return try send(
                .writeZeroes(range, deallocate: deallocate, fua: fua), .plain, deadlineNanoseconds)
        case .verify(let range): return try send(.verify(range), .plain, deadlineNanoseconds)
        }
    }

    /// Where the data of a request goes: the region of a registered buffer, or the message.
    private func place(
        _ buffer: IOBuffer, _ offset: Int, _ blockCount: UInt32, deviceWrites: Bool
    ) throws(ClientError) -> (DataLocation, byteCount: Int) {
        let (bytes, overflow) = UInt64(blockCount).multipliedReportingOverflow(
            by: UInt64(info.blockByteCount))
        guard !overflow, let byteCount = Int(exactly: bytes),
            buffer.contains(offset: offset, count: byteCount)
        else {
            throw .failed(
                WireError(.invalidArgument, "the buffer is too small for \(blockCount) blocks"))
        }
        if let region = region(of: buffer), !(deviceWrites && region.readOnly) {
            return (.region(id: region.id, byteOffset: UInt64(offset)), byteCount)
        }
        guard byteCount <= Int(info.maxInlineByteCount) else {
            throw .failed(
                WireError(
                    .invalidArgument,
                    "\(byteCount) bytes are too many for one message (at most "
                        + "\(info.maxInlineByteCount)); register the buffer or use smaller pieces"))
        }
        return (.inline, byteCount)
    }

    private static var nothing: UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(start: nil, count: 0)
    }

    func send(
        _ request: SessionRequest, _ waiting: Waiting, _ deadline: UInt64?, fds: [CInt] = []
    ) throws(ClientError) -> UInt64 {
        try unsafe send(request, waiting, deadline, payload: Self.nothing, fds: fds)
    }

    private func send(
        _ request: SessionRequest, _ waiting: Waiting, _ deadline: UInt64?,
        payload: UnsafeMutableRawBufferPointer, fds: [CInt] = []
    ) throws(ClientError) -> UInt64 {
        if let ended { throw .failed(ended) }
        do throws(ChannelError) {
            let id = try unsafe channel.send(
                request: request, deadlineNanoseconds: deadline,
                payload: UnsafeRawBufferPointer(payload), fds: fds)
            self.waiting[id] = waiting
            return id
        } catch { throw broken(error) }
    }

    /// Whether the socket has room for more inline data; if not, completions make some.
    var hasRoom: Bool { !channel.wantsWrite }

    // MARK: Completing

    /// The next request that is done, in any order, or nil when none is in flight.
    ///
    /// Throws `timedOut` at the deadline (requests stay in flight). When the session ends, requests
    /// in flight complete with the reason, one by one; `ended` tells it too.
    public func nextCompletion(
        deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> DiskCompletion? {
        while true {
            if let completion = takeReady() { return completion }
            if waiting.isEmpty { return nil }
            try receiveOne(deadlineNanoseconds)
        }
    }

    /// The next request that is done, if one is already; never blocks.
    public func pollCompletion() throws(ClientError) -> DiskCompletion? {
        if let completion = takeReady() { return completion }
        guard ended == nil else { return nil }
        do throws(ChannelError) {
            try channel.flush()
            handle(try channel.receive())
        } catch { throw broken(error) }
        return takeReady()
    }

    private func takeReady() -> DiskCompletion? {
        guard readyHead < ready.count else { return nil }
        let completion = ready[readyHead]
        readyHead += 1
        if readyHead == ready.count {
            ready.removeAll(keepingCapacity: true)
            readyHead = 0
        }
        return completion
    }

    /// Waits for one message and acts on it.
    func receiveOne(_ deadline: UInt64?) throws(ClientError) {
        if let ended { throw .failed(ended) }
        do throws(ChannelError) {
            handle(try channel.receive(deadlineNanoseconds: deadline))
        } catch .timedOut {
            throw .timedOut
        } catch { throw broken(error) }
    }

    /// A broken session: its worker is gone, unless it said another reason before.
    private func broken(_ error: ChannelError) -> ClientError {
        switch error {
        case .timedOut: return .timedOut
        case .tooLarge(let wire): return .failed(wire)
        case .closed, .outgoingFull, .system:
            hearLastWords()
            let reason = ended ?? Self.restarted(name, "\(error)")
            end(reason)
            return .failed(reason)
        }
    }

    /// What the worker said before it closed: replies, and why the session ended.
    private func hearLastWords() {
        for _ in 0...Self.windowCount + Self.eventLimit where ended == nil {
            guard let received = try? channel.receive() else { return }
            switch consume received {
            case .nothing: return
            case .closed: return
            case .rejected(let rejection): handle(.rejected(rejection))
            case .message(let message): handle(.message(message))
            }
        }
    }

    static func restarted(_ name: String, _ why: String) -> WireError {
        WireError(
            .workerRestarted, "the session ended (\(why)); reopen the disk and repeat", disk: name)
    }

    /// The session is over: what is in flight fails with the reason.
    func end(_ reason: WireError) {
        if ended == nil { ended = reason }
        stall = nil
        let ids = waiting.keys.sorted()
        for id in ids { complete(id, ended ?? reason) }
    }

    private func handle(_ received: consuming Received<SessionProtocol>) {
        switch consume received {
        case .nothing: break
        case .closed: end(Self.restarted(name, "its worker closed it"))
        case .rejected(let rejection):
            channel.shutdown()
            end(
                WireError(
                    .malformedMessage,
                    "the worker sent something unreadable: "
                        + rejection.error.description, disk: name))
        case .message(var message):
            let id = message.envelope.requestID
            switch message.envelope.content {
            case .reply(.ringOpened(_, let byteCount)):
                handleRing(id, RingParts(byteCount: byteCount, message.fds.takeAll()))
            case .reply(let reply): unsafe handle(reply, id, message.payload)
            case .failure(let error):
                // Without an id it is about the connection, which the worker then ends.
                if id == 0 { end(error) } else { complete(id, error) }
            case .event(let event): handle(event)
            case .request: ignoredReplies &+= 1
            }
        }
    }

    private func handle(_ reply: SessionReply, _ id: UInt64, _ payload: UnsafeRawBufferPointer) {
        switch (waiting[id], reply) {
        case (.read(let buffer, let offset, let byteCount), .read):
            guard payload.count == byteCount else {
                return complete(
                    id, mismatch("\(payload.count) bytes came for a read of \(byteCount)"))
            }
            unsafe buffer.slice(offset, byteCount).copyMemory(from: payload)
            complete(id, nil)
        case (.info, .diskInfo(let info)):
            self.info = info
            complete(id, nil)
        case (.cancel, .cancelled(let cancelled)):
            lastCancelled = cancelled
            complete(id, nil)
        case (.plain, .done), (.plain, .read), (.abandoned, _): complete(id, nil)
        case (.none, _): ignoredReplies &+= 1
        case (.some, _): complete(id, mismatch("the reply is of another kind than the request"))
        }
    }

    /// A ring that nobody waits for is closed again with its descriptors.
    private func handleRing(_ id: UInt64, _ parts: consuming RingParts?) {
        switch waiting[id] {
        case .ring:
            openedRing = parts
            complete(id, nil)
        case .none, .abandoned: complete(id, nil)
        case .some: complete(id, mismatch("a ring came for a request of another kind"))
        }
    }

    /// Takes one message if there is one and acts on it; false: there was none.
    func hearOne() -> Bool {
        do throws(ChannelError) {
            try channel.flush()
            let received = try channel.receive()
            switch consume received {
            case .nothing: return false
            case .closed: handle(.closed)
            case .rejected(let rejection): handle(.rejected(rejection))
            case .message(let message): handle(.message(message))
            }
        } catch { _ = broken(error) }
        return true
    }

    private func mismatch(_ what: String) -> WireError {
        WireError(.internalError, "\(what); report this", disk: name)
    }

    private func complete(_ id: UInt64, _ error: WireError?) {
        guard let waiting = waiting.removeValue(forKey: id) else { return ignoredReplies &+= 1 }
        if case .abandoned = waiting { return }
        ready.append(DiskCompletion(id: id, error: error))
    }

    private func handle(_ event: SessionEvent) {
        switch event {
        case .diskChanged(_, let info): if let info { self.info = info }
        case .stalled(let reason): hearStall(reason)
        // It may come without the other: a successor does not know what its predecessor said.
        case .resumed(let nanoseconds):
            stall = nil
            lastStallNanoseconds = nanoseconds
        case .ended(let reason): end(reason)
        }
        if events.count >= Self.eventLimit { events.removeFirst() }
        events.append(event)
        onEvent?(event)
    }

    /// A successor may say again what its predecessor said: it is the same pause then.
    private func hearStall(_ reason: String) {
        let since = stall?.sinceNanoseconds
        if since == nil { stallCount &+= 1 }
        stall = DiskStall(
            reason: reason, sinceNanoseconds: since ?? MonotonicClock.nowNanoseconds)
    }

    // MARK: Single requests

    /// Waits for one request; completions of others stay for `nextCompletion`.
    func wait(_ id: UInt64, _ deadline: UInt64?) throws(ClientError) {
        while true {
            if let index = ready[readyHead...].firstIndex(where: { $0.id == id }) {
                let completion = ready.remove(at: index)
                if readyHead == ready.count {
                    ready.removeAll(keepingCapacity: true)
                    readyHead = 0
                }
                if let error = completion.error { throw .failed(error) }
                return
            }
            do throws(ClientError) { try receiveOne(Deadline.withGrace(deadline)) } catch {
                // What ended with the session has a completion; what did not is given up.
                if waiting[id] != nil { abandon(id) }
                guard error != .timedOut, ready[readyHead...].contains(where: { $0.id == id })
                else { throw error }
            }
        }
    }

    /// Gives up on a request: its completion will be dropped, its memory kept until then.
    func abandon(_ id: UInt64) {
        switch waiting[id] {
        case .read(let buffer, _, _): waiting[id] = .abandoned(buffer)
        case .none: break
        default: waiting[id] = .abandoned(nil)
        }
    }

    /// Asks the worker what the disk is like now.
    public func refreshInfo(deadlineNanoseconds: UInt64? = nil) throws(ClientError) {
        try wait(
            send(.getDiskInfo, .info, deadlineNanoseconds), deadlineNanoseconds)
    }

    /// Asks to give up on a request, which is aborted at the device and still completes.
    ///
    /// True: it was aborted, so its completion is or will be `cancelled`, and its effect may have
    /// happened all the same. False: it had completed, or runs on.
    public func cancel(
        _ id: UInt64, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> Bool {
        lastCancelled = false
        try wait(
            send(.cancel(requestID: id), .cancel, deadlineNanoseconds), deadlineNanoseconds)
        return lastCancelled
    }

    /// Sends a request and waits for it.
    func perform(
        _ request: SessionRequest, _ deadline: UInt64?, fds: [CInt] = []
    ) throws(ClientError) {
        let waiting: Waiting = if case .openRing = request { .ring } else { .plain }
        try wait(send(request, waiting, deadline, fds: fds), deadline)
    }
}

/// Memory that is registered with a session.
struct Region {
    let id: UInt64
    let buffer: IOBuffer
    let readOnly: Bool
    /// It was asked back, and nobody waited for the answer: no request may name it any more.
    var isLeaving = false
}
