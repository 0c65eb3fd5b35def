// SPDX-License-Identifier: Apache-2.0
// Huge pages of this machine, for tests that need some: they are skipped where none are reserved.

import Glibc
import Linux

/// Huge pages of 2 MiB.
public enum HugePages {
    /// Bytes of one.
    public static let byteCount = 2 << 20

    /// How many are free and promised to nobody.
    public static var free: Int {
        let directory = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
        return number(directory + "free_hugepages") - number(directory + "resv_hugepages")
    }

    private static func number(_ path: String) -> Int {
        guard let fd = try? OwnedFD.open(path, flags: O_RDONLY) else { return 0 }
        var bytes = [UInt8](repeating: 0, count: 32)
        let count = unsafe Glibc.read(fd.raw, &bytes, bytes.count)
        let text = String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
        return Int(text.prefix { $0.isNumber }) ?? 0
    }
}
