// SPDX-License-Identifier: Apache-2.0
// One operation at a time, in the order of arrival.

internal import Linux
internal import Systemd
internal import Wire

/// Serialises the operations on one device.
@Control
final class Turn {
    private var isTaken = false
    private var waiting: [OneShot<Void>] = []
    private var head = 0
    private let what: String

    /// Names what is waited for.
    init(_ what: String) { self.what = what }

    /// How many wait.
    var waitingCount: Int { waiting.count - head }

    /// Runs `body` when everybody who came before is done.
    ///
    /// Throws `deadlineExceeded` or `cancelled` while it waits; `body` sees to its own deadline.
    func run<Value: Sendable>(
        deadlineNanoseconds: UInt64,
        _ body: @Control () async throws(WireError) -> Value
    ) async throws(WireError) -> Value {
        try await take(deadlineNanoseconds)
        defer { pass() }
        return try await body()
    }

    private func take(_ deadlineNanoseconds: UInt64) async throws(WireError) {
        guard isTaken else {
            isTaken = true
            return
        }
        guard waitingCount < SupervisorLimits.waitersPerDevice else {
            throw WireError(.resourceExhausted, "\(what): too many requests wait already")
        }
        let mine = OneShot<Void>()
        waiting.append(mine)
        try await mine.wait(until: deadlineNanoseconds, what)
    }

    private func pass() {
        while head < waiting.count {
            let next = waiting[head]
            head += 1
            // Those who gave up have finished already.
            if next.isFinished { continue }
            next.succeed(())
            compact()
            return
        }
        compact()
        isTaken = false
    }

    private func compact() {
        guard head * 2 >= waiting.count else { return }
        waiting.removeFirst(head)
        head = 0
    }
}

extension OneShot {
    /// Waits until a point of CLOCK_MONOTONIC; the errors are those of the protocol.
    func wait(until deadlineNanoseconds: UInt64, _ what: String) async throws(WireError) -> Value {
        var timer: Timer?
        do {
            timer = try EventLoop.current.at(deadlineNanoseconds) {
                self.fail(DeadlineExceeded(what))
            }
            defer { timer?.cancel() }
            return try await value()
        } catch {
            throw WireError(waiting: error, for: what)
        }
    }
}

extension WireError {
    /// Says in the words of the protocol why waiting for something ended.
    init(waiting error: any Error, for what: String) {
        switch error {
        case let error as WireError: self = error
        case is CancellationError: self.init(.cancelled, "\(what): nobody waits for it any more")
        case is DeadlineExceeded:
            self.init(.deadlineExceeded, "\(what): the deadline passed")
        default: self.init(.internalError, "\(what): \(error)")
        }
    }
}
