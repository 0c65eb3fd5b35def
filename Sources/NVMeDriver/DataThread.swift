// SPDX-License-Identifier: Apache-2.0
// The thread of a data queue: spins while there is work, sleeps when there is none, and lets the
// control thread in between two rounds.
//
// The control thread has the queue to itself inside `exclusive`: it sets `want`, and the data
// thread, which reads that word once a round, stops between two rounds until `want` is 0 again. A
// sleeping data thread need not be woken for it: whoever wakes it meanwhile finds `want` set. Both
// sides write their word and then read the other's, each with sequential consistency, so that one
// of the two sees the other. That costs the data thread a load of a line that nobody else writes,
// and nothing else.

internal import CLinux
internal import CMemory
internal import Glibc
internal import Linux

/// How a data thread waits for work.
public struct SpinPolicy: Sendable, Equatable {
    /// The longest time of looking in vain before it sleeps, in nanoseconds. 0: it never spins.
    public var limitNanoseconds: UInt64
    /// The processor that the thread stays on; nil: any.
    public var processor: UInt32?
    /// Without one of its own, the processors that it stays on as far as it may run there anyway,
    /// such as those of its device's NUMA node; empty: any.
    public var preferred: [UInt32]
    /// A policy.
    public init(
        limitNanoseconds: UInt64, processor: UInt32? = nil, preferred: [UInt32] = []
    ) {
        self.limitNanoseconds = limitNanoseconds
        self.processor = processor
        self.preferred = preferred
    }
    /// 50 microseconds: more than a fast drive's answer takes, less than a scheduler's slice.
    public static let standard = SpinPolicy(limitNanoseconds: 50_000)
}

/// A data queue with its thread. Everything but the thread's own body belongs to the control
/// thread.
@safe
public final class DataThread: @unchecked Sendable {
    /// Words of the control block, each on a pair of cache lines of its own.
    enum Word {
        /// Control → data: stop between two rounds.
        static let want = 0
        /// Control → data: end.
        static let stop = 128
        /// Data → control: `Mode`.
        static let mode = 256
        /// Data → control: `DataNotices`.
        static let notices = 384
        /// Data → control: rounds, for the watchdog.
        static let rounds = 512
        static let byteCount = 4096
    }
    enum Mode {
        static let running: UInt32 = 0
        static let asleep: UInt32 = 1
        static let parked: UInt32 = 2
        static let stopped: UInt32 = 3
    }
    /// After how long in vain a thread lets others run for the first time, and then after twice as
    /// long each time: where processors are scarce, the one that it waits for may wait for its.
    private static let wayNanoseconds: UInt64 = 2_000
    /// When giving way took so long, the processor has others to run; that is taken to stay so for
    /// twice as long.
    private static let crowdedNanoseconds: UInt64 = 50_000
    /// How often a thread with commands in flight looks for those that are late.
    static let lookMilliseconds: UInt32 = 100
    /// How long the control thread waits for the end of a round: a round has a bounded number of
    /// steps, so that only a thread that hangs in the kernel takes longer.
    static let exclusiveMilliseconds = 5_000

    /// What epoll knows the interrupt as, and its bit among what was seen.
    private static let interruptData: UInt64 = 1
    private static let interruptSeen: UInt64 = 1 << interruptData

    let index: Int
    let controller: NVMeController
    let queue: UnsafeMutablePointer<DataQueue>
    private let control: Mapping
    let epoll: OwnedFD
    let wakeUp: EventFD
    let notify: EventFD
    private let interrupt: OwnedFD
    private let policy: SpinPolicy
    let whenStuck: @Sendable (_ queue: Int) -> Never
    var handle: UInt64 = 0
    /// How often `exclusive` is nested.
    var depth = 0
    // The data thread's own.
    private var gap: UInt64 = 0
    private(set) var sleeps: UInt64 = 0
    /// Sleeps that an interrupt ended.
    private var interrupts: UInt64 = 0
    /// Rounds that found nothing, but for the last few.
    private var spins: UInt64 = 0

    /// Starts the thread of an I/O queue of a controller that is up. `stop` must be called before
    /// the controller is. `whenStuck` ends the process: a thread that hangs in the kernel still has
    /// the queue.
    ///
    /// With `isAdopting` the queue is a predecessor's, and nothing of it is touched before
    /// `recover`: open its rings before that.
    public init(
        controller: NVMeController, queue index: Int, policy: SpinPolicy,
        timeoutMilliseconds: UInt32, isAdopting: Bool = false,
        whenStuck: @escaping @Sendable (_ queue: Int) -> Never
    ) throws(DriverError) {
        self.controller = controller
        self.whenStuck = whenStuck
        self.index = index
        self.policy = policy
        do throws(SystemCallError) {
            control = try Mapping(anonymous: Word.byteCount)
            epoll = OwnedFD(adopting: try checked("epoll_create", nv_epoll_create()))
            wakeUp = try EventFD()
            notify = try EventFD()
            interrupt = OwnedFD(
                adopting: try checked("dup", nv_dup_cloexec(controller.interrupt(index))))
            try checked("epoll_ctl", nv_epoll_add_edge(epoll.raw, wakeUp.fd.raw, 0))
            try checked(
                "epoll_ctl", nv_epoll_add_edge(epoll.raw, interrupt.raw, Self.interruptData))
        } catch { throw .system(error) }
        unsafe queue = .allocate(capacity: 1)
        unsafe queue.initialize(
            to: DataQueue(
                engine: controller.engine(index), timeoutMilliseconds: timeoutMilliseconds))
        let generation = UInt32(truncatingIfNeeded: controller.state.generation)
        unsafe queue.pointee.generation = generation
        if isAdopting {
            // As if `exclusive` had begun: the thread stands still from its first round on.
            depth = 1
            unsafe nv_store_seq32(word(Word.want), 1)
        }
        try start()
    }

    deinit {
        stop()
        unsafe queue.deinitialize(count: 1)
        unsafe queue.deallocate()
    }

    private func start() throws(DriverError) {
        // The thread holds no reference: `stop` joins it before this object can go.
        let argument = unsafe Unmanaged.passUnretained(self).toOpaque()
        let result = unsafe nv_thread_start(
            { argument in
                guard let argument = unsafe argument else { return }
                unsafe Unmanaged<DataThread>.fromOpaque(argument)._withUnsafeGuaranteedRef {
                    $0.settle()
                    $0.run()
                }
            }, argument, "nvmed-data-\(index)", policy.processor.map { CInt(clamping: $0) } ?? -1,
            &handle)
        guard result == 0 else { throw .system(SystemCallError("pthread_create", errno: -result)) }
    }

    func word(_ offset: Int) -> UnsafeMutableRawPointer { unsafe control.base + offset }

    // MARK: The data thread

    /// Goes where the policy prefers it, before the loop that may call nothing of the runtime.
    @inline(never)
    private func settle() {
        // It is no more than a wish.
        if policy.processor == nil, !policy.preferred.isEmpty {
            _ = try? ProcessorAffinity.prefer(policy.preferred)
        }
    }

    private func run() {
        var lastWork = nv_monotonic_ns()
        var idleRounds: UInt32 = 0
        var nextWay = Self.wayNanoseconds
        var crowdedUntil: UInt64 = 0
        while true {
            if unsafe nv_load32(word(Word.want)) != 0, park() { return }
            if round() {
                if idleRounds > 0 {
                    let now = nv_monotonic_ns()
                    learn(gap: now &- lastWork)
                    lastWork = now
                }
                idleRounds = 0
                nextWay = Self.wayNanoseconds
                continue
            }
            if idleRounds == 0 { lastWork = nv_monotonic_ns() }
            idleRounds = idleRounds &+ 1
            // A look at the clock costs as much as several at the rings.
            if policy.limitNanoseconds > 0, idleRounds & 31 != 0 {
                nv_pause()
                continue
            }
            spins = spins &+ (policy.limitNanoseconds > 0 ? 32 : 1)
            let now = nv_monotonic_ns()
            if now &- lastWork >= nextWay {
                nextWay = nextWay &* 2
                nv_give_way()
                // Somebody ran who does not wait for us: whoever sleeps is served sooner than who
                // spins, and takes nothing from others.
                let lost = nv_monotonic_ns() &- now
                if lost >= Self.crowdedNanoseconds { crowdedUntil = now &+ lost &* 3 }
            }
            let isCrowded = now < crowdedUntil && policy.limitNanoseconds < .max
            if isCrowded || now &- lastWork >= budget { rest() }
        }
    }

    /// Down, doorbell, up. True when there was anything.
    @inline(__always)
    private func round() -> Bool {
        let rounds = unsafe nv_load64(word(Word.rounds)) &+ 1
        unsafe nv_store64(word(Word.rounds), rounds)
        if rounds & Self.roundsPerLook == 0 { lookAround(rounds) }
        let took = unsafe queue.pointee.take()
        if unsafe queue.pointee.engine.pointee.hasPendingDoorbells { writeDoorbells() }
        let reaped = unsafe queue.pointee.reap()
        if unsafe queue.pointee.engine.pointee.hasPendingDoorbells { writeDoorbells() }
        if unsafe !queue.pointee.notices.isEmpty { tell() }
        return took || reaped
    }

    /// How often what is seldom needed is done, however busy the thread is: a mask of rounds.
    private static let roundsPerLook: UInt64 = 1023

    /// Looks for what is late, and shows what is counted anyway.
    @inline(never)
    private func lookAround(_ rounds: UInt64) {
        unsafe queue.pointee.lookForOverdue(
            Tick.of(nanoseconds: nv_monotonic_ns()),
            interval: Tick.count(milliseconds: Self.lookMilliseconds))
        // A round takes at most some thousand commands.
        unsafe queue.pointee.engine.pointee.queue.refreshOrdinals()
        let statistics = unsafe queue.pointee.statistics
        statistics.set(.rounds, rounds)
        statistics.set(.sleeps, sleeps)
        statistics.set(.spins, spins)
        statistics.set(.interrupts, interrupts)
        // A ring's own memory can go away too; nothing else would look.
        unsafe queue.pointee.engine.pointee.noteMemoryFaults()
        statistics.set(
            .doorbells, unsafe queue.pointee.engine.pointee.doorbellCounts.register)
        tell()
    }

    /// Doorbells that this device does not let map.
    @inline(never)
    private func writeDoorbells() {
        do throws(DriverError) {
            try unsafe controller.writePendingDoorbells(of: queue.pointee.engine)
        } catch {
            tell(.doorbellFailed)
        }
    }

    /// Tells the control thread what it has to know.
    @inline(never)
    private func tell(_ more: DataNotices = []) {
        let new = unsafe queue.pointee.takeNotices().union(more)
        guard !new.isEmpty else { return }
        let old = unsafe nv_or32(word(Word.notices), new.rawValue)
        // What it has been told and has not looked at needs no second signal.
        if old & new.rawValue != new.rawValue { try? notify.signal() }
    }

    /// How long looking in vain pays: somewhat more than the usual gap, when that is short.
    private var budget: UInt64 {
        let limit = policy.limitNanoseconds
        guard gap <= limit else { return min(limit, 2_000) }
        return min(limit, gap &* 4 &+ 2_000)
    }

    /// A moving average of the gaps between work. Long ones are cut, so that it recovers quickly.
    private func learn(gap new: UInt64) {
        let cut = min(new, policy.limitNanoseconds &* 4)
        gap = gap &- gap / 8 &+ cut / 8
    }

    @inline(never)
    private func rest() {
        guard unsafe queue.pointee.prepareToSleep() else { return }
        unsafe nv_store_seq32(word(Word.mode), Mode.asleep)
        if unsafe nv_load_seq32(word(Word.want)) == 0 {
            sleeps = sleeps &+ 1
            lookAround(unsafe nv_load64(word(Word.rounds)))
            let isIdle = unsafe queue.pointee.isIdle
            var timeout = isIdle ? -1 : Int64(Self.lookMilliseconds) * 1_000_000
            if let next = unsafe queue.pointee.nextAdmission {
                let left = Int64(truncatingIfNeeded: next &- nv_monotonic_ns())
                timeout = timeout < 0 ? max(left, 0) : min(timeout, max(left, 0))
            }
            var seen: UInt64 = 0
            _ = unsafe nv_epoll_wait(epoll.raw, timeout, &seen)
            if seen & Self.interruptSeen != 0 { interrupts = interrupts &+ 1 }
        }
        unsafe nv_store_seq32(word(Word.mode), Mode.running)
        if unsafe nv_load_seq32(word(Word.want)) == 0 { unsafe queue.pointee.wake() }
    }

    /// Stands still while the control thread wants the queue. True when the thread has to end.
    @inline(never)
    private func park() -> Bool {
        while true {
            unsafe nv_store_seq32(word(Word.mode), Mode.parked)
            unsafe nv_futex_wake(word(Word.mode))
            while unsafe nv_load_seq32(word(Word.want)) != 0 {
                if unsafe nv_load_seq32(word(Word.stop)) != 0 {
                    unsafe nv_store_seq32(word(Word.mode), Mode.stopped)
                    unsafe nv_futex_wake(word(Word.mode))
                    return true
                }
                _ = unsafe nv_futex_wait(word(Word.want), 1, -1)
            }
            unsafe nv_store_seq32(word(Word.mode), Mode.running)
            // Wanted again meanwhile: the other side may have seen `parked`.
            if unsafe nv_load_seq32(word(Word.want)) == 0 { break }
        }
        unsafe queue.pointee.wake()
        return false
    }
}
