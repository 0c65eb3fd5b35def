// SPDX-License-Identifier: Apache-2.0
// Status codes, opcodes and events: fields and names.

import NVMeSpec
import Testing

@Suite("Status and names")
struct StatusTests {
    @Test("a status says its name, type and code, and whether to retry")
    func descriptions() {
        #expect(Status.lbaOutOfRange.description == "LBA Out of Range (0h/80h)")
        #expect(Status.invalidQueueSize.description == "Invalid Queue Size (1h/02h)")
        #expect(
            Status.writeFault.withDoNotRetry.description == "Write Fault (2h/80h), do not retry")
        #expect(Status(.pathRelated, 0x33).description == "Unknown Status (3h/33h)")
        #expect(Status(.vendorSpecific, 0xC0).description == "Vendor Specific (7h/C0h)")
    }

    @Test("the fields of a status are where the specification puts them")
    func fields() {
        // DNR 1, More 1, CRD 2, SCT 2, SC 81h
        let status = Status(rawValue: 0b1_1_10_010_1000_0001)

        #expect(status.code == 0x81)
        #expect(status.type == .mediaAndDataIntegrity)
        #expect(status.commandRetryDelay == 2)
        #expect(status.hasMore)
        #expect(status.doNotRetry)
        #expect(status.kind == .unrecoveredReadError)
        #expect(!status.isSuccess)
        #expect(Status(.generic, 0, doNotRetry: true).isSuccess)
    }

    @Test("no two known statuses or opcodes share a value")
    func distinct() {
        #expect(Set(Status.known).count == Status.known.count)
        #expect(Set(AdminOpcode.known).count == AdminOpcode.known.count)
        #expect(Set(IOOpcode.known).count == IOOpcode.known.count)
        #expect(AdminOpcode.known == AdminOpcode.known.sorted { $0.rawValue < $1.rawValue })
        #expect(IOOpcode.known == IOOpcode.known.sorted { $0.rawValue < $1.rawValue })
    }

    @Test("every status survives a completion entry unchanged", arguments: Status.known)
    func roundTrip(status: Status) {
        let entry = CompletionEntry(
            commandID: 0, sqID: 0, sqHead: 0, status: status, phase: false)

        #expect(entry.status == status)
        #expect(!entry.phase)
    }

    @Test("the direction of data follows from bits 1:0 of the opcode")
    func directions() {
        #expect(IOOpcode.read.dataDirection == .controllerToHost)
        #expect(IOOpcode.write.dataDirection == .hostToController)
        #expect(IOOpcode.compare.dataDirection == .hostToController)
        #expect(IOOpcode.flush.dataDirection == .none)
        #expect(IOOpcode.writeZeroes.dataDirection == .none)
        #expect(IOOpcode.datasetManagement.dataDirection == .hostToController)
        #expect(AdminOpcode.identify.dataDirection == .controllerToHost)
        #expect(AdminOpcode.doorbellBufferConfig.dataDirection == .none)
        #expect(AdminOpcode(rawValue: 0xFF).dataDirection == .bidirectional)
    }

    @Test("opcodes say their names, unknown ones their number")
    func opcodeNames() {
        #expect(AdminOpcode.getLogPage.description == "Get Log Page")
        #expect(IOOpcode.datasetManagement.description == "Dataset Management")
        #expect(AdminOpcode(rawValue: 0xC1).description == "opcode C1h")
        #expect(AdminOpcode(rawValue: 0xC1).isVendorSpecific)
        #expect(!AdminOpcode.formatNVM.isVendorSpecific)
    }

    @Test("an asynchronous event packs type, information and log page")
    func events() {
        #expect(AsynchronousEvent.namespaceAttributeChanged.rawValue == 0x0004_0002)
        #expect(AsynchronousEvent.invalidDoorbellValue.rawValue == 0x0001_0100)
        #expect(
            AsynchronousEvent.namespaceAttributeChanged.description
                == "namespace attribute changed (type 2h, information 00h, log page 04h)")
        #expect(
            AsynchronousEvent(rawValue: 0xFFFF_FFFF).description
                == "event of type 7h, information FFh, log page FFh")
    }
}
