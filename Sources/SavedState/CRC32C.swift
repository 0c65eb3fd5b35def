// SPDX-License-Identifier: Apache-2.0
// CRC-32C (Castagnoli; RFC 3720, appendix B.4), as every tool computes it.

internal import CMemory

/// CRC-32C of bytes: polynomial 1EDC6F41h, reflected, begun and ended with all ones.
enum CRC32C {
    /// The checksum of bytes.
    static func of(_ bytes: some Sequence<UInt8>) -> UInt32 {
        let known = bytes.withContiguousStorageIfAvailable { unsafe ~of($0) }
        return unsafe known ?? Array(bytes).withUnsafeBufferPointer { unsafe ~of($0) }
    }

    private static func of(_ bytes: UnsafeBufferPointer<UInt8>) -> UInt32 {
        unsafe nv_crc32c_bytes(.max, bytes.baseAddress, bytes.count)
    }
}
