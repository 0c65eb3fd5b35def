// SPDX-License-Identifier: Apache-2.0
// The checksum of sections is the CRC-32C that every tool computes.

import CMemory
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

    @Test("is the same with and without the processor's instruction, whatever the length")
    func portable() {
        let bytes = (0..<100).map { UInt8(truncatingIfNeeded: $0 * 37) }
        for count in 0...bytes.count {
            let portable = unsafe bytes.withUnsafeBufferPointer {
                unsafe nv_crc32c_portable(.max, $0.baseAddress, count)
            }
            #expect(CRC32C.of(bytes.prefix(count)) == ~portable)
        }
    }

    @Test("of a sequence that lies in no row is that of its bytes")
    func scattered() {
        #expect(CRC32C.of((0..<32).lazy.map { _ in UInt8(0) }) == 0x8A91_36AA)
    }
}
