// SPDX-License-Identifier: Apache-2.0
// Messages that were valid once, damaged: part of `make fuzz`.

import Glibc
import TestSupport
import Testing
import Wire

@Suite("MessageFuzz", .enabled(if: environmentNumber("NVMED_FUZZ_SECONDS") != nil))
struct MessageFuzz {
    /// Bytes of a valid message with some changed, repeated, or cut off.
    private func damaged(_ bytes: [UInt8], _ numbers: inout SeededNumbers) -> [UInt8] {
        var bytes = bytes
        for _ in 0..<Int.random(in: 1...6, using: &numbers) where !bytes.isEmpty {
            let at = Int.random(in: bytes.indices, using: &numbers)
            switch Int.random(in: 0...4, using: &numbers) {
            case 0: bytes[at] = UInt8.random(in: 0...255, using: &numbers)
            case 1: bytes[at] ^= 1 << UInt8.random(in: 0...7, using: &numbers)
            case 2: bytes.removeSubrange(at...)
            case 3: bytes += bytes[at...]
            default: bytes.insert(UInt8.random(in: 0...255, using: &numbers), at: at)
            }
        }
        return bytes
    }

    /// What is accepted has to survive being written and read again.
    private func check<P: WireProtocol>(
        _ contents: [Content<P>], _ numbers: inout SeededNumbers, _ arena: MessageArena,
        _ seed: UInt64
    ) throws {
        guard let content = contents.randomElement(using: &numbers) else { return }
        let fdCount = P.fdCount(of: content)
        let whole = try encoded(Envelope(requestID: 7, content: content))
        let bytes = damaged(whole, &numbers)
        guard
            let (first, payload) = try? decoded(bytes, as: P.self, fdCount: fdCount, arena: arena),
            let again = try? encoded(first, payload: payload)
        else { return }
        let second = try decoded(again, as: P.self, fdCount: fdCount, arena: arena)
        #expect(second.envelope == first, "seed \(seed)")
        #expect(second.payload == payload, "seed \(seed)")
    }

    @Test("damaged messages are refused or survive a round trip")
    func messages() throws {
        let seconds = environmentNumber("NVMED_FUZZ_SECONDS") ?? 1
        var seed = environmentNumber("NVMED_SEED") ?? 1
        let end = ContinuousClock.now + .seconds(Int64(clamping: seconds))
        let arena = MessageArena()
        repeat {
            var numbers = SeededNumbers(seed: seed)
            try check(Messages.session, &numbers, arena, seed)
            try check(Messages.worker, &numbers, arena, seed)
            try check(Messages.supervisor, &numbers, arena, seed)
            try check(Messages.opener, &numbers, arena, seed)
            seed &+= 1
        } while ContinuousClock.now < end
    }
}
