// SPDX-License-Identifier: Apache-2.0
// Saved state that is not what was written: refused, or correct; and what is wrong with one device
// is nobody else's affair.

import TestSupport
import Testing

@testable import SavedState

@Suite("Damaged saved state")
struct HostileTests {
    private static let devices = [Samples.disk, Samples.idle]

    private static func file() throws -> [UInt8] {
        try SavedState.encode(host: Samples.host, devices: devices)
    }

    /// Which of the devices come back; fails when one comes back as something else.
    private func survivors(_ bytes: [UInt8], _ words: String) -> Set<String>? {
        guard let file = try? SavedState.decode(bytes) else { return nil }
        var found: Set<String> = []
        for device in Self.devices {
            guard case .success(let back) = file.devices[device.name] else { continue }
            #expect(back == device, "\(words)")
            found.insert(device.name)
        }
        #expect(file.devices.count <= Self.devices.count, "\(words)")
        return found
    }

    @Test("any changed byte costs one device at most, or all of them where it concerns all")
    func flips() throws {
        let seed = seed()
        var random = SplitMix64(state: seed)
        let whole = try Self.file()
        let first = try SavedState.encode(device: Self.devices[0], version: "1.0")
        let start = try #require(Self.place(of: first, in: whole))
        // 32 bytes of header and three entries of 24; then the host.
        let second = start + first.count
        for at in whole.indices {
            for mask in [UInt8(1) << UInt8(random.next() % 8), 0xFF] {
                var bytes = whole
                bytes[at] ^= mask
                let words = "byte \(at), mask \(mask), seed \(seed)"
                let found = survivors(bytes, words)
                if at >= start, at < second {
                    #expect(found == ["0000:01:00.0"], "\(words)")
                } else if at >= 104 && at < start || at < 56 {
                    // The padding of the host is nobody's.
                    #expect(found == nil || found?.count == 2, "\(words)")
                } else {
                    #expect((found?.count ?? 0) >= 1, "\(words)")
                }
            }
        }
    }

    private static func place(of part: [UInt8], in whole: [UInt8]) -> Int? {
        whole.indices.first { whole[$0...].starts(with: part) }
    }

    @Test("a file cut anywhere has lost what lay at its end, and nothing else is wrong")
    func truncation() throws {
        let whole = try Self.file()
        var best = 0
        for count in whole.indices {
            let found = survivors(Array(whole.prefix(count)), "\(count) bytes")
            #expect((found?.count ?? 0) >= best)
            best = max(best, found?.count ?? 0)
        }
        // The last device's padding may be missing.
        #expect(best >= 1)
        #expect(survivors(whole, "all")?.count == 2)
    }

    @Test("a file that goes on behind its end is refused", arguments: [1, 8, 4096])
    func extended(count: Int) throws {
        let bytes = try Self.file() + [UInt8](repeating: 0, count: count)
        #expect(throws: SavedStateError.self) { try SavedState.decode(bytes) }
    }

    @Test("a device's section of any other length, or with any other byte, is refused")
    func section() throws {
        let whole = try SavedState.encode(device: Samples.disk, version: "1.0")
        for count in whole.indices {
            #expect(throws: SavedStateError.self) {
                try SavedState.decode(device: Array(whole.prefix(count)))
            }
        }
        #expect(throws: SavedStateError.self) { try SavedState.decode(device: whole + [0]) }
        for at in whole.indices {
            var bytes = whole
            bytes[at] ^= 0x10
            #expect(throws: SavedStateError.self, "byte \(at)") {
                try SavedState.decode(device: bytes)
            }
        }
    }

    @Test("a field of number 0, in whatever bytes, is refused: it could not be read once more")
    func fieldZero() throws {
        // Number 0 with a varint of 2: as short as it goes, and in one byte more.
        for field in [[0x00, 0x02], [0x80, 0x00, 0x02]] as [[UInt8]] {
            var writer = ProtobufWriter()
            Samples.disk.write(into: &writer)
            let section = try Section.encode(
                kind: 2, writer: "1.0", payload: writer.bytes + field, name: "disk0")
            #expect(throws: SavedStateError.self) { try SavedState.decode(device: section) }
        }
    }

    @Test("nothing, zeroes, ones and other files are no saved state")
    func foreign() {
        let cases: [[UInt8]] = [
            [], [0], [UInt8](repeating: 0, count: 65536), [UInt8](repeating: 0xFF, count: 65536),
            Array("NVMEDSAV".utf8), Array("[Device]\nName=disk0\n".utf8),
        ]
        for bytes in cases {
            #expect(throws: SavedStateError.self) { try SavedState.decode(bytes) }
            #expect(throws: SavedStateError.self) { try SavedState.decode(device: bytes) }
        }
    }

    // MARK: Other kinds and versions

    private func section(
        kind: UInt32, version: UInt32, isRequired: Bool
    ) throws -> [UInt8] {
        var writer = ProtobufWriter()
        Samples.idle.write(into: &writer)
        return try Section.encode(
            kind: kind, version: version, isRequired: isRequired, writer: "7.5",
            payload: writer.bytes, name: "x")
    }

    @Test("a device's section of a later version is refused with the version that can read it")
    func newerDevice() throws {
        // Given
        let bytes = try SavedState.encode(
            host: Samples.host,
            sections: [
                SavedSection(
                    name: "0000:01:00.0",
                    bytes: try section(kind: 2, version: 2, isRequired: true)),
                SavedSection(
                    name: "disk0",
                    bytes: try SavedState.encode(device: Samples.disk, version: "1.0")),
            ])
        // When
        let file = try SavedState.decode(bytes)
        // Then
        let error = #expect(throws: SavedStateError.self) {
            try file.devices["0000:01:00.0"]?.get()
        }
        #expect(error == .newer(section: "0000:01:00.0", version: 2, writer: "7.5"))
        #expect(error?.description.contains("nvmed 7.5 wrote it and can read it") == true)
        #expect(try file.devices["disk0"]?.get() == Samples.disk)
    }

    @Test("a later version that only adds is read as far as it is known")
    func additive() throws {
        let bytes = try section(kind: 2, version: 2, isRequired: false)
        #expect(try SavedState.decode(device: bytes) == Samples.idle)
    }

    @Test("sections of other kinds, and version 0, are none of a device", arguments: [0, 1, 3, 77])
    func otherKinds(kind: UInt32) throws {
        let bytes = try section(kind: kind, version: 1, isRequired: true)
        #expect(throws: SavedStateError.self) { try SavedState.decode(device: bytes) }
        let none = try section(kind: 2, version: 0, isRequired: true)
        #expect(throws: SavedStateError.self) { try SavedState.decode(device: none) }
    }

    @Test("a required section that nobody knows costs the file")
    func requiredSection() throws {
        let other = try section(kind: 77, version: 1, isRequired: true)
        let bytes = try SavedState.encode(
            host: Samples.host, sections: [], others: [SavedSection(name: "", bytes: other)])
        let error = #expect(throws: SavedStateError.self) { try SavedState.decode(bytes) }
        #expect(error == .newer(section: "section 1", version: 1, writer: "7.5"))
    }

    @Test("a section under another device's name is refused, and names are there once")
    func names() throws {
        // Given
        let section = try SavedState.encode(device: Samples.disk, version: "1.0")
        let bytes = try SavedState.encode(
            host: Samples.host, sections: [SavedSection(name: "disk1", bytes: section)])
        // When
        let file = try SavedState.decode(bytes)
        // Then
        let error = #expect(throws: SavedStateError.self) { try file.devices["disk1"]?.get() }
        #expect(error == .invalid(section: "disk1", field: "name", rule: "is disk0"))
        let twice = [SavedSection](repeating: SavedSection(name: "disk0", bytes: section), count: 2)
        #expect(throws: SavedStateError.self) {
            try SavedState.encode(host: Samples.host, sections: twice)
        }
    }
}
