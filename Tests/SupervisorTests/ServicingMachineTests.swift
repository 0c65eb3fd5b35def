// SPDX-License-Identifier: Apache-2.0
// The table of servicing: every cell as documented, and random walks.

import Testing

@testable import Supervisor

private typealias State = ServicingMachine.State
private typealias Event = ServicingMachine.Event
private typealias Action = ServicingMachine.Action

/// The tables of the doc comment, read back: `next/ACTION`.
private let tables = [
    """
    state      save             cancel       restore           ended settled
    idle       gathering/GATHER ./NOTHING    restoring/RESTORE .     .
    gathering  ./BUSY           thawing/THAW ./BUSY            .     .
    writing    ./BUSY           thawing/THAW ./BUSY            .     .
    committing ./BUSY           ./LATE       ./BUSY            .     .
    thawing    ./BUSY           .            ./BUSY            .     .
    ending     ./BUSY           ./LATE       ./BUSY            saved .
    saved      ./SAVED          ./LATE       restoring/RESTORE .     .
    restoring  ./BUSY           ./NOTHING    ./BUSY            .     idle
    """,
    """
    state      gathered      written           durable    failed       thawed
    idle       .             .                 .          .            .
    gathering  writing/WRITE .                 .          thawing/THAW .
    writing    .             committing/COMMIT .          thawing/THAW .
    committing .             .                 ending/END thawing/THAW .
    thawing    .             .                 .          .            idle
    ending     .             .                 .          idle         .
    saved      .             .                 .          .            .
    restoring  .             .                 .          idle         .
    """,
]

private let actions: [String: Action] = [
    "GATHER": .gather, "WRITE": .write, "COMMIT": .commit, "END": .end, "THAW": .thaw,
    "RESTORE": .restore, "BUSY": .refuse(.busy), "LATE": .refuse(.late),
    "SAVED": .refuse(.saved), "NOTHING": .refuse(.nothing),
]

private struct Cell: Sendable, CustomTestStringConvertible {
    let state: State
    let event: Event
    let next: State
    let action: ServicingMachine.Action
    var testDescription: String { "\(state) × \(event)" }
}

private func cells() -> [Cell] { tables.flatMap(cells) }

private func cells(_ table: String) -> [Cell] {
    let lines = table.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
    var cells: [Cell] = []
    for line in lines.dropFirst() {
        for (name, cell) in zip(lines[0].dropFirst(), line.dropFirst()) {
            let parts = cell.split(separator: "/").map(String.init)
            guard let state = State.allCases.first(where: { "\($0)" == line[0] }),
                let event = Event.allCases.first(where: { "\($0)" == name })
            else { continue }
            cells.append(
                Cell(
                    state: state, event: event,
                    next: State.allCases.first { "\($0)" == parts[0] } ?? state,
                    action: parts.count > 1 ? actions[parts[1]] ?? .none : .none))
        }
    }
    return cells
}

/// Servicing that was led into a state by events.
private func machine(in state: State) -> ServicingMachine {
    let path: [Event] =
        switch state {
        case .idle: []
        case .gathering: [.save]
        case .writing: [.save, .gathered]
        case .committing: [.save, .gathered, .written]
        case .thawing: [.save, .cancel]
        case .ending: [.save, .gathered, .written, .durable]
        case .saved: [.save, .gathered, .written, .durable, .ended]
        case .restoring: [.restore]
        }
    var machine = ServicingMachine()
    for event in path { _ = machine.handle(event) }
    return machine
}

@Suite("The course of servicing")
struct ServicingMachineTests {
    @Test("the table has a cell for every state and event")
    func complete() {
        #expect(cells().count == State.allCases.count * Event.allCases.count)
    }

    @Test("a cell is as documented", arguments: cells())
    fileprivate func cell(_ cell: Cell) {
        var machine = machine(in: cell.state)
        #expect(machine.state == cell.state)

        let action = machine.handle(cell.event)

        #expect(machine.state == cell.next)
        #expect(action == cell.action)
    }

    @Test("no course ends workers that were not written down, or thaws what is durable")
    func courses() {
        struct Situation: Hashable {
            var state: State
            var isDurable: Bool
        }
        var known: Set<Situation> = [Situation(state: .idle, isDurable: false)]
        var rest = Array(known)
        var wrong: [String] = []
        while let now = rest.popLast() {
            for event in Event.allCases {
                var machine = machine(in: now.state)
                let action = machine.handle(event)
                var isDurable = now.isDurable
                if event == .durable, now.state == .committing { isDurable = true }
                if action == .gather { isDurable = false }
                if action == .end, !isDurable { wrong.append("\(now) \(event)") }
                if action == .thaw, isDurable { wrong.append("\(now) \(event)") }
                let next = Situation(state: machine.state, isDurable: isDurable)
                if known.insert(next).inserted { rest.append(next) }
            }
        }
        #expect(wrong == [])
        #expect(Set(known.map(\.state)).count == State.allCases.count)
    }
}
