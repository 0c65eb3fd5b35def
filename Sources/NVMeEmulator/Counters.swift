// SPDX-License-Identifier: Apache-2.0
// What the emulator was asked and did: plain numbers, shown as one JSON object.

internal import NVMeSpec

/// Counts since the start of the process.
struct Counters {
    var connections: UInt64 = 0
    var controllerResets: UInt64 = 0
    var deviceResets: UInt64 = 0
    var enables: UInt64 = 0
    var shutdowns: UInt64 = 0
    var fatals: UInt64 = 0
    var submissionQueuesCreated: UInt64 = 0
    var submissionQueuesDeleted: UInt64 = 0
    var completionQueuesCreated: UInt64 = 0
    var completionQueuesDeleted: UInt64 = 0
    var identifiesByCNS = [UInt64](repeating: 0, count: 256)
    var adminByOpcode = [UInt64](repeating: 0, count: 256)
    /// Of these, the ones before the first I/O command that was completed for the client at hand.
    var earlyAdminByOpcode = [UInt64](repeating: 0, count: 256)
    var ioByOpcode = [UInt64](repeating: 0, count: 256)
    var bytesRead: UInt64 = 0
    var bytesWritten: UInt64 = 0
    var commandsFailed: UInt64 = 0
    var aborts: UInt64 = 0
    var asynchronousEvents: UInt64 = 0
    var doorbellMessages: UInt64 = 0
    var doorbellsInvalid: UInt64 = 0
    var tailsFromShadow: UInt64 = 0
    var tailsFromRegister: UInt64 = 0
    var interruptsRaised: UInt64 = 0
    var interruptsSuppressed: UInt64 = 0
    var interruptsLost: UInt64 = 0
    var sleeps: UInt64 = 0
    var messages: UInt64 = 0
    var messageErrors: UInt64 = 0
    var dmaMaps: UInt64 = 0
    var dmaUnmaps: UInt64 = 0
    var dmaMessages: UInt64 = 0
    var faultsInjected: UInt64 = 0

    /// The counts as the members of a JSON object.
    func write(to json: inout JSONWriter) {
        for (name, value) in scalars { json.member(name, value) }
        Self.opcodes(adminByOpcode, "adminCommands", &json) {
            AdminOpcode(rawValue: $0).description
        }
        Self.opcodes(earlyAdminByOpcode, "earlyAdminCommands", &json) {
            AdminOpcode(rawValue: $0).description
        }
        Self.opcodes(ioByOpcode, "ioCommands", &json) { IOOpcode(rawValue: $0).description }
        Self.opcodes(identifiesByCNS, "identifies", &json) { String($0) }
    }

    private var scalars: [(String, UInt64)] {
        [
            ("connections", connections), ("controllerResets", controllerResets),
            ("deviceResets", deviceResets), ("enables", enables), ("shutdowns", shutdowns),
            ("fatals", fatals), ("submissionQueuesCreated", submissionQueuesCreated),
            ("submissionQueuesDeleted", submissionQueuesDeleted),
            ("completionQueuesCreated", completionQueuesCreated),
            ("completionQueuesDeleted", completionQueuesDeleted), ("bytesRead", bytesRead),
            ("bytesWritten", bytesWritten), ("commandsFailed", commandsFailed),
            ("aborts", aborts), ("asynchronousEvents", asynchronousEvents),
            ("doorbellMessages", doorbellMessages), ("doorbellsInvalid", doorbellsInvalid),
            ("tailsFromShadow", tailsFromShadow), ("tailsFromRegister", tailsFromRegister),
            ("interruptsRaised", interruptsRaised),
            ("interruptsSuppressed", interruptsSuppressed), ("interruptsLost", interruptsLost),
            ("sleeps", sleeps), ("messages", messages), ("messageErrors", messageErrors),
            ("dmaMaps", dmaMaps), ("dmaUnmaps", dmaUnmaps), ("dmaMessages", dmaMessages),
            ("faultsInjected", faultsInjected),
        ]
    }

    private static func opcodes(
        _ counts: [UInt64], _ name: String, _ json: inout JSONWriter, _ label: (UInt8) -> String
    ) {
        json.beginObject(name)
        for (opcode, count) in counts.enumerated() where count > 0 {
            json.member(label(UInt8(truncatingIfNeeded: opcode)), count)
        }
        json.endObject()
    }
}
