// SPDX-License-Identifier: Apache-2.0
// How many clients may be connected, in all and of one user, and what is kept for operators.

internal import Wire

/// The places of the public socket.
struct Seats: Sendable {
    private var takenByUser: [UInt32: Int] = [:]
    /// How many are taken.
    private(set) var taken = 0

    /// All are free.
    init() {}

    /// Takes a place for a user. Throws `resourceExhausted`; then none is taken.
    mutating func take(_ user: UInt32, isOperator: Bool) throws(WireError) {
        let reserved = isOperator ? 0 : SupervisorLimits.clientsReserved
        guard taken < SupervisorLimits.clients - reserved else {
            throw WireError(.resourceExhausted, "\(taken) clients are connected already")
        }
        let own = takenByUser[user, default: 0]
        guard isOperator || own < SupervisorLimits.clientsPerUser else {
            throw WireError(
                .resourceExhausted, "\(own) clients of user \(user) are connected already")
        }
        takenByUser[user] = own + 1
        taken += 1
    }

    /// Gives back a place that was taken.
    mutating func leave(_ user: UInt32) {
        guard let own = takenByUser[user] else { return }
        takenByUser[user] = own > 1 ? own - 1 : nil
        taken -= 1
    }
}
