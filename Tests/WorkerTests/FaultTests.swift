// SPDX-License-Identifier: Apache-2.0
// Devices that lie, fall silent or vanish: a clear error within the bound, every request ended
// once, and a way back.

import CLinux
import Glibc
import Linux
import Testing
import Wire

/// A device that cannot be brought up, and what the error must speak of.
struct BringUpFault: Sendable, CustomTestStringConvertible {
    let rule: String
    let words: String
    var code = ErrorCode.deviceFailed
    var state = DeviceState.failed
    var testDescription: String { rule }
}

extension WorkerProcessTests {
    @Suite("Hostile devices under a worker process")
    struct Faults {
        private func impatient(_ rig: Rig) -> Rig {
            rig.config.ioTimeoutMilliseconds = 200
            rig.config.adminTimeoutMilliseconds = 500
            // The end of the line: no successor tries again.
            rig.workerEnvironment = ["NVMED_FAILURES=0"]
            return rig
        }

        @Test(
            "a device that cannot be brought up fails with the reason, and works once it behaves",
            arguments: [
                BringUpFault(rule: "register:never-ready", words: "CSTS.RDY"),
                BringUpFault(rule: "register:fatal-at-enable", words: "CSTS.CFS"),
                BringUpFault(
                    rule: "register:gone", words: "all ones", code: .deviceRemoved,
                    state: .removed),
                BringUpFault(
                    rule: "command:gone,queue=admin,opcode=6", words: "all ones",
                    code: .deviceRemoved, state: .removed),
                BringUpFault(rule: "command:fatal,queue=admin,opcode=6", words: "CSTS.CFS"),
                BringUpFault(rule: "register:mqes=0", words: "CAP.MQES"),
                BringUpFault(rule: "register:mpsmin=1", words: "CAP.MPSMIN"),
                BringUpFault(rule: "register:css=0", words: "CAP.CSS"),
                BringUpFault(rule: "identify:zeroed,cns=1", words: ""),
                BringUpFault(rule: "identify:garbage,cns=1", words: ""),
                BringUpFault(rule: "command:hang,queue=admin,opcode=6", words: "no answer"),
                BringUpFault(rule: "command:status=0/6,queue=admin,opcode=6", words: "Identify"),
                BringUpFault(rule: "command:disconnect,queue=admin,opcode=6", words: "gone"),
                BringUpFault(rule: "completion:cid=invented,queue=admin", words: "command"),
                BringUpFault(rule: "completion:sqid=9,queue=admin", words: "submission queue"),
                BringUpFault(rule: "completion:sqhd=999,queue=admin", words: "head"),
                BringUpFault(rule: "completion:wrong-phase,queue=admin", words: "no answer"),
            ])
        func bringUp(_ fault: BringUpFault) throws {
            let rig = impatient(
                try Rig(arguments: ["--fault", "\(fault.rule)"]))
            let supervisor = try rig.start()

            let error = try supervisor.refusal(.loadDriver(rig.config))
            let failed = try supervisor.device()
            try rig.startEmulatorAfresh()
            let reply = try supervisor.ask(.loadDriver(rig.config))

            #expect(error.code == fault.code)
            #expect(error.message.contains(fault.words), "\(error)")
            #expect(failed.state == fault.state)
            #expect(reply == (try supervisor.device().ready).map { .deviceReady($0) })
        }

        @Test(
            "a completion that cannot be right ends every request once; the device can be reloaded",
            arguments: [
                "completion:cid=invented,queue=io", "completion:duplicate,queue=io",
                "completion:sqid=9,queue=io", "completion:sqhd=5000,queue=io",
                "command:fatal,queue=io", "command:gone,queue=io", "command:disconnect,queue=io",
            ])
        func operation(_ rule: String) throws {
            let isGone = rule.hasPrefix("command:gone")
            let rig = impatient(try Rig())
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            let reader = try supervisor.open(.readOnly)
            try client.write(0, pattern(512, seed: 12))
            try rig.control("fault \(rule)")

            var answers: [UInt64: Int] = [:]
            // The session may be over before the last is sent.
            let ids = (0..<64 as Range<UInt64>).compactMap {
                try? client.send(.read(lba: $0, blockCount: 1, location: .inline))
            }
            var reason: WireError?
            while reason == nil {
                let message = try client.next()
                answers[message.envelope.requestID, default: 0] += 1
                if case .event(.ended(let why)) = message.envelope.content { reason = why }
            }
            let other = try reader.reason()
            let device = try supervisor.device()
            try rig.startEmulatorAfresh()
            _ = try supervisor.ask(.loadDriver(rig.config))

            #expect(reason?.code == (isGone ? .deviceRemoved : .deviceFailed))
            #expect(other.code == (isGone ? .deviceRemoved : .deviceFailed))
            #expect(ids.allSatisfy { answers[$0, default: 0] <= 1 })
            #expect(device.state == (isGone ? .removed : .failed))
            #expect(!device.reason.isEmpty)
            #expect(try supervisor.open().read(1, 1).count == 512)
        }

        @Test("a device that is taken away ends everything at once, without any step of the ladder")
        func takenAway() throws {
            let rig = try Rig()
            rig.config.ioTimeoutMilliseconds = 1 << 20
            rig.config.adminTimeoutMilliseconds = 1 << 20
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try rig.control("fault command:hang,queue=io")
            try rig.control("fault register:gone")

            // Nothing but a look at CSTS can end this: both timeouts are far away.
            let error = try client.refusal(.read(lba: 0, blockCount: 1, location: .inline))
            _ = try supervisor.entered(.removed)

            #expect(error.code == .deviceRemoved)
            #expect(try supervisor.inspect("counters/aborts") == "0")
            #expect(
                try supervisor.refusal(.openSession(supervisor.opening())).code == .deviceRemoved)
        }

        @Test("a device that is taken away while it is idle is noticed by whoever looks")
        func takenAwayIdle() throws {
            let rig = try Rig()
            rig.config.adminTimeoutMilliseconds = 1 << 20
            let supervisor = try rig.startLoaded()
            try rig.control("fault command:hang,queue=admin")
            try rig.control("fault register:gone,skip=1")

            let error = try supervisor.refusal(.getNamespace(nsid: 1))
            _ = try supervisor.entered(.removed)

            #expect(error.code == .deviceRemoved)
        }

        @Test(
            "a namespace that cannot be served is refused with the reason, the others are served",
            arguments: [
                ("identify:ms=8,cns=0,nsid=1", "8 bytes of metadata"),
                // DPS: protection information type 1.
                ("identify:bytes=29/1/1,cns=0,nsid=1", "protection information type 1"),
                // The descriptor of type 4 (CSI) comes behind EUI64, NGUID and UUID.
                ("identify:bytes=56/1/2,cns=3,nsid=1", "zoned"),
                ("command:status=1/0x2C,opcode=6,cns=0,nsid=1", "Invalid I/O Command Set"),
                ("identify:bytes=1/1/3,cns=3,nsid=1", "NIDL of type 1"),
            ])
        func refusedNamespace(_ rule: String, _ words: String) throws {
            let rig = try Rig(
                namespaces: ["memory=4M", "memory=4M"], arguments: ["--fault", rule])
            let supervisor = try rig.startLoaded()

            let error = try supervisor.refusal(.openSession(supervisor.opening(nsid: 1)))
            let fresh = try supervisor.refusal(.getNamespace(nsid: 1))
            let other = try supervisor.ask(.getNamespace(nsid: 2))

            #expect(error.code == .notSupported)
            #expect(error.message.contains(words), "\(error)")
            #expect(fresh.code == .notSupported)
            guard case .namespace(let namespace) = other else {
                Issue.record("\(other)")
                return
            }
            #expect(namespace.nsid == 2)
        }

        @Test("identifying one namespace costs the same however many there are")
        func identifyingOne() throws {
            let rig = try Rig(namespaces: Array(repeating: "memory=1M", count: 16))
            let supervisor = try rig.startLoaded()
            try rig.control("fault command:status=0/6,opcode=6,cns=0,nsid=9")

            let one = try supervisor.ask(.getNamespace(nsid: 8))

            // Namespace 9, which could not be identified any more, was not asked about.
            _ = try supervisor.ask(.openSession(supervisor.opening(nsid: 9)))
            guard case .namespace(let namespace) = one else {
                Issue.record("\(one)")
                return
            }
            #expect(namespace.nsid == 8)
        }

        @Test("a lost interrupt costs a moment, and is counted")
        func lostInterrupt() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try rig.control("fault interrupt:lost,queue=io")
            // What is answered at once is found without an interrupt.
            try rig.control("fault command:delay=20,queue=io")

            try client.write(0, pattern(512, seed: 13))
            let data = try client.read(0, 1)

            #expect(data == pattern(512, seed: 13))
            let missed = try #require(try supervisor.inspect("counters/missed_interrupts"))
            #expect((UInt64(missed) ?? 0) >= 1)
        }

        @Test("interrupts without a reason do no harm")
        func spuriousInterrupt() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try rig.control("fault interrupt:spurious")

            for lba in 0..<100 as Range<UInt64> {
                try client.write(lba, pattern(512, seed: lba))
                #expect(try client.read(lba, 1) == pattern(512, seed: lba))
            }
        }

        @Test("a command that hangs is aborted, and only that one")
        func abort() throws {
            let rig = impatient(try Rig())
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try rig.control("fault command:hang,queue=io,opcode=2,times=1")

            let error = try client.refusal(.read(lba: 0, blockCount: 1, location: .inline))
            let data = try client.read(0, 1)

            #expect(error.code == .outcomeUnknown)
            #expect(data.count == 512)
            #expect(try supervisor.inspect("counters/aborts") == "1")
            #expect(try supervisor.device().state == .ready)
        }

        @Test("a request that is cancelled ends once, as cancelled, and its session goes on")
        func cancelled() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try rig.control("fault command:hang,queue=io,opcode=2,times=1")
            let read = try client.send(.read(lba: 0, blockCount: 1, location: .inline))
            try supervisor.wait(until: "counters/requests_in_flight", is: "1")

            let cancel = try client.send(.cancel(requestID: read))
            let answers = try (0..<2).map { _ in try client.next().envelope }
            let readEnd = try #require(answers.first { $0.requestID == read })
            let cancelEnd = try #require(answers.first { $0.requestID == cancel })

            #expect(failure(readEnd)?.code == .cancelled)
            #expect(cancelEnd.content == .reply(.cancelled(true)))
            #expect(try client.read(0, 1).count == 512)
        }

        @Test("cancelling what was answered says that it was not cancelled")
        func cancelledTooLate() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            let read = try client.send(.read(lba: 0, blockCount: 1, location: .inline))
            _ = try client.answer(to: read)

            #expect(try client.ask(.cancel(requestID: read)) == .cancelled(false))
        }

        private func failure(_ envelope: Envelope<SessionProtocol>) -> WireError? {
            if case .failure(let error) = envelope.content { error } else { nil }
        }

        @Test("a command that even Abort cannot find costs its queue; every session goes on")
        func dropped() throws {
            let rig = impatient(try Rig())
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            let reader = try supervisor.open(.readOnly)
            try client.write(0, pattern(512, seed: 17))
            try rig.control("fault command:drop,queue=io,opcode=2,times=1")

            let ids = try (0..<8).map { _ in
                try client.send(.read(lba: 0, blockCount: 1, location: .inline))
            }
            let answers = try ids.map { _ in try client.next().envelope }
            let lost = answers.compactMap { failure($0)?.code }

            #expect(lost == [.outcomeUnknown])
            #expect(Set(answers.map(\.requestID)) == Set(ids))
            #expect(try client.read(0, 1) == pattern(512, seed: 17))
            #expect(try reader.read(0, 1) == pattern(512, seed: 17))
            #expect(try supervisor.inspect("counters/queue_deletions") == "1")
            #expect(try supervisor.inspect("counters/faults") == "0")
            #expect(try supervisor.device().state == .ready)
        }

        @Test("a request of many commands that lost one ends once, and its memory is free again")
        func droppedPart() throws {
            let rig = impatient(try Rig())
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            let memory = try SharedMemory(byteCount: 8 << 20)
            try client.register(7, memory)
            try rig.control("fault command:drop,queue=io,opcode=2,skip=3,times=1")

            // 8 MiB in commands of 1 MiB at most.
            let error = try client.refusal(
                .read(lba: 0, blockCount: 16384, location: .region(id: 7, byteOffset: 0)))

            #expect(error.code == .outcomeUnknown)
            #expect(try client.read(0, 1).count == 512)
            #expect(try client.ask(.unregisterMemory(regionID: 7)) == .done)
            #expect(try supervisor.inspect("counters/requests_in_flight") == "0")
        }

        @Test(
            "when the queue cannot be deleted the device fails within its bound, and comes up again",
            arguments: [
                // Delete refused, or never answered; Create refused; Abort never answered.
                "command:status=0/6,queue=admin,opcode=0", "command:drop,queue=admin,opcode=0",
                "command:status=0/6,queue=admin,opcode=5", "command:drop,queue=admin,opcode=8",
            ])
        func notReplaced(_ rule: String) throws {
            let rig = impatient(try Rig())
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try rig.control("fault command:drop,queue=io,times=1")
            try rig.control("fault \(rule)")

            let error = try client.refusal(.read(lba: 0, blockCount: 1, location: .inline))
            _ = try supervisor.entered(.failed)
            try rig.control("clear")
            _ = try supervisor.ask(.loadDriver(rig.config))

            #expect([.deviceFailed, .outcomeUnknown].contains(error.code))
            #expect(try supervisor.open().read(0, 1).count == 512)
        }

        @Test("a controller that loses commands again and again fails after so many queues")
        func droppedAgain() throws {
            let rig = impatient(try Rig())
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            try rig.control("fault command:drop,queue=io,opcode=2")

            let codes = try (0..<5).map { _ in
                try client.refusal(.read(lba: 0, blockCount: 1, location: .inline)).code
            }
            _ = try supervisor.entered(.failed)

            #expect(codes == Array(repeating: .outcomeUnknown, count: 4) + [.deviceFailed])
        }

        @Test(
            "the device's status reaches the client, with the code that says what to do",
            arguments: [
                ("0/0x80", ErrorCode.outOfRange), ("2/0x81", .mediaError), ("2/0x80", .mediaError),
                ("0/0x20", .readOnly), ("0/0x6", .nvmeStatus), ("1/0x82", .readOnly),
                ("3/0x1", .nvmeStatus),
                ("7/0x55", .nvmeStatus),
            ])
        func status(_ status: String, _ code: ErrorCode) throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try rig.control("fault command:status=\(status)/dnr,queue=io,times=1")

            let error = try client.refusal(
                .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 14))

            #expect(error.code == code)
            #expect(error.nvmeStatus.map { $0 & 0x4000 } == 0x4000)
            #expect(!error.isRetriable)
            #expect(try client.read(0, 1).count == 512)
        }

        @Test("the commands of a dead client end before its successor's begin")
        func overtaking() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let first = try supervisor.open()
            try rig.control("fault command:delay=300,queue=io,opcode=1,times=1")
            try first.send(
                .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                payload: pattern(512, seed: 15))
            try supervisor.wait(until: "counters/requests_in_flight", is: "1")
            first.channel.shutdown()
            _ = try supervisor.sessionEnd()

            let second = try supervisor.open()
            try second.write(0, pattern(512, seed: 16))

            #expect(try second.read(0, 1) == pattern(512, seed: 16))
        }

        @Test("a controller that breaks the rules is reset by a successor, and its sessions go on")
        func leftToSuccessor() throws {
            // Given
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try client.write(0, pattern(512, seed: 18))
            try rig.control("fault completion:cid=invented,queue=io,times=1")
            // When
            let read = try client.send(.read(lba: 0, blockCount: 1, location: .inline))
            let code = try #require(rig.worker).wait()
            try rig.startWorker()
            let answer = try client.answer(to: read)
            let device = try rig.connect().device()
            // Then
            #expect(code == 75)
            #expect(answer.payload == pattern(512, seed: 18))
            #expect(device.state == .ready)
            #expect(device.ready?.continuity?.resets == 1)
            #expect(client.events.isEmpty)
        }

        @Test("a controller that breaks the rules after each of three resets ends its sessions")
        func failsAgain() throws {
            // Given
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try rig.control("fault completion:cid=invented,queue=io")
            // When
            // The answer to a request may come just before the one that nobody asked for.
            let codes = try (0..<3).map { _ in
                try client.send(.read(lba: 0, blockCount: 1, location: .inline))
                // The worker may be in the middle of storing something, for which it waits.
                try rig.notify.wait(for: "STOPPING=1")
                let code = try #require(rig.worker).wait()
                try rig.startWorker()
                return code
            }
            try client.send(.read(lba: 0, blockCount: 1, location: .inline))
            let reason = try client.reason()
            let device = try rig.connect().device()
            // Then
            #expect(codes == [75, 75, 75])
            #expect(reason.code == .deviceFailed)
            #expect(device.state == .failed)
        }

        @Test("a failure with memory registered and I/O in flight leaves nothing behind")
        func baseline() throws {
            let rig = impatient(try Rig())
            let supervisor = try rig.startLoaded()
            let pid = try #require(rig.worker).pid
            func round() throws {
                let client = try supervisor.open()
                try client.register(1, try SharedMemory(byteCount: 4 << 20))
                try rig.control("fault completion:cid=invented,queue=io,times=1")
                _ = try client.refusal(
                    .read(lba: 0, blockCount: 8192, location: .region(id: 1, byteOffset: 0)))
                try client.end()
                _ = try supervisor.entered(.failed)
                try rig.control("clear")
                _ = try supervisor.ask(.loadDriver(rig.config))
            }
            for _ in 0..<3 { try round() }
            let fds = openFDCount(pid)
            let bytes = nv_resident_bytes(pid)

            for _ in 0..<10 { try round() }

            #expect(openFDCount(pid) == fds)
            #expect(nv_resident_bytes(pid) < bytes + (4 << 20))
        }
    }
}
