// SPDX-License-Identifier: Apache-2.0
// Where a device is in its life: one table, state × event, every cell decided.

internal import Wire

/// The life of one device, as a value that knows nothing of processes or sockets.
///
/// Each cell names the next state and, in capitals, what the owner has to do: LOAD (connect to the
/// worker, which starts it, and bring the device up), LATER (LOAD when the back-off is over), STOP
/// (orderly end of the worker). A dot: nothing changes, nothing is done.
///
/// Columns: W wanted, R retry, F failed, L workerLost, O backOffOver.
///
/// | state      | W        | R        | F        | L          | O        |
/// |------------|----------|----------|----------|------------|----------|
/// | absent     | starting LOAD | starting LOAD | · | ·        | ·        |
/// | starting   | ·        | ·        | retrying LATER | retrying LATER | · |
/// | ready      | ·        | ·        | retrying LATER | recovering LOAD | · |
/// | draining   | ·        | ·        | ·        | ·          | ·        |
/// | recovering | ·        | · LOAD   | retrying LATER | recovering LATER | · LOAD |
/// | retrying   | ·        | starting LOAD | ·   | ·          | starting LOAD |
/// | failed     | starting LOAD | starting LOAD | · | ·        | ·        |
/// | removed    | ·        | starting LOAD | ·   | ·          | ·        |
///
/// | state      | loaded | stalled    | gone    | stop          | stopped |
/// |------------|--------|------------|---------|---------------|---------|
/// | absent     | ready  | ·          | removed | ·             | ·       |
/// | starting   | ready  | ·          | removed | draining STOP | absent  |
/// | ready      | ·      | recovering | removed | draining STOP | absent  |
/// | draining   | ·      | ·          | ·       | ·             | absent  |
/// | recovering | ready  | ·          | removed | draining STOP | absent  |
/// | retrying   | ready  | ·          | removed | draining STOP | absent  |
/// | failed     | ready  | ·          | removed | draining STOP | absent  |
/// | removed    | ready  | ·          | ·       | draining STOP | absent  |
///
/// LATER counts an attempt; after ``attemptsMax`` of them nothing is tried by itself any more: the
/// state becomes `failed`, and the next one who wants the device causes one attempt. Retry by the
/// operator and success begin the count anew. The back-off doubles from
/// ``backOffFirstNanoseconds`` up to ``backOffLastNanoseconds``.
///
/// `retrying` and `failed` are both told as FAILED: whoever wants the device meanwhile gets the
/// reason at once, but waits for one that was in service before and is being retried.
struct DeviceLifecycle: Sendable, Equatable {
    /// Where the device is.
    enum State: Sendable, CaseIterable {
        case absent, starting, ready, draining, recovering, retrying, failed, removed
    }

    /// What happens to it.
    enum Event: Sendable, CaseIterable {
        /// A client needs the device.
        case wanted
        /// The operator wants another attempt now.
        case retry
        /// The worker says that I/O flows.
        case loaded
        /// It could not be brought up, or the worker gave it up.
        case failed
        /// The connection to the worker ended.
        case workerLost
        /// The worker restores the controller; the connection lives.
        case stalled
        /// The hardware is gone.
        case gone
        /// The back-off is over.
        case backOffOver
        /// The worker is to end in order.
        case stop
        /// The worker has ended after STOP.
        case stopped
    }

    /// What the owner has to do.
    enum Action: Sendable, Equatable {
        case none
        case load
        /// Load after this time; any other action before cancels it.
        case loadLater(afterNanoseconds: UInt64)
        case stop
    }

    private enum Deed { case nothing, load, later, stop }

    /// How often a device is tried without success before it waits to be wanted.
    static let attemptsMax: UInt32 = 10
    /// The first back-off: long enough for a controller that is being reset by somebody else.
    static let backOffFirstNanoseconds: UInt64 = 100_000_000
    /// The longest back-off: what an operator is ready to wait after a repair.
    static let backOffLastNanoseconds: UInt64 = 30_000_000_000

    /// Where the device is.
    private(set) var state = State.absent
    /// Why; empty when there is nothing to say.
    private(set) var reason = ""
    /// When it entered the state: CLOCK_MONOTONIC nanoseconds.
    private(set) var sinceNanoseconds: UInt64
    /// Attempts without success since the last success.
    private(set) var attempts: UInt32 = 0

    /// A device that was never started.
    init(nowNanoseconds: UInt64) { sinceNanoseconds = nowNanoseconds }

    /// Applies an event; the answer is what has to be done now.
    mutating func handle(
        _ event: Event, reason: String = "", nowNanoseconds: UInt64
    ) -> Action {
        var (next, deed) = Self.cell(state, event)
        if event == .retry, deed == .load { attempts = 0 }
        if next == .ready { attempts = 0 }
        if deed == .later {
            attempts &+= 1
            if attempts >= Self.attemptsMax { (next, deed) = (.failed, .nothing) }
        }
        // A later failure may know more about the reason.
        let tellsMore = event == .failed && (state == .retrying || state == .failed)
        if next != state || deed != .nothing || event == .loaded || tellsMore {
            if next != state { sinceNanoseconds = nowNanoseconds }
            self.reason = next == .ready ? "" : (reason.isEmpty ? self.reason : reason)
            state = next
        }
        switch deed {
        case .nothing: return .none
        case .load: return .load
        case .later: return .loadLater(afterNanoseconds: Self.backOff(attempts))
        case .stop: return .stop
        }
    }

    /// The back-off before attempt `attempts` + 1.
    static func backOff(_ attempts: UInt32) -> UInt64 {
        let shift = min(attempts > 0 ? attempts - 1 : 0, 20)
        return min(backOffFirstNanoseconds << UInt64(shift), backOffLastNanoseconds)
    }

    /// The state as the protocols tell it.
    var told: DeviceState {
        switch state {
        case .absent: .absent
        case .starting: .starting
        case .ready: .ready
        case .draining: .draining
        case .recovering: .recovering
        case .retrying, .failed: .failed
        case .removed: .removed
        }
    }
}

// MARK: - The table

extension DeviceLifecycle {
    private static func cell(_ state: State, _ event: Event) -> (State, Deed) {
        switch state {
        case .absent: absent(event)
        case .starting: starting(event)
        case .ready: ready(event)
        case .draining: draining(event)
        case .recovering: recovering(event)
        case .retrying: retrying(event)
        case .failed: failed(event)
        case .removed: removed(event)
        }
    }

    private static func absent(_ event: Event) -> (State, Deed) {
        switch event {
        case .wanted, .retry: (.starting, .load)
        case .loaded: (.ready, .nothing)
        case .gone: (.removed, .nothing)
        case .failed, .workerLost, .stalled, .backOffOver, .stop, .stopped: (.absent, .nothing)
        }
    }

    private static func starting(_ event: Event) -> (State, Deed) {
        switch event {
        case .loaded: (.ready, .nothing)
        case .failed, .workerLost: (.retrying, .later)
        case .gone: (.removed, .nothing)
        case .stop: (.draining, .stop)
        case .stopped: (.absent, .nothing)
        case .wanted, .retry, .stalled, .backOffOver: (.starting, .nothing)
        }
    }

    private static func ready(_ event: Event) -> (State, Deed) {
        switch event {
        case .failed: (.retrying, .later)
        case .workerLost: (.recovering, .load)
        case .stalled: (.recovering, .nothing)
        case .gone: (.removed, .nothing)
        case .stop: (.draining, .stop)
        case .stopped: (.absent, .nothing)
        case .wanted, .retry, .loaded, .backOffOver: (.ready, .nothing)
        }
    }

    private static func draining(_ event: Event) -> (State, Deed) {
        switch event {
        case .stopped: (.absent, .nothing)
        case .wanted, .retry, .loaded, .failed, .workerLost, .stalled, .gone, .backOffOver, .stop:
            (.draining, .nothing)
        }
    }

    private static func recovering(_ event: Event) -> (State, Deed) {
        switch event {
        case .retry, .backOffOver: (.recovering, .load)
        case .loaded: (.ready, .nothing)
        case .failed: (.retrying, .later)
        case .workerLost: (.recovering, .later)
        case .gone: (.removed, .nothing)
        case .stop: (.draining, .stop)
        case .stopped: (.absent, .nothing)
        case .wanted, .stalled: (.recovering, .nothing)
        }
    }

    private static func retrying(_ event: Event) -> (State, Deed) {
        switch event {
        case .retry, .backOffOver: (.starting, .load)
        case .loaded: (.ready, .nothing)
        case .gone: (.removed, .nothing)
        case .stop: (.draining, .stop)
        case .stopped: (.absent, .nothing)
        case .wanted, .failed, .workerLost, .stalled: (.retrying, .nothing)
        }
    }

    private static func failed(_ event: Event) -> (State, Deed) {
        switch event {
        case .wanted, .retry: (.starting, .load)
        case .loaded: (.ready, .nothing)
        case .gone: (.removed, .nothing)
        case .stop: (.draining, .stop)
        case .stopped: (.absent, .nothing)
        case .failed, .workerLost, .stalled, .backOffOver: (.failed, .nothing)
        }
    }

    private static func removed(_ event: Event) -> (State, Deed) {
        switch event {
        case .retry: (.starting, .load)
        case .loaded: (.ready, .nothing)
        case .stop: (.draining, .stop)
        case .stopped: (.absent, .nothing)
        case .wanted, .failed, .workerLost, .stalled, .gone, .backOffOver: (.removed, .nothing)
        }
    }
}
