// SPDX-License-Identifier: Apache-2.0
// Streams of what happens to a session, for tasks.

internal import Synchronization
internal import Wire

/// Those who listen to a session.
final class EventListeners: Sendable {
    /// The most events kept for a listener that is slow.
    static let eventLimit = 64

    private struct State {
        var last: UInt64 = 0
        var listeners: [UInt64: AsyncStream<SessionEvent>.Continuation] = [:]
        /// The end was told; nothing comes after it.
        var hasEnded = false
        var isOver = false
    }

    private let state = Mutex(State())

    /// A stream from now on; an empty one when the session is over.
    func stream() -> AsyncStream<SessionEvent> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: SessionEvent.self, bufferingPolicy: .bufferingNewest(Self.eventLimit))
        let number: UInt64? = state.withLock { state in
            guard !state.isOver else { return nil }
            state.last &+= 1
            state.listeners[state.last] = continuation
            return state.last
        }
        guard let number else {
            continuation.finish()
            return stream
        }
        continuation.onTermination = { [weak self] _ in self?.remove(number) }
        return stream
    }

    private func remove(_ number: UInt64) {
        // Let go of outside of the lock: its last reference may run code.
        let gone = state.withLock { $0.listeners.removeValue(forKey: number) }
        _ = consume gone
    }

    /// Passes an event on.
    func tell(_ event: SessionEvent) {
        let listeners = state.withLock { state in
            if case .ended = event { state.hasEnded = true }
            return Array(state.listeners.values)
        }
        for listener in listeners { listener.yield(event) }
    }

    /// Ends all streams, with the reason if it was not told.
    func finish(_ reason: WireError) {
        let (listeners, isTold) = state.withLock { state in
            defer {
                state.isOver = true
                state.listeners = [:]
            }
            return (Array(state.listeners.values), state.hasEnded)
        }
        for listener in listeners {
            if !isTold { listener.yield(.ended(reason)) }
            listener.finish()
        }
    }
}
