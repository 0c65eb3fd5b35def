// SPDX-License-Identifier: Apache-2.0
// The checksum of sections is the CRC-32C that every tool computes.

import Testing

@testable import SavedState

@Suite("The checksum of saved state")
struct ChecksumTests {
    @Test("is CRC-32C")
    func knownValues() {
        #expect(CRC32C.of("123456789".utf8) == 0xE306_9283)
        // RFC 3720, B.4: 32 bytes of zeroes, and of ones.
        #expect(CRC32C.of([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
        #expect(CRC32C.of([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
        #expect(CRC32C.of([]) == 0)
    }
}
