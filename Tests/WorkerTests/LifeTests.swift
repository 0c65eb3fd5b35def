// SPDX-License-Identifier: Apache-2.0
// The life of a worker process: loading, restarts, shutdown, supervisors that come and go.

import CLinux
import Glibc
import Linux
import TestSupport
import Testing
import Wire

extension WorkerProcessTests {
    @Suite("The life of a worker process")
    struct Life {
        @Test("loading twice with the same configuration gives the same answer, another is refused")
        func idempotent() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let first = try supervisor.ask(.loadDriver(rig.config))
            let second = try supervisor.ask(.loadDriver(rig.config))
            var other = rig.config
            other.queueDepth = 8
            let refusal = try supervisor.refusal(.loadDriver(other))
            other.name = "dev1"
            let stranger = try supervisor.refusal(.loadDriver(other))

            #expect(first == second)
            #expect(refusal.code == .alreadyExists)
            #expect(stranger.field == "load_driver.config.name")
        }

        @Test(
            "from exec to a ready device it takes at most 50 ms and 16 MiB beside the pool",
            .enabled(if: Program.environment("NVMED_BIN_DIR") != nil, "needs release programs"))
        func start() throws {
            let rig = try Rig()
            try rig.startEmulator()
            // The first start brings the program into the page cache.
            var best = UInt64.max
            for _ in 0..<5 {
                let watch = try Stopwatch(rig)
                try rig.startWorker()
                let supervisor = try rig.connect()
                _ = try supervisor.ask(.loadDriver(rig.config))
                best = min(best, try watch.nanoseconds() / 1000)
                let bytes = try #require(try supervisor.inspect("process/resident_bytes"))
                #expect((Int64(bytes) ?? .max) < 16 << 20)
                try #require(rig.worker).signal(SIGKILL)
                try #require(rig.worker).wait()
            }
            print("worker: \(best) µs from exec to a ready device")
            #expect(best < 50_000)
        }

        @Test("a device that is not there fails with the reason, and can be loaded once it is")
        func retry() throws {
            let rig = try Rig()
            try rig.startWorker()
            try rig.notify.wait(for: "READY=1")
            let supervisor = try rig.connect()
            let early = try supervisor.refusal(.openSession(supervisor.opening()))
            let error = try supervisor.refusal(.loadDriver(rig.config))
            let failed = try supervisor.device()
            try rig.startEmulator()
            let reply = try supervisor.ask(.loadDriver(rig.config))
            let ready = try supervisor.device()

            #expect(early.code == .deviceStarting)
            #expect(error.code == .deviceFailed)
            #expect(error.message.contains("\(rig.directory)/e"))
            #expect(failed.state == .failed)
            #expect(failed.reason == error.message)
            #expect(ready.state == .ready)
            #expect(reply == ready.ready.map { .deviceReady($0) })
        }

        @Test("a killed worker has its device back within 200 ms, and says which generation it is")
        func restart() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            var client: Client? = try supervisor.open()
            try #require(client).write(0, pattern(4096, seed: 10))
            _ = try #require(client).ask(.flush)
            try rig.notify.pump()
            let kept = [
                "state", "pool", "stats", "vfio-user", "vfio-user-log", "irq-0", "irq-1", "irq-2",
                "s-1",
            ]
            #expect(Set(rig.notify.storedNames) == Set(kept))

            let watch = try Stopwatch(rig)
            try #require(rig.worker).signal(SIGKILL)
            #expect(try #require(rig.worker).wait() == -SIGKILL)
            client = nil
            try rig.startWorker()
            let successor = try rig.connect()
            let device = try successor.device()
            let milliseconds = try watch.nanoseconds() / 1_000_000

            #expect(device.state == .ready)
            #expect(device.config == rig.config)
            #expect(device.ready?.generation == 2)
            #expect(milliseconds < 200)
            #expect(try successor.open().read(0, 8) == pattern(4096, seed: 10))
        }

        @Test("a worker can be killed over and over under load")
        func killedUnderLoad() throws {
            let rig = try Rig()
            var supervisor = try rig.startLoaded()
            for round in 1...8 as ClosedRange<UInt64> {
                let client = try supervisor.open(shared: true)
                for index in 0..<64 as Range<UInt64> {
                    try client.send(
                        .write(lba: index * 8, blockCount: 8, fua: false, location: .inline),
                        payload: pattern(4096, seed: index))
                }
                _ = try client.next()
                try #require(rig.worker).signal(SIGKILL)
                try #require(rig.worker).wait()
                try rig.startWorker()
                supervisor = try rig.connect()
                #expect(try supervisor.device().ready?.generation == round + 1)
            }
            #expect(try supervisor.open(shared: true).read(0, 8) == pattern(4096, seed: 0))
        }

        @Test(
            "SIGTERM finishes what is in flight, keeps what was stored, and the clients go on"
        )
        func terminate() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            for index in 0..<32 as Range<UInt64> {
                try client.send(
                    .write(lba: index, blockCount: 1, fua: false, location: .inline),
                    payload: pattern(512, seed: index))
            }
            _ = try client.answer(to: 32)

            try #require(rig.worker).signal(SIGTERM)
            let code = try #require(rig.worker).wait()
            try rig.startWorker()
            try rig.notify.wait(for: "READY=1")
            let device = try rig.connect().device()

            #expect(try client.read(5, 1) == pattern(512, seed: 5))
            #expect(client.events.isEmpty)
            // Not 0, which would tell the manager that there is nothing to go on with.
            #expect(code == 75)
            #expect(device.state == .ready)
        }

        @Test("a worker that dies five times before it completes a command leaves the device alone")
        func crashLoop() throws {
            let rig = try Rig()
            _ = try rig.startLoaded()
            for _ in 1...5 {
                try #require(rig.worker).signal(SIGKILL)
                try #require(rig.worker).wait()
                try rig.startWorker()
                try rig.notify.wait(for: "READY=1")
            }
            let supervisor = try rig.connect()
            let device = try supervisor.device()
            let refusal = try supervisor.refusal(.loadDriver(rig.config))
            let bringUps = try supervisor.inspect("counters/bring_ups")

            #expect(device.state == .failed)
            #expect(device.reason.contains("died 5 times in a row"))
            #expect(refusal.code == .deviceFailed)
            #expect(refusal.message.contains("stopping nvmed-worker@\(rig.name).service"))
            #expect(bringUps == "0")
        }

        @Test("deaths before the last completed command do not count")
        func notALoop() throws {
            let rig = try Rig()
            var supervisor = try rig.startLoaded()
            for round in 1...8 as ClosedRange<UInt64> {
                try supervisor.open().write(0, pattern(512, seed: round))
                try #require(rig.worker).signal(SIGKILL)
                try #require(rig.worker).wait()
                try rig.startWorker()
                supervisor = try rig.connect()
            }
            #expect(try supervisor.device().state == .ready)
        }

        @Test("Shutdown ends the controller in order and forgets it")
        func shutdown() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try client.write(0, pattern(512, seed: 11))

            let id = try supervisor.send(.shutdown(doNotReset: false))
            let reason = try client.reason()
            let reply = try supervisor.answer(to: id).reply
            let code = try #require(rig.worker).wait()
            try rig.notify.pump()
            let statistics = try rig.control("stats")

            #expect(reply == .done)
            #expect(reason.code == .shuttingDown)
            #expect(code == 0)
            #expect(rig.notify.storedNames.isEmpty)
            #expect(rig.notify.messages.contains("STOPPING=1"))
            #expect(statistics.contains("\"enabled\":false"))
        }

        @Test("whoever had a disk open never gets another one under the same namespace id")
        func anotherNamespace() throws {
            // Given
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try client.write(0, pattern(512, seed: 1))
            // When
            try rig.control("namespace remove 1")
            try rig.control("namespace add memory=16M,nsid=1,uuid=\(Self.otherUUID)")
            let change = try client.event { event -> DiskChange? in
                if case .diskChanged(let change, _) = event { change } else { nil }
            }
            let reason = try client.reason()
            // Then
            #expect([.removed, .identity].contains(change))
            #expect(reason.code == .deviceRemoved)
            // And a successor has nothing of it.
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            try rig.startWorker()
            guard case .sessions(let page) = try rig.connect().ask(.listSessions(after: nil))
            else { throw RigError("no list of sessions") }
            #expect(page.entries.isEmpty)
        }

        private static let otherUUID = "00112233-4455-6677-8899-aabbccddeeff"

        @Test("a client that has not read its replies hears why, before the worker ends")
        func farewell() throws {
            // Given: more replies than the socket holds
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            for _ in 0..<300 {
                _ = try client.send(.read(lba: 0, blockCount: 256, location: .inline))
            }
            try supervisor.wait(until: "sessions/\(client.id)/inflight", is: "0")
            // When
            #expect(try supervisor.ask(.shutdown(doNotReset: false)) == .done)
            // Then: it waits as long as nobody reads
            #expect(throws: RigError.self) { try #require(rig.worker).wait(200) }
            #expect(try client.reason().code == .shuttingDown)
            #expect(try #require(rig.worker).wait() == 0)
        }

        @Test("a new supervisor replaces the old one, and no session notices")
        func supervisors() throws {
            let rig = try Rig()
            let first = try rig.startLoaded()
            let client = try first.open()
            let second = try rig.connect()
            guard case .sessions(let page) = try second.ask(.listSessions(after: nil)) else {
                throw RigError("no sessions")
            }
            try first.end()

            #expect(page.entries.map(\.sessionID) == [client.id])
            #expect(page.entries.first?.clientPID == 4711)
            #expect(page.entries.first?.clientUID == 42)
            #expect(try client.read(0, 1).count == 512)
        }

        @Test("a namespace that grows, changes or goes is told to its sessions and the supervisor")
        func namespaceChanges() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()

            try rig.control("namespace resize 1 32M")
            let grown = try client.event { event -> DiskInfo? in
                if case .diskChanged(.resized, let info) = event { return info }
                return nil
            }
            let seen = try supervisor.event { event -> UInt32? in
                if case .namespaceChanged(let nsid) = event { return nsid }
                return nil
            }
            let last = try client.read(65535, 1)
            try rig.control("namespace remove 1")
            try client.event { event -> Void? in
                if case .diskChanged(.removed, nil) = event { return () }
                return nil
            }
            let gone = try client.reason()

            #expect(grown.blockCount == 65536)
            #expect(seen == 1)
            #expect(last.count == 512)
            #expect(gone.code == .deviceRemoved)
        }

        @Test("everything can be inspected, page by page, without an entry lost or doubled")
        func inspect() throws {
            let rig = try Rig(namespaces: (0..<20).map { _ in "memory=1M,block=512" })
            let supervisor = try rig.startLoaded()
            var clients: [Client] = []
            for _ in 0..<20 { clients.append(try supervisor.open(.readOnly)) }
            var paths: [String] = []
            var after: String?
            var isMore = true
            while isMore {
                guard
                    case .inspect(let page) = try supervisor.ask(
                        .inspect(prefix: "", after: after))
                else { throw RigError("no tree") }
                paths += page.entries.map(\.path)
                after = page.entries.last?.path
                isMore = page.more
            }

            #expect(paths == paths.sorted())
            #expect(Set(paths).count == paths.count)
            #expect(paths.count > 300)
            #expect(
                Set(paths).isSuperset(of: ["queues/1/depth", "controller/cap", "device/epoch"]))
            #expect(clients.count == 20)
        }
    }
}

/// Measures how long a new worker takes, less the time for which the test, the emulator and the
/// worker waited for a processor of a loaded machine.
private struct Stopwatch {
    private let rig: Rig
    private let emulator: Int32
    private let began = MonotonicClock.nowNanoseconds
    private let waitedBefore: UInt64

    init(_ rig: Rig) throws {
        self.rig = rig
        emulator = try #require(rig.emulator).pid
        waitedBefore = ProcessorWait.ofThisThread + ProcessorWait.of([emulator])
    }

    /// Since the beginning; all that the worker there is now has waited counts.
    func nanoseconds() throws -> UInt64 {
        let elapsed = MonotonicClock.nowNanoseconds - began
        let worker = try #require(rig.worker).pid
        let waited =
            ProcessorWait.ofThisThread + ProcessorWait.of([emulator, worker]) - waitedBefore
        return elapsed - min(elapsed, waited)
    }
}
