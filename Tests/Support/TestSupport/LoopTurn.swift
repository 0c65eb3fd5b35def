// SPDX-License-Identifier: Apache-2.0
// One test at a time on the event loop that all tests of a process share.

/// Serialises the tests that run on the control thread.
///
/// There is one such thread in a process, and what runs on it in production is one service. Dozens
/// of tests on it at once, some of which flood it on purpose, hold one another up for seconds, so
/// that bounds of the program pass for no fault of its own.
public actor LoopTurn {
    private static let shared = LoopTurn()
    private var isTaken = false
    private var waiting: [CheckedContinuation<Void, Never>] = []

    private func take() async {
        guard isTaken else {
            isTaken = true
            return
        }
        await withCheckedContinuation { waiting.append($0) }
    }

    private func pass() {
        guard !waiting.isEmpty else {
            isTaken = false
            return
        }
        waiting.removeFirst().resume()
    }

    /// Runs a test's body when those that came before are done. Not to be nested.
    public static func run<Value: Sendable>(
        _ body: @Sendable () async throws -> Value
    ) async throws -> Value {
        await shared.take()
        do {
            let value = try await body()
            await shared.pass()
            return value
        } catch {
            await shared.pass()
            throw error
        }
    }
}
