// SPDX-License-Identifier: Apache-2.0
// The event loop of a process (sd-event, libsystemd 252), which is also a Swift executor.

internal import CLinux
internal import CSystemd
internal import CSystemdShim
internal import Glibc
public import Linux
internal import Synchronization

/// The loop of the control thread: sources of sd-event and jobs of Swift Concurrency.
///
/// A program calls ``main()`` on its first thread, sets up its sources and then ``run()``. Timers,
/// signals, children and descriptors all come from here; `Task.sleep` and
/// Dispatch would start threads and have no place in a daemon.
///
/// ```swift
/// let loop = try EventLoop.main()
/// let service = try Control.assumeIsolated { try Service(loop) }  // sources, signals, tasks
/// exit(try loop.run())
/// ```
///
/// Handlers are `@Control` closures and run to completion one after the other. A source lives as
/// long as its ``Source`` object.
@safe
public final class EventLoop: SerialExecutor, TaskExecutor, @unchecked Sendable {
    /// Jobs run before descriptors get a turn: bounds how long tasks can keep timers waiting.
    static let jobsPerTurn = 256

    private struct Queue {
        var jobs: [UnownedJob] = []
        /// The eventfd has been signalled and the queue not yet emptied since.
        var signalled = false
    }

    let event: OpaquePointer
    private let thread: pthread_t
    private let wakeup: EventFD
    private let waiting = Mutex(Queue())
    private static let mainLoop = Mutex<EventLoop?>(nil)

    private init() throws(SystemCallError) {
        var event: OpaquePointer?
        try checked("sd_event_new", unsafe sd_event_new(&event))
        guard let event = unsafe event else { throw SystemCallError("sd_event_new", errno: ENOMEM) }
        unsafe self.event = event
        thread = pthread_self()
        wakeup = try EventFD()
        // Children are reaped by sd-event, which insists on SIGCHLD being blocked.
        try Self.block(SIGCHLD)
        let loop = unsafe Unmanaged.passUnretained(self).toOpaque()
        var source: OpaquePointer?
        try checked(
            "sd_event_add_io",
            unsafe sd_event_add_io(
                event, &source, wakeup.fd.raw, UInt32(EPOLLIN.rawValue),
                { _, _, _, loop in
                    guard let loop = unsafe loop else { return 0 }
                    unsafe Unmanaged<EventLoop>.fromOpaque(loop).takeUnretainedValue().drain()
                    return 0
                }, loop))
        // Floating: the loop is never freed, and neither is this source.
        unsafe sd_event_source_set_floating(source, 1)
        unsafe sd_event_source_unref(source)
    }

    /// Creates the loop of this process, bound to the calling thread; later calls return it.
    ///
    /// From then on this thread runs all of Swift Concurrency in the process, so that no `await`
    /// can start another one.
    public static func main() throws(SystemCallError) -> EventLoop {
        if let loop = mainLoop.withLock({ $0 }) { return loop }
        let loop = try make()
        unsafe nv_take_global_jobs { job in
            // SAFETY: an UnownedJob is the pointer to the job, and the runtime handed it over.
            EventLoop.current.queue(unsafe unsafeBitCast(job, to: UnownedJob.self))
        }
        return loop
    }

    private static func make() throws(SystemCallError) -> EventLoop {
        let loop = try EventLoop()
        mainLoop.withLock { $0 = loop }
        return loop
    }

    /// The loop of this process. Stops the process when ``main()`` has not been called.
    public static var current: EventLoop {
        guard let loop = mainLoop.withLock({ $0 }) else {
            preconditionFailure("EventLoop.main() must be called before control code runs")
        }
        return loop
    }

    /// Whether the caller runs on the loop's thread.
    public var isCurrentThread: Bool { pthread_equal(pthread_self(), thread) != 0 }

    /// Runs until ``exit(_:)``; returns the exit code given there.
    public func run() throws(SystemCallError) -> Int32 {
        precondition(isCurrentThread, "an event loop runs on the thread that made it")
        return try checked("sd_event_loop", unsafe sd_event_loop(event))
    }

    /// Pings the watchdog of the service manager by itself, as long as the loop turns.
    ///
    /// Returns whether the manager asked for it (WATCHDOG_USEC). A service with threads of its own
    /// uses `Notifier.watchdogInterval` and a timer instead, and pings only when they are well.
    @Control
    @discardableResult
    public func enableWatchdog() throws(SystemCallError) -> Bool {
        try checked("sd_event_set_watchdog", unsafe sd_event_set_watchdog(event, 1)) > 0
    }

    /// Ends ``run()`` after the present handler. Jobs that are still queued do not run.
    @Control
    public func exit(_ code: Int32) {
        _ = unsafe sd_event_exit(event, code)
    }

    /// Starts a task on this loop: its body, and async functions without isolation of their own.
    @discardableResult
    public func task<Success: Sendable>(
        _ body: @escaping @Control () async -> Success
    ) -> Task<Success, Never> {
        Task(executorPreference: self, operation: body)
    }

    /// Starts a task on this loop that may fail.
    public func task<Success: Sendable>(
        _ body: @escaping @Control () async throws -> Success
    ) -> Task<Success, any Error> {
        Task(executorPreference: self, operation: body)
    }

    /// Runs `body` on the loop: at once when called on its thread, soon when called elsewhere.
    public func perform(_ body: @escaping @Control () -> Void) {
        if isCurrentThread { return Control.assumeIsolated(body) }
        Task(executorPreference: self) { @Control in body() }
    }

    /// Blocks a signal in the calling thread, so that it can be taken by the loop.
    static func block(_ signal: Int32) throws(SystemCallError) {
        var set = sigset_t()
        unsafe sigemptyset(&set)
        unsafe sigaddset(&set, signal)
        try checked("pthread_sigmask", -(unsafe pthread_sigmask(SIG_BLOCK, &set, nil)))
    }
}

// MARK: - Executor

extension EventLoop {
    /// Queues a job of Swift Concurrency; callable from any thread.
    public func enqueue(_ job: consuming ExecutorJob) { queue(UnownedJob(job)) }

    private func queue(_ job: UnownedJob) {
        let wake = waiting.withLock { queue in
            queue.jobs.append(job)
            defer { queue.signalled = true }
            return !queue.signalled
        }
        if wake { try? wakeup.signal() }
    }

    /// This loop as the executor of an actor.
    public func asUnownedSerialExecutor() -> UnownedSerialExecutor {
        unsafe UnownedSerialExecutor(ordinary: self)
    }

    /// This loop as the preferred executor of a task.
    public func asUnownedTaskExecutor() -> UnownedTaskExecutor {
        unsafe UnownedTaskExecutor(ordinary: self)
    }

    /// Whether the caller is isolated to this executor, which is a question of the thread alone.
    public func isIsolatingCurrentContext() -> Bool? { isCurrentThread }

    /// Stops the process when the caller is not on the loop's thread.
    public func checkIsolated() {
        precondition(isCurrentThread, "not on the thread of the event loop")
    }

    /// Runs queued jobs; the mark stays until the queue was seen empty, so that jobs queued by
    /// jobs cost no system call.
    private func drain() {
        var ran = 0
        while ran < Self.jobsPerTurn {
            let jobs = waiting.withLock { queue in
                let taken = queue.jobs
                queue.jobs.removeAll(keepingCapacity: true)
                if taken.isEmpty {
                    queue.signalled = false
                    _ = try? wakeup.drain()
                }
                return taken
            }
            if jobs.isEmpty { return }
            for job in jobs {
                unsafe job.runSynchronously(
                    isolatedTo: asUnownedSerialExecutor(), taskExecutor: asUnownedTaskExecutor())
            }
            ran += jobs.count
        }
        // The eventfd is still readable: the next turn continues.
    }
}

// MARK: - A loop beside the main thread

extension EventLoop {
    /// Makes the loop of this process run on a thread of its own, once; for tests and for
    /// programs whose first thread belongs to somebody else. It never exits, and leaves the thread
    /// pool of Swift Concurrency as it is.
    public static func startOnOwnThread() {
        _ = ownThread
    }

    private static let ownThread: Void = {
        var thread = pthread_t()
        let result = unsafe pthread_create(
            &thread, nil,
            { _ in
                _ = unsafe nv_set_thread_name("control")
                do {
                    _ = try make().run()
                } catch {
                    fatalError("event loop: \(error)")
                }
                return nil
            }, nil)
        precondition(result == 0, "pthread_create failed")
        while mainLoop.withLock({ $0 == nil }) { sched_yield() }
    }()
}
