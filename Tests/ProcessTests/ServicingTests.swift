// SPDX-License-Identifier: Apache-2.0
// Everything above the devices is stopped and started again while clients write and verify. The
// long version, with more devices, kills and damage, is `.ci/servicing`.

import Glibc
import Linux
import NVMeClient
import SavedState
import TestSupport
import Testing
import Wire

extension ProcessTests {
    @Suite("Servicing", .timeLimit(.minutes(5)))
    struct ServicingTests {
        @Test("what is saved is taken over as it was, three times in a row, under verified load")
        func threeTimes() throws {
            // Given
            let service = try KeptService(["a", "b"])
            let load = LastingLoad()
            let clients = try ["a", "b", "bs"].enumerated().map {
                try load.start(service.socket, $1, seed: UInt64($0) + seed())
            }
            try load.waitForOperations(50)
            let before = try ["a", "b"].map(service.untouched)
            // When
            for _ in 0..<3 {
                #expect(try service.save() == 0)
                let saved = try service.servicing()
                #expect(saved.phase == "saved")
                #expect(saved.steps == ["a": "saved", "b": "saved"])
                try service.stop()
                try service.start()
                try load.waitForOperations(50)
                try service.waitFor(phase: "idle")
                #expect(try service.servicing().steps == ["a": "restored", "b": "restored"])
            }
            load.stop()
            let results = try clients.map { try $0() }
            let after = try ["a", "b"].map(service.untouched)
            // Then
            #expect(after == before)
            #expect(results.allSatisfy { $0.differences.isEmpty })
            #expect(results.allSatisfy { $0.sessions >= 3 && $0.verified > 10 })
        }

        @Test("a command of before ends after: its data stays away from others, who need not wait")
        func commandInFlight() throws {
            // Given
            let service = try KeptService(["a"])
            let owner = try service.connect().openDisk("a")
            let target = try IOBuffer(byteCount: 65536)
            try owner.registerMemory(target)
            try owner.write(from: target, byteOffset: 0, byteCount: 65536)
            let before = try service.untouched("a")
            let rule = "fault command:postpone=86400000,opcode=2,nsid=1,times=1"
            #expect(try service.tell("a", rule) == "ok")
            _ = try owner.submit(.read(lba: 0, blockCount: 16, into: target, bufferOffset: 0))
            try service.eventually("the device has the command") {
                try service.tell("a", "stats").contains("\"heldCommands\":1")
            }
            // When
            #expect(try service.save() == 0)
            try service.stop()
            try service.start()
            let stranger = try service.connect().openDisk("as")
            let memory = try IOBuffer(byteCount: 1 << 20)
            let pattern = DataPattern(seed: seed())
            pattern.fill(memory, offset: 0, count: 1 << 20, diskByteOffset: 0)
            try stranger.registerMemory(memory)
            try stranger.write(from: memory, byteOffset: 0, byteCount: 4096)
            #expect(try service.tell("a", "release") == "ok 1")
            try owner.reopen(deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
            try owner.flush(deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
            // Then
            #expect(
                pattern.firstMismatch(memory, offset: 0, count: 1 << 20, diskByteOffset: 0) == nil)
            #expect(try service.tell("a", "stats").contains("\"heldCommands\":0"))
            #expect(try service.untouched("a") == before)
        }

        @Test("a save that is cancelled leaves a pause behind, and nothing else")
        func cancelled() throws {
            // Given
            let service = try KeptService(["a", "b"])
            let load = LastingLoad()
            let clients = try ["a", "b"].map { try load.start(service.socket, $0, seed: seed()) }
            try load.waitForOperations(50)
            let before = try ["a", "b"].map(service.untouched)
            let worker = try #require(try service.connect().device("b").workerPID)
            // When
            #expect(kill(worker, SIGSTOP) == 0)
            let (socket, path) = (service.socket, Programs.path("nvmectl"))
            let saving = try Background.start {
                try Programs.run(path, ["--socket", socket, "service", "save"]).status
            }
            try service.waitFor(phase: "saving")
            #expect(try service.ask(["service", "cancel"]).status == 0)
            #expect(kill(worker, SIGCONT) == 0)
            #expect(try saving() != 0)
            try load.waitForOperations(50)
            load.stop()
            let results = try clients.map { try $0() }
            // Then
            #expect(try service.servicing().phase == "idle")
            #expect(try ["a", "b"].map(service.untouched) == before)
            #expect(results.allSatisfy { $0.differences.isEmpty && $0.sessions == 0 })
            #expect(!Files.exists(service.state))
        }

        @Test("with a damaged state, or one of before, a device is started cold and loses nothing")
        func damaged() throws {
            // Given
            let service = try KeptService(["a", "b"])
            let load = LastingLoad()
            let clients = try ["a", "b"].map { try load.start(service.socket, $0, seed: seed()) }
            try load.waitForOperations(50)
            // When
            #expect(try service.save() == 0)
            try service.stop()
            let old = try Files.read(service.state, limit: 64 << 20)
            var damaged = old
            let place = try #require(Self.place(of: service.memory.path + "/b", in: damaged))
            damaged[place] ^= 0x10
            try Self.write(damaged, to: service.state)
            try service.start()
            try load.waitForOperations(50)
            try service.waitFor(phase: "idle")
            let first = try service.servicing().steps
            #expect(try service.save() == 0)
            try service.stop()
            try Self.write(old, to: service.state)
            try service.start()
            try load.waitForOperations(50)
            try service.waitFor(phase: "idle")
            let second = try service.servicing().steps
            load.stop()
            let results = try clients.map { try $0() }
            // Then
            #expect(first == ["a": "restored", "b": "cold"])
            #expect(second == ["a": "cold", "b": "cold"])
            #expect(results.allSatisfy { $0.differences.isEmpty })
        }

        @Test("another controller under the same name is started cold at once, and only that one")
        func anotherController() throws {
            // Given
            let service = try KeptService(["a", "b"])
            let load = LastingLoad()
            let clients = try ["a", "b"].map { try load.start(service.socket, $0, seed: seed()) }
            try load.waitForOperations(50)
            // When
            #expect(try service.save() == 0)
            try service.stop()
            #expect(try service.tell("a", "serial OTHER") == "ok")
            let before = try ["a", "b"].map(service.untouched)
            try service.start()
            try load.waitForOperations(50)
            try service.waitFor(phase: "idle")
            let (_, text) = try service.ask(["service", "status"])
            let steps = try service.servicing().steps
            let after = try ["a", "b"].map(service.untouched)
            load.stop()
            let results = try clients.map { try $0() }
            // Then: the data of the emulator is what it was; a session that went on would not end.
            #expect(steps == ["a": "cold", "b": "restored"])
            #expect(text.contains("KEPT-a"))
            #expect(text.contains("OTHER"))
            #expect(before[0] != after[0])
            #expect(before[1] == after[1])
            #expect(results.allSatisfy { $0.differences.isEmpty && $0.sessions >= 1 })
        }

        @Test("what was saved on another machine is of no use: everything is started cold")
        func anotherMachine() throws {
            // Given
            let service = try KeptService(["a", "b"])
            let load = LastingLoad()
            let clients = try ["a", "b"].map { try load.start(service.socket, $0, seed: seed()) }
            try load.waitForOperations(50)
            // When
            #expect(try service.save() == 0)
            try service.stop()
            let file = try SavedState.decode(Files.read(service.state, limit: 64 << 20))
            var host = file.host
            host.machineID = "0123456789abcdef0123456789abcdef"
            let devices = try file.devices.values.map { try $0.get() }
            try Self.write(SavedState.encode(host: host, devices: devices), to: service.state)
            try service.start()
            try load.waitForOperations(50)
            try service.waitFor(phase: "idle")
            let (_, text) = try service.ask(["service", "status"])
            let steps = try service.servicing().steps
            load.stop()
            let results = try clients.map { try $0() }
            // Then
            #expect(steps == ["a": "cold", "b": "cold"])
            #expect(text.contains("anothermachine(\(host.machineID))"))
            #expect(results.allSatisfy { $0.differences.isEmpty && $0.sessions >= 1 })
            #expect(!Files.exists(service.state))
        }

        /// Where a text is in bytes.
        private static func place(of text: String, in bytes: [UInt8]) -> Int? {
            let wanted = Array(text.utf8)
            return bytes.indices.dropLast(wanted.count).first { start in
                bytes[start..<start + wanted.count].elementsEqual(wanted)
            }
        }

        private static func write(_ bytes: [UInt8], to path: String) throws {
            let file = try OwnedFD.open(path, flags: O_WRONLY | O_CREAT | O_TRUNC)
            guard unsafe Glibc.write(file.raw, bytes, bytes.count) == bytes.count else {
                throw SetUpError("\(path) cannot be written")
            }
        }
    }
}
