// SPDX-License-Identifier: Apache-2.0
// CRC-32C (Castagnoli; RFC 3720, appendix B.4), as every tool computes it.

/// CRC-32C of bytes: polynomial 1EDC6F41h, reflected, begun and ended with all ones.
enum CRC32C {
    private static let table: [UInt32] = (0..<256).map { byte in
        (0..<8).reduce(UInt32(byte)) { crc, _ in
            crc & 1 == 0 ? crc >> 1 : crc >> 1 ^ 0x82F6_3B78
        }
    }

    /// The checksum of bytes.
    static func of(_ bytes: some Sequence<UInt8>) -> UInt32 {
        let table = self.table
        var crc = UInt32.max
        for byte in bytes {
            crc = crc >> 8 ^ table[Int(UInt8(truncatingIfNeeded: crc) ^ byte)]
        }
        return ~crc
    }
}
