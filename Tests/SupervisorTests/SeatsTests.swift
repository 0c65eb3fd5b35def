// SPDX-License-Identifier: Apache-2.0
// Who gets a connection when many want one.

import Linux
import Systemd
import Testing
import TestSupport
import Wire

@testable import Supervisor

@Suite("Places of the public socket", .timeLimit(.minutes(5)))
struct SeatsTests {
    /// How many places a user gets.
    private func fill(_ seats: inout Seats, _ user: UInt32, isOperator: Bool = false) -> Int {
        var count = 0
        while (try? seats.take(user, isOperator: isOperator)) != nil { count += 1 }
        return count
    }

    @Test("one user cannot take the places of the others, and all users not the operators'")
    func shares() {
        var seats = Seats()
        let counts = (1000..<1005 as Range<UInt32>).map { fill(&seats, $0) }
        let operators = fill(&seats, 0, isOperator: true)

        #expect(counts == [1024, 1024, 1024, 1024 - 64, 0])
        #expect(operators == 64)
        #expect(seats.taken == SupervisorLimits.clients)
    }

    @Test("a place that was given back is free, and given back once")
    func leaving() throws {
        var seats = Seats()
        let all = fill(&seats, 1000)
        seats.leave(1000)
        seats.leave(7)
        let again = fill(&seats, 1000)

        #expect(all == 1024)
        #expect(again == 1)
        #expect(seats.taken == 1024)
    }
}
