// SPDX-License-Identifier: Apache-2.0
// What the control thread does with a data queue: everything that is not I/O.

internal import CLinux
internal import CMemory
internal import Linux

extension DataThread {
    // MARK: Having the queue to oneself

    /// Runs `body` while the data thread stands still. May be nested.
    func exclusive<Result>(_ body: (UnsafeMutablePointer<DataQueue>) -> Result) -> Result {
        enter()
        defer { leave() }
        return unsafe body(queue)
    }

    /// Runs `body` with the engine while the data thread stands still.
    public func withEngine<Result>(_ body: (UnsafeMutablePointer<Engine>) -> Result) -> Result {
        unsafe exclusive { unsafe body($0.pointee.engine) }
    }

    private func enter() {
        depth += 1
        guard depth == 1 else { return }
        unsafe nv_store_seq32(word(Word.want), 1)
        for _ in 0..<2_000 {
            if unsafe nv_load_seq32(word(Word.mode)) != Mode.running { return }
            nv_pause()
        }
        awaitMode { $0 != Mode.running }
    }

    private func leave() {
        depth -= 1
        guard depth == 0 else { return }
        unsafe nv_store_seq32(word(Word.want), 0)
        unsafe nv_futex_wake(word(Word.want))
    }

    /// Has the thread stand still until `release`: nothing is taken from rings, nothing reaped.
    /// Each `hold` needs its `release`, or `stop`, which ends the thread where it stands.
    public func hold() { enter() }

    /// Lets the thread go on after `hold`.
    public func release() {
        leave()
        wake()
    }

    private func awaitMode(_ isReached: (UInt32) -> Bool) {
        let deadline =
            MonotonicClock.nowNanoseconds + UInt64(Self.exclusiveMilliseconds) * 1_000_000
        while true {
            let mode = unsafe nv_load_seq32(word(Word.mode))
            if isReached(mode) { return }
            guard MonotonicClock.nowNanoseconds < deadline else { whenStuck(index) }
            _ = unsafe nv_futex_wait(word(Word.mode), mode, 10_000_000)
        }
    }

    /// Ends the thread; the queue stays for `exclusive`.
    public func stop() {
        guard handle != 0 else { return }
        unsafe nv_store_seq32(word(Word.stop), 1)
        unsafe nv_store_seq32(word(Word.want), 1)
        unsafe nv_futex_wake(word(Word.want))
        wake()
        awaitMode { $0 == Mode.stopped }
        nv_thread_join(handle)
        handle = 0
    }

    // MARK: Notices

    /// Becomes readable when there are notices.
    public var notifyFD: CInt { notify.fd.raw }

    /// What the data thread has to say; it is then forgotten.
    public func takeNotices() -> DataNotices {
        _ = try? notify.drain()
        return DataNotices(rawValue: unsafe nv_exchange32(word(Word.notices), 0))
    }

    /// Has the thread look at everything, asleep or not.
    public func wake() { try? wakeUp.signal() }

    /// Rounds so far: a thread that is neither resting nor turning hangs.
    public var rounds: UInt64 { unsafe nv_load64(word(Word.rounds)) }

    /// Whether the thread sleeps or stands still.
    public var isResting: Bool { unsafe nv_load_seq32(word(Word.mode)) != Mode.running }

    /// Whether `progress` is told whenever requests have ended.
    public func setWantsProgress(_ on: Bool) {
        unsafe exclusive { unsafe $0.pointee.wantsProgress = on }
    }

    /// Whether nothing is taken from any ring.
    public func setFrozen(_ on: Bool) {
        unsafe exclusive { unsafe $0.pointee.isFrozen = on }
        if !on { wake() }
    }

    /// Whether nothing is with the device.
    public var isIdle: Bool { unsafe exclusive { unsafe $0.pointee.isIdle } }

    // MARK: Rings

    /// The place that the next ring gets on this queue; nil when it serves as many as it can. What
    /// a successor needs of the ring is written down under this place before it is opened.
    public var nextRingPlace: Int? { unsafe exclusive { unsafe $0.pointee.nextFree } }

    /// Opens a ring on this queue, at a place that `nextRingPlace` gave, and returns its index; nil
    /// when the queue serves as many as it can. What is given must outlive the ring.
    public func open(
        _ memory: borrowing RingMemory, session: UInt32, regions: SessionRegions,
        rules: RingRules, gate: IOGate, kick: CInt, wakeFD: CInt, isHeld: Bool,
        statistics: StatisticsBlock, at place: Int? = nil
    ) throws(DriverError) -> Int? {
        let base = unsafe memory.mapping.base
        let shape = memory.shape
        let index = unsafe exclusive { queue -> Int? in
            guard let place = unsafe place ?? queue.pointee.nextFree else { return nil }
            let log = controller.state.ringPositions(queue: queueNumber, index: place)
            let index = unsafe queue.pointee.add(
                at: place, base: base, shape: shape, session: session, regions: regions,
                rules: rules, wakeFD: wakeFD, gate: gate, log: log, statistics: statistics)
            if let index { unsafe queue.pointee.ring(index)?.pointee.isHeld = isHeld }
            return index
        }
        guard let index else { return nil }
        try watch(index, kick: kick)
        wake()
        return index
    }

    private func watch(_ index: Int, kick: CInt) throws(DriverError) {
        let result = nv_epoll_add_edge(epoll.raw, kick, UInt64(index + 2))
        guard result == 0 else {
            unsafe exclusive { unsafe $0.pointee.remove(index) }
            throw .system(SystemCallError("epoll_ctl", errno: -result))
        }
    }

    // MARK: Rings of a predecessor

    /// Opens the ring of a predecessor, at the place where its record is. Only for a thread that
    /// was made with `isAdopting`, before `recover`.
    ///
    /// Throws `notAdoptable` when its positions cannot be believed.
    public func adopt(
        _ memory: borrowing RingMemory, at place: Int, session: UInt32, regions: SessionRegions,
        rules: RingRules, gate: IOGate, kick: CInt, wakeFD: CInt, isHeld: Bool,
        statistics: StatisticsBlock
    ) throws(DriverError) {
        let base = unsafe memory.mapping.base
        let shape = memory.shape
        guard let known = controller.state.knownPositions(queue: queueNumber, index: place),
            let log = controller.state.ringPositions(queue: queueNumber, index: place)
        else {
            throw .notAdoptable("the positions of ring \(place) of queue \(queueNumber)")
        }
        let isAdopted = unsafe exclusive { queue in
            let isAdopted = unsafe queue.pointee.adopt(
                at: place, base: base, shape: shape, session: session, regions: regions,
                rules: rules, wakeFD: wakeFD, gate: gate, log: log, known: known,
                statistics: statistics)
            if isAdopted { unsafe queue.pointee.ring(place)?.pointee.isHeld = isHeld }
            return isAdopted
        }
        guard isAdopted else {
            throw .notAdoptable(
                "what is in flight contradicts the positions of ring \(place) of queue "
                    + "\(queueNumber)")
        }
        try watch(place, kick: kick)
    }

    /// Posts what a predecessor had taken from the device and perhaps not published, wakes every
    /// client, and lets the thread run. Once, after the rings of the predecessor were opened.
    ///
    /// Throws `notAdoptable`: nothing was posted then, and the thread stands still.
    public func recover() throws(DriverError) {
        // Requests without a ring have another queue.
        guard unsafe exclusive({ unsafe $0.pointee.recover { _ in } }) else {
            throw .notAdoptable("completions of queue \(queueNumber) do not add up")
        }
        try controller.writePendingDoorbells(index)
        leave()
        wake()
    }

    /// Closes a ring; nothing of it may be with the device.
    public func close(_ index: Int, kick: CInt) {
        _ = nv_epoll_remove(epoll.raw, kick)
        unsafe exclusive { unsafe $0.pointee.remove(index) }
    }

    /// Where the queue pair is counted from now on.
    public func setStatistics(_ block: StatisticsBlock) {
        unsafe exclusive { unsafe $0.pointee.statistics = block }
    }

    /// How many rings are open.
    public var ringCount: Int { unsafe exclusive { unsafe $0.pointee.ringCount } }

    /// The NVMe queue id that the thread serves.
    public var queueNumber: Int { index + 1 }

    /// What a ring is doing.
    public struct RingStatus: Sendable, Equatable {
        /// Requests with the device.
        public var inFlight: Int
        /// What its client did wrong.
        public var fault: RingFault
        /// Entries taken since it was opened, modulo 2^32.
        public var taken: UInt32
        /// Completions posted since it was opened, modulo 2^32.
        public var completed: UInt32
        /// How often the client was woken.
        public var wakes: UInt64
    }

    /// What a ring is doing; nil when it is not open.
    public func status(_ index: Int) -> RingStatus? {
        unsafe exclusive { queue in
            guard let ring = unsafe queue.pointee.ring(index) else { return nil }
            return unsafe RingStatus(
                inFlight: Int(ring.pointee.inFlight), fault: ring.pointee.fault,
                taken: ring.pointee.submissionHead, completed: ring.pointee.completionTail,
                wakes: ring.pointee.wakes)
        }
    }

    /// Takes nothing more from a ring, or goes on.
    public func setHeld(_ index: Int, _ on: Bool) {
        unsafe exclusive { unsafe $0.pointee.ring(index)?.pointee.isHeld = on }
        if !on { wake() }
    }

    /// The namespace of a ring has changed.
    public func setRules(_ index: Int, _ rules: RingRules) {
        unsafe exclusive { unsafe $0.pointee.ring(index)?.pointee.rules = rules }
    }

    /// Whether a command that is with the device, or a request that will become one, points at a
    /// region.
    public func uses(region: UInt32) -> Bool {
        unsafe withEngine { unsafe $0.pointee.uses(region: region) }
    }
}
