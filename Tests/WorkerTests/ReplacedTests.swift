// SPDX-License-Identifier: Apache-2.0
// Sessions whose device cannot be gone on with: what was for one disk never goes to another, and
// nobody is told that his session is over while the device may still write to his memory.

import CMemory
import Glibc
import Linux
import Testing
import Wire

extension WorkerProcessTests {
    @Suite("What is in the place of a device")
    struct Replaced {
        private static let disk = "memory=16M,block=512"
        private static let other = "00112233445566778899aabbccddeeff"

        /// Kills the worker, with the emulator where another one is to be found.
        private func kill(_ rig: Rig) throws {
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            try rig.notify.pump()
        }

        /// Starts another emulator and a successor. With `isSecond` the successor's first attempt
        /// fails when the namespaces have been compared, and another one makes the second.
        private func succeed(_ rig: Rig, _ namespaces: [String], isSecond: Bool) throws {
            let fault = "command:status=0/6,queue=admin,opcode=5,times=1"
            try rig.startEmulator(namespaces: namespaces, isSecond ? ["--fault", fault] : [])
            try rig.startWorker()
            guard isSecond else { return }
            try rig.connect().wait(until: "device/state", is: "failed")
            try kill(rig)
            try rig.startWorker()
        }

        private func write(_ client: Client) throws -> UInt64 {
            try client.send(
                .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 1))
        }

        @Test("another controller: all sessions end, with both names, and it gets no command")
        func anotherController() throws {
            // Given
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try rig.control("fault command:hang,queue=io")
            _ = try write(client)
            try supervisor.wait(until: "counters/requests_in_flight", is: "1")
            // When
            try kill(rig)
            try rig.startEmulator(namespaces: [Self.disk], ["--serial", "OTHER"])
            try rig.startWorker()
            let reason = try client.reason()
            // Then
            #expect(reason.code == .workerRestarted)
            #expect(reason.message.contains("NVMED0001") && reason.message.contains("OTHER"))
            let successor = try rig.connect()
            _ = try successor.ask(.loadDriver(rig.config))
            #expect(try successor.open().read(0, 1) == [UInt8](repeating: 0, count: 512))
            #expect(try rig.control("stats").contains("\"bytesWritten\":0"))
        }

        @Test(
            "another disk under the same id: its sessions end, the others go on",
            arguments: [false, true])
        func anotherDisk(isSecond: Bool) throws {
            // Given
            let rig = try Rig(namespaces: [Self.disk, Self.disk])
            let supervisor = try rig.startLoaded()
            let (client, neighbour) = (try supervisor.open(), try supervisor.open(nsid: 2))
            try rig.control("fault command:hang,queue=io")
            let ids = (try write(client), try write(neighbour))
            try supervisor.wait(until: "counters/requests_in_flight", is: "2")
            // When
            try kill(rig)
            let found = ["\(Self.disk),nguid=\(Self.other)", Self.disk]
            try succeed(rig, found, isSecond: isSecond)
            let reason = try client.reason()
            let reply = try neighbour.answer(to: ids.1).reply
            // Then
            #expect(reason.code == .deviceRemoved)
            #expect(reason.message.contains("another disk"))
            #expect(reason.message.contains(Self.other))
            #expect(reply == .done)
            let successor = try rig.connect()
            #expect(try successor.open().read(0, 1) == [UInt8](repeating: 0, count: 512))
            #expect(try neighbour.read(0, 1) == pattern(512, seed: 1))
            #expect(try rig.control("stats").contains("\"bytesWritten\":512,"))
        }

        @Test(
            "a disk of another size is told, and its commands are given out again",
            arguments: [false, true])
        func resized(isSecond: Bool) throws {
            // Given
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try rig.control("fault command:hang,queue=io")
            let id = try write(client)
            try supervisor.wait(until: "counters/requests_in_flight", is: "1")
            // When
            try kill(rig)
            try succeed(rig, ["memory=32M,block=512"], isSecond: isSecond)
            let reply = try client.answer(to: id).reply
            let info = try client.event { event -> DiskInfo? in
                if case .diskChanged(.resized, let info) = event { return info }
                return nil
            }
            // Then
            #expect(info.blockCount == 65536)
            #expect(reply == .done)
            #expect(try client.read(65535, 1).count == 512)
        }

        @Test("the sessions of a disk that is gone end")
        func removed() throws {
            // Given
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try rig.control("fault command:hang,queue=io")
            _ = try write(client)
            try supervisor.wait(until: "counters/requests_in_flight", is: "1")
            // When
            try kill(rig)
            try rig.startEmulator(namespaces: ["\(Self.disk),nsid=2"])
            try rig.startWorker()
            let reason = try client.reason()
            // Then
            #expect(reason.code == .deviceRemoved)
            #expect(reason.message.contains("gone"))
        }

        @Test("while sessions wait, the device is not loaded from another place")
        func anotherPlace() throws {
            // Given
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try kill(rig)
            rig.stopEmulator()
            let id = try write(client)
            try rig.startWorker()
            let supervisor = try rig.connect()
            // When
            var elsewhere = rig.config
            elsewhere.transport = .vfioUser(path: "\(rig.directory)/elsewhere")
            let refusal = try supervisor.refusal(.loadDriver(elsewhere))
            try rig.startEmulator()
            _ = try supervisor.ask(.loadDriver(rig.config))
            // Then
            #expect(refusal.code == .busy)
            #expect(refusal.message.contains("\(rig.directory)/elsewhere"))
            #expect(refusal.message.contains("nvmed-worker@\(rig.name).service"))
            #expect(try client.answer(to: id).reply == .done)
        }

        // MARK: What the device may still write

        /// A session whose read into its own memory the device holds.
        private func hold(
            _ rig: Rig, _ supervisor: Supervisor
        ) throws -> (client: Client, memory: SharedMemory) {
            let client = try supervisor.open()
            let memory = try SharedMemory(byteCount: 1 << 16)
            try client.register(1, memory)
            try rig.control("fault command:delay=600000,queue=io")
            try client.send(
                .read(lba: 0, blockCount: 8, location: .region(id: 1, byteOffset: 0)))
            try supervisor.wait(until: "counters/requests_in_flight", is: "1")
            return (client, memory)
        }

        private func holdsNothing(_ rig: Rig) throws -> Bool {
            try rig.control("stats").contains("\"heldCommands\":0,")
        }

        private func crashUntilTheLast(_ rig: Rig) throws {
            for _ in 1...4 {
                try kill(rig)
                try rig.startWorker()
                try rig.notify.wait(for: "READY=1")
            }
            try kill(rig)
        }

        @Test("a crash loop: the controller is stopped before its sessions are told that they end")
        func crashLoop() throws {
            // Given
            let rig = try Rig()
            let held = try hold(rig, rig.startLoaded())
            try crashUntilTheLast(rig)
            let before = try holdsNothing(rig)
            // When
            try rig.startWorker()
            let reason = try held.client.reason()
            // Then
            #expect(!before)
            #expect(reason.message.contains("died 5 times in a row"))
            #expect(try holdsNothing(rig))
            #expect(try rig.control("stats").contains("\"enabled\":false"))
        }

        @Test("a crash loop whose device does not answer ends its sessions all the same")
        func silentDevice() throws {
            // Given
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try crashUntilTheLast(rig)
            // When
            try #require(rig.emulator).signal(SIGSTOP)
            try rig.startWorker()
            let reason = try client.reason()
            try #require(rig.emulator).signal(SIGCONT)
            // Then
            #expect(reason.message.contains("died 5 times in a row"))
        }

        @Test("a state area that is of no use: the controller is stopped before sessions end")
        func lostState() throws {
            // Given
            let rig = try Rig()
            let held = try hold(rig, rig.startLoaded())
            try kill(rig)
            let fd = try rig.notify.duplicate("state")
            let state = try Mapping(fd, byteCount: try MemFD.byteCount(of: fd))
            unsafe nv_store8(state.base, 0)
            // When
            try rig.startWorker()
            let reason = try held.client.reason()
            // Then
            #expect(reason.code == .workerRestarted)
            #expect(try holdsNothing(rig))
            #expect(try rig.control("stats").contains("\"enabled\":false"))
            // And the device can be used afterwards.
            try rig.control("clear")
            let supervisor = try rig.connect()
            _ = try supervisor.ask(.loadDriver(rig.config))
            #expect(try supervisor.open().read(0, 1).count == 512)
        }

        @Test("memory that is lost: the controller is stopped before sessions end")
        func lostMemory() throws {
            // Given: a server that keeps its state, and takes its time for each register.
            let rig = try Rig(arguments: ["--keep", "--reply-delay-ms", "30"])
            rig.config.keepAlive = true
            let held = try hold(rig, rig.startLoaded())
            try kill(rig)
            for name in rig.notify.storedNames where name.hasPrefix("m-") {
                rig.notify.remove(name)
            }
            // When
            try rig.startWorker()
            let reason = try held.client.reason()
            let isFree = try holdsNothing(rig)
            // Then
            #expect(reason.code == .workerRestarted)
            #expect(isFree)
        }
    }
}
