// SPDX-License-Identifier: Apache-2.0
// Where the service is in servicing: one table, state × event, every cell decided.

internal import Wire

/// The course of a save and of a restore, as a value that knows nothing of devices or files.
///
/// Each cell names the next state and, in capitals, what the owner has to do: GATHER (freeze all
/// devices and have their states told), WRITE (the file beside its place), COMMIT (put it into its
/// place), END (end the workers that are saved), THAW (have all devices go on), RESTORE (take the
/// saved devices up). Or it refuses: BUSY (something is under way), LATE (it is durable), SAVED (it
/// was done), NOTHING (there is nothing of the kind). A dot: nothing changes, nothing is done.
///
/// Columns: S save, C cancel, R restore.
///
/// | state      | S                | C            | R                 |
/// |------------|------------------|--------------|-------------------|
/// | idle       | gathering GATHER | NOTHING      | restoring RESTORE |
/// | gathering  | BUSY             | thawing THAW | BUSY              |
/// | writing    | BUSY             | thawing THAW | BUSY              |
/// | committing | BUSY             | LATE         | BUSY              |
/// | thawing    | BUSY             | ·            | BUSY              |
/// | ending     | BUSY             | LATE         | BUSY              |
/// | saved      | SAVED            | LATE         | restoring RESTORE |
/// | restoring  | BUSY             | NOTHING      | BUSY              |
///
/// | state      | gathered      | written           | durable    | failed       | thawed |
/// |------------|---------------|-------------------|------------|--------------|--------|
/// | idle       | ·             | ·                 | ·          | ·            | ·      |
/// | gathering  | writing WRITE | ·                 | ·          | thawing THAW | ·      |
/// | writing    | ·             | committing COMMIT | ·          | thawing THAW | ·      |
/// | committing | ·             | ·                 | ending END | thawing THAW | ·      |
/// | thawing    | ·             | ·                 | ·          | ·            | idle   |
/// | ending     | ·             | ·                 | ·          | idle         | ·      |
/// | saved      | ·             | ·                 | ·          | ·            | ·      |
/// | restoring  | ·             | ·                 | ·          | idle         | ·      |
///
/// Besides, `ended` takes `ending` to `saved`, and `settled` takes `restoring` to `idle`; in every
/// other state they do nothing.
///
/// The commit point is inside `committing`: whoever finds the file afterwards may restore from it.
/// A failure there (the directory could not be synchronised) leaves that open, and is safe because
/// THAW destroys the tokens in the pools, without which no section of the file is good for
/// anything.
struct ServicingMachine: Sendable, Equatable {
    /// Where the service is.
    enum State: Sendable, CaseIterable {
        case idle, gathering, writing, committing, thawing, ending, saved, restoring
    }

    /// What happens.
    enum Event: Sendable, CaseIterable {
        /// An operator wants a save.
        case save
        /// An operator gives the save up.
        case cancel
        /// There is saved state to take up, or an operator wants that.
        case restore
        /// Every device has told its state, or is left out.
        case gathered
        /// The file is written beside its place.
        case written
        /// The file is in its place.
        case durable
        /// It cannot go on.
        case failed
        /// All devices go on.
        case thawed
        /// The workers that are saved have ended.
        case ended
        /// Every saved device is dealt with.
        case settled
    }

    /// What the owner has to do.
    enum Action: Sendable, Equatable {
        case none, gather, write, commit, end, thaw, restore
        case refuse(Refusal)
    }

    /// Why something is not done.
    enum Refusal: Sendable, Equatable { case busy, late, saved, nothing }

    /// Where the service is.
    private(set) var state = State.idle

    /// Applies an event; the answer is what has to be done now.
    mutating func handle(_ event: Event) -> Action {
        let (next, action) = Self.cell(state, event)
        state = next
        return action
    }

    /// The state as the protocol tells it.
    var told: ServicingPhase {
        switch state {
        case .idle: .idle
        case .gathering, .writing, .committing, .thawing: .saving
        case .ending, .saved: .saved
        case .restoring: .restoring
        }
    }

    /// Whether devices are being frozen, or are.
    var holdsDevices: Bool {
        switch state {
        case .gathering, .writing, .committing, .thawing, .ending: true
        case .idle, .saved, .restoring: false
        }
    }
}

// MARK: - The table

extension ServicingMachine {
    private static func cell(_ state: State, _ event: Event) -> (State, Action) {
        switch event {
        case .save: save(state)
        case .cancel: cancel(state)
        case .restore: restore(state)
        case .failed: failed(state)
        case .gathered: state == .gathering ? (.writing, .write) : (state, .none)
        case .written: state == .writing ? (.committing, .commit) : (state, .none)
        case .durable: state == .committing ? (.ending, .end) : (state, .none)
        case .thawed: state == .thawing ? (.idle, .none) : (state, .none)
        case .ended: state == .ending ? (.saved, .none) : (state, .none)
        case .settled: state == .restoring ? (.idle, .none) : (state, .none)
        }
    }

    private static func save(_ state: State) -> (State, Action) {
        switch state {
        case .idle: (.gathering, .gather)
        case .saved: (.saved, .refuse(.saved))
        case .gathering, .writing, .committing, .thawing, .ending, .restoring:
            (state, .refuse(.busy))
        }
    }

    private static func cancel(_ state: State) -> (State, Action) {
        switch state {
        case .gathering, .writing: (.thawing, .thaw)
        case .thawing: (.thawing, .none)
        case .committing, .ending, .saved: (state, .refuse(.late))
        case .idle, .restoring: (state, .refuse(.nothing))
        }
    }

    private static func restore(_ state: State) -> (State, Action) {
        switch state {
        case .idle, .saved: (.restoring, .restore)
        case .gathering, .writing, .committing, .thawing, .ending, .restoring:
            (state, .refuse(.busy))
        }
    }

    private static func failed(_ state: State) -> (State, Action) {
        switch state {
        case .gathering, .writing, .committing: (.thawing, .thaw)
        case .ending, .restoring: (.idle, .none)
        case .idle, .thawing, .saved: (state, .none)
        }
    }
}
