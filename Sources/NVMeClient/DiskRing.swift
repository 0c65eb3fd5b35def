// SPDX-License-Identifier: Apache-2.0
// A ring of a disk: requests and completions in shared memory. The batch face.
//
//     let region = try disk.registerMemory(buffer)
//     let ring = try disk.openRing(entries: 64)
//     while ring.prepareRead(lba: …, blockCount: 8, data: .region(region, offset: …), tag: …) {}
//     ring.submit()
//     let count = ring.reap(into: completions)     // 0: nothing is done yet
//     if count == 0, try ring.wait() == .event { … disk.takeEvents() … }
//
// `prepare…`, `submit` and `reap` allocate nothing and call nothing (but the kernel, once, when
// the worker sleeps). The memory of a request belongs to the device until its completion was taken:
// no `unregisterMemory` of what an entry names before that. After the end of a session ring.md says
// when it is free ("When memory is yours again").

internal import CLinux
internal import CMemory
internal import Linux
internal import Wire

/// How a ring is opened.
public struct RingOptions: Sendable {
    /// Entries of the completion ring, which bounds the requests in flight: a power of two, 2 to
    /// 4096; nil: as many as the submission ring has.
    public var completionEntryCount: UInt32?
    /// The longest `wait` looks again and again before it sleeps, in nanoseconds; 0: it sleeps at
    /// once. `wait` finds out by itself how much of it pays.
    public var spinNanosecondsMax: UInt64 = 50_000
    /// Whether `wait` listens to the session too, so that events and its end are noticed with
    /// their reason. The ring and its disk then belong to one thread. Without, the ring may be used
    /// by another thread than its disk, and an end is noticed without its reason.
    public var watchesSession = true

    /// The defaults.
    public init() {}
}

/// Why `DiskRing.wait` came back.
public enum RingWait: Sendable, Equatable {
    /// There are completions to take.
    case completions
    /// A message of the session came: see `Disk.takeEvents` and `Disk.pollCompletion`.
    case event
    /// The deadline passed.
    case timedOut
}

/// An open ring. One owner at a time: not thread-safe.
@safe
public final class DiskRing {
    /// The least that `wait` spins before it sleeps, unless spinning is off: a request that another
    /// core answers at once takes less.
    static let spinNanosecondsMin: UInt64 = 2_000
    /// When giving way took so long, the processor has others to run; that is taken to stay so for
    /// twice as long.
    static let crowdedNanoseconds: UInt64 = 50_000
    /// Looks at the memory between two looks at the clock.
    static let looksPerClock = 32
    /// The most wake-up messages taken at once: the worker sends one for each sleep.
    static let wakeMessageLimit = 64
    /// How long the reason of an end is waited for after the ring said that there was one.
    static let reasonGraceNanoseconds: UInt64 = 1_000_000_000

    /// The id within the session.
    public let id: UInt32
    /// Entries of the submission ring.
    public let submissionEntryCount: Int
    /// Entries of the completion ring, the most requests in flight.
    public let completionEntryCount: Int
    /// How often the worker was woken by a system call.
    public private(set) var kickCount: UInt64 = 0
    /// How often `wait` went to sleep.
    public private(set) var sleepCount: UInt64 = 0
    /// How long `wait` spins at the moment before it sleeps.
    public private(set) var spinNanoseconds: UInt64

    /// CLOCK_MONOTONIC until which it does not spin.
    private var crowdedUntil: UInt64 = 0

    let port: UnsafeMutablePointer<RingPort>
    private let memory: Mapping
    private let kickFD: OwnedFD
    let wakeFD: OwnedFD
    private let spinNanosecondsMax: UInt64
    private let pollEntries: UnsafeMutablePointer<nv_poll_entry>
    /// The disk whose session is watched.
    private let disk: Disk?
    private let sessionNumber: UInt64
    private let diskName: String
    private var isClosed = false

    init(
        disk: Disk, id: UInt32, parts: consuming RingParts, options: RingOptions
    ) throws(ClientError) {
        let byteCount = parts.byteCount
        try RingLayout.checkFile(parts.memory, byteCount: byteCount)
        do { memory = try Mapping(parts.memory, byteCount: Int(byteCount)) } catch {
            throw .failed(WireError(.resourceExhausted, "\(error)", disk: disk.name))
        }
        let layout = try unsafe RingLayout(
            at: memory.base, byteCount: Int(byteCount), ringID: id)
        let ends = parts.takeEnds()
        kickFD = ends.kick
        wakeFD = ends.wake
        self.id = id
        submissionEntryCount = Int(layout.submissionEntryCount)
        completionEntryCount = Int(layout.completionEntryCount)
        spinNanosecondsMax = options.spinNanosecondsMax
        spinNanoseconds = options.spinNanosecondsMax
        diskName = disk.name
        sessionNumber = disk.sessionNumber
        self.disk = options.watchesSession ? disk : nil
        unsafe port = UnsafeMutablePointer<RingPort>.allocate(capacity: 1)
        unsafe port.initialize(to: RingPort(base: memory.base, layout: layout))
        unsafe pollEntries = UnsafeMutablePointer<nv_poll_entry>.allocate(capacity: 2)
    }

    deinit {
        unsafe port.deinitialize(count: 1)
        unsafe port.deallocate()
        unsafe pollEntries.deallocate()
    }

    // MARK: Preparing

    /// Prepares a read of blocks. False: the ring is full, as for all of these; submit, take
    /// completions, and try again. `tag` comes back with the completion.
    public func prepareRead(lba: UInt64, blockCount: UInt32, data: RingData, tag: UInt64) -> Bool {
        unsafe port.pointee.prepare(
            RingEntry(
                opcode: RingOpcode.read, blockCount: blockCount, lba: lba, tag: tag, data: data))
    }

    /// Prepares a write; with `fua` it is durable when it completes.
    public func prepareWrite(
        lba: UInt64, blockCount: UInt32, data: RingData, tag: UInt64, fua: Bool = false
    ) -> Bool {
        unsafe port.pointee.prepare(
            RingEntry(
                opcode: RingOpcode.write, flags: fua ? 1 : 0, blockCount: blockCount, lba: lba,
                tag: tag, data: data))
    }

    /// Prepares a comparison of blocks with memory.
    public func prepareCompare(
        lba: UInt64, blockCount: UInt32, data: RingData, tag: UInt64
    ) -> Bool {
        unsafe port.pointee.prepare(
            RingEntry(
                opcode: RingOpcode.compare, blockCount: blockCount, lba: lba, tag: tag, data: data))
    }

    /// Prepares a flush: writes that were completed before it are durable when it completes.
    public func prepareFlush(tag: UInt64) -> Bool {
        unsafe port.pointee.prepare(RingEntry(opcode: RingOpcode.flush, tag: tag))
    }

    /// Prepares blocks to read as zeroes; with `deallocate` the device may free them.
    public func prepareWriteZeroes(
        lba: UInt64, blockCount: UInt32, tag: UInt64, deallocate: Bool = false, fua: Bool = false
    ) -> Bool {
        unsafe port.pointee.prepare(
            RingEntry(
                opcode: RingOpcode.writeZeroes, flags: (fua ? 1 : 0) | (deallocate ? 2 : 0),
                blockCount: blockCount, lba: lba, tag: tag))
    }

    /// Prepares to tell the device that blocks are not needed.
    public func prepareDeallocate(lba: UInt64, blockCount: UInt32, tag: UInt64) -> Bool {
        unsafe port.pointee.prepare(
            RingEntry(opcode: RingOpcode.deallocate, blockCount: blockCount, lba: lba, tag: tag))
    }

    /// Prepares to have the device check blocks without a transfer.
    public func prepareVerify(lba: UInt64, blockCount: UInt32, tag: UInt64) -> Bool {
        unsafe port.pointee.prepare(
            RingEntry(opcode: RingOpcode.verify, blockCount: blockCount, lba: lba, tag: tag))
    }

    /// How many entries can be prepared at the moment.
    public var room: Int { unsafe port.pointee.room }

    // MARK: Submitting and reaping

    /// Publishes what was prepared, and wakes the worker if it sleeps: one system call then, none
    /// otherwise.
    public func submit() {
        if unsafe port.pointee.publish() { kick() }
    }

    /// Takes completions that are there, without waiting; how many. Tags come in any order.
    public func reap(into room: UnsafeMutableBufferPointer<RingCompletion>) -> Int {
        let count = unsafe port.pointee.reap(into: room)
        if unsafe port.pointee.hasToKick(afterTaking: count) { kick() }
        return count
    }

    /// The same into an array, for code that stays safe.
    public func reap(into room: inout [RingCompletion]) -> Int {
        unsafe room.withUnsafeMutableBufferPointer { unsafe reap(into: $0) }
    }

    /// Whether requests can still be done: neither closed nor ended. Those who never `wait` look
    /// here from time to time.
    public var isOpen: Bool {
        unsafe !isClosed && !port.pointee.isEnded && !port.pointee.isBroken
    }

    @inline(never)
    private func kick() {
        kickCount &+= 1
        // A full counter was signalled before and is not lost.
        _ = nv_eventfd_signal(kickFD.raw)
    }

    // MARK: Waiting

    /// Waits until there is something to take, an event came, or the deadline (CLOCK_MONOTONIC
    /// nanoseconds) passed.
    ///
    /// Spins first, as long as that has paid lately, then sleeps. While the worker is being
    /// replaced it sleeps on, and the successor wakes it. Completions come before
    /// everything else, so that those of a ring that ended can still be taken. Throws the reason
    /// when the session is over or the ring closed: of requests that have no completion it is not
    /// known then whether they were done.
    public func wait(deadlineNanoseconds: UInt64? = nil) throws(ClientError) -> RingWait {
        if spin(deadlineNanoseconds) { return .completions }
        let begin = MonotonicClock.nowNanoseconds
        while true {
            guard let result = try rest(deadlineNanoseconds) else { continue }
            if result == .completions { learn(slept: MonotonicClock.nowNanoseconds &- begin) }
            return result
        }
    }

    /// A sleep that was short would have been shorter without: waking up takes longer than many a
    /// request.
    func learn(slept nanoseconds: UInt64) {
        guard nanoseconds <= spinNanosecondsMax else { return }
        spinNanoseconds = min(max(spinNanoseconds, nanoseconds &* 2), spinNanosecondsMax)
    }

    /// Looks for completions for a while; true: there are some. Spins longer when that helped, and
    /// shorter when it did not.
    func spin(_ deadlineNanoseconds: UInt64?) -> Bool {
        if unsafe port.pointee.hasCompletions { return true }
        guard spinNanosecondsMax > 0 else { return false }
        let begin = MonotonicClock.nowNanoseconds
        guard begin >= crowdedUntil else { return false }
        let end = min(begin &+ spinNanoseconds, deadlineNanoseconds ?? .max)
        var now = begin
        // Where processors are scarce, the worker may wait for this one.
        var nextWay = begin &+ Self.spinNanosecondsMin
        repeat {
            for _ in 0..<Self.looksPerClock {
                if unsafe port.pointee.hasCompletions {
                    spinNanoseconds = min(spinNanoseconds &* 2, spinNanosecondsMax)
                    return true
                }
            }
            // Once in many looks: hypervisors take a loop of close pauses for a lock that is held,
            // and stop the processor for microseconds.
            nv_pause()
            if unsafe port.pointee.isEnded { return false }
            now = MonotonicClock.nowNanoseconds
            if now >= nextWay {
                nextWay = now &+ (now &- begin)
                nv_give_way()
                // Somebody ran who does not wait for us: whoever sleeps is served sooner than who
                // spins.
                let lost = MonotonicClock.nowNanoseconds &- now
                if lost >= Self.crowdedNanoseconds {
                    crowdedUntil = now &+ lost &* 3
                    return unsafe port.pointee.hasCompletions
                }
            }
        } while now < end
        spinNanoseconds = max(spinNanoseconds / 2, min(Self.spinNanosecondsMin, spinNanosecondsMax))
        return false
    }

    /// Sleeps once; nil: nothing happened that matters.
    private func rest(_ deadlineNanoseconds: UInt64?) throws(ClientError) -> RingWait? {
        unsafe port.pointee.armWake()
        if unsafe port.pointee.hasCompletions {
            unsafe port.pointee.disarmWake()
            return .completions
        }
        guard isOpen, disk.map({ $0.sessionNumber == sessionNumber && $0.ended == nil }) ?? true
        else {
            unsafe port.pointee.disarmWake()
            throw reason()
        }
        let watched = Int32(prepareToPoll())
        let timeout = Self.nanosecondsLeft(deadlineNanoseconds)
        sleepCount &+= 1
        let count = unsafe nv_poll_many(pollEntries, watched, timeout)
        unsafe port.pointee.disarmWake()
        let wakeEvents = unsafe pollEntries[0].revents
        if wakeEvents != 0 { drainWake() }
        let heard = unsafe watched > 1 && pollEntries[1].revents != 0
        let isEvent = heard && (disk?.hearSession() ?? false)
        if unsafe port.pointee.hasCompletions { return .completions }
        if count == 0, timeout >= 0 { return .timedOut }
        // POLLERR, POLLHUP or POLLNVAL: the worker let go of it.
        if wakeEvents & ~Int16(NV_POLLIN) != 0 || disk?.ended != nil { throw reason() }
        return isEvent ? .event : nil
    }

    /// Nanoseconds until a deadline, 0 when it passed; -1: there is none.
    static func nanosecondsLeft(_ deadline: UInt64?) -> Int64 {
        guard let deadline else { return -1 }
        let now = MonotonicClock.nowNanoseconds
        return now < deadline ? Int64(clamping: deadline - now) : 0
    }

    private func prepareToPoll() -> Int {
        unsafe pollEntries[0] = nv_poll_entry(fd: wakeFD.raw, events: NV_POLLIN, revents: 0)
        guard let disk else { return 1 }
        unsafe pollEntries[1] = nv_poll_entry(
            fd: disk.channel.fd.raw, events: NV_POLLIN, revents: 0)
        return 2
    }

    /// Takes the wake-up messages that came. What comes later wakes once too often, which does no
    /// harm.
    func drainWake() {
        for _ in 0..<Self.wakeMessageLimit where nv_discard_message(wakeFD.raw) < 0 { return }
    }

    /// Why nothing more can be done here.
    func reason() -> ClientError {
        if unsafe port.pointee.isBroken {
            return .protocolViolation("the worker's indexes of ring \(id) are impossible")
        }
        if isClosed { return .failed(WireError(.cancelled, "the ring was closed", disk: diskName)) }
        if let disk, disk.sessionNumber == sessionNumber {
            return .failed(disk.waitForEnd(graceNanoseconds: Self.reasonGraceNanoseconds))
        }
        return .failed(Disk.restarted(diskName, "its ring ended"))
    }

    func markClosed() { isClosed = true }
}

/// What came with `RingOpened`.
struct RingParts: ~Copyable {
    let byteCount: UInt64
    let memory: OwnedFD
    private let kick: OwnedFD
    private let wake: OwnedFD

    init?(byteCount: UInt64, _ fds: consuming ReceivedFDs) {
        guard let memory = fds.take(0), let kick = fds.take(1), let wake = fds.take(2) else {
            return nil
        }
        self.byteCount = byteCount
        self.memory = memory
        self.kick = kick
        self.wake = wake
    }

    /// Gives up the parts and keeps what wakes either side.
    consuming func takeEnds() -> RingEnds { RingEnds(kick: kick, wake: wake) }
}

/// What wakes either side.
struct RingEnds: ~Copyable {
    let kick: OwnedFD
    let wake: OwnedFD
}
