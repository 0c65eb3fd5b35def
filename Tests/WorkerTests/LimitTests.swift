// SPDX-License-Identifier: Apache-2.0
// Limits of requests and bytes a second: who has one is slowed, and nobody else.

import Linux
import Testing
import Wire

extension WorkerProcessTests {
    @Suite("Rate limits of a session")
    struct Limits {
        private static func startWrites(_ client: Client) throws {
            for index in 0..<40 as Range<UInt64> {
                try client.send(
                    .write(lba: index * 8, blockCount: 8, fua: false, location: .inline),
                    payload: pattern(4096, seed: index))
            }
        }

        /// Takes the replies to all writes, in whatever order they come.
        private static func finishWrites(_ client: Client) throws {
            for _ in 0..<40 {
                let message = try client.next()
                #expect(message.envelope.content == .reply(.done))
            }
        }

        @Test(
            "slow its client down and fail nothing; another client is served meanwhile",
            arguments: [(20, 0), (0, 81_920)] as [(UInt64, UInt64)])
        func slowed(requestsPerSecond: UInt64, bytesPerSecond: UInt64) throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            var opening = supervisor.opening(shared: true)
            opening.requestsPerSecondMax = requestsPerSecond
            opening.bytesPerSecondMax = bytesPerSecond
            let answer = try supervisor.answer(to: supervisor.send(.openSession(opening)))
            guard case .sessionOpened(let info) = answer.reply, let held = answer.held else {
                throw RigError("\(answer.reply)")
            }
            let limited = Client(try held.fd.duplicate(), info, opening.sessionID)
            let free = try supervisor.open(shared: true)

            let begin = MonotonicClock.nowNanoseconds
            try Self.startWrites(limited)
            try Self.startWrites(free)
            try Self.finishWrites(free)
            let path = "sessions/\(opening.sessionID)"
            let doneMeanwhile = try #require(try supervisor.inspect("\(path)/writes"))
            let waits = try #require(try supervisor.inspect("\(path)/waits"))
            try Self.finishWrites(limited)
            let elapsed = MonotonicClock.nowNanoseconds - begin

            // 40 requests at 20 a second: 2 s, less a burst of 20 ms and the last one.
            #expect(elapsed >= 1_900_000_000)
            #expect((Int(doneMeanwhile) ?? 40) < 40)
            #expect(waits == "limit")
            #expect(try supervisor.inspect("\(path)/errors") == "0")
            #expect(try supervisor.inspect("\(path)/writes") == "40")
        }

        @Test("a session that waits for its limit can be closed, and its client sees why")
        func closed() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            var opening = supervisor.opening()
            opening.requestsPerSecondMax = 1
            let answer = try supervisor.answer(to: supervisor.send(.openSession(opening)))
            guard case .sessionOpened(let info) = answer.reply, let held = answer.held else {
                throw RigError("\(answer.reply)")
            }
            let limited = Client(try held.fd.duplicate(), info, opening.sessionID)
            for _ in 0..<5 { try limited.send(.flush) }
            try supervisor.wait(until: "sessions/\(opening.sessionID)/waits", is: "limit")

            let request = WorkerRequest.closeSession(
                sessionID: opening.sessionID, reason: "enough")
            #expect(try supervisor.ask(request) == .done)

            #expect(try limited.reason().code == .sessionRevoked)
            #expect(try supervisor.open().ask(.flush) == .done)
        }
    }
}
