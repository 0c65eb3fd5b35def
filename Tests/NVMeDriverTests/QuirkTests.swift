// SPDX-License-Identifier: Apache-2.0
// Controllers that cannot do what others can: the table, and what each quirk changes.

import Linux
import NVMeSpec
import TestSupport
import Testing
import VFIO

@testable import NVMeDriver

@Suite("Quirks of controllers", .serialized)
struct QuirkTests {
    @Test("each kind of controller is in the table once, with at least one quirk and a reason")
    func table() {
        let entries = QuirkTable.entries
        #expect(Set(entries.map(\.id)).count == entries.count)
        #expect(entries.allSatisfy { !$0.quirks.isEmpty && !$0.note.isEmpty })
        #expect(
            QuirkTable.quirks(of: PCIDeviceID(vendor: 0x1414, device: 0xB111))
                == [.noAdminAfterServicing, .vectorsAscending, .equalQueueSizes])
        #expect(QuirkTable.quirks(of: PCIDeviceID(vendor: 0x1414, device: 0xB112)).isEmpty)
        #expect(QuirkTable.quirks(of: nil).isEmpty)
    }

    @Test("a controller says what kind it is, and has the quirks of the table")
    func byID() throws {
        let rig = try AdoptionRig()
        #expect(rig.controller.device.pciID == PCIDeviceID(vendor: 0x1234, device: 0x4E56))
        #expect(rig.controller.quirks.isEmpty)
    }

    @Test(
        "without admin commands after servicing all queues are there, and events are never asked for"
    )
    func bringUp() throws {
        let rig = try AdoptionRig(queues: 3, quirks: [.noAdminAfterServicing])
        #expect(rig.controller.queueCount == 3)
        #expect(rig.controller.eventRequests == 0)
        #expect(!rig.controller.adminIsClosed)
    }

    @Test("a successor sends no admin command to such a controller, whatever it is asked")
    func noAdmin() throws {
        // Given
        let rig = try AdoptionRig(queues: 2, quirks: [.noAdminAfterServicing])
        rig.fill(at: 0, byteCount: 4096, seed: 1)
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        let before = try rig.controlPlane()
        // When
        try rig.crashAndAdopt()
        #expect(try rig.complete(1) == [1: 0])
        #expect(try rig.controller.finishAdoption(comparing: true).isEmpty)
        try rig.controller.requestHealth()
        #expect(throws: DriverError.self) { try rig.controller.abort(queue: 0, commandID: 1) }
        #expect(throws: DriverError.self) { try rig.controller.refreshNamespace(1) }
        #expect(throws: DriverError.self) { try rig.controller.deleteSubmissionQueue(1) }
        // Then
        #expect(try rig.controlPlane() == before)
        #expect(rig.controller.adminIsClosed)
        try rig.submit(IOOperation.read, lba: 0, offset: 8192, token: 2)
        #expect(try rig.complete(1) == [2: 0])
        #expect(rig.equal(0, 8192, byteCount: 4096))
    }

    @Test("after a reset such a controller takes admin commands again")
    func afterReset() throws {
        let rig = try AdoptionRig(quirks: [.noAdminAfterServicing])
        try rig.crashAndAdopt()
        try rig.controller.startOver(rig.inheritance(), replay: { _ in .everything })
        #expect(!rig.controller.adminIsClosed)
        try rig.controller.refreshNamespace(1)
        #expect(rig.controller.namespaces[1] != nil)
    }

    @Test("with an admin command under way such a controller is reset")
    func adminUnderWay() throws {
        // Given: the answer to Get Log Page is late.
        let rig = try AdoptionRig(
            ["--fault", "command:delay=2000,queue=admin,opcode=2"],
            quirks: [.noAdminAfterServicing])
        try rig.controller.requestHealth()
        // When
        try rig.crash()
        // Then
        #expect(try refusal(rig).contains("admin command was under way"))
    }

    @Test("a controller that is not to be adopted is reset, with the reason, and goes on")
    func doNotAdopt() throws {
        let rig = try AdoptionRig(quirks: [.doNotAdopt])
        rig.fill(at: 0, byteCount: 4096, seed: 1)
        try rig.submit(IOOperation.write, lba: 0, token: 1)
        let resets = try rig.counter("controllerResets")
        try rig.crash()
        let reason = try refusal(rig)
        #expect(reason.contains("do-not-adopt"))
        #expect(reason.contains("1234:4e56"))
        try rig.controller.startOver(rig.inheritance(), replay: { _ in .everything })
        #expect(try rig.complete(1) == [1: 0])
        #expect(try rig.counter("controllerResets") == resets + 1)
    }

    /// Why it is not adopted.
    private func refusal(_ rig: AdoptionRig) throws -> String {
        do throws(DriverError) {
            try rig.controller.adopt(rig.inheritance())
            return "it was adopted"
        } catch {
            guard case .notAdoptable(let reason) = error else { throw error }
            return reason
        }
    }
}
