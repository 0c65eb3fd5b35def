// SPDX-License-Identifier: Apache-2.0
// The controller properties: enable, ready, reset, shutdown, fatal status.

import NVMeSpec
import Testing

@testable import NVMeEmulator

@Suite("Controller registers")
struct RegisterTests {
    @Test("CAP and VS tell what the controller can do")
    func capabilities() throws {
        let host = try Host { $0.maxQueueEntryCount = 256 }
        let cap = ControllerCapabilities(rawValue: host.controller.register(0))

        #expect(cap.mqes == 255)
        #expect(cap.cqr)
        #expect(cap.dstrd == 0)
        #expect(cap.mpsmin == 0)
        #expect(cap.supportsNVMCommandSet)
        #expect(host.read32(RegisterOffset.vs) == 0x0002_0000)
        #expect(host.read32(RegisterOffset.crto) == UInt32(cap.to))
    }

    @Test("enabling makes the controller ready, disabling makes it begin anew")
    func enableAndReset() throws {
        let host = try Host()
        host.enable()
        #expect(host.status.rdy)
        host.createQueues()
        #expect(host.controller.activeQueues == [1])

        host.write(RegisterOffset.cc, 0x0046_0000)

        #expect(host.status.rawValue == 0)
        #expect(host.controller.activeQueues.isEmpty)
        #expect(host.controller.asq == Host.iova)
        #expect(host.controller.counters.controllerResets == 1)
    }

    @Test(
        "a configuration that makes no sense is fatal",
        arguments: [
            0x0046_0281,  // CC.MPS = 5, larger than MPSMAX
            0x0046_0011,  // CC.CSS = 1
            0x0046_0801,  // CC.AMS = 1
            0x0047_0001,  // CC.IOSQES = 7
            0x0056_0001,  // CC.IOCQES = 5
        ] as [UInt32])
    func invalidConfiguration(configuration: UInt32) throws {
        let host = try Host()
        host.enable(configuration: configuration)

        #expect(host.status.cfs)
        #expect(!host.status.rdy)
    }

    @Test("admin queues of one entry are fatal", arguments: [0x000F_0000, 0x0000_000F] as [UInt32])
    func tinyAdminQueues(attributes: UInt32) throws {
        let host = try Host()
        host.enable(attributes: attributes)

        #expect(host.status.cfs)
    }

    @Test("admin queues outside the mapped memory are fatal, and a reset heals that")
    func unmappedAdminQueues() throws {
        let host = try Host()
        host.write(RegisterOffset.aqa, 0x000F_000F)
        host.write(RegisterOffset.asq, 0x7FFF_0000_0000, byteCount: 8)
        host.write(RegisterOffset.acq, Host.iova, byteCount: 8)
        host.write(RegisterOffset.cc, 0x0046_0001)
        #expect(host.status.cfs)

        host.write(RegisterOffset.cc, 0)
        #expect(!host.status.cfs)
        host.enable()
        #expect(host.status.rdy)
    }

    @Test("the admin queue registers are fixed while the controller is enabled")
    func adminRegistersLocked() throws {
        let host = try Host()
        host.enable()
        host.write(RegisterOffset.asq, 0xDEAD_0000, byteCount: 8)
        host.write(RegisterOffset.aqa, 0)

        #expect(host.controller.asq == Host.iova)
        #expect(host.controller.aqa.rawValue == 0x000F_000F)
    }

    @Test("shutdown completes and stops I/O queues")
    func shutdown() throws {
        let host = try Host.ready()
        host.write(RegisterOffset.cc, 0x0046_4001)
        #expect(host.status.shst == .complete)
        #expect(host.status(of: .flush(namespaceID: 1), on: 1) == nil)
        #expect(host.controller.counters.shutdowns == 1)
    }

    @Test("a subsystem reset is remembered in CSTS.NSSRO until it is written")
    func subsystemReset() throws {
        let host = try Host()
        host.enable()
        host.write(RegisterOffset.nssr, UInt64(subsystemResetSignature))
        #expect(host.status.rawValue == 0x10)
        #expect(host.read32(RegisterOffset.cc) == 0)

        host.write(RegisterOffset.csts, 0x10)
        #expect(host.status.rawValue == 0)
    }

    @Test("accesses of odd size or place do nothing", arguments: [1, 2, 3, 5, 16])
    func oddAccess(byteCount: Int) throws {
        let host = try Host()
        let isDone = host.controller.writeRegisters(
            offset: RegisterOffset.cc, value: 1, byteCount: byteCount)

        #expect(!isDone)
        #expect(host.read32(RegisterOffset.cc) == 0)
    }

    @Test("commands wait for bus mastering when that is required")
    func busMaster() throws {
        let host = try Host { $0.requiresBusMaster = true }
        host.controller.isBusMaster = false
        host.enable()
        host.submit(.getFeatures(.arbitration))
        host.run()
        #expect(host.peek() == nil)

        host.controller.isBusMaster = true
        host.run()
        #expect(host.take()?.status == .success)
    }
}
