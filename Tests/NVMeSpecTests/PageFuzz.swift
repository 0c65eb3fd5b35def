// SPDX-License-Identifier: Apache-2.0
// Pages that were valid once, with bytes flipped and ends cut: part of `make fuzz`.

import Glibc
import NVMeSpec
import TestSupport
import Testing

@Suite("PageFuzz", .enabled(if: environmentNumber("NVMED_FUZZ_SECONDS") != nil))
struct PageFuzz {
    /// A page as a controller would return it, then damaged as the seed says.
    private func damaged(_ page: some Page, seed: UInt64) -> [UInt8] {
        var bytes = page.encode()
        let dice = randomBytes(count: 64, seed: seed)
        for flip in 0..<Int(dice[0] & 7) {
            let place = (Int(dice[1 + flip * 3]) << 8 | Int(dice[2 + flip * 3])) % bytes.count
            bytes[place] = dice[3 + flip * 3]
        }
        let isCut = dice[60] & 3 == 0
        let kept = (Int(dice[61]) << 8 | Int(dice[62])) % bytes.count
        return isCut ? Array(bytes.prefix(kept)) : bytes
    }

    /// What parses has to survive being encoded and parsed again.
    private func check<P: Page>(_ page: P, seed: UInt64) throws {
        guard let parsed = try? P(parsing: damaged(page, seed: seed)) else { return }
        let again = try P(parsing: parsed.encode())
        #expect(again == parsed, "seed \(seed)")
    }

    @Test("damaged pages are refused or survive a round trip")
    func pages() throws {
        let seconds = environmentNumber("NVMED_FUZZ_SECONDS") ?? 1
        var seed = environmentNumber("NVMED_SEED") ?? 1
        let end = ContinuousClock.now + .seconds(Int64(clamping: seconds))
        var names = NamespaceDescriptors()
        names.nguid = Array(1...16)
        names.uuid = Array(17...32)
        names.csi = 0
        repeat {
            try check(IdentifyController(), seed: seed)
            try check(IdentifyNamespace(), seed: seed)
            try check(NamespaceList(1...2000), seed: seed)
            try check(names, seed: seed)
            try check(ErrorInformation(), seed: seed)
            try check(SmartHealth(), seed: seed)
            try check(FirmwareSlots(), seed: seed)
            seed &+= 1
        } while ContinuousClock.now < end
    }
}
