// SPDX-License-Identifier: Apache-2.0
// A namespace that is added, resized and removed while it and its neighbour are in use. QEMU's
// controller cannot resize one, so that the emulator stands for a real device here.

import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

extension ProcessTests {
    @Suite("Namespaces under load", .timeLimit(.minutes(5)))
    struct NamespaceTests {
        /// How long the service may take to learn of a change on a busy machine.
        private static let patience: UInt64 = 30_000_000_000

        /// Tries until it works, a step of the load at a time: the change is an event of the
        /// device, which nobody but the service hears.
        private static func eventually<Value>(
            _ load: Load, _ attempt: () throws -> Value?
        ) throws -> Value {
            let deadline = MonotonicClock.nowNanoseconds + patience
            while true {
                if let value = try? attempt() { return value }
                guard MonotonicClock.nowNanoseconds < deadline else {
                    guard let value = try attempt() else { throw SetUpError("it never happened") }
                    return value
                }
                load.waitForOperations(1)
            }
        }

        @Test("a namespace comes, grows and goes under load; its neighbour does not notice")
        func comesGrowsAndGoes() throws {
            let service = try RunningService(files: [
                "late-a.disk": "[Disk]\nDevice=a\nNamespace=2\n"
            ])
            let emulator = try #require(service.emulators["a"])
            let backend = try service.connect()
            let (beside, inside) = (Load(), Load())
            let neighbour = try beside.start(service, "disk-a")
            let absent = clientFailure { _ = try backend.openDisk("late-a") }
            #expect(absent?.wireError?.code == .notFound)

            #expect(try emulator.command("namespace add memory=8M,block=512,nsid=2") == "ok 2")
            let reader = try Self.eventually(beside) {
                try backend.openDisk("late-a", access: .readOnly)
            }
            #expect(reader.byteCount == 8 << 20)
            let client = try inside.start(service, "late-a")
            inside.waitForOperations(20)

            #expect(try emulator.command("namespace resize 2 16M") == "ok")
            let buffer = try IOBuffer(byteCount: 4096)
            try Self.eventually(inside) {
                try reader.read(into: buffer, byteOffset: 0, byteCount: 512)
                return reader.byteCount == 16 << 20 ? () : nil
            }
            try reader.read(into: buffer, byteOffset: (16 << 20) - 4096, byteCount: 4096)
            inside.waitForOperations(20)

            #expect(try emulator.command("namespace remove 2") == "ok")
            let grown = try client()
            beside.waitForOperations(20)
            beside.stop()
            let calm = try neighbour()
            let gone = clientFailure { _ = try backend.openDisk("late-a") }

            #expect(grown.differences == 0)
            #expect(grown.operations >= 40)
            #expect(grown.errors.count == 1)
            #expect(grown.firstError?.wireError?.code == .deviceRemoved)
            #expect(calm.differences == 0)
            #expect(calm.errors.isEmpty)
            #expect(gone != nil)
        }
    }
}
