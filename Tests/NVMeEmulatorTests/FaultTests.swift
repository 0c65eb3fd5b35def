// SPDX-License-Identifier: Apache-2.0
// Misbehaviour on demand: each rule does what its words say, and bad words are explained.

import Linux
import NVMeSpec
import Testing

@testable import NVMeEmulator

@Suite("Faults")
struct FaultTests {
    private func ready(_ rules: String...) throws -> Host {
        let host = try Host.ready()
        for rule in rules { try host.controller.faults.add(FaultRule(parsing: rule)) }
        return host
    }

    private func identify(_ host: Host, _ cns: IdentifyCNS, _ id: UInt32 = 0) -> [UInt8] {
        host.fill(Host.data, Array(repeating: 0x77, count: 4096))
        let entry = SubmissionEntry.identify(cns: cns, namespaceID: id, prp1: host.dataAddress)
        _ = host.execute(entry)
        return host.bytes(Host.data, 4096)
    }

    @Test("never-ready leaves CSTS.RDY clear, fatal-at-enable sets CSTS.CFS")
    func enabling() throws {
        let never = try Host { $0.faults = ["register:never-ready"] }
        never.enable()
        never.run()
        #expect(never.status.rawValue == 0)

        let fatal = try Host { $0.faults = ["register:fatal-at-enable,times=1"] }
        fatal.enable()
        #expect(fatal.status.cfs)
        fatal.write(RegisterOffset.cc, 0)
        fatal.enable()
        #expect(fatal.status.rdy)
    }

    @Test("ready-delay makes the controller ready later")
    func readyDelay() throws {
        let host = try Host { $0.faults = ["register:ready-delay=500"] }
        host.enable()
        #expect(!host.status.rdy)
        let deadline = try #require(host.controller.nextDeadline)
        waitUntil(deadline)
        host.run()
        #expect(host.status.rdy)
    }

    @Test("a device that is gone reads as ones and does nothing")
    func gone() throws {
        let host = try ready("command:gone,opcode=0,queue=io")
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()

        #expect(host.peek(1) == nil)
        #expect(host.controller.register(RegisterOffset.cap) == .max)
        #expect(host.read32(RegisterOffset.csts) == goneDevicePattern)
        host.submit(.getFeatures(.arbitration))
        host.run()
        #expect(host.peek() == nil)
    }

    @Test(
        "fields of registers take the value given",
        arguments: [
            ("register:mqes=0", 0x00, 0, 16, 0), ("register:mqes=FFFFh", 0x00, 0, 16, 0xFFFF),
            ("register:cqr=0", 0x00, 16, 1, 0), ("register:to=0", 0x00, 24, 8, 0),
            ("register:dstrd=15", 0x00, 32, 4, 15), ("register:css=0", 0x00, 37, 8, 0),
            ("register:mpsmin=15", 0x00, 48, 4, 15), ("register:mpsmax=0", 0x00, 52, 4, 0),
            ("register:crms=3", 0x00, 59, 2, 3), ("register:vs=0x10000", 0x08, 0, 32, 0x10000),
            ("register:crto=7", 0x68, 0, 32, 7), ("register:csts=12", 0x18, 32, 32, 12),
        ] as [(String, UInt64, UInt64, UInt64, UInt64)])
    func fields(rule: String, offset: UInt64, low: UInt64, width: UInt64, value: UInt64) throws {
        let host = try ready(rule)
        let word = host.controller.register(offset)

        #expect((word >> low) & (1 << width &- 1) == value)
    }

    @Test("a status is returned as often as asked, after as many as asked")
    func status() throws {
        let host = try ready("command:status=2/81h/dnr,opcode=0,queue=io,skip=1,times=2")
        let seen = (0..<4).map { _ in host.status(of: .flush(namespaceID: 1), on: 1) }

        #expect(
            seen == [
                .success, .unrecoveredReadError.withDoNotRetry,
                .unrecoveredReadError.withDoNotRetry, .success,
            ])
        #expect(host.controller.faults.rules[0].acted == 2)
        #expect(host.controller.counters.faultsInjected == 2)
    }

    @Test("a postponed command takes its data when its time has come, not before")
    func postpone() throws {
        let host = try ready("command:postpone=86400000,opcode=1,times=1,queue=io")
        host.fill(Host.data, Array(repeating: 0x11, count: 4096))
        host.submit(
            host.pointing(.write(namespaceID: 1, lba: 0, blockCount: 8), count: 4096), on: 1)
        host.run()
        #expect(host.take(1) == nil)
        host.fill(Host.data, Array(repeating: 0x22, count: 4096))
        #expect(host.controller.releaseHeld() == 1)
        host.run()
        #expect(host.take(1)?.status.isSuccess == true)
        host.fill(Host.data, Array(repeating: 0, count: 4096))
        _ = host.status(
            of: host.pointing(.read(namespaceID: 1, lba: 0, blockCount: 8), count: 4096), on: 1)

        #expect(host.bytes(Host.data, 4096) == Array(repeating: 0x22, count: 4096))
    }

    @Test("a delayed command completes when its time has come, others overtake it")
    func delay() throws {
        let host = try ready("command:delay=500,opcode=0,times=1,queue=io")
        let slow = host.submit(.flush(namespaceID: 1), on: 1)
        let fast = host.submit(.flush(namespaceID: 1), on: 1)
        host.run()
        #expect(host.take(1)?.commandID == fast)
        #expect(host.peek(1) == nil)
        let deadline = try #require(host.controller.nextDeadline)
        waitUntil(deadline)
        host.run()
        #expect(host.take(1)?.commandID == slow)
        #expect(host.controller.nextDeadline == nil)
    }

    @Test("a dropped completion never comes, but the command was executed")
    func drop() throws {
        let host = try ready("command:drop,opcode=1,times=1")
        host.fill(Host.data, [0x42])
        let write = host.pointing(.write(namespaceID: 1, lba: 0, blockCount: 1), count: 512)
        host.submit(write, on: 1)
        host.run()
        #expect(host.peek(1) == nil)
        host.fill(Host.data, [0])
        let read = host.pointing(.read(namespaceID: 1, lba: 0, blockCount: 1), count: 512)
        #expect(host.status(of: read, on: 1) == .success)
        #expect(host.bytes(Host.data, 1) == [0x42])
    }

    @Test("fatal and disconnect act at the command they name")
    func fatalAndDisconnect() throws {
        let fatal = try ready("command:fatal,queue=io,skip=2")
        for _ in 0..<3 { fatal.submit(.flush(namespaceID: 1), on: 1) }
        fatal.run()
        #expect(fatal.status.cfs)
        #expect(fatal.controller.counters.ioByOpcode[0] == 2)

        let gone = try ready("command:disconnect,queue=io")
        gone.submit(.flush(namespaceID: 1), on: 1)
        gone.run()
        #expect(gone.controller.wantsDisconnect)
    }

    @Test("completions lie in each of their fields")
    func completions() throws {
        func completion(_ rule: String) throws -> (UInt16, CompletionEntry?) {
            let host = try ready(rule)
            let commandID = host.submit(.flush(namespaceID: 1), on: 1)
            host.run()
            return (commandID, host.take(1))
        }
        #expect(try completion("completion:wrong-phase,queue=1").1 == nil)
        #expect(try completion("completion:cid=7,queue=1").1?.commandID == 7)
        let (real, invented) = try completion("completion:cid=invented,queue=1")
        #expect(invented?.commandID == ~real)
        #expect(try completion("completion:sqid=99,queue=1").1?.sqID == 99)
        #expect(try completion("completion:sqhd=65535,queue=1").1?.sqHead == 65535)
        #expect(try completion("completion:dw0=0xFFFFFFFF,queue=1").1?.dw0 == 0xFFFF_FFFF)
    }

    @Test("a duplicate completion is posted twice")
    func duplicate() throws {
        let host = try ready("completion:duplicate,queue=1,times=1")
        let commandID = host.submit(.flush(namespaceID: 1), on: 1)
        host.run()
        #expect(host.take(1)?.commandID == commandID)
        #expect(host.take(1)?.commandID == commandID)
        #expect(host.take(1) == nil)
    }

    @Test("the number of queues granted can be absurd")
    func queueCount() throws {
        let host = try Host { $0.faults = ["completion:dw0=FFFFFFFFh,feature=7,opcode=9"] }
        host.enable()
        #expect(host.execute(.setFeatures(.numberOfQueues, value: 0))?.dw0 == 0xFFFF_FFFF)
    }

    @Test("Identify is truncated, zeroed, or nonsense")
    func identifyPages() throws {
        let truncated = identify(try ready("identify:truncated=100"), .controller)
        let hasGap = truncated[100...].allSatisfy { $0 == 0x77 }
        #expect(hasGap)
        #expect(truncated[77] == 8)
        let zeroed = identify(try ready("identify:zeroed,cns=1"), .controller)
        let isZero = zeroed.allSatisfy { $0 == 0 }
        #expect(isZero)
        let garbage = identify(try ready("identify:garbage"), .controller)
        #expect(Set(garbage).count > 200)
    }

    @Test(
        "fields of Identify take the value given",
        arguments: [
            ("identify:nsze=0", 0, 0, [0, 0]), ("identify:lbads=3", 0, 130, [3, 0]),
            ("identify:flbas=15", 0, 26, [15, 0]), ("identify:nlbaf=255", 0, 25, [255]),
            ("identify:mdts=31", 1, 77, [31]), ("identify:nn=0", 1, 516, [0, 0, 0, 0]),
            ("identify:sqes=0", 1, 512, [0]), ("identify:cqes=77h", 1, 513, [0x77]),
            ("identify:bytes=4/2/0x4142,cns=1", 1, 4, [0x42, 0x41]),
        ] as [(String, UInt8, Int, [UInt8])])
    func identifyFields(rule: String, cns: UInt8, offset: Int, expected: [UInt8]) throws {
        let host = try ready(rule)
        let page = identify(host, IdentifyCNS(rawValue: cns), cns == 0 ? 1 : 0)

        #expect(Array(page[offset..<(offset + expected.count)]) == expected)
    }

    @Test("interrupts get lost, or come twice")
    func interrupts() throws {
        func count(_ rule: String) throws -> Int64 {
            let host = try ready(rule)
            let event = try EventFD()
            host.controller.interrupts.messages.connect(1, try event.fd.duplicate())
            host.submit(.flush(namespaceID: 1), on: 1)
            host.run()
            return try event.drain()
        }
        #expect(try count("interrupt:lost,queue=1") == 0)
        #expect(try count("interrupt:spurious,queue=1") == 2)
    }

    @Test("an event storm completes every request at once")
    func storm() throws {
        let host = try ready("event:storm,times=3")
        for _ in 0..<3 {
            #expect(host.execute(.asynchronousEventRequest())?.dw0 == 0x0004_0002)
        }
        #expect(host.execute(.asynchronousEventRequest()) == nil)
    }

    @Test(
        "words that make no rule are refused with the vocabulary",
        arguments: [
            "", "register", "register:", "nowhere:gone", "register:sing", "command:status=2",
            "command:status=9/1", "command:status=1/256", "command:delay=", "command:delay=x",
            "command:hang,drop", "command:hang,opcode=300", "identify:bytes=4095/2/0",
            "identify:bytes=1/3/0", "completion:cid=70000", "command:skip=1",
            "command:delay=99999999999", "interrupt:hang", "event:gone",
        ])
    func badRules(text: String) {
        #expect(throws: OptionError.self) { try FaultRule(parsing: text) }
    }

    @Test("there is an end to the number of rules")
    func manyRules() throws {
        var plan = FaultPlan()
        for _ in 0..<FaultPlan.maxRules { try plan.add(FaultRule(parsing: "event:storm")) }
        #expect(throws: OptionError.self) { try plan.add(FaultRule(parsing: "event:storm")) }
        plan.clear()
        #expect(plan.rules.isEmpty)
    }
}
