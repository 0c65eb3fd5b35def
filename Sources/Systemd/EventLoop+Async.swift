// SPDX-License-Identifier: Apache-2.0
// Awaiting on the event loop: points in time, descriptors, and deadlines over any operation.

public import Linux

/// A deadline that passed.
public struct DeadlineExceeded: Error, Sendable, Equatable, CustomStringConvertible {
    /// What was waited for.
    public let what: String
    /// Names what was waited for.
    public init(_ what: String) { self.what = what }
    /// Says what took too long.
    public var description: String { "\(what): the deadline passed" }
}

/// A value that arrives once, whoever is first: the event, the timer, or the cancellation.
@Control
public final class OneShot<Value: Sendable> {
    private var continuation: CheckedContinuation<Value, any Error>?
    private var result: Result<Value, any Error>?
    private var waits = false

    /// Nothing has arrived.
    public nonisolated init() {}

    /// Whether the value, or an error, has arrived.
    public var isFinished: Bool { result != nil }

    /// Delivers the value or the error; only the first call counts.
    public func finish(_ result: Result<Value, any Error>) {
        guard self.result == nil else { return }
        self.result = result
        continuation?.resume(with: result)
        continuation = nil
    }

    /// Delivers the value; only the first call counts.
    public func succeed(_ value: Value) { finish(.success(value)) }

    /// Delivers an error; only the first call counts.
    public func fail(_ error: any Error) { finish(.failure(error)) }

    /// Waits for the value. Throws what `fail` was given, or CancellationError when the waiting
    /// task is cancelled. One task may wait, once.
    public func value() async throws -> Value {
        precondition(!waits, "a OneShot has one reader")
        waits = true
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                if let result { return continuation.resume(with: result) }
                self.continuation = continuation
                if Task.isCancelled { fail(CancellationError()) }
            }
        } onCancel: {
            EventLoop.current.perform { self.fail(CancellationError()) }
        }
    }
}

extension EventLoop {
    /// Waits until a point of CLOCK_MONOTONIC, in nanoseconds; throws when the task is cancelled.
    @Control
    public func sleep(until monotonicNanoseconds: UInt64) async throws {
        let done = OneShot<Void>()
        let timer = try at(monotonicNanoseconds) { done.succeed(()) }
        defer { timer.cancel() }
        try await done.value()
    }

    /// Waits for a time in nanoseconds; throws when the task is cancelled.
    @Control
    public func sleep(nanoseconds: UInt64) async throws {
        try await sleep(until: Timer.point(after: nanoseconds))
    }

    /// Waits until a condition of `fd` holds and returns those that do; hang-up and error always
    /// count. The descriptor must stay open meanwhile.
    @Control
    public func ready(_ fd: borrowing OwnedFD, for events: Events) async throws -> Events {
        let done = OneShot<Events>()
        let source = try watch(fd, events) { done.succeed($0) }
        defer { source.cancel() }
        return try await done.value()
    }

    /// Waits until something can be read from `fd`, or its peer is gone.
    @Control
    public func readable(_ fd: borrowing OwnedFD) async throws {
        _ = try await ready(fd, for: .readable)
    }

    /// Runs `operation` with a deadline on CLOCK_MONOTONIC, in nanoseconds.
    ///
    /// Throws ``DeadlineExceeded`` the moment the deadline passes, even when the operation does
    /// not heed its cancellation; such an operation then ends by itself, its result ignored.
    @Control
    public func withDeadline<Value: Sendable>(
        _ monotonicNanoseconds: UInt64, _ what: String,
        _ operation: @escaping @Control () async throws -> Value
    ) async throws -> Value {
        let outcome = OneShot<Value>()
        let work = task {
            do {
                outcome.succeed(try await operation())
            } catch {
                outcome.fail(error)
            }
        }
        let timer = try at(monotonicNanoseconds) { outcome.fail(DeadlineExceeded(what)) }
        defer {
            timer.cancel()
            work.cancel()
        }
        return try await outcome.value()
    }

    /// Runs `operation` for at most a time in nanoseconds. See ``withDeadline(_:_:_:)``.
    @Control
    public func withTimeout<Value: Sendable>(
        nanoseconds: UInt64, _ what: String,
        _ operation: @escaping @Control () async throws -> Value
    ) async throws -> Value {
        try await withDeadline(Timer.point(after: nanoseconds), what, operation)
    }
}
