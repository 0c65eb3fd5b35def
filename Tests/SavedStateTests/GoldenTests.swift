// SPDX-License-Identifier: Apache-2.0
// Files of each version of the schema, as they were written then: every later build restores them.
// They are never changed; a change of the schema adds one. Golden/README.md says how.

import Linux
import Testing

@testable import SavedState

@Suite("Saved state of earlier versions")
struct GoldenTests {
    /// The bytes of an annotated hex dump beside this file.
    private func golden(_ name: String) throws -> [UInt8] {
        let folder = #filePath.split(separator: "/").dropLast().joined(separator: "/")
        let text = try Files.read("/\(folder)/Golden/\(name)", limit: 1 << 20)
        return String(decoding: text, as: UTF8.self).split(separator: "\n").flatMap { line in
            line.prefix { $0 != "#" }.split(separator: " ").compactMap { UInt8($0, radix: 16) }
        }
    }

    @Test("version 1, with something of everything under way")
    func version1() throws {
        // When
        let file = try SavedState.decode(golden("version1.hex"))
        // Then
        var host = Samples.host
        host.deviceNames = ["disk0", "0000:01:00.0"]
        #expect(file.host == host)
        #expect(try file.devices["disk0"]?.get() == Samples.disk)
        #expect(try file.devices["0000:01:00.0"]?.get() == Samples.idle)
        #expect(file.others.isEmpty)
    }

    @Test("version 1, since controllers tell their PCI ids")
    func version1Identified() throws {
        // When
        let file = try SavedState.decode(golden("version1-identified.hex"))
        // Then
        #expect(try file.devices["disk0"]?.get() == Samples.identified)
    }

    @Test("version 1, written by a later build: what it adds is kept")
    func version1WithAdditions() throws {
        // When
        let file = try SavedState.decode(golden("version1-additions.hex"))
        // Then: field 1000 of the device, and a section of kind 77.
        let device = try file.devices["0000:01:00.0"]?.get()
        #expect(device?.unknown.bytes == [0xC0, 0x3E, 0x2A])
        #expect(file.others.count == 1)
        var known = device
        known?.unknown = UnknownFields()
        #expect(known == Samples.idle)
        // And it is in what is written again.
        let again = try SavedState.encode(
            host: file.host, devices: [try #require(device)])
        #expect(again.count > 100)
        #expect(
            try SavedState.decode(again).devices["0000:01:00.0"]?.get().unknown.bytes
                == [0xC0, 0x3E, 0x2A])
    }

    @Test("version 2, which this build must not guess at, names who can read it")
    func version2() throws {
        // When
        let file = try SavedState.decode(golden("version2.hex"))
        // Then
        let error = #expect(throws: SavedStateError.self) {
            try file.devices["0000:01:00.0"]?.get()
        }
        #expect(error == .newer(section: "0000:01:00.0", version: 2, writer: "2.0"))
    }

    /// Shows the bytes of the present version, for whoever adds one (Golden/README.md).
    @Test("are shown on demand", .enabled(if: Program.environment("NVMED_GOLDEN") != nil))
    func show() throws {
        let whole = try SavedState.encode(
            host: Samples.host, devices: [Samples.disk, Samples.idle])
        var later = Samples.idle
        later.unknown.bytes = [0xC0, 0x3E, 0x2A]
        let section = try SavedState.encode(device: later, version: "1.9")
        let other = try Section.encode(
            kind: 77, isRequired: false, writer: "1.9", payload: [1, 2, 3], name: "")
        let added = try SavedState.encode(
            host: Samples.host, sections: [SavedSection(name: later.name, bytes: section)],
            others: [SavedSection(name: "", bytes: other)])
        let identified = try SavedState.encode(host: Samples.host, devices: [Samples.identified])
        let newer = try Section.encode(
            kind: 2, version: 2, writer: "2.0", payload: [0x0A, 0x01, 0x78], name: "")
        let refused = try SavedState.encode(
            host: Samples.host, sections: [SavedSection(name: later.name, bytes: newer)])
        for (name, bytes) in [
            ("version1", whole), ("version1-additions", added), ("version2", refused),
            ("version1-identified", identified),
        ] {
            let hex = bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
            print("golden \(name) \(hex.joined())")
        }
    }
}
