// SPDX-License-Identifier: Apache-2.0
// Servicing as a worker sees it: frozen and written down, thawed, ended, and taken up again by a
// worker that has nothing but the saved state and the pool's file.

import CLinux
import Glibc
import Linux
import SavedState
import TestSupport
import Testing
import Wire

/// A device whose controller goes on when its worker ends, with a pool in a file of memory.
final class KeptRig {
    let rig: Rig
    private let directory: String
    var poolPath: String { "\(directory)/pool" }
    private var serial: UInt8 = 0

    init(
        queueCount: UInt32? = nil, namespaces: [String] = ["memory=16M,block=512"],
        arguments: [String] = []
    ) throws {
        rig = try Rig(namespaces: namespaces, arguments: ["--keep"] + arguments)
        var template = Array("/dev/shm/nvmed-XXXXXX".utf8CString)
        guard let made = unsafe mkdtemp(&template) else { throw RigError("mkdtemp") }
        directory = unsafe String(cString: made)
        rig.config.keepAlive = true
        rig.config.poolBacking = .file
        rig.config.poolPath = "\(directory)/pool"
        rig.config.queueCount = queueCount
    }

    deinit {
        _ = unsafe unlink(poolPath)
        _ = unsafe rmdir(directory)
    }

    /// A saved device: what was told, and the section.
    struct Saved {
        let summary: DeviceSaved
        let section: HeldFD
    }

    func request(lease: UInt64? = nil) -> SaveDevice {
        serial += 1
        return SaveDevice(
            token: [UInt8](repeating: serial, count: 16), drainNanoseconds: 10_000_000_000,
            leaseNanoseconds: lease)
    }

    func save(_ supervisor: Supervisor, lease: UInt64? = nil) throws -> Saved {
        let answer = try supervisor.answer(to: supervisor.send(.save(request(lease: lease))))
        guard case .saved(let summary) = answer.reply, let held = answer.held else {
            throw RigError("\(answer.reply) without a state")
        }
        return Saved(summary: summary, section: held)
    }

    /// Says that the state is durable; the worker ends. Its exit code.
    func stop(_ supervisor: Supervisor) throws -> Int32 {
        _ = try supervisor.ask(.shutdown(doNotReset: true, saved: true))
        return try #require(rig.worker).wait()
    }

    /// Starts another worker, which gets the section.
    func restore(_ section: borrowing OwnedFD) throws -> (Supervisor, DeviceReady) {
        try rig.startWorker()
        try rig.notify.wait(for: "READY=1")
        let supervisor = try rig.connect()
        let id = try supervisor.send(
            .loadDriver(rig.config, savedState: true), fds: [section.raw])
        guard case .deviceReady(let ready) = try supervisor.answer(to: id).reply else {
            throw RigError("the device is not ready")
        }
        return (supervisor, ready)
    }

    /// Everything in a row: written down, ended, taken up again.
    func service(_ supervisor: Supervisor) throws -> (Supervisor, DeviceReady) {
        let saved = try save(supervisor)
        guard try stop(supervisor) == 0 else { throw RigError("the worker did not end well") }
        return try restore(saved.section.fd)
    }

    /// What the controller counted of admin commands, by what they are.
    func adminCommands() throws -> Substring {
        let text = try rig.control("stats")
        let start = try #require(text.ranges(of: "\"adminCommands\":{").first?.upperBound)
        return text[start...].prefix { $0 != "}" }
    }

    /// What the controller counted of resets and queues.
    func untouched() throws -> [Substring] {
        try rig.control("stats").split(separator: ",").filter { member in
            ["Resets", "enables", "QueuesCreated"].contains { member.contains($0) }
        }
    }
}

/// A sealed memory file with these bytes.
func sealedFile(_ bytes: [UInt8]) throws -> OwnedFD {
    let fd = try MemFD.create(name: "test", byteCount: bytes.count, seals: [])
    do {
        let memory = try Mapping(fd, byteCount: bytes.count)
        unsafe memory.base.copyMemory(from: bytes, byteCount: bytes.count)
    }
    try MemFD.addSeals(fd, [.shrink, .grow, .write])
    return fd
}

/// The bytes of a file.
func contents(_ fd: borrowing OwnedFD) throws -> [UInt8] {
    let count = try MemFD.byteCount(of: fd)
    let memory = try Mapping(fd, byteCount: count, writable: false)
    return unsafe [UInt8](UnsafeRawBufferPointer(start: memory.base, count: count))
}

extension WorkerProcessTests {
    @Suite("Servicing")
    struct Servicing {
        @Test("a controller goes on while everything is stopped", arguments: [1, 2, 5])
        func goesOn(queueCount: UInt32) throws {
            let kept = try KeptRig(queueCount: queueCount)
            let supervisor = try kept.rig.startLoaded()
            let client = try supervisor.open()
            try client.write(64, pattern(4096, seed: 1))
            let before = try kept.untouched()
            let saved = try kept.save(supervisor)
            let code = try kept.stop(supervisor)
            let reason = try client.reason()
            try kept.rig.notify.pump()
            let names = kept.rig.notify.storedNames
            let (successor, ready) = try kept.restore(saved.section.fd)
            let again = try successor.open()

            #expect(saved.summary.queueCount == queueCount)
            #expect(saved.summary.sessionCount == 1)
            #expect(saved.summary.commandsInFlight == 0)
            #expect(code == 0)
            #expect(reason.code == .shuttingDown)
            #expect(reason.message.contains("servicing"))
            #expect(names.isEmpty)
            #expect(ready.restored)
            #expect(ready.coldReason.isEmpty)
            #expect(try again.read(64, 8) == pattern(4096, seed: 1))
            #expect(try kept.untouched() == before)
        }

        @Test("three times in a row, the last time after the death of the worker")
        func again() throws {
            let kept = try KeptRig()
            var supervisor = try kept.rig.startLoaded()
            let before = try kept.untouched()
            for round in 0..<3 as Range<UInt64> {
                let client = try supervisor.open()
                try client.write(round, pattern(512, seed: round))
                let (next, ready) = try kept.service(supervisor)
                #expect(ready.restored, "\(ready.coldReason)")
                try #require(kept.rig.worker).signal(SIGKILL)
                try #require(kept.rig.worker).wait()
                try kept.rig.startWorker()
                try kept.rig.notify.wait(for: "READY=1")
                _ = next
                supervisor = try kept.rig.connect()
                _ = try supervisor.ask(.loadDriver(kept.rig.config))
            }
            let client = try supervisor.open()
            for round in 0..<3 as Range<UInt64> {
                #expect(try client.read(round, 1) == pattern(512, seed: round))
            }
            #expect(try kept.untouched() == before)
        }

        @Test("commands in flight go on too, and hold new sessions of their namespace back")
        func carried() throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let client = try supervisor.open()
            let memory = try SharedMemory(byteCount: 1 << 20)
            try client.register(7, memory)
            try kept.rig.control("fault command:delay=600000,queue=io")
            for lba in 0..<3 as Range<UInt64> {
                try client.send(
                    .write(lba: lba, blockCount: 1, fua: false, location: .inline),
                    payload: pattern(512, seed: 100 + lba))
            }
            try supervisor.wait(until: "counters/requests_in_flight", is: "3")
            let saved = try kept.save(supervisor)
            _ = try kept.stop(supervisor)
            let (successor, ready) = try kept.restore(saved.section.fd)
            try kept.rig.control("clear")
            let again = try successor.open()
            let write = try again.send(
                .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 8))
            try successor.wait(until: "sessions/\(again.id)/waits", is: "held")
            let inFlight = try successor.inspect("counters/requests_in_flight")
            try kept.rig.control("release")

            #expect(saved.summary.commandsInFlight == 3)
            #expect(ready.restored, "\(ready.coldReason)")
            #expect(inFlight == "3")
            #expect(try again.answer(to: write).reply == .done)
            #expect(try again.read(0, 1) == pattern(512, seed: 8))
            #expect(try again.read(2, 1) == pattern(512, seed: 102))
        }

        @Test("a stuck admin command keeps no device from being saved")
        func stuckAdmin() throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let client = try supervisor.open()
            try kept.rig.control("fault command:delay=600000,queue=io")
            try kept.rig.control("fault command:delay=600000,queue=admin,opcode=8")
            let write = try client.send(
                .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 11))
            try client.send(.cancel(requestID: write))
            try supervisor.wait(until: "counters/aborts", is: "1")
            let (successor, ready) = try kept.service(supervisor)
            try kept.rig.control("clear")
            try kept.rig.control("release")
            let again = try successor.open()
            try again.write(0, pattern(512, seed: 12))

            #expect(ready.restored, "\(ready.coldReason)")
            #expect(try again.read(0, 1) == pattern(512, seed: 12))
        }

        @Test("requests that come while the device is frozen stay, and are done after thaw")
        func thaw() throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let client = try supervisor.open()
            try client.write(1, pattern(512, seed: 1))
            let before = try kept.untouched()
            _ = try kept.save(supervisor)
            let write = try client.send(
                .write(lba: 2, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 2))
            let info = try client.send(.getDiskInfo)
            let busy = try supervisor.refusal(.openSession(supervisor.opening(.readOnly)))
            let twice = try supervisor.refusal(.save(kept.request()))
            try supervisor.wait(until: "sessions/\(client.id)/waits", is: "held")
            _ = try supervisor.ask(.thaw)

            #expect(busy.code == .busy)
            #expect(twice.code == .busy)
            #expect(try client.answer(to: write).reply == .done)
            _ = try client.answer(to: info)
            #expect(try client.read(2, 1) == pattern(512, seed: 2))
            #expect(client.events.isEmpty)
            #expect(try kept.untouched() == before)
        }

        @Test("what was saved before a thaw is refused, and the device started cold")
        func stale() throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let saved = try kept.save(supervisor)
            _ = try supervisor.ask(.thaw)
            let late = try supervisor.refusal(.shutdown(doNotReset: true, saved: true))
            _ = try kept.save(supervisor)
            _ = try kept.stop(supervisor)
            let (successor, ready) = try kept.restore(saved.section.fd)
            let client = try successor.open()
            try client.write(5, pattern(512, seed: 5))

            #expect(late.code == .busy)
            #expect(!ready.restored)
            #expect(ready.coldReason.contains("pool"))
            #expect(try client.read(5, 1) == pattern(512, seed: 5))
        }

        @Test("the end of the supervisor's connection thaws")
        func supervisorDies() throws {
            let kept = try KeptRig()
            var supervisor: Supervisor? = try kept.rig.startLoaded()
            let client = try #require(supervisor).open()
            _ = try kept.save(#require(supervisor))
            let write = try client.send(
                .write(lba: 2, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 2))
            supervisor = nil
            #expect(try client.answer(to: write).reply == .done)
            #expect(try client.read(2, 1) == pattern(512, seed: 2))
        }

        @Test("the end of the lease thaws")
        func lease() throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let client = try supervisor.open()
            _ = try kept.save(supervisor, lease: 1_000_000)
            #expect(try client.read(0, 1) == [UInt8](repeating: 0, count: 512))
            let late = try supervisor.refusal(.shutdown(doNotReset: true, saved: true))
            #expect(late.code == .busy)
        }

        @Test("the successor of a worker that died frozen serves on, and the state is void")
        func workerDies() throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let client = try supervisor.open()
            let saved = try kept.save(supervisor)
            let write = try client.send(
                .write(lba: 2, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 2))
            try #require(kept.rig.worker).signal(SIGKILL)
            try #require(kept.rig.worker).wait()
            try kept.rig.startWorker()
            let reply = try client.answer(to: write).reply
            let successor = try kept.rig.connect()
            _ = try successor.ask(.loadDriver(kept.rig.config))
            _ = try successor.ask(.shutdown(doNotReset: false))
            try #require(kept.rig.worker).wait()
            let (_, ready) = try kept.restore(saved.section.fd)

            #expect(reply == .done)
            #expect(!ready.restored)
            #expect(ready.coldReason.contains("pool"))
        }

        @Test("a device whose pool does not outlive the processes is not saved")
        func notKept() throws {
            let kept = try KeptRig()
            kept.rig.config.poolBacking = nil
            kept.rig.config.poolPath = nil
            let supervisor = try kept.rig.startLoaded()
            let client = try supervisor.open()
            let refusal = try supervisor.refusal(.save(kept.request()))

            #expect(refusal.code == .notSupported)
            #expect(refusal.message.contains("PoolPath="))
            #expect(try client.read(0, 1) == [UInt8](repeating: 0, count: 512))
        }

        @Test("two devices cannot have one pool")
        func poolIsLocked() throws {
            let kept = try KeptRig()
            _ = try kept.rig.startLoaded()
            let other = try Rig()
            other.config.poolBacking = .file
            other.config.poolPath = kept.poolPath
            let supervisor = try other.start()
            let refusal = try supervisor.refusal(.loadDriver(other.config))

            #expect(refusal.message.contains("use"))
        }

        @Test("a pool that others could open is not used")
        func poolIsOpen() throws {
            let kept = try KeptRig()
            _ = try OwnedFD.open(kept.poolPath, flags: O_RDWR | O_CREAT, mode: 0o600)
            _ = unsafe chmod(kept.poolPath, 0o644)
            let supervisor = try kept.rig.start()
            let refusal = try supervisor.refusal(.loadDriver(kept.rig.config))

            #expect(refusal.message.contains("closed to others"))
        }

        @Test("a namespace that was resized or removed meanwhile is seen as it is")
        func changed() throws {
            let kept = try KeptRig(namespaces: ["memory=16M,block=512", "memory=8M,block=512"])
            let supervisor = try kept.rig.startLoaded()
            let saved = try kept.save(supervisor)
            _ = try kept.stop(supervisor)
            try kept.rig.control("namespace resize 1 32M")
            try kept.rig.control("namespace remove 2")
            let (successor, ready) = try kept.restore(saved.section.fd)
            let client = try successor.open()
            let gone = try successor.refusal(.openSession(successor.opening(nsid: 2)))

            #expect(ready.restored, "\(ready.coldReason)")
            #expect(client.info.blockCount == 65536)
            #expect(gone.code == .notFound)
        }

        @Test("another controller in the place of the saved one is started cold")
        func replaced() throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let saved = try kept.save(supervisor)
            _ = try kept.stop(supervisor)
            try kept.rig.startEmulator()
            let (successor, ready) = try kept.restore(saved.section.fd)
            let client = try successor.open()
            try client.write(5, pattern(512, seed: 5))

            #expect(!ready.restored)
            #expect(!ready.coldReason.isEmpty)
            #expect(try client.read(5, 1) == pattern(512, seed: 5))
        }

        @Test(
            "another controller that looks the same is started cold at once",
            arguments: ["serial OTHER-1", "model another"])
        func identified(change: String) throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let client = try supervisor.open()
            let saved = try kept.save(supervisor)
            _ = try kept.stop(supervisor)
            try kept.rig.control(change)
            let before = try kept.untouched()
            let (successor, ready) = try kept.restore(saved.section.fd)
            let again = try successor.open()
            try again.write(5, pattern(512, seed: 5))

            #expect(!ready.restored)
            #expect(ready.coldReason.contains("the controller was"), "\(ready.coldReason)")
            #expect(ready.coldReason.contains(change.split(separator: " ")[1]))
            #expect(try kept.untouched() != before)
            #expect(try client.reason().code == .shuttingDown)
            #expect(try again.read(5, 1) == pattern(512, seed: 5))
            // And that one can be kept.
            let (_, kepts) = try kept.service(successor)
            #expect(kepts.restored, "\(kepts.coldReason)")
        }

        @Test(
            "another kind of function, or another layout of the pool, is started cold",
            arguments: [
                ("device", "the PCI id of the device was 1234:0001, and is 1234:4e56"),
                ("vendor", "the PCI id of the device was 0001:4e56, and is 1234:4e56"),
                ("slot", "a slot of its pool was 'other' of"),
            ])
        func otherKind(what: String, reason: String) throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let saved = try kept.save(supervisor)
            _ = try kept.stop(supervisor)
            var device = try SavedState.decode(device: contents(saved.section.fd))
            let identity = device.identity
            switch what {
            case "device": device.identity.deviceID = 1
            case "vendor": device.identity.pciVendorID = 1
            default: device.pool.slots[3].tag = "other"
            }
            let (_, ready) = try kept.restore(
                sealedFile(SavedState.encode(device: device, version: "1")))

            #expect(identity.deviceID == 0x4E56)
            #expect(identity.pciVendorID == 0x1234)
            #expect(!ready.restored)
            #expect(ready.coldReason.contains(reason), "\(ready.coldReason)")
        }

        @Test("a controller with the quirk do-not-adopt is not saved, and its successor resets it")
        func doNotAdopt() throws {
            let kept = try KeptRig()
            kept.rig.config.quirks = [.doNotAdopt]
            let supervisor = try kept.rig.startLoaded()
            let client = try supervisor.open()
            let shown = try supervisor.inspect("controller/quirks")
            let id = try supervisor.inspect("controller/pci_id")
            let refusal = try supervisor.refusal(.save(kept.request()))
            let before = try kept.untouched()
            try #require(kept.rig.worker).signal(SIGKILL)
            try #require(kept.rig.worker).wait()
            try kept.rig.startWorker()
            try client.write(1, pattern(512, seed: 1))

            #expect(shown == "do-not-adopt")
            #expect(id == "1234:4e56")
            #expect(refusal.code == .notSupported)
            #expect(refusal.message.contains("do-not-adopt"))
            #expect(try kept.untouched() != before)
            #expect(try client.read(1, 1) == pattern(512, seed: 1))
        }

        @Test("a controller with the quirk of no admin commands is restored, and asked nothing")
        func noAdmin() throws {
            let kept = try KeptRig()
            kept.rig.config.quirks = [.noAdminAfterServicing]
            let supervisor = try kept.rig.startLoaded()
            let saved = try kept.save(supervisor)
            _ = try kept.stop(supervisor)
            let before = try kept.adminCommands()
            let (successor, ready) = try kept.restore(saved.section.fd)
            let client = try successor.open()
            try client.write(1, pattern(512, seed: 1))

            #expect(ready.restored, "\(ready.coldReason)")
            #expect(try successor.inspect("controller/quirks") == "no-admin-after-servicing")
            #expect(try client.read(1, 1) == pattern(512, seed: 1))
            #expect(try kept.adminCommands() == before)
        }

        @Test("a state that does not tell PCI ids, nor slots, is that of an earlier build")
        func unknownKind() throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let saved = try kept.save(supervisor)
            _ = try kept.stop(supervisor)
            var device = try SavedState.decode(device: contents(saved.section.fd))
            (device.identity.deviceID, device.identity.pciVendorID) = (nil, nil)
            device.pool.slots = []
            let (_, ready) = try kept.restore(
                sealedFile(SavedState.encode(device: device, version: "1")))

            #expect(ready.restored, "\(ready.coldReason)")
        }

        @Test(
            "a damaged state costs its device a cold start", .serialized,
            arguments: [
                "truncated", "flipped", "extended", "empty", "unsealed", "of another address",
                "for another pool",
            ])
        func damaged(how: String) throws {
            let kept = try KeptRig()
            let supervisor = try kept.rig.startLoaded()
            let client = try supervisor.open()
            try client.write(5, pattern(512, seed: 5))
            let saved = try kept.save(supervisor)
            _ = try kept.stop(supervisor)
            var bytes = try contents(saved.section.fd)
            var file = try saved.section.fd.duplicate()
            switch how {
            case "truncated": file = try sealedFile(Array(bytes.dropLast()))
            case "flipped":
                bytes[bytes.count / 2] ^= 1
                file = try sealedFile(bytes)
            case "extended": file = try sealedFile(bytes + [0])
            case "empty": file = try sealedFile([0])
            case "unsealed":
                file = try MemFD.create(name: "test", byteCount: bytes.count, seals: [])
            case "for another pool": kept.rig.config.poolPath = kept.poolPath + "2"
            default: kept.rig.config.transport = .vfioUser(path: "\(kept.rig.directory)/./e")
            }
            defer { _ = unsafe unlink(kept.poolPath + "2") }
            try kept.rig.startWorker()
            let successor = try kept.rig.connect()
            let id = try successor.send(
                .loadDriver(kept.rig.config, savedState: true), fds: [file.raw])
            let cold: String
            do {
                guard case .deviceReady(let ready) = try successor.answer(to: id).reply else {
                    throw RigError("the device is not ready")
                }
                cold = ready.restored ? "" : ready.coldReason
            } catch let error as WireError {
                cold = error.message
            }
            #expect(!cold.isEmpty)
        }
    }
}
