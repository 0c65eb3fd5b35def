// SPDX-License-Identifier: Apache-2.0
// What is saved comes back as it was, what nobody knows included.

import TestSupport
import Testing

@testable import SavedState

@Suite("Saved state")
struct RoundTripTests {
    @Test("comes back as it was")
    func devices() throws {
        // Given
        let devices = [Samples.disk, Samples.idle]
        // When
        let file = try SavedState.decode(SavedState.encode(host: Samples.host, devices: devices))
        // Then
        var host = Samples.host
        host.deviceNames = ["disk0", "0000:01:00.0"]
        #expect(file.host == host)
        #expect(file.devices.count == 2)
        #expect(try file.devices["disk0"]?.get() == devices[0])
        #expect(try file.devices["0000:01:00.0"]?.get() == devices[1])
        #expect(file.others.isEmpty)
    }

    @Test("of no device is a file too")
    func empty() throws {
        let file = try SavedState.decode(SavedState.encode(host: Samples.host, devices: []))
        #expect(file.host == Samples.host)
        #expect(file.devices.isEmpty)
    }

    @Test("of random devices comes back as it was")
    func random() throws {
        let seed = seed()
        var devices = RandomDevices(seed: seed)
        for _ in 0..<40 {
            let device = devices.next()
            let bytes = try SavedState.encode(device: device, version: "1.0")
            #expect(try SavedState.decode(device: bytes) == device, "seed \(seed)")
        }
    }

    @Test("a device's section is the same alone and in a file")
    func sections() throws {
        // Given
        let section = try SavedState.encode(device: Samples.disk, version: "1.0")
        let written = try SavedState.encode(
            host: Samples.host, sections: [SavedSection(name: "disk0", bytes: section)])
        // When
        let file = try SavedState.decode(written)
        // Then
        #expect(file.sections == ["disk0": section])
        #expect(try SavedState.decode(device: section, name: "disk0") == Samples.disk)
    }

    @Test("fields of a later version are kept at every level")
    func unknownFields() throws {
        // Given: field 1000 is a number, 1001 is text.
        var later = UnknownFields()
        later.bytes = [0xC0, 0x3E, 0x2A, 0xCA, 0x3E, 0x02, 0x68, 0x69]
        var device = Samples.disk
        device.unknown = later
        device.identity.unknown = later
        device.pool.unknown = later
        device.pool.runs[0].unknown = later
        device.pool.slots[0].unknown = later
        device.sessions[0].unknown = later
        device.controller.unknown = later
        device.controller.namespaces[1].unknown = later
        device.controller.regions[0].unknown = later
        device.controller.queues[1].unknown = later
        device.controller.queues[1].commands[0].unknown = later
        device.controller.queues[1].requests[0].unknown = later
        var host = Samples.host
        host.unknown = later
        // When: written twice.
        let first = try SavedState.decode(SavedState.encode(host: host, devices: [device]))
        let again = try SavedState.decode(
            SavedState.encode(
                host: first.host, devices: [try #require(first.devices["disk0"]).get()])
        )
        // Then
        #expect(again.host.unknown == later)
        #expect(try again.devices["disk0"]?.get() == device)
    }

    @Test("sections of a later version that need not be known are written again")
    func unknownSections() throws {
        // Given
        let other = try Section.encode(
            kind: 77, version: 5, isRequired: false, writer: "9.9", payload: [1, 2, 3], name: "x")
        let section = try SavedState.encode(device: Samples.idle, version: "1.0")
        let bytes = try SavedState.encode(
            host: Samples.host, sections: [SavedSection(name: "0000:01:00.0", bytes: section)],
            others: [SavedSection(name: "", bytes: other)])
        // When
        let file = try SavedState.decode(bytes)
        let again = try SavedState.encode(
            host: file.host,
            sections: file.host.deviceNames.map {
                SavedSection(name: $0, bytes: file.sections[$0] ?? [])
            }, others: file.others)
        // Then
        #expect(file.others.map(\.bytes) == [other])
        #expect(again == bytes)
    }

    @Test("a token is random, and never nothing")
    func tokens() {
        #expect(SaveToken.random() != SaveToken.random())
        #expect(SaveToken(bytes: [UInt8](repeating: 0, count: 16)) == nil)
        #expect(SaveToken(bytes: [1]) == nil)
        #expect(Samples.token.description == "0102030405060708090a0b0c0d0e0f10")
    }

    @Test("a file has room for as many devices as may be configured, and not for one more")
    func mostDevices() throws {
        let bytes = try SavedState.encode(device: Samples.idle, version: "1")
        func sections(_ count: Int) -> [SavedSection] {
            (0..<count).map { SavedSection(name: "d\($0)", bytes: bytes) }
        }
        let most = SavedLimits.deviceCount
        let file = try SavedState.decode(
            SavedState.encode(host: Samples.host, sections: sections(most)))
        #expect(file.devices.count == most)
        #expect(throws: SavedStateError.self) {
            try SavedState.encode(host: Samples.host, sections: sections(most + 1))
        }
        let (fitting, others) = SavedState.fitting(sections(most + 2))
        #expect(fitting.count == most)
        #expect(others.map(\.name) == ["d1000", "d1001"])
    }

    @Test("sections that fit no file together are left out, the smaller ones behind them are not")
    func mostBytes() throws {
        let large = [UInt8](repeating: 0, count: 100 << 20)
        let sections = ["a", "b", "c"].map { SavedSection(name: $0, bytes: large) }
        let small = SavedSection(name: "d", bytes: [1, 2, 3])
        let (fitting, others) = SavedState.fitting(sections + [small])
        #expect(fitting.map(\.name) == ["a", "b", "d"])
        #expect(others.map(\.name) == ["c"])
        #expect(throws: Never.self) {
            try SavedState.encode(host: Samples.host, sections: fitting)
        }
    }
}
