// SPDX-License-Identifier: Apache-2.0
// One disk, end to end, through real processes: data, policy, sessions.

import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

extension ProcessTests {
    @Suite("End to end", .timeLimit(.minutes(3)))
    struct EndToEndTests {
        @Test("what is written and flushed is read back, on both devices", arguments: ["a", "b"])
        func roundTrip(_ device: String) throws {
            let service = try RunningService()
            let backend = try service.connect()
            let disk = try backend.openDisk("disk-\(device)")
            let pattern = DataPattern(seed: 7)
            let buffer = try IOBuffer(byteCount: 1 << 20)
            pattern.fill(buffer, offset: 0, count: 1 << 20, diskByteOffset: 4096)

            try disk.write(from: buffer, byteOffset: 4096, byteCount: 1 << 20)
            try disk.flush()
            let back = try IOBuffer(byteCount: 1 << 20)
            try disk.read(into: back, byteOffset: 4096, byteCount: 1 << 20)
            try disk.compare(with: buffer, byteOffset: 4096, byteCount: 65536)

            #expect(
                pattern.firstMismatch(back, offset: 0, count: 1 << 20, diskByteOffset: 4096) == nil)
            #expect(disk.byteCount == RunningService.diskByteCount)
            #expect(disk.info.blockByteCount == (device == "a" ? 512 : 4096))
            #expect(disk.info.serial == "SERIAL-\(device)")
        }
    }
}
