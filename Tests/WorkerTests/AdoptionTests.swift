// SPDX-License-Identifier: Apache-2.0
// What clients see when their worker dies and a successor goes on.

import CLinux
import Glibc
import Linux
import TestSupport
import Testing
import Wire

extension WorkerProcessTests {
    @Suite("Sessions that outlive their worker")
    struct Adoption {
        /// Kills the worker and waits until its successor has looked at what it left.
        private func replaceWorker(_ rig: Rig) throws {
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            try rig.startWorker()
            try rig.notify.wait(for: "READY=1")
        }

        /// What the controller counted of resets and queues. (Its identity is asked again, later.)
        private func untouched(_ rig: Rig) throws -> [Substring] {
            try rig.control("stats").split(separator: ",").filter { member in
                ["Resets", "enables", "QueuesCreated"].contains { member.contains($0) }
            }
        }

        @Test("requests in flight, on the socket and in regions are answered by the successor")
        func requests() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            let memory = try SharedMemory(byteCount: 1 << 20)
            let again = pattern(4096, seed: 3)
            memory.fill(again, at: 8192)
            try client.register(7, memory)
            let before = try untouched(rig)
            // Only what is delayed can be released: what hangs is never answered.
            try rig.control("fault command:delay=600000,queue=io")
            let held = try client.send(
                .write(
                    lba: 64, blockCount: 8, fua: false, location: .region(id: 7, byteOffset: 8192)))
            let inline = try client.send(
                .write(lba: 128, blockCount: 8, fua: false, location: .inline),
                payload: pattern(4096, seed: 4))
            try supervisor.wait(until: "counters/requests_in_flight", is: "2")

            try replaceWorker(rig)
            let later = try client.send(.read(lba: 0, blockCount: 1, location: .inline))
            try rig.control("clear")
            try rig.control("release")
            let replies = try [held, inline, later].map { try client.answer(to: $0).reply }

            #expect(replies == [.done, .done, .read])
            #expect(try client.read(64, 8) == again)
            #expect(try client.read(128, 8) == pattern(4096, seed: 4))
            #expect(client.events.isEmpty)
            #expect(try untouched(rig) == before)
        }

        @Test("what the client sent while there was no worker is done by the next one")
        func sentMeanwhile() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            let memory = try SharedMemory(byteCount: 1 << 16)
            let register = try client.send(
                .registerMemory(regionID: 1, byteCount: 1 << 16, readOnly: false),
                fds: [memory.fd.raw])
            let write = try client.send(
                .write(lba: 9, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 5))
            let unregister = try client.send(.unregisterMemory(regionID: 1))
            try rig.startWorker()
            for id in [register, write, unregister] {
                #expect(try client.answer(to: id).reply == .done)
            }
            #expect(try client.read(9, 1) == pattern(512, seed: 5))
        }

        @Test(
            "when a session was opened, and what it has done, is known over the death of the worker"
        )
        func counters() throws {
            // Given
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try client.write(0, pattern(1024, seed: 8))
            _ = try client.read(0, 1)
            let before = try session(client, supervisor)
            // When
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            try rig.startWorker()
            _ = try client.read(0, 1)
            let after = try session(client, rig.connect())
            // Then
            #expect(after.opened == before.opened)
            #expect(after.reads == "2")
            #expect(after.writes == "1")
            #expect(after.bytesWritten == "1024")
        }

        private func session(
            _ client: Client, _ supervisor: Supervisor
        ) throws -> (opened: String?, reads: String?, writes: String?, bytesWritten: String?) {
            (
                try supervisor.inspect("sessions/\(client.id)/opened_ns"),
                try supervisor.inspect("sessions/\(client.id)/reads"),
                try supervisor.inspect("sessions/\(client.id)/writes"),
                try supervisor.inspect("sessions/\(client.id)/bytes_written")
            )
        }

        @Test("one file registered twice is still there twice, and can be given back")
        func twice() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            let memory = try SharedMemory(byteCount: 1 << 16)
            try client.register(1, memory)
            try client.register(2, memory)
            try client.write(0, pattern(512, seed: 6))

            try replaceWorker(rig)
            for id in 1...2 as ClosedRange<UInt64> {
                _ = try client.ask(
                    .read(lba: 0, blockCount: 1, location: .region(id: id, byteOffset: id * 4096)))
                #expect(memory.contents(Int(id) * 4096, 512) == pattern(512, seed: 6))
                #expect(try client.ask(.unregisterMemory(regionID: id)) == .done)
            }
            try rig.notify.pump()
            #expect(!rig.notify.storedNames.contains { $0.hasPrefix("m-") })
        }

        @Test(
            "memory that two sessions share outlives the one that gives it back, and the next death"
        )
        func shared() throws {
            // Given
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let (first, second) = (try supervisor.open(), try supervisor.open(.readOnly))
            let memory = try SharedMemory(byteCount: 1 << 16)
            try first.register(1, memory)
            try second.register(1, memory)
            try first.write(0, pattern(512, seed: 14))
            let before = try untouched(rig)
            // When
            try replaceWorker(rig)
            let given = try first.ask(.unregisterMemory(regionID: 1))
            try replaceWorker(rig)
            _ = try second.ask(
                .read(lba: 0, blockCount: 1, location: .region(id: 1, byteOffset: 4096)))
            // Then
            #expect(given == .done)
            #expect(memory.contents(4096, 512) == pattern(512, seed: 14))
            #expect(try untouched(rig) == before)
            #expect(try second.ask(.unregisterMemory(regionID: 1)) == .done)
            try rig.notify.pump()
            #expect(!rig.notify.storedNames.contains { $0.hasPrefix("m-") })
        }

        @Test("a ring that waits for the commands of a dead client waits after the worker's death")
        func heldRing() throws {
            // Given: a dead client's write with the device, and an entry that has to come after it
            let rig = try Rig(namespaces: ["memory=16M,block=512", "memory=1M,block=512"])
            let supervisor = try rig.startLoaded()
            let other = try supervisor.open(.readOnly, nsid: 2)
            var dead: Client? = try supervisor.open()
            try rig.control("fault command:delay=600000,queue=io")
            try #require(dead).send(
                .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 12))
            try supervisor.wait(until: "counters/requests_in_flight", is: "1")
            dead = nil
            _ = try supervisor.sessionEnd()
            try rig.control("clear")
            let client = try supervisor.open()
            let memory = try SharedMemory(byteCount: 1 << 16)
            memory.fill(pattern(512, seed: 13), at: 0)
            try client.register(1, memory)
            let ring = try RingEnd(client)
            try ring.write(0)
            // When: often, because nothing but the time that a thread takes would stop it
            for _ in 0..<10 {
                try replaceWorker(rig)
                // A worker that completes nothing counts as one that does not get anywhere.
                _ = try other.read(0, 1)
            }
            let taken = try rig.connect().inspect("rings/\(client.id)/1/taken")
            let released = try rig.control("release")
            try ring.wait(1)
            // Then
            #expect(taken == "0")
            #expect(released == "ok 1")
            #expect(try client.read(0, 1) == pattern(512, seed: 13))
        }

        @Test("a ring is closed when its requests end, whoever ended while there was no controller")
        func closing() throws {
            // Given: one client dies with its worker, another while the successor has no device
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            var dying = [try supervisor.open(.readOnly), try supervisor.open(.readOnly)]
            try client.register(1, SharedMemory(byteCount: 1 << 16))
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            dying.removeFirst()
            rig.stopEmulator()
            try rig.startWorker()
            try rig.notify.wait(for: "READY=1")
            let successor = try rig.connect()
            dying.removeFirst()
            _ = try successor.sessionEnd()
            try rig.startEmulator()
            _ = try successor.ask(.loadDriver(rig.config))
            let ring = try RingEnd(client)
            try rig.control("fault command:delay=600000,queue=io")
            try ring.write(0)
            try successor.wait(until: "rings/\(client.id)/1/inflight", is: "1")
            // When: what is answered shows that the request before it was taken
            let close = try client.send(.closeRing(ringID: 1))
            _ = try client.ask(.getDiskInfo)
            try rig.control("clear")
            let released = try rig.control("release")
            // Then
            #expect(released == "ok 1")
            #expect(try client.answer(to: close).reply == .done)
        }

        @Test("a client that dies with its worker holds its successor back until its commands end")
        func deadClient() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            var dead: Client? = try supervisor.open()
            try rig.control("fault command:delay=600000,queue=io")
            try #require(dead).send(
                .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 7))
            try supervisor.wait(until: "counters/requests_in_flight", is: "1")
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            dead = nil
            try rig.startWorker()
            let successor = try rig.connect()
            let client = try successor.open()
            try rig.control("clear")
            let write = try client.send(
                .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 8))
            try successor.wait(until: "sessions/\(client.id)/waits", is: "held")
            let inFlight = try successor.inspect("counters/requests_in_flight")
            try rig.control("release")

            #expect(inFlight == "1")
            #expect(try client.answer(to: write).reply == .done)
            #expect(try client.read(0, 1) == pattern(512, seed: 8))
        }

        @Test(
            "replies that a client has not read are there after the death of the worker, once more")
        func unread() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            let count: UInt32 = 256
            try client.write(0, pattern(Int(count) * 512, seed: 9))
            var ids: [UInt64] = []
            // More than the socket has room for.
            for _ in 0..<20 {
                ids.append(
                    try client.send(.read(lba: 0, blockCount: count, location: .inline)))
            }
            let last = try client.send(.getDiskInfo)
            try supervisor.wait(until: "sessions/\(client.id)/inflight", is: "0")
            try replaceWorker(rig)

            for id in ids {
                #expect(
                    try client.answer(to: id).payload == pattern(Int(count) * 512, seed: 9))
            }
            _ = try client.answer(to: last)
            #expect(client.events.isEmpty)
        }

        @Test("sessions are told when a device cannot be served, and when it is again")
        func stalled() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            let write = try client.send(
                .write(lba: 1, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 10))
            rig.stopEmulator()
            try rig.startWorker()
            let reason = try client.event { event -> String? in
                if case .stalled(let reason) = event { return reason }
                return nil
            }
            try rig.startEmulator()
            let supervisor = try rig.connect()
            _ = try supervisor.ask(.loadDriver(rig.config))
            let nanoseconds = try client.event { event -> UInt64? in
                if case .resumed(let nanoseconds) = event { return nanoseconds }
                return nil
            }

            #expect(!reason.isEmpty)
            #expect(nanoseconds >= 1_000_000_000)
            #expect(try client.answer(to: write).reply == .done)
            #expect(try client.read(1, 1) == pattern(512, seed: 10))
        }

        @Test("a session that is not served for too long ends with the reason")
        func limit() throws {
            let rig = try Rig()
            rig.workerEnvironment = ["NVMED_SESSION_STALL_MS=1500"]
            let client = try rig.startLoaded().open()
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            rig.stopEmulator()
            try rig.startWorker()
            let reason = try client.reason()

            #expect(reason.code == .deviceFailed)
            #expect(reason.message.contains("has not been served"))
            try client.end()
        }

        @Test(
            "a command that was lost is aborted although no worker lives as long as that takes",
            arguments: [false, true])
        func diesFaster(throughRing: Bool) throws {
            // Given: one command that is never answered, and a session that others come through.
            let rig = try Rig()
            rig.config.ioTimeoutMilliseconds = 3000
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            let other = try supervisor.open(.readOnly)
            try client.register(1, SharedMemory(byteCount: 1 << 16))
            let ring = throughRing ? try RingEnd(client) : nil
            try rig.control("fault command:hang,queue=io,opcode=1,times=1")
            var lost: UInt64 = 0
            if let ring {
                try ring.write(0)
            } else {
                lost = try client.send(
                    .write(
                        lba: 0, blockCount: 1, fua: false, location: .region(id: 1, byteOffset: 0)))
            }
            // When: each worker completes something, and is killed.
            var lives: [UInt64] = []
            while try !isAborted(rig) {
                let begin = MonotonicClock.nowNanoseconds
                try replaceWorker(rig)
                _ = try other.read(8, 1)
                lives.append((MonotonicClock.nowNanoseconds - begin) / 1_000_000)
                try #require(lives.count < 500, "\(lives)")
            }
            // Then
            if let ring {
                try ring.wait(1)
            } else {
                let error = #expect(throws: WireError.self) { try client.answer(to: lost) }
                #expect(error?.code == .outcomeUnknown)
            }
            #expect(lives.count > 1)
            #expect(try other.read(0, 1).count == 512)
        }

        /// Whether the controller was told to abort something.
        private func isAborted(_ rig: Rig) throws -> Bool {
            try !rig.control("stats").contains("\"aborts\":0")
        }

        @Test("a Cancel that the worker died under is answered")
        func cancelled() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try rig.control("fault command:hang,queue=io")
            try rig.control("fault command:hang,queue=admin,opcode=8")
            let write = try client.send(
                .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 11))
            let cancel = try client.send(.cancel(requestID: write))
            try supervisor.wait(until: "counters/aborts", is: "1")
            try replaceWorker(rig)
            try rig.control("clear")
            try rig.control("release")
            guard case .cancelled = try client.answer(to: cancel).reply else {
                throw RigError("no answer to Cancel")
            }
        }
    }
}
