// SPDX-License-Identifier: Apache-2.0
// An open session: one client, one namespace, one access mode, and what is under way for it.

internal import Linux
internal import NVMeDriver
internal import Systemd
internal import Wire

/// Where a session's answers go: its harness, or a test.
@Control
protocol SessionClient: AnyObject {
    /// Answers a request; `payload` is used before the call returns.
    func send(reply: SessionReply, to requestID: UInt64, payload: UnsafeRawBufferPointer)
    /// Answers a request with descriptors, which stay the caller's.
    func send(reply: SessionReply, to requestID: UInt64, fds: [CInt])
    /// Answers that a request failed.
    func send(error: WireError, to requestID: UInt64)
    /// Tells the client something.
    func send(event: SessionEvent)
    /// Requests that had to wait may be tried again.
    func resume()
    /// The session is over: says so and ends the connection.
    func end(_ reason: WireError)
    /// Bytes of answers that wait for the client.
    var queuedByteCount: Int { get }
    /// So much waits that nothing more should be taken.
    var isCongested: Bool { get }
}

/// A request that is with the device.
struct PendingRequest {
    /// The operation, of `IOOperation`.
    var operation: UInt8
    /// The length of the data.
    var byteCount: Int
    /// The data goes back in the reply.
    var isInlineRead = false
    /// The client's region that the data is in.
    var regionID: UInt64?
    /// Engine requests that have not ended.
    var parts: UInt32 = 0
    /// All parts were given to the engine.
    var isIssued = true
    /// The client gave up on it.
    var isCancelled = false
    /// The first status that was not success.
    var status: UInt16 = 0
    /// When it was taken.
    var startTick = Tick.now
}

/// Why a session's next message stays on its socket.
enum WaitReason: Sendable, Equatable {
    /// The queue or its pages are used up: the next completion of the queue lets it go on.
    case queue
    /// Its own requests are too many, or its own replies unread: its own next completion or read
    /// lets it go on.
    case own
    /// A session that died still has commands with the device, or the device is draining.
    case held
    /// It has had what it may: time lets it go on.
    case limit
}

/// An open session. What is done with it is in `DeviceService`.
@Control
final class Session {
    /// Names the session to the engine: the slot in the low byte, a number that rises above it.
    let key: UInt32
    /// What the supervisor said.
    let opening: OpenSession
    /// The queue that its requests go to.
    let queue: Int
    /// What it may do in a second; its rings take part.
    let limiter: IOLimiter
    /// Where its messages are counted; nil: nowhere.
    var statistics: StatisticsBlock?
    /// How often a message of it had to wait for that.
    var limitWaits: UInt64 = 0
    /// When it was opened.
    let openedNanoseconds: UInt64
    /// Where its answers go; nil before and after.
    weak var client: (any SessionClient)?
    /// The namespace as it is now; nil when it was removed.
    var namespace: NVMeDriver.NamespaceInfo?
    /// What it did.
    var counters = SessionCounters()
    /// The highest request id that was taken.
    var highestRequestID: UInt64 = 0
    /// Requests with the device, by id.
    var pending: [UInt64: PendingRequest] = [:]
    /// Registered memory, by the client's id.
    var regions: [UInt64: ClientRegion] = [:]
    /// Rings, by the client's id.
    var rings: [UInt32: SessionRing] = [:]
    /// What entries of the rings may name; nil as long as there was no ring.
    var regionTable: SessionRegions?
    /// The request whose parts are being given to the engine; its message is still on the socket.
    var issuing: (requestID: UInt64, cursor: RangeCursor)?
    /// Engine requests that have not ended.
    var partsInFlight = 0
    /// Bytes of inline reads that have not been answered.
    var inlineReadBytes = 0
    /// Why it waits; nil when it does not.
    var waits: WaitReason?
    /// It is over; what is in flight still has to end.
    var hasEnded = false

    init(key: UInt32, opening: OpenSession, queue: Int, namespace: NVMeDriver.NamespaceInfo) {
        self.key = key
        self.opening = opening
        self.queue = queue
        self.namespace = namespace
        limiter = IOLimiter(
            requestsPerSecond: opening.requestsPerSecondMax,
            bytesPerSecond: opening.bytesPerSecondMax)
        openedNanoseconds = MonotonicClock.nowNanoseconds
        pending.reserveCapacity(64)
    }

    /// Whether its limits allow another request now.
    var mayStart: Bool {
        let gate = limiter.gate
        return !gate.isLimited
            || gate.isOpen(nowNanoseconds: MonotonicClock.nowNanoseconds)
    }

    /// When its limits allow another request.
    var nextStartNanoseconds: UInt64 {
        limiter.gate.nextAdmission(nowNanoseconds: MonotonicClock.nowNanoseconds)
    }

    /// Counts a request against its limits.
    func charge(byteCount: Int) {
        let gate = limiter.gate
        guard gate.isLimited else { return }
        gate.charge(
            nowNanoseconds: MonotonicClock.nowNanoseconds, byteCount: UInt64(clamping: byteCount))
    }

    /// Where its record is.
    var slot: Int { Int(key & 0xFF) }

    /// Bytes of all its regions that are kept from going away for it.
    var regionByteCount: UInt64 {
        regions.values.reduce(0) { $0 + ($1.isPinned ? $1.byteCount : 0) }
    }

    /// Whether it keeps other writers out.
    var isExclusive: Bool { opening.access == .readWrite && !opening.shared && !hasEnded }

    /// It, for the supervisor.
    func onWire(device: String) -> SessionInfo {
        var info = SessionInfo(
            sessionID: opening.sessionID, disk: opening.disk, access: opening.access)
        info.device = device
        info.nsid = opening.nsid
        info.shared = opening.shared
        info.clientPID = opening.clientPID
        info.clientUID = opening.clientUID
        info.openedNanoseconds = openedNanoseconds
        info.counters = currentCounters
        return info
    }

    /// The counters with what is in flight now.
    var currentCounters: SessionCounters {
        var copy = counters
        copy.inFlight = UInt32(clamping: pending.count)
        return copy
    }
}
