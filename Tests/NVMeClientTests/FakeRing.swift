// SPDX-License-Identifier: Apache-2.0
// The worker's end of a ring in a thread, written from Proto/ring.md, with faults on request.

import CLinux
import CMemory
import CRing
import Glibc
import Linux
import Synchronization
import Wire

/// What a fake worker is in the middle of when it dies. Its successor knows what it had taken and
/// done, as a state area tells.
enum RingDeath: Sendable, CaseIterable {
    /// It has taken entries and published nothing of that.
    case taken
    /// The completions are written, their tail is not.
    case written
    /// The tail is published; whether the client sleeps was not looked at.
    case published
    /// `completion_need_wake` was taken back and the message not sent.
    case unsent
    /// `submission_need_wake` is set, and it sleeps.
    case asleep
}

/// How the fake worker treats rings.
struct RingScript: Sendable {
    /// Where all indexes begin.
    var firstIndex: UInt32 = 0
    /// Words of the header that are overwritten before the client sees it.
    var patches: [Int: UInt32] = [:]
    /// The seals of the memory.
    var seals: Seals = [.shrink, .grow, .seal]
    /// What the reply says beyond the true length.
    var surplusByteCount: UInt64 = 0
    /// The newest completion of a batch comes first.
    var reversed = false
    /// Completions wait until the client sleeps.
    var waitsForSleep = false
    /// The session is ended with a reason after so many entries.
    var endsAfter: Int?
    /// Entries are taken only after the test said so.
    var startsHeld = false
    /// The worker dies there, once, and stays dead until `succeed`.
    var dies: RingDeath?
    /// After the first entry, this index is stored in place of the true one.
    var lie: (offset: Int, value: UInt32)?
}

/// What a fake ring saw.
struct RingSeen: Sendable {
    var entries: [[UInt8]] = []
    var mostTaken = 0
    var kicks: Int64 = 0
    var wakes = 0
    var sleeps = 0
}

/// Registered memory of a session, by id; the session's thread and a ring's use it.
final class FakeRegions: Sendable {
    private let regions = Mutex<[UInt64: FakeMapping]>([:])
    subscript(id: UInt64) -> FakeMapping? {
        get { regions.withLock { $0[id] } }
        set { regions.withLock { $0[id] = newValue } }
    }
}

/// A mapping in a class, so that a dictionary can hold it.
final class FakeMapping: Sendable {
    private let mapping: Mapping
    init(_ mapping: consuming Mapping) { self.mapping = mapping }

    private var bytes: UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(start: mapping.base, count: mapping.byteCount)
    }

    func put(_ data: some Collection<UInt8>, at offset: Int) {
        unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + data.count])
            .copyBytes(from: data)
    }

    func get(at offset: Int, _ count: Int) -> [UInt8] {
        unsafe Array(bytes[offset..<offset + count])
    }
}

/// One ring of the fake worker, served by a thread until `stop`.
final class FakeRing: Sendable {
    private let service: FakeService
    private let regions: FakeRegions
    private let script: RingScript
    private let submissionCount: UInt32
    private let completionCount: UInt32
    private let memory: Mapping
    let memoryFD: OwnedFD
    let kick: EventFD
    /// The client's end is `wake.second`.
    let wake: SocketPair
    private let stopping = Atomic<Bool>(false)
    private let held: Atomic<Bool>
    private let seen = Mutex(RingSeen())
    private let thread = TestThread()
    /// What a successor would know.
    private struct Progress {
        var taken: UInt32
        var posted: UInt32
        /// Tag, code and status of what is done and not published.
        var owed: [(UInt64, UInt16, UInt16)] = []
    }
    private let left: Mutex<Progress>
    private let death: Mutex<RingDeath?>
    /// Ends the session.
    private let end: @Sendable () -> Void
    let byteCount: Int

    private var submissionOffset: Int { NV_RING_HEADER_BYTES }
    private var completionOffset: Int {
        submissionOffset + Int(submissionCount) * NV_RING_SUBMISSION_BYTES
    }
    private func at(_ offset: Int) -> UnsafeMutableRawPointer { unsafe memory.base + offset }
    private func word(_ offset: Int) -> UInt32 { unsafe nv_load_acquire32(at(offset)) }
    private func store(_ offset: Int, _ value: UInt32) {
        unsafe nv_store_release32(at(offset), value)
    }

    init(
        _ service: FakeService, _ regions: FakeRegions, id: UInt32, _ submissions: UInt32,
        _ completions: UInt32, script: RingScript, end: @escaping @Sendable () -> Void
    ) throws {
        self.service = service
        self.regions = regions
        self.script = script
        self.end = end
        submissionCount = submissions
        completionCount = completions
        held = Atomic(script.startsHeld)
        left = Mutex(Progress(taken: script.firstIndex, posted: script.firstIndex))
        death = Mutex(script.dies)
        let bytes =
            NV_RING_HEADER_BYTES + Int(submissions) * NV_RING_SUBMISSION_BYTES
            + Int(completions) * NV_RING_COMPLETION_BYTES
        byteCount = (bytes + 4095) / 4096 * 4096
        memoryFD = try MemFD.create(name: "ring", byteCount: byteCount, seals: script.seals)
        memory = try Mapping(memoryFD, byteCount: byteCount)
        kick = try EventFD()
        wake = try UnixSocket.pair()
        unsafe nv_store64(at(NV_RING_OFFSET_MAGIC), NV_RING_MAGIC)
        unsafe nv_store64(at(NV_RING_OFFSET_BYTES), UInt64(byteCount))
        let header: [Int: UInt32] = [
            NV_RING_OFFSET_VERSION: 1, NV_RING_OFFSET_HEADER_BYTES: 4096,
            NV_RING_OFFSET_SUBMISSION_ENTRIES: submissions,
            NV_RING_OFFSET_COMPLETION_ENTRIES: completions,
            NV_RING_OFFSET_SUBMISSION_OFFSET: UInt32(submissionOffset),
            NV_RING_OFFSET_COMPLETION_OFFSET: UInt32(completionOffset),
            NV_RING_OFFSET_RING_ID: id,
            NV_RING_OFFSET_SUBMISSION_TAIL: script.firstIndex,
            NV_RING_OFFSET_SUBMISSION_HEAD: script.firstIndex,
            NV_RING_OFFSET_COMPLETION_HEAD: script.firstIndex,
            NV_RING_OFFSET_COMPLETION_TAIL: script.firstIndex,
        ]
        for (offset, value) in header.merging(script.patches, uniquingKeysWith: { $1 }) {
            store(offset, value)
        }
        thread.start { [self] in serve() }
    }

    /// What was seen so far.
    var record: RingSeen { seen.withLock { $0 } }

    /// Entries that the client has published and nobody has taken.
    var publishedCount: UInt32 {
        word(NV_RING_OFFSET_SUBMISSION_TAIL) &- word(NV_RING_OFFSET_SUBMISSION_HEAD)
    }

    /// Lets entries be taken.
    func release() {
        held.store(false, ordering: .releasing)
        try? kick.signal()
    }

    /// Ends the thread; the ring says that it is closed.
    func stop() {
        stopping.store(true, ordering: .releasing)
        try? kick.signal()
        thread.join()
        store(NV_RING_OFFSET_STATE, 1)
        wakeClient(always: true)
    }

    /// Closes the worker's end of the wake socket.
    func hangUp() { UnixSocket.shutdown(wake.first) }

    /// Waits for the death of the worker, and has another one take over: it publishes what was
    /// done, wakes the client once whatever the flags say, and looks at the ring once.
    func succeed() {
        thread.join()
        thread.start { [self] in
            var progress = left.withLock { $0 }
            store(NV_RING_OFFSET_SUBMISSION_HEAD, progress.taken)
            publish(&progress)
            wakeClient(always: true)
            serve()
        }
    }

    /// Whether the worker dies here; what it knows is kept.
    private func dies(_ here: RingDeath, _ progress: Progress) -> Bool {
        let isHere = death.withLock { death in
            guard death == here else { return false }
            death = nil
            return true
        }
        if isHere { left.withLock { $0 = progress } }
        return isHere
    }

    private func serve() {
        var progress = left.withLock { $0 }
        while !stopping.load(ordering: .acquiring) {
            if !held.load(ordering: .acquiring) { take(&progress) }
            if progress.owed.isEmpty {
                if sleep(progress) { return }
                continue
            }
            if dies(.taken, progress) { return }
            store(NV_RING_OFFSET_SUBMISSION_HEAD, progress.taken)
            if let lie = script.lie { store(lie.offset, lie.value) }
            waitForSleep()
            write(progress)
            if dies(.written, progress) { return }
            publish(&progress)
            if let lie = script.lie { store(lie.offset, lie.value) }
            if dies(.published, progress) { return }
            guard wakeClient(always: false, progress) else { return }
            let total = seen.withLock { $0.entries.count }
            if let limit = script.endsAfter, total >= limit {
                store(NV_RING_OFFSET_STATE, 1)
                end()
                wakeClient(always: true)
                return
            }
            left.withLock { $0 = progress }
        }
    }

    /// Takes what is there and what the completion ring has room for.
    private func take(_ progress: inout Progress) {
        let tail = word(NV_RING_OFFSET_SUBMISSION_TAIL)
        let first = word(NV_RING_OFFSET_COMPLETION_HEAD)
        while progress.taken != tail, progress.taken &- first < completionCount {
            let place =
                submissionOffset + Int(progress.taken % submissionCount) * NV_RING_SUBMISSION_BYTES
            let entry = unsafe Array(
                UnsafeRawBufferPointer(start: at(place), count: NV_RING_SUBMISSION_BYTES))
            progress.taken &+= 1
            progress.owed.append(act(entry))
            let count = Int(progress.taken &- first)
            seen.withLock {
                $0.entries.append(entry)
                $0.mostTaken = max($0.mostTaken, count)
            }
        }
    }

    private func waitForSleep() {
        guard script.waitsForSleep else { return }
        while word(NV_RING_OFFSET_COMPLETION_NEED_WAKE) == 0, !stopping.load(ordering: .acquiring) {
            sched_yield()
        }
    }

    /// Writes the completions that are owed, without saying so.
    private func write(_ progress: Progress) {
        var posted = progress.posted
        for (tag, code, status) in script.reversed ? progress.owed.reversed() : progress.owed {
            let place = completionOffset + Int(posted % completionCount) * NV_RING_COMPLETION_BYTES
            unsafe nv_store64(at(place), tag)
            unsafe nv_store64(at(place + 8), UInt64(status) | UInt64(code) << 16)
            posted &+= 1
        }
    }

    /// Says so; a successor has written them again at the same places.
    private func publish(_ progress: inout Progress) {
        write(progress)
        progress.posted &+= UInt32(progress.owed.count)
        progress.owed = []
        store(NV_RING_OFFSET_COMPLETION_TAIL, progress.posted)
    }

    private func wakeClient(always: Bool) { _ = wakeClient(always: always, nil) }

    /// False: it died before the message was sent.
    private func wakeClient(always: Bool, _ progress: Progress?) -> Bool {
        nv_full_fence()
        let asked = unsafe nv_exchange32(at(NV_RING_OFFSET_COMPLETION_NEED_WAKE), 0) == 1
        guard asked || always else { return true }
        if let progress, dies(.unsent, progress) { return false }
        seen.withLock { $0.wakes += 1 }
        var byte: UInt8 = 1
        _ = unsafe send(
            wake.first.raw, &byte, 1, CInt(MSG_DONTWAIT | MSG_NOSIGNAL))
        return true
    }

    /// True: it died meanwhile.
    private func sleep(_ progress: Progress) -> Bool {
        store(NV_RING_OFFSET_SUBMISSION_NEED_WAKE, 1)
        nv_full_fence()
        let isFull = progress.taken &- word(NV_RING_OFFSET_COMPLETION_HEAD) >= completionCount
        let idle =
            isFull || held.load(ordering: .acquiring)
            || word(NV_RING_OFFSET_SUBMISSION_TAIL) == progress.taken
        guard idle, !stopping.load(ordering: .acquiring) else { return false }
        if dies(.asleep, progress) { return true }
        seen.withLock { $0.sleeps += 1 }
        _ = try? kick.fd.waitReadable(timeoutMilliseconds: 60_000)
        store(NV_RING_OFFSET_SUBMISSION_NEED_WAKE, 0)
        let count = (try? kick.drain()) ?? 0
        seen.withLock { $0.kicks += count }
        return false
    }

    // MARK: Entries

    private func act(_ entry: [UInt8]) -> (UInt64, UInt16, UInt16) {
        func number(_ offset: Int, _ bytes: Int) -> UInt64 {
            entry[offset..<offset + bytes].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        let (lba, blocks, tag) = (number(8, 8), UInt32(number(4, 4)), number(16, 8))
        let byteCount = Int(blocks) * FakeService.blockByteCount
        guard lba + UInt64(blocks) <= UInt64(service.blockCount) else {
            return (tag, UInt16(ErrorCode.outOfRange.rawValue), 0)
        }
        let pieces =
            entry[1] & 4 == 0
            ? [(number(24, 4), Int(number(32, 8)), byteCount)]
            : list(number(24, 4), Int(number(32, 8)), Int(number(28, 4)))
        switch entry[0] {
        case 0x01: service.write(lba, pieces.flatMap { regions[$0]?.get(at: $1, $2) ?? [] })
        case 0x02:
            var data = service.read(lba, blocks)[...]
            for (region, offset, count) in pieces {
                regions[region]?.put(data.prefix(count), at: offset)
                data = data.dropFirst(count)
            }
        case 0x05:
            guard
                service.read(lba, blocks) == pieces.flatMap({ regions[$0]?.get(at: $1, $2) ?? [] })
            else { return (tag, UInt16(ErrorCode.compareFailed.rawValue), 0x285) }
        case 0x08: service.write(lba, [UInt8](repeating: 0, count: byteCount))
        default: break
        }
        return (tag, 0, 0)
    }

    private func list(_ region: UInt64, _ offset: Int, _ count: Int) -> [(UInt64, Int, Int)] {
        let bytes = regions[region]?.get(at: offset, count * 16) ?? []
        return (0..<count).map { index in
            func number(_ from: Int, _ count: Int) -> UInt64 {
                let start = index * 16 + from
                return bytes[start..<start + count].reversed().reduce(0) { $0 << 8 | UInt64($1) }
            }
            return (number(8, 4), Int(number(0, 8)), Int(number(12, 4)))
        }
    }
}
