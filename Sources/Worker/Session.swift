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
    /// How many messages will have left when the last one that waits has; nil: none waits.
    var queuedUntil: UInt64? { get }
    /// How many messages that had to wait have left.
    var sentCount: UInt64 { get }
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
    /// The client gave up on it.
    var isCancelled = false
    /// How it ended; 0: well.
    var status: UInt16 = 0
    /// Of a read whose data goes back in the reply: where it is on the disk, so that it can be read
    /// again when the reply is lost with this process.
    var lba: UInt64 = 0
    var blockCount: UInt32 = 0
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
    /// The service manager has not confirmed what is being stored for it.
    case store
}

/// A request whose descriptors are being stored; its message is still on the socket.
@Control
final class StoringRequest {
    let requestID: UInt64
    /// The number of the descriptors' names.
    let number: UInt64
    /// What is to be a ring; nil: memory is being registered.
    let ring: RingDescriptors?
    /// The manager has them.
    var isConfirmed = false
    /// Why it does not.
    var failure: WireError?

    init(requestID: UInt64, number: UInt64, ring: RingDescriptors? = nil) {
        self.requestID = requestID
        self.number = number
        self.ring = ring
    }
}

/// An open session. What is done with it is in `DeviceService`.
@Control
final class Session {
    /// Names the session to the engine: the slot in the low byte, a number that rises above it.
    let key: UInt32
    /// What the supervisor said.
    let opening: OpenSession
    /// The number of its socket's name in the fd store.
    let number: UInt64
    /// The queue that its requests go to.
    let queue: Int
    /// What it may do in a second; its rings take part.
    let limiter: IOLimiter
    /// Where its messages are counted; nil: nowhere.
    var statistics: StatisticsBlock?
    /// How often a message of it had to wait for that.
    var limitWaits: UInt64 = 0
    /// When it was opened.
    var openedNanoseconds: UInt64
    /// Where its answers go; nil before and after.
    weak var client: (any SessionClient)?
    /// The namespace as it is now; nil when it was removed.
    var namespace: NVMeDriver.NamespaceInfo?
    /// What it did by messages, and by rings that are closed.
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
    /// The request at the head of the socket whose descriptors are being stored.
    var storing: StoringRequest?
    /// The first message on the socket may be the one that a predecessor took last: its id is
    /// `highestRequestID` then.
    var mayHaveTaken = false
    /// Answers that wait for room on the socket and are on record, in the order in which they wait:
    /// how many messages will have left when it has, and the place of the record.
    var owed: [(sentCount: UInt64, place: Int)] = []
    /// Reads whose data was lost with a predecessor: to be read again.
    var owedReads: [(place: Int, record: OwedRecord)] = []
    /// Bytes of inline reads that have not been answered.
    var inlineReadBytes = 0
    /// Why it waits; nil when it does not.
    var waits: WaitReason?
    /// It was over before this process had it: which commands with the device are its own only they
    /// tell, in whatever queue.
    var isOrphan = false
    /// It is over; what is in flight still has to end.
    var hasEnded = false

    init(
        key: UInt32, opening: OpenSession, number: UInt64, queue: Int,
        namespace: NVMeDriver.NamespaceInfo?
    ) {
        self.key = key
        self.number = number
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

    /// The counters as they are kept for a successor, and taken over by it.
    var keptCounters: [UInt64] {
        get {
            [
                counters.reads, counters.writes, counters.readBytes, counters.writtenBytes,
                counters.others, counters.errors,
            ]
        }
        set {
            guard newValue.count == SessionRecord.counterCount else { return }
            (counters.reads, counters.writes) = (newValue[0], newValue[1])
            (counters.readBytes, counters.writtenBytes) = (newValue[2], newValue[3])
            (counters.others, counters.errors) = (newValue[4], newValue[5])
        }
    }

    /// The counters with what is in flight now, and with what its open rings did.
    var currentCounters: SessionCounters {
        var sum = counters
        sum.inFlight = UInt32(clamping: pending.count)
        for ring in rings.values {
            guard let block = ring.statistics else { continue }
            sum.add(block)
            sum.inFlight = sum.inFlight &+ UInt32(clamping: block.inFlight)
        }
        return sum
    }
}

extension SessionCounters {
    /// Adds what a ring did.
    mutating func add(_ block: StatisticsBlock) {
        func ended(_ histogram: Int) -> UInt64 { block.histogram(histogram).reduce(0, &+) }
        reads = reads &+ ended(0)
        writes = writes &+ ended(1)
        others = others &+ ended(2)
        readBytes = readBytes &+ block.value(.bytesRead)
        writtenBytes = writtenBytes &+ block.value(.bytesWritten)
        errors = errors &+ block.value(.errors)
    }
}
