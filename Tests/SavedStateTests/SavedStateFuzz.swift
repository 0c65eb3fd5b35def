// SPDX-License-Identifier: Apache-2.0
// Saved state that was valid once, damaged, with and without checksums that hold: part of
// `make fuzz`.

import TestSupport
import Testing

@testable import SavedState

/// Damage of a seed.
struct Damage {
    var random: SplitMix64

    /// Bytes with some changed, repeated, added or cut off.
    mutating func apply(to bytes: [UInt8]) -> [UInt8] {
        var bytes = bytes
        for _ in 0..<(1 + random.next() % 6) where !bytes.isEmpty {
            let at = Int(random.next() % UInt64(bytes.count))
            let value = UInt8(truncatingIfNeeded: random.next())
            switch random.next() % 5 {
            case 0: bytes[at] = value
            case 1: bytes[at] ^= 1 << (value % 8)
            case 2: if value < 32 { bytes.removeSubrange(at...) }
            case 3: bytes += bytes[at...].prefix(512)
            default: bytes.insert(value, at: at)
            }
        }
        return bytes
    }
}

enum FuzzOnce {
    /// One round: what is accepted survives being written and read again.
    static func round(_ seed: UInt64) throws {
        var devices = RandomDevices(seed: seed)
        var damage = Damage(random: SplitMix64(state: seed &+ 1))
        let device = seed % 4 == 0 ? devices.next() : Samples.disk
        // The payload, behind a checksum that holds.
        var writer = ProtobufWriter()
        device.write(into: &writer)
        let section = try Section.encode(
            kind: 2, writer: "1.0", payload: damage.apply(to: writer.bytes), name: "x")
        if let back = try? SavedState.decode(device: section) {
            // What it throws would not tell the seed.
            let again = Result { try SavedState.encode(device: back, version: "1.0") }
            let twice = again.flatMap { bytes in Result { try SavedState.decode(device: bytes) } }
            #expect((try? twice.get()) == back, "seed \(seed): \(twice)")
        }
        // The file as it is.
        let whole = try SavedState.encode(host: Samples.host, devices: [device, Samples.idle])
        guard let file = try? SavedState.decode(damage.apply(to: whole)) else { return }
        for known in [device, Samples.idle] {
            guard case .success(let back) = file.devices[known.name] else { continue }
            #expect(back == known, "seed \(seed)")
        }
    }
}

@Suite("Damaged saved state, by chance")
struct SavedStateChance {
    @Test("is refused, or survives a round trip")
    func rounds() throws {
        let seed = seed()
        for round in 0..<300 as Range<UInt64> { try FuzzOnce.round(seed &+ round) }
    }
}

@Suite("SavedStateFuzz", .enabled(if: environmentNumber("NVMED_FUZZ_SECONDS") != nil))
struct SavedStateFuzz {
    @Test("damaged saved state is refused or survives a round trip")
    func damaged() throws {
        let seconds = environmentNumber("NVMED_FUZZ_SECONDS") ?? 1
        var seed = environmentNumber("NVMED_SEED") ?? 1
        let end = ContinuousClock.now + .seconds(Int64(clamping: seconds))
        repeat {
            try FuzzOnce.round(seed)
            seed &+= 1
        } while ContinuousClock.now < end
    }
}
