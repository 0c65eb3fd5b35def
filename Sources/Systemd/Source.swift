// SPDX-License-Identifier: Apache-2.0
// Sources of events: descriptors, timers, signals, children, deferred work.

internal import CSystemd
internal import Glibc
public import Linux

/// Conditions of a descriptor, as epoll has them.
public struct Events: OptionSet, Sendable {
    /// The bits of epoll_event.events.
    public let rawValue: UInt32
    /// Wraps epoll's bits.
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Something can be read (or accepted).
    public static let readable = Events(rawValue: 0x001)
    /// Something can be written.
    public static let writable = Events(rawValue: 0x004)
    /// An error; always reported.
    public static let error = Events(rawValue: 0x008)
    /// Hung up; always reported.
    public static let hangup = Events(rawValue: 0x010)
    /// The peer will send no more.
    public static let peerClosed = Events(rawValue: 0x2000)
    /// Report each change once, instead of as long as the condition holds.
    public static let edgeTriggered = Events(rawValue: 1 << 31)
}

/// The order in which sources that are ready at the same time are served.
public struct Priority: RawRepresentable, Sendable {
    /// Smaller comes first, as in sd-event.
    public let rawValue: Int64
    /// Any value; see the named ones.
    public init(rawValue: Int64) { self.rawValue = rawValue }
    /// Before everything else.
    public static let high = Priority(rawValue: -100)
    /// The default.
    public static let normal = Priority(rawValue: 0)
    /// After everything else.
    public static let low = Priority(rawValue: 100)
}

/// How a child process ended.
public enum ChildExit: Sendable, Equatable {
    /// It exited with this code.
    case exited(code: Int32)
    /// It was ended by this signal.
    case signalled(Int32)
}

/// Something that calls its handler on the loop until it is cancelled or let go of.
@Control
@safe
public class Source {
    // Only touched on the loop's thread, by `cancel` and `deinit`.
    nonisolated(unsafe) fileprivate var raw: OpaquePointer?
    fileprivate var handler: @Control (Trigger) -> Void
    private var retained: Source?

    /// What a source reports.
    fileprivate enum Trigger {
        case plain
        case io(Events)
        case child(ChildExit)
    }

    fileprivate init(_ handler: @escaping @Control (Trigger) -> Void) { self.handler = handler }

    fileprivate func attach(
        _ raw: OpaquePointer?, _ priority: Priority
    ) throws(SystemCallError) {
        unsafe self.raw = raw
        if priority.rawValue != 0 {
            try checked(
                "sd_event_source_set_priority",
                unsafe sd_event_source_set_priority(raw, priority.rawValue))
        }
    }

    deinit {
        guard let raw = unsafe raw else { return }
        // SAFETY: the pointer is this object's own, and moves to the loop's thread for its end.
        nonisolated(unsafe) let last = unsafe raw
        let handle = handle
        EventLoop.current.perform {
            withExtendedLifetime(handle) { _ = unsafe sd_event_source_disable_unref(last) }
        }
    }

    /// The handler will not be called again. Cancelling twice does nothing.
    public func cancel() {
        guard let raw = unsafe raw else { return }
        unsafe self.raw = nil
        unsafe sd_event_source_disable_unref(raw)
        retained = nil
    }

    /// Switches the source off and on without losing it.
    public func setEnabled(_ on: Bool) {
        guard let raw = unsafe raw else { return }
        _ = unsafe sd_event_source_set_enabled(raw, CInt(on ? SD_EVENT_ON : SD_EVENT_OFF))
    }

    /// Keeps the source alive until it is cancelled, or for a deferred handler or timer: has fired.
    public func keep() { retained = self }

    fileprivate func fire(_ trigger: Trigger) { handler(trigger) }

    fileprivate func fireOnce(_ trigger: Trigger) {
        retained = nil
        handler(trigger)
    }

    /// What sd-event points to. It outlives the sd-event source even when the last reference to
    /// this object goes away on another thread.
    fileprivate final class Handle: Sendable {
        nonisolated(unsafe) weak var source: Source?
    }

    private nonisolated let handle = Handle()

    fileprivate var userdata: UnsafeMutableRawPointer {
        unsafe handle.source = self
        return unsafe Unmanaged.passUnretained(handle).toOpaque()
    }

    fileprivate static func from(_ userdata: UnsafeMutableRawPointer?) -> Source? {
        guard let userdata = unsafe userdata else { return nil }
        return unsafe Unmanaged<Handle>.fromOpaque(userdata).takeUnretainedValue().source
    }
}

/// A source for the conditions of a descriptor.
public final class DescriptorSource: Source {
    /// Changes the conditions that are waited for.
    public func setEvents(_ events: Events) throws(SystemCallError) {
        guard let raw = unsafe raw else { return }
        try checked(
            "sd_event_source_set_io_events",
            unsafe sd_event_source_set_io_events(raw, events.rawValue))
    }
}

/// A timer on CLOCK_MONOTONIC that fires once each time it is armed.
public final class Timer: Source {
    /// Fires at a point of CLOCK_MONOTONIC, in nanoseconds; a point in the past fires at once.
    public func arm(at monotonicNanoseconds: UInt64) {
        guard let raw = unsafe raw else { return }
        _ = unsafe sd_event_source_set_time(raw, Timer.microseconds(monotonicNanoseconds))
        _ = unsafe sd_event_source_set_enabled(raw, CInt(SD_EVENT_ONESHOT))
    }

    /// Fires after a time in nanoseconds.
    public func arm(after nanoseconds: UInt64) { arm(at: Timer.point(after: nanoseconds)) }

    /// Does not fire until it is armed again.
    public func disarm() { setEnabled(false) }

    /// Rounded up, so that a timer never fires early.
    nonisolated static func microseconds(_ nanoseconds: UInt64) -> UInt64 {
        nanoseconds / 1000 + (nanoseconds % 1000 == 0 ? 0 : 1)
    }

    nonisolated static func point(after nanoseconds: UInt64) -> UInt64 {
        let (sum, overflow) = MonotonicClock.nowNanoseconds.addingReportingOverflow(nanoseconds)
        return overflow ? .max : sum
    }
}

// MARK: - Adding sources

extension EventLoop {
    /// Calls `handler` when a condition of `fd` holds.
    ///
    /// The source has a descriptor of its own for the same open file, because epoll goes on
    /// reporting a file that was closed before it was unregistered while any process has it, and
    /// sd-event then aborts. So a connection is closed when both the descriptor and the source are.
    ///
    /// Without any event only hang-up and error are reported. Throws EPERM for a file that cannot
    /// be polled (a regular file, a memory file).
    @Control
    public func watch(
        _ fd: borrowing OwnedFD, _ events: Events, priority: Priority = .normal,
        _ handler: @escaping @Control (Events) -> Void
    ) throws(SystemCallError) -> DescriptorSource {
        let source = DescriptorSource { trigger in
            if case .io(let events) = trigger { handler(events) }
        }
        var raw: OpaquePointer?
        let own = try fd.duplicate()
        try checked(
            "sd_event_add_io",
            unsafe sd_event_add_io(
                event, &raw, own.raw, events.rawValue,
                { _, _, events, userdata in
                    Control.assumeIsolated {
                        unsafe Source.from(userdata)?.fire(.io(Events(rawValue: events)))
                    }
                    return 0
                }, source.userdata))
        unsafe sd_event_source_set_io_fd_own(raw, 1)
        _ = own.release()
        try unsafe source.attach(raw, priority)
        return source
    }

    /// A timer that is not armed yet.
    @Control
    public func timer(
        priority: Priority = .normal, _ handler: @escaping @Control () -> Void
    ) throws(SystemCallError) -> Timer {
        let source = Timer { _ in handler() }
        var raw: OpaquePointer?
        // An accuracy of 1 µs: the default of 250 ms would let timers coalesce.
        try checked(
            "sd_event_add_time",
            unsafe sd_event_add_time(
                event, &raw, CLOCK_MONOTONIC, UInt64.max, 1,
                { _, _, userdata in
                    Control.assumeIsolated { unsafe Source.from(userdata)?.fireOnce(.plain) }
                    return 0
                }, source.userdata))
        try unsafe source.attach(raw, priority)
        source.disarm()
        return source
    }

    /// A timer that fires at a point of CLOCK_MONOTONIC, in nanoseconds.
    @Control
    public func at(
        _ monotonicNanoseconds: UInt64, priority: Priority = .normal,
        _ handler: @escaping @Control () -> Void
    ) throws(SystemCallError) -> Timer {
        let timer = try timer(priority: priority, handler)
        timer.arm(at: monotonicNanoseconds)
        return timer
    }

    /// A timer that fires after a time in nanoseconds.
    @Control
    public func after(
        nanoseconds: UInt64, priority: Priority = .normal,
        _ handler: @escaping @Control () -> Void
    ) throws(SystemCallError) -> Timer {
        try at(Timer.point(after: nanoseconds), priority: priority, handler)
    }

    /// Takes a signal off the process (it is blocked in this thread) and calls `handler` for it.
    @Control
    public func onSignal(
        _ signal: Int32, priority: Priority = .normal, _ handler: @escaping @Control () -> Void
    ) throws(SystemCallError) -> Source {
        try Self.block(signal)
        let source = Source { _ in handler() }
        var raw: OpaquePointer?
        try checked(
            "sd_event_add_signal \(signal)",
            unsafe sd_event_add_signal(
                event, &raw, signal,
                { _, _, userdata in
                    Control.assumeIsolated { unsafe Source.from(userdata)?.fire(.plain) }
                    return 0
                }, source.userdata))
        try unsafe source.attach(raw, priority)
        return source
    }

    /// Calls `handler` once when the child behind `pidfd` has ended, and reaps it.
    @Control
    public func onChild(
        _ pidfd: borrowing OwnedFD, priority: Priority = .normal,
        _ handler: @escaping @Control (ChildExit) -> Void
    ) throws(SystemCallError) -> Source {
        let source = Source { trigger in
            if case .child(let exit) = trigger { handler(exit) }
        }
        var raw: OpaquePointer?
        let own = try pidfd.duplicate()
        try checked(
            "sd_event_add_child_pidfd",
            unsafe sd_event_add_child_pidfd(
                event, &raw, own.raw, Int32(WEXITED),
                { _, info, userdata in
                    let exit = unsafe info.map { unsafe ChildExit($0.pointee) } ?? .exited(code: 0)
                    Control.assumeIsolated { unsafe Source.from(userdata)?.fireOnce(.child(exit)) }
                    return 0
                }, source.userdata))
        unsafe sd_event_source_set_child_pidfd_own(raw, 1)
        _ = own.release()
        try unsafe source.attach(raw, priority)
        return source
    }

    /// Calls `handler` once, in the next turn of the loop.
    @Control
    public func `defer`(
        priority: Priority = .normal, _ handler: @escaping @Control () -> Void
    ) throws(SystemCallError) -> Source {
        let source = Source { _ in handler() }
        var raw: OpaquePointer?
        try checked(
            "sd_event_add_defer",
            unsafe sd_event_add_defer(
                event, &raw,
                { _, userdata in
                    Control.assumeIsolated { unsafe Source.from(userdata)?.fireOnce(.plain) }
                    return 0
                }, source.userdata))
        try unsafe source.attach(raw, priority)
        return source
    }

    /// Calls `handler` after each turn in which another source was served.
    @Control
    public func post(
        _ handler: @escaping @Control () -> Void
    ) throws(SystemCallError) -> Source {
        let source = Source { _ in handler() }
        var raw: OpaquePointer?
        try checked(
            "sd_event_add_post",
            unsafe sd_event_add_post(
                event, &raw,
                { _, userdata in
                    Control.assumeIsolated { unsafe Source.from(userdata)?.fire(.plain) }
                    return 0
                }, source.userdata))
        try unsafe source.attach(raw, .normal)
        return source
    }
}

extension ChildExit {
    fileprivate init(_ info: siginfo_t) {
        // CLD_EXITED; everything else that ends a process is a signal.
        let status = unsafe info._sifields._sigchld.si_status
        self = unsafe info.si_code == 1 ? .exited(code: status) : .signalled(status)
    }
}
