// SPDX-License-Identifier: Apache-2.0
// Admin commands: queues, Identify, features, log pages, Abort, events.

import NVMeSpec
import Testing

@testable import NVMeEmulator

@Suite("Admin commands")
struct AdminTests {
    private func identify(_ host: Host, _ cns: IdentifyCNS, _ id: UInt32 = 0) -> Status? {
        host.status(of: .identify(cns: cns, namespaceID: id, prp1: host.dataAddress))
    }

    @Test("Identify Controller carries serial, limits and what is optional")
    func identifyController() throws {
        let host = try Host.ready { $0.serial = "TEST42" }
        #expect(identify(host, .controller) == .success)
        let page = host.bytes(Host.data, 4096)

        #expect(String(decoding: page[4..<24], as: UTF8.self) == "TEST42              ")
        #expect(page[77] == 8)  // MDTS
        #expect(page[257] == 0x01)  // OACS: Doorbell Buffer Config
        #expect(page[512] == 0x66)  // SQES
        #expect(page[513] == 0x44)  // CQES
        #expect(page[516] == 64)  // NN
        #expect(page[525] == 0x07)  // VWC
    }

    @Test("Identify Namespace tells size, format and stable identifiers")
    func identifyNamespace() throws {
        let make: (inout EmulatorOptions) throws -> Void = {
            $0.namespaces = [try NamespaceOptions(parsing: "memory=8M,block=4096")]
        }
        let first = try Host.ready(make)
        let second = try Host.ready(make)
        #expect(identify(first, .namespace, 1) == .success)
        #expect(identify(second, .namespace, 1) == .success)
        let page = first.bytes(Host.data, 4096)

        #expect(page[0..<8].elementsEqual([0x00, 0x08, 0, 0, 0, 0, 0, 0]))  // 2048 blocks
        #expect(page[26] == 1)  // FLBAS
        #expect(page[134] == 12)  // LBADS of format 1
        #expect(page[33] == 0x09)  // DLFEAT: zeroes
        #expect(page[104..<128].contains { $0 != 0 })
        #expect(page == second.bytes(Host.data, 4096))
    }

    @Test("lists name active namespaces above the id given, and inactive ones read as zeroes")
    func lists() throws {
        let host = try Host.ready {
            $0.namespaces = [
                try NamespaceOptions(parsing: "memory=1M,nsid=2"),
                try NamespaceOptions(parsing: "memory=1M,nsid=7"),
            ]
        }
        #expect(identify(host, .activeNamespaceList, 0) == .success)
        #expect(host.bytes(Host.data, 12) == [2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0])
        #expect(identify(host, .activeNamespaceList, 2) == .success)
        #expect(host.bytes(Host.data, 8) == [7, 0, 0, 0, 0, 0, 0, 0])
        #expect(identify(host, .namespace, 3) == .success)
        #expect(host.bytes(Host.data, 4096).allSatisfy { $0 == 0 })
        #expect(identify(host, .namespace, 65) == .invalidNamespaceOrFormat)
        #expect(identify(host, .activeNamespaceList, 0xFFFF_FFFF) == .invalidNamespaceOrFormat)
    }

    @Test("descriptors carry EUI64, NGUID, UUID and command set")
    func descriptors() throws {
        let host = try Host.ready {
            $0.namespaces = [
                try NamespaceOptions(
                    parsing: "memory=1M,nguid=00112233445566778899AABBCCDDEEFF")
            ]
        }
        #expect(identify(host, .namespaceDescriptors, 1) == .success)
        let page = host.bytes(Host.data, 4096)

        #expect(page[0..<2].elementsEqual([1, 8]))
        #expect(page[12..<14].elementsEqual([2, 16]))
        #expect(page[16..<20].elementsEqual([0x00, 0x11, 0x22, 0x33]))
        #expect(page[32..<34].elementsEqual([3, 16]))
        #expect(page[52..<54].elementsEqual([4, 1]))
        #expect(page[57..<60].elementsEqual([0, 0, 0]))
    }

    @Test(
        "pages of command sets exist for the NVM command set only",
        arguments: [0x05, 0x06, 0x07] as [UInt8])
    func commandSetPages(cns: UInt8) throws {
        let host = try Host.ready()
        let page = IdentifyCNS(rawValue: cns)
        let other = SubmissionEntry.identify(
            cns: page, namespaceID: 1, csi: 2, prp1: host.dataAddress)

        #expect(identify(host, page, 1) == .success)
        #expect(host.status(of: other) == .invalidField)
    }

    @Test("creating completion queues refuses what the specification refuses")
    func createCompletionQueueErrors() throws {
        let host = try Host.ready()
        func create(_ id: UInt16, _ count: UInt32, _ address: UInt64, _ vector: UInt16) -> Status? {
            host.status(
                of: .createIOCompletionQueue(
                    queueID: id, entryCount: count, address: address, interruptVector: vector))
        }
        let address = Host.iova + 0xA000

        #expect(create(0, 16, address, 0) == .invalidQueueIdentifier)
        #expect(create(1, 16, address, 0) == .invalidQueueIdentifier)
        #expect(create(5, 16, address, 0) == .invalidQueueIdentifier)
        #expect(create(2, 1, address, 0) == .invalidQueueSize)
        #expect(create(2, 1025, address, 0) == .invalidQueueSize)
        #expect(create(2, 16, address + 8, 0) == .prpOffsetInvalid)
        #expect(create(2, 16, 0x7FFF_0000_0000, 0) == .dataTransferError)
        #expect(create(2, 16, address, 5) == .invalidInterruptVector)
        #expect(create(2, 16, address, 4) == .success)
    }

    @Test("creating submission queues refuses what the specification refuses")
    func createSubmissionQueueErrors() throws {
        let host = try Host.ready()
        func create(_ id: UInt16, _ count: UInt32, _ target: UInt16) -> Status? {
            host.status(
                of: .createIOSubmissionQueue(
                    queueID: id, entryCount: count, address: Host.iova + 0xA000,
                    completionQueueID: target))
        }
        var scattered = SubmissionEntry.createIOSubmissionQueue(
            queueID: 2, entryCount: 16, address: Host.iova + 0xA000, completionQueueID: 1)
        scattered.cdw11 &= ~1

        #expect(create(2, 16, 0) == .completionQueueInvalid)
        #expect(create(2, 16, 3) == .completionQueueInvalid)
        #expect(create(1, 16, 1) == .invalidQueueIdentifier)
        #expect(create(2, 1, 1) == .invalidQueueSize)
        #expect(host.status(of: scattered) == .invalidField)
        #expect(create(2, 16, 1) == .success)
    }

    @Test("queues are deleted in order only")
    func deleteQueues() throws {
        let host = try Host.ready()
        #expect(host.status(of: .deleteIOCompletionQueue(queueID: 1)) == .invalidQueueDeletion)
        #expect(host.status(of: .deleteIOSubmissionQueue(queueID: 1)) == .success)
        #expect(host.status(of: .deleteIOSubmissionQueue(queueID: 1)) == .invalidQueueIdentifier)
        #expect(host.status(of: .deleteIOCompletionQueue(queueID: 1)) == .success)
        #expect(host.status(of: .deleteIOCompletionQueue(queueID: 0)) == .invalidQueueIdentifier)
        #expect(host.status(of: .deleteIOSubmissionQueue(queueID: 9)) == .invalidQueueIdentifier)
    }

    @Test("features have defaults, take values, and refuse to be saved")
    func features() throws {
        let host = try Host()
        host.enable()
        #expect(host.execute(.getFeatures(.volatileWriteCache))?.dw0 == 1)
        #expect(host.status(of: .setFeatures(.volatileWriteCache, value: 0)) == .success)
        #expect(host.execute(.getFeatures(.volatileWriteCache))?.dw0 == 0)
        #expect(host.execute(.getFeatures(.volatileWriteCache, select: .default))?.dw0 == 1)
        #expect(host.execute(.setFeatures(.numberOfQueues, value: 0x00FF_00FF))?.dw0 == 0x3_0003)
        #expect(host.status(of: .setFeatures(.numberOfQueues, value: 0xFFFF)) == .invalidField)
        #expect(
            host.status(of: .setFeatures(.arbitration, value: 3, save: true)) == .featureNotSaveable
        )
        #expect(host.status(of: .getFeatures(.hostMemoryBuffer)) == .invalidField)
        host.createQueues()
        #expect(
            host.status(of: .setFeatures(.numberOfQueues, value: 1)) == .commandSequenceError)
    }

    @Test("log pages are returned from any dword offset, and no further than they go")
    func logPages() throws {
        let host = try Host.ready()
        func log(_ id: LogPageID, _ dwords: UInt32, _ offset: UInt64) -> Status? {
            var entry = SubmissionEntry.getLogPage(id, dwordCount: dwords, byteOffset: offset)
            entry.prp1 = host.dataAddress
            return host.status(of: entry)
        }
        #expect(log(.firmwareSlot, 128, 0) == .success)
        #expect(host.bytes(Host.data + 8, 3) == Array("1.0".utf8))
        #expect(log(.firmwareSlot, 2, 8) == .success)
        #expect(host.bytes(Host.data, 3) == Array("1.0".utf8))
        #expect(log(.firmwareSlot, 1, 516) == .invalidField)
        #expect(log(.firmwareSlot, 1, 2) == .invalidField)
        #expect(log(LogPageID(rawValue: 0xC5), 1, 0) == .invalidLogPage)
        #expect(log(.commandsSupportedAndEffects, 1024, 0) == .success)
        #expect(host.bytes(Host.data + 1024 + 4, 1) == [3])  // Write changes blocks
    }

    @Test("SMART counts what was read and written")
    func smart() throws {
        let host = try Host.ready()
        let write = host.pointing(.write(namespaceID: 1, lba: 0, blockCount: 8), count: 4096)
        #expect(host.status(of: write, on: 1) == .success)
        var entry = SubmissionEntry.getLogPage(.smartHealth, dwordCount: 128)
        entry.prp1 = host.dataAddress
        #expect(host.status(of: entry) == .success)
        let page = host.bytes(Host.data, 512)

        #expect(page[48] == 1)  // data units written, rounded up
        #expect(page[80] == 1)  // write commands
        #expect(page[64] == 0)  // read commands
    }

    @Test("failed commands appear in the error log, the newest first")
    func errorLog() throws {
        let host = try Host.ready()
        let failing = host.pointing(.read(namespaceID: 1, lba: 1 << 40, blockCount: 1), count: 512)
        #expect(host.status(of: failing, on: 1) == .lbaOutOfRange)
        var entry = SubmissionEntry.getLogPage(.errorInformation, dwordCount: 16)
        entry.prp1 = host.dataAddress
        #expect(host.status(of: entry) == .success)
        let page = host.bytes(Host.data, 64)

        #expect(page[0] == 1)  // error count
        #expect(page[8] == 1)  // submission queue
        #expect(page[12..<14].elementsEqual([0x00, 0x01]))  // status 80h, shifted
        #expect(page[21] == 1)  // LBA bit 40
    }

    @Test("Abort ends a command that hangs, and admits when there is none")
    func abort() throws {
        let host = try Host.ready()
        try host.controller.faults.add(FaultRule(parsing: "command:hang,queue=io,times=1"))
        let commandID = host.submit(.flush(namespaceID: 1), on: 1)
        host.run()
        #expect(host.peek(1) == nil)

        #expect(host.execute(.abort(queueID: 1, commandID: commandID))?.dw0 == 0)
        let aborted = host.take(1)
        #expect(aborted?.commandID == commandID)
        #expect(aborted?.status == .abortRequested)
        #expect(host.execute(.abort(queueID: 1, commandID: commandID))?.dw0 == 1)
    }

    @Test("deleting a queue aborts what it still holds")
    func deletionAborts() throws {
        let host = try Host.ready()
        try host.controller.faults.add(FaultRule(parsing: "command:hang,queue=io"))
        host.submit(.flush(namespaceID: 1), on: 1)
        host.run()
        #expect(host.status(of: .deleteIOSubmissionQueue(queueID: 1)) == .success)

        #expect(host.take(1)?.status == .abortedQueueDeletion)
        #expect(host.controller.held.isEmpty)
    }

    @Test("a changed namespace is reported once until the log page was read")
    func namespaceEvents() throws {
        let host = try Host.ready()
        host.submit(.asynchronousEventRequest())
        host.submit(.asynchronousEventRequest())
        host.run()
        #expect(
            host.status(of: .setFeatures(.asynchronousEventConfiguration, value: 0x100)) == .success
        )
        try host.controller.resizeNamespace(1, byteCount: 8 << 20)
        _ = try host.controller.addNamespace(NamespaceOptions(parsing: "memory=1M"))
        host.run()

        #expect(host.take()?.dw0 == 0x0004_0002)
        #expect(host.peek() == nil)
        var entry = SubmissionEntry.getLogPage(.changedNamespaceList, dwordCount: 1024)
        entry.prp1 = host.dataAddress
        #expect(host.status(of: entry) == .success)
        #expect(host.bytes(Host.data, 12) == [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])
        try host.controller.removeNamespace(2)
        #expect(host.take()?.dw0 == 0x0004_0002)
    }

    @Test("events are not sent to a host that did not ask for them")
    func unwantedEvents() throws {
        let host = try Host.ready()
        host.submit(.asynchronousEventRequest())
        host.run()
        try host.controller.resizeNamespace(1, byteCount: 8 << 20)
        host.run()

        #expect(host.peek() == nil)
    }

    @Test("at most four event requests are outstanding")
    func eventLimit() throws {
        let host = try Host.ready()
        for _ in 0..<4 { host.submit(.asynchronousEventRequest()) }
        #expect(host.status(of: .asynchronousEventRequest()) == .asynchronousEventLimitExceeded)
    }

    @Test("a doorbell of no queue, and a value beyond the queue, are reported")
    func invalidDoorbells() throws {
        let host = try Host.ready()
        host.submit(.asynchronousEventRequest())
        host.run()
        host.write(RegisterOffset.doorbells + 3 * 8, 1)
        host.run()
        #expect(host.take()?.dw0 == 0x0001_0000)

        host.submit(.asynchronousEventRequest())
        var entry = SubmissionEntry.getLogPage(.errorInformation, dwordCount: 16)
        entry.prp1 = host.dataAddress
        #expect(host.status(of: entry) == .success)
        host.write(RegisterOffset.doorbells + 1 * 8, 64)
        host.run()
        #expect(host.take()?.dw0 == 0x0001_0100)
    }

    @Test("Doorbell Buffer Config wants two whole pages of mapped memory")
    func doorbellBufferErrors() throws {
        let host = try Host.ready()
        func configure(_ shadow: UInt64, _ index: UInt64) -> Status? {
            host.status(of: .doorbellBufferConfig(shadowDoorbells: shadow, eventIndexes: index))
        }
        #expect(configure(Host.iova + 8, Host.iova) == .invalidField)
        #expect(configure(Host.iova, Host.iova) == .invalidField)
        #expect(configure(0x7FFF_0000_0000, Host.iova) == .dataTransferError)
        #expect(configure(Host.iova + 0x2000, Host.iova + 0x3000) == .success)
    }

    @Test("unknown opcodes, SGLs and fused commands are refused")
    func refused() throws {
        let host = try Host.ready()
        var sgl = SubmissionEntry.identify(cns: .controller, prp1: host.dataAddress)
        sgl.flags = 0x40
        var fused = SubmissionEntry.flush(namespaceID: 1)
        fused.flags = 1

        #expect(host.status(of: SubmissionEntry(opcode: 0xC1)) == .invalidOpcode)
        #expect(host.status(of: sgl) == .invalidField)
        #expect(host.status(of: SubmissionEntry(opcode: 0x77), on: 1) == .invalidOpcode)
        #expect(host.status(of: fused, on: 1) == .invalidField)
    }
}
