// SPDX-License-Identifier: Apache-2.0
// A controller that outlives its client (`--keep`): what stays, and what the next client may do.

import CLinux
import Linux
import NVMeSpec
import Testing

@testable import NVMeEmulator

@Suite("A controller that is kept")
struct KeepTests {
    private static func keep(_ options: inout EmulatorOptions) { options.keepsState = true }
    private static let iova: UInt64 = 0x10_0000

    /// A client with 64 KiB of memory and an enabled controller.
    private static func enabled(
        _ file: borrowing OwnedFD, _ configure: (inout EmulatorOptions) throws -> Void = { _ in }
    ) throws -> RawClient {
        let client = try RawClient.negotiated {
            keep(&$0)
            try configure(&$0)
        }
        _ = try client.request(2, RawClient.map(iova, 65536), fds: [file.raw])
        _ = try client.write(4, [0x06, 0x00], region: 7)
        _ = try client.write(0x24, [0x0F, 0, 0x0F, 0])  // AQA
        _ = try client.write(0x28, [0, 0, 0x10, 0, 0, 0, 0, 0])  // ASQ
        _ = try client.write(0x30, [0, 0x10, 0x10, 0, 0, 0, 0, 0])  // ACQ
        _ = try client.write(0x14, [0x01, 0x00, 0x46, 0x00])  // CC
        return client
    }

    @Test("the next client finds registers, configuration space and queues as they were")
    func staysAsItWas() throws {
        let file = try MemFD.create(name: "dma", byteCount: 65536)
        let first = try Self.enabled(file)
        let event = try EventFD()
        _ = try first.request(8, RawClient.words(20, 36, 2, 0, 1), fds: [event.fd.raw])
        let second = try first.successor()
        let controller = second.device.controller

        #expect(try second.read32(0x14) == 0x0046_0001)
        #expect(try second.read32(0x1C) == 1)
        #expect(try second.read32(0x24) == 0x000F_000F)
        #expect((try second.read32(4, region: 7) ?? 0) & 0x6 == 0x6)
        #expect(controller.submission[0].isActive)
        #expect(controller.counters.enables == 1)
        #expect(controller.counters.controllerResets == 0)
        #expect(controller.counters.deviceResets == 0)
        #expect(controller.log.unsafeShutdowns == 0)
        #expect(!controller.interrupts.messages.isConnected)
    }

    @Test("commands go on without a client, in the memory that it left")
    func commandsGoOn() throws {
        let host = try Host.ready {
            Self.keep(&$0)
            $0.faults = ["command:delay=60000,opcode=2,times=1"]
        }
        let delayed = host.submit(
            host.pointing(.read(namespaceID: 1, lba: 0, blockCount: 8), count: 4096), on: 1)
        host.run()
        host.controller.memory.disown()
        #expect(host.take(1) == nil)
        #expect(host.controller.releaseHeld() == 1)
        let fresh = host.submit(
            host.pointing(.read(namespaceID: 1, lba: 8, blockCount: 8), count: 4096), on: 1)
        host.run()

        let ended = [host.take(1), host.take(1)]
        #expect(Set(ended.map { $0?.commandID }) == [delayed, fresh])
        #expect(ended.allSatisfy { $0?.status.isSuccess == true })
        #expect(host.controller.memory.unclaimedCount == 1)
    }

    @Test("a namespace that goes while nobody is there ends an event request in the old memory")
    func eventWithoutClient() throws {
        let host = try Host.ready { Self.keep(&$0) }
        _ = host.execute(
            .setFeatures(.asynchronousEventConfiguration, value: 0x100, namespaceID: 0))
        let request = host.submit(.asynchronousEventRequest())
        host.run()
        host.controller.memory.disown()
        try host.controller.removeNamespace(1)
        host.run()

        #expect(host.take()?.commandID == request)
    }

    @Test("the same memory may be mapped again at its place, once")
    func sameMemory() throws {
        let file = try MemFD.create(name: "dma", byteCount: 65536)
        let second = try Self.enabled(file).successor()
        let controller = second.device.controller
        let binding = controller.memory.generation
        #expect(controller.memory.unclaimedCount == 1)
        let again = try file.duplicate()
        #expect(
            try second.request(2, RawClient.map(Self.iova, 65536), fds: [again.raw])?.error == 0)

        #expect(controller.memory.count == 1)
        #expect(controller.memory.unclaimedCount == 0)
        #expect(controller.memory.generation == binding)
        #expect(
            try second.request(2, RawClient.map(Self.iova, 65536), fds: [file.raw])?.error == 17)
    }

    @Test("other memory, another part, size or access at the same place is refused")
    func otherMemory() throws {
        let file = try MemFD.create(name: "dma", byteCount: 131_072)
        let other = try MemFD.create(name: "other", byteCount: 131_072)
        let second = try Self.enabled(file).successor()
        func map(_ body: [UInt8], _ fd: CInt) throws -> UInt32? {
            try second.request(2, body, fds: [fd])?.error
        }
        #expect(try map(RawClient.map(Self.iova, 65536), other.raw) == 17)
        #expect(try map(RawClient.map(Self.iova, 65536, offset: 4096), file.raw) == 17)
        #expect(try map(RawClient.map(Self.iova, 131_072), file.raw) == 17)
        #expect(try map(RawClient.map(Self.iova, 65536, flags: 1), file.raw) == 17)
        #expect(try map(RawClient.map(Self.iova + 4096, 4096), file.raw) == 17)
        #expect(try second.request(2, RawClient.map(Self.iova, 65536))?.error == 17)
        #expect(second.device.controller.memory.unclaimedCount == 1)
        #expect(try map(RawClient.map(0x50_0000, 65536), other.raw) == 0)
    }

    @Test("what nobody claimed goes with the controller's reset; what was claimed stays")
    func resetForgets() throws {
        let file = try MemFD.create(name: "dma", byteCount: 65536)
        let other = try MemFD.create(name: "other", byteCount: 65536)
        let first = try Self.enabled(file)
        _ = try first.request(2, RawClient.map(0x50_0000, 65536), fds: [other.raw])
        let second = try first.successor()
        _ = try second.request(2, RawClient.map(0x50_0000, 65536), fds: [other.raw])
        #expect(try second.write(0x14, [0, 0, 0, 0]) == 0)
        let memory = second.device.controller.memory
        #expect(memory.count == 1)
        #expect(
            try second.request(2, RawClient.map(Self.iova, 65536), fds: [other.raw])?.error == 0)
        #expect(memory.count == 2)
        #expect(second.device.controller.counters.controllerResets == 1)
    }

    @Test("a client may take away what its predecessor left")
    func unmapLeftOver() throws {
        let file = try MemFD.create(name: "dma", byteCount: 65536)
        let second = try Self.enabled(file).successor()
        #expect(try second.request(3, RawClient.unmap(Self.iova, 65536))?.error == 0)
        #expect(second.device.controller.memory.count == 0)
    }

    @Test("the status tells what a client has left")
    func status() throws {
        let file = try MemFD.create(name: "dma", byteCount: 65536)
        let second = try Self.enabled(file).successor()
        let json = JSONParser.parse(
            Array(ControlCommands(device: second.device).statistics().utf8))

        #expect(json?["dmaRegions"]?.unsigned == 1)
        #expect(json?["dmaRegionsUnclaimed"]?.unsigned == 1)
        #expect(json?["enables"]?.unsigned == 1)
        #expect(json?["controllerResets"]?.unsigned == 0)
        #expect(json?["submissionQueuesCreated"]?.unsigned == 0)
    }

    @Test("admin commands before a client's first I/O command are counted apart")
    func earlyCommands() throws {
        let host = try Host.ready { Self.keep(&$0) }
        let identify = host.pointing(.identify(cns: .controller), count: 4096)
        host.controller.hasServedIO = false
        _ = host.execute(identify)
        _ = host.execute(
            host.pointing(.read(namespaceID: 1, lba: 0, blockCount: 8), count: 4096), on: 1)
        _ = host.execute(identify)

        #expect(host.controller.counters.earlyAdminByOpcode[6] == 1)
        #expect(host.controller.counters.adminByOpcode[6] == 2)
    }

    @Test("memory that is reached by messages cannot be kept")
    func byMessage() {
        var options = EmulatorOptions()
        options.keepsState = true
        options.dmaByMessage = true
        #expect(throws: OptionError("keep: not together with dma-by-message")) {
            try options.validate()
        }
    }
}
