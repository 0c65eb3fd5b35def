// SPDX-License-Identifier: Apache-2.0
// The life of a device in its worker: one table, state × event, every cell decided.

internal import Wire

/// Where a device is in its life.
enum LifecycleState: Sendable, CaseIterable {
    case absent, starting, ready, draining, recovering, failed, removed

    /// The state as the wire has it.
    var onWire: DeviceState {
        switch self {
        case .absent: .absent
        case .starting: .starting
        case .ready: .ready
        case .draining: .draining
        case .recovering: .recovering
        case .failed: .failed
        case .removed: .removed
        }
    }
}

/// What can happen to a device.
enum LifecycleEvent: Sendable, CaseIterable {
    /// The supervisor asks for it (`LoadDriver`).
    case load
    /// A predecessor had it, and this worker takes over.
    case recover
    /// Bring-up succeeded.
    case started
    /// Bring-up failed.
    case startFailed
    /// The device broke a rule, failed, or does not answer.
    case fault
    /// The hardware was taken away: its registers read as all ones. (The end of a vfio-user server
    /// is a `fault`: it may come back.)
    case remove
    /// The worker is asked to leave.
    case drain
    /// Nothing is in flight any more, and the controller was left or shut down.
    case drained
}

/// What a cell of the table says.
enum LifecycleStep: Sendable, Equatable {
    /// Go there.
    case enter(LifecycleState)
    /// Nothing changes.
    case stay
    /// Cannot be done in this state.
    case refuse
}

/// The table.
///
/// |state     |load    |recover   |started|startFailed|fault |remove |drain   |drained|
/// |----------|--------|----------|-------|-----------|------|-------|--------|-------|
/// |absent    |starting|recovering|refuse |refuse     |stay  |removed|draining|refuse |
/// |starting  |stay    |refuse    |ready  |failed     |failed|removed|draining|refuse |
/// |ready     |stay    |refuse    |refuse |refuse     |failed|removed|draining|refuse |
/// |draining  |refuse  |refuse    |refuse |refuse     |failed|removed|stay    |absent |
/// |recovering|stay    |refuse    |ready  |failed     |failed|removed|draining|refuse |
/// |failed    |starting|recovering|refuse |refuse     |stay  |removed|draining|refuse |
/// |removed   |starting|refuse    |refuse |refuse     |stay  |stay   |draining|refuse |
///
/// `refuse` for an event that the service itself raises is a mistake of the program; it is logged
/// and changes nothing.
struct Lifecycle: Sendable {
    /// Where the device is.
    private(set) var state = LifecycleState.absent
    /// Why it is there.
    private(set) var reason = ""
    /// When it got there, CLOCK_MONOTONIC.
    private(set) var sinceNanoseconds: UInt64
    /// Bring-ups without success since the last success.
    private(set) var attempts: UInt32 = 0

    init(nowNanoseconds: UInt64) { sinceNanoseconds = nowNanoseconds }

    /// The cell for a state and an event.
    static func step(_ state: LifecycleState, _ event: LifecycleEvent) -> LifecycleStep {
        switch (state, event) {
        case (.absent, .load), (.failed, .load), (.removed, .load): .enter(.starting)
        case (.starting, .load), (.ready, .load), (.recovering, .load): .stay
        case (.draining, .load): .refuse
        case (.absent, .recover), (.failed, .recover): .enter(.recovering)
        case (.starting, .recover), (.ready, .recover), (.draining, .recover),
            (.recovering, .recover), (.removed, .recover):
            .refuse
        case (.starting, .started), (.recovering, .started): .enter(.ready)
        case (.absent, .started), (.ready, .started), (.draining, .started), (.failed, .started),
            (.removed, .started):
            .refuse
        case (.starting, .startFailed), (.recovering, .startFailed): .enter(.failed)
        case (.absent, .startFailed), (.ready, .startFailed), (.draining, .startFailed),
            (.failed, .startFailed), (.removed, .startFailed):
            .refuse
        case (.starting, .fault), (.ready, .fault), (.draining, .fault), (.recovering, .fault):
            .enter(.failed)
        case (.absent, .fault), (.failed, .fault), (.removed, .fault): .stay
        case (.absent, .remove), (.starting, .remove), (.ready, .remove), (.draining, .remove),
            (.recovering, .remove), (.failed, .remove):
            .enter(.removed)
        case (.removed, .remove): .stay
        case (.absent, .drain), (.starting, .drain), (.ready, .drain), (.recovering, .drain),
            (.failed, .drain), (.removed, .drain):
            .enter(.draining)
        case (.draining, .drain): .stay
        case (.draining, .drained): .enter(.absent)
        case (.absent, .drained), (.starting, .drained), (.ready, .drained),
            (.recovering, .drained), (.failed, .drained), (.removed, .drained):
            .refuse
        }
    }

    /// Does what the table says, and tells what that was.
    mutating func handle(
        _ event: LifecycleEvent, reason: String, nowNanoseconds: UInt64
    ) -> LifecycleStep {
        let step = Self.step(state, event)
        guard case .enter(let next) = step else { return step }
        state = next
        self.reason = reason
        sinceNanoseconds = nowNanoseconds
        switch event {
        case .load, .recover: attempts = attempts < .max ? attempts + 1 : attempts
        case .started: attempts = 0
        case .startFailed, .fault, .remove, .drain, .drained: break
        }
        return step
    }
}
