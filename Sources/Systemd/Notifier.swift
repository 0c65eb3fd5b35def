// SPDX-License-Identifier: Apache-2.0
// What a service tells its manager (sd_notify(3), systemd 252).

internal import CSystemd
internal import Glibc
public import Linux

/// Messages of a service to its manager, through the socket that NOTIFY_SOCKET names.
///
/// Every function returns whether there was a manager to tell: without NOTIFY_SOCKET they do
/// nothing and return false. A call blocks while the manager's queue is full, as with systemd.
public struct Notifier: Sendable {
    /// The most bytes of a status text that are sent; managers drop messages above 4 KiB.
    public static let statusByteCountMax = 1024

    /// Uses the environment of the process.
    public init() {}

    /// Whether this process has a manager that listens.
    public var hasManager: Bool { Environment.value("NOTIFY_SOCKET") != nil }

    /// READY=1: start-up is complete.
    @discardableResult
    public func ready(status: String? = nil) throws(SystemCallError) -> Bool {
        guard let status else { return try send("READY=1") }
        return try send("READY=1\nSTATUS=\(Self.line(status))")
    }

    /// STATUS=: one line for the operator.
    @discardableResult
    public func status(_ text: String) throws(SystemCallError) -> Bool {
        try send("STATUS=\(Self.line(text))")
    }

    /// STOPPING=1: the orderly end has begun.
    @discardableResult
    public func stopping() throws(SystemCallError) -> Bool { try send("STOPPING=1") }

    /// WATCHDOG=1: still well.
    @discardableResult
    public func watchdog() throws(SystemCallError) -> Bool { try send("WATCHDOG=1") }

    /// WATCHDOG=trigger: not well; the manager ends this process as if the watchdog had run out.
    @discardableResult
    public func triggerWatchdog() throws(SystemCallError) -> Bool {
        try send("WATCHDOG=trigger")
    }

    /// MAINPID=: another process is the service from now on.
    @discardableResult
    public func mainPID(_ pid: Int32) throws(SystemCallError) -> Bool {
        try send("MAINPID=\(pid)")
    }

    /// How often the manager expects ``watchdog()`` in nanoseconds, nil when it does not. Ping at
    /// half of it.
    public var watchdogInterval: UInt64? {
        var microseconds: UInt64 = 0
        guard unsafe sd_watchdog_enabled(0, &microseconds) > 0 else { return nil }
        return microseconds.multipliedReportingOverflow(by: 1000).partialValue
    }

    /// Waits until the manager has processed everything sent so far. Blocks the thread; on the
    /// loop use the asynchronous one. Throws ETIMEDOUT.
    @discardableResult
    public func barrier(timeoutMicroseconds: UInt64) throws(SystemCallError) -> Bool {
        try checked("sd_notify_barrier", sd_notify_barrier(0, timeoutMicroseconds)) > 0
    }

    /// Waits on the loop until the manager has processed everything sent so far.
    @Control
    @discardableResult
    public func barrier(timeoutNanoseconds: UInt64) async throws -> Bool {
        guard let ours = try sendBarrier() else { return false }
        // The manager closes its copy of the writing end when it gets to the message.
        let loop = EventLoop.current
        let processed = OneShot<Void>()
        let source = try loop.watch(ours, []) { _ in processed.succeed(()) }
        let timer = try loop.after(nanoseconds: timeoutNanoseconds) {
            processed.fail(SystemCallError("notify barrier", errno: ETIMEDOUT))
        }
        defer {
            source.cancel()
            timer.cancel()
        }
        try await processed.value()
        return true
    }

    /// The end that hangs up when the manager has closed the other one; nil without a manager.
    private func sendBarrier() throws(SystemCallError) -> OwnedFD? {
        let pair = try UnixSocket.pair()
        guard try send("BARRIER=1", fds: [pair.second.raw]) else { return nil }
        return pair.first
    }

    /// Sends any assignments, one a line, with descriptors.
    @discardableResult
    func send(_ text: String, fds: [CInt] = []) throws(SystemCallError) -> Bool {
        let result = unsafe sd_pid_notify_with_fds(0, 0, text, fds, UInt32(clamping: fds.count))
        return try checked("sd_notify \(text.prefix(40))", result) > 0
    }

    /// A text as one line of bounded length.
    static func line(_ text: String) -> String {
        let clean = text.utf8.prefix(statusByteCountMax).map { $0 < 0x20 || $0 == 0x7f ? 0x20 : $0 }
        return String(decoding: clean, as: UTF8.self)
    }
}

extension EventLoop {
    /// Pings the manager's watchdog at half its interval for as long as `isHealthy` says so.
    ///
    /// Returns nil when the manager does not ask for it. Keep the timer.
    @Control
    public func pingWatchdog(
        while isHealthy: @escaping @Control () -> Bool
    ) throws(SystemCallError) -> Timer? {
        let notifier = Notifier()
        guard let interval = notifier.watchdogInterval else { return nil }
        let pinger = WatchdogPinger()
        let timer = try timer(priority: .high) {
            // A lost ping is repeated half an interval later; a sick service stays silent.
            if isHealthy() { _ = try? notifier.watchdog() }
            pinger.timer?.arm(after: interval / 2)
        }
        pinger.timer = timer
        timer.arm(after: 0)
        return timer
    }
}

/// The way from a timer's handler back to the timer.
@Control
private final class WatchdogPinger {
    weak var timer: Timer?
}
