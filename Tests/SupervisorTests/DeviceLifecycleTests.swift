// SPDX-License-Identifier: Apache-2.0
// The lifecycle table: every cell as documented, the back-off, and random walks.

import Testing

@testable import Supervisor

private typealias State = DeviceLifecycle.State
private typealias Event = DeviceLifecycle.Event

/// The table of the doc comment, read back: `absent starting! …`, `!` LOAD, `~` LATER, `x` STOP.
private let table = """
    state wanted retry loaded failed workerLost stalled gone backOffOver stop stopped
    absent starting! starting! ready . . . removed . . .
    starting . . ready retrying~ retrying~ . removed . drainingx absent
    ready . . . retrying~ recovering! recovering removed . drainingx absent
    draining . . . . . . . . . absent
    recovering . .! ready retrying~ recovering~ . removed .! drainingx absent
    retrying . starting! ready . . . removed starting! drainingx absent
    failed starting! starting! ready . . . removed . drainingx absent
    removed . starting! ready . . . . . drainingx absent
    """

private struct Cell: Sendable, CustomTestStringConvertible {
    let state: State
    let event: Event
    let next: State
    let action: DeviceLifecycle.Action
    var testDescription: String { "\(state) × \(event)" }
}

private func cells() -> [Cell] {
    let lines = table.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
    var cells: [Cell] = []
    for line in lines.dropFirst() {
        guard let state = State.allCases.first(where: { "\($0)" == line[0] }) else { continue }
        for (name, cell) in zip(lines[0].dropFirst(), line.dropFirst()) {
            guard let event = Event.allCases.first(where: { "\($0)" == name }) else { continue }
            let word = cell.filter { $0.isLetter || $0 == "." }
            let bare = cell.hasSuffix("x") ? String(word.dropLast()) : word
            let next = State.allCases.first { "\($0)" == bare } ?? state
            let action: DeviceLifecycle.Action =
                switch cell.last {
                case "!": .load
                case "~": .loadLater(afterNanoseconds: DeviceLifecycle.backOffFirstNanoseconds)
                case "x": .stop
                default: .none
                }
            cells.append(Cell(state: state, event: event, next: next, action: action))
        }
    }
    return cells
}

/// A device that was led into a state by events.
private func device(in state: State) -> DeviceLifecycle {
    let path: [Event] =
        switch state {
        case .absent: []
        case .starting: [.wanted]
        case .ready: [.loaded]
        case .draining: [.loaded, .stop]
        case .recovering: [.loaded, .stalled]
        case .retrying: [.wanted, .failed]
        case .failed:
            [.wanted]
                + (1..<DeviceLifecycle.attemptsMax).flatMap { _ in [.failed, .backOffOver] }
                + [.failed]
        case .removed: [.gone]
        }
    var device = DeviceLifecycle(nowNanoseconds: 0)
    for event in path { _ = device.handle(event, nowNanoseconds: 0) }
    return device
}

@Suite("Device lifecycle")
struct DeviceLifecycleTests {
    @Test("the table has every state and every event")
    func complete() {
        #expect(cells().count == State.allCases.count * Event.allCases.count)
    }

    @Test("each cell leads where the table says", arguments: cells())
    private func cell(_ cell: Cell) {
        var device = device(in: cell.state)
        #expect(device.state == cell.state)

        let action = device.handle(cell.event, nowNanoseconds: 1)

        #expect(device.state == cell.next)
        #expect(action == cell.action)
    }

    @Test("the back-off doubles up to its limit, and then nothing is tried until wanted")
    func backOff() {
        var device = device(in: .starting)
        var delays: [UInt64] = []
        while case .loadLater(let delay) = device.handle(
            .failed, reason: "no answer", nowNanoseconds: 5)
        {
            delays.append(delay / 1_000_000)
            _ = device.handle(.backOffOver, nowNanoseconds: 6)
        }

        #expect(delays == [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600])
        #expect(device.state == .failed)
        #expect(device.attempts == DeviceLifecycle.attemptsMax)
        #expect(device.reason == "no answer")
        #expect(device.handle(.wanted, nowNanoseconds: 7) == .load)
        #expect(DeviceLifecycle.backOff(.max) == DeviceLifecycle.backOffLastNanoseconds)
    }

    @Test("success and the operator's retry begin the count anew; success clears the reason")
    func anew() {
        var device = device(in: .failed)
        _ = device.handle(.retry, nowNanoseconds: 1)
        #expect(device.attempts == 0)

        _ = device.handle(.failed, reason: "again", nowNanoseconds: 2)
        #expect(device.attempts == 1)
        #expect(device.reason == "again")

        _ = device.handle(.loaded, nowNanoseconds: 3)
        #expect(device.attempts == 0)
        #expect(device.reason.isEmpty)
        #expect(device.sinceNanoseconds == 3)
    }

    @Test("from anywhere, stopping ends in absent and wanting starts again")
    func stoppable() {
        for state in State.allCases {
            var device = device(in: state)
            _ = device.handle(.stop, nowNanoseconds: 1)
            _ = device.handle(.stopped, nowNanoseconds: 1)
            #expect(device.state == .absent)
            #expect(device.handle(.wanted, nowNanoseconds: 1) == .load)
        }
    }
}
