// SPDX-License-Identifier: Apache-2.0
// What the state area says of clients' memory.

import CMemory
import Linux
import NVMeSpec
import NullDevice
import Testing

@testable import NVMeDriver

@Suite("Records of registered memory")
struct RegionRecordTests {
    static func controller() throws -> NVMeController {
        let options = ControllerOptions(deviceName: "null")
        let controller = try NVMeController(
            device: try NullController(name: "null"), options: options,
            state: try StateArea.create(layout: options.stateLayout))
        try controller.start()
        return controller
    }

    static func stretch(readOnly: Bool = false) -> ClientMemoryStretch {
        var stretch = ClientMemoryStretch(byteCount: 1 << 20)
        stretch.offset = 8192
        stretch.isReadOnly = readOnly
        return stretch
    }

    @Test("memory that was registered is on record as mapped, with all that a successor needs")
    func mapped() throws {
        // Given
        let controller = try Self.controller()
        let memory = try MemFD.create(name: "client", byteCount: 2 << 20)
        // When
        let region = try controller.registerMemory(
            memory, Self.stretch(readOnly: true), session: 0x305, clientID: 7)
        // Then
        let record = controller.state.region(region)
        #expect(record?.state == .mapped)
        #expect(record?.stretch == Self.stretch(readOnly: true))
        #expect(record?.session == 0x305)
        #expect(record?.clientID == 7)
        #expect(record?.flags == .readOnly)
        #expect(record?.iova == controller.clientMappings[region]?.iova)
    }

    @Test("memory that was given back is on record no more")
    func unmapped() throws {
        // Given
        let controller = try Self.controller()
        let memory = try MemFD.create(name: "client", byteCount: 2 << 20)
        let region = try controller.registerMemory(memory, Self.stretch(), session: 1)
        // When
        try controller.unregisterMemory(region)
        // Then
        #expect(controller.state.region(region) == nil)
    }

    @Test("a record with any byte changed that counts is not believed", arguments: 112..<232)
    func damaged(byte: Int) throws {
        // Given
        let area = try StateArea.create(layout: StateLayout(queueCount: 2, slotsPerQueue: 16))
        area.setRegion(
            9,
            RegionRecord(
                state: .mapping, iova: 0x1_0000, stretch: Self.stretch(), session: 1, flags: [],
                clientID: 2))
        #expect(area.region(9)?.state == .mapping)
        // When
        let place = unsafe area.address(StateLayout.regionsOffset + 9 * 256 + byte)
        unsafe nv_store8(place, nv_load8(place) ^ 0x10)
        // Then
        #expect(area.regionContent(9) == .damaged)
    }

    @Test("a device that starts afresh has no memory on record")
    func fresh() throws {
        // Given
        let options = ControllerOptions(deviceName: "null")
        let area = try StateArea.create(layout: options.stateLayout)
        area.setRegion(
            9,
            RegionRecord(
                state: .mapped, iova: 0x1_0000, stretch: Self.stretch(), session: 1, flags: [],
                clientID: 2))
        let controller = try NVMeController(
            device: try NullController(name: "null"), options: options, state: area)
        // When
        try controller.start()
        // Then
        #expect(controller.state.region(9) == nil)
    }
}
