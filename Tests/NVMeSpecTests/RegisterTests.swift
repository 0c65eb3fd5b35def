// SPDX-License-Identifier: Apache-2.0
// Registers against values read from the layout of the specification.

import NVMeSpec
import Testing

@Suite("Registers")
struct RegisterTests {
    @Test("CAP of an emulated controller splits into its fields")
    func capabilities() {
        // CRMS 01b, MPSMAX 4, MPSMIN 0, CSS bits 0 and 6 (37 and 43), NSSRS, DSTRD 2, TO 15,
        // AMS 01b, CQR, MQES 7FFh
        let cap = ControllerCapabilities(rawValue: 0x0840_0832_0F03_07FF)

        #expect(cap.mqes == 0x7FF)
        #expect(cap.maximumQueueEntryCount == 2048)
        #expect(cap.cqr)
        #expect(cap.ams == 1)
        #expect(cap.to == 15)
        #expect(cap.timeoutMilliseconds == 7500)
        #expect(cap.dstrd == 2)
        #expect(cap.nssrs)
        #expect(cap.supportsNVMCommandSet)
        #expect(cap.supportsMultipleCommandSets)
        #expect(!cap.supportsNoIOCommandSet)
        #expect(cap.minimumPageByteCount == 4096)
        #expect(cap.maximumPageByteCount == 65536)
        #expect(cap.crms == 1)
        #expect(cap.supportsReadyWithMedia)
        #expect(!cap.supportsReadyIndependentOfMedia)
        #expect(!cap.isGone)
    }

    @Test("CAP built field by field is CAP read field by field")
    func capabilitiesRoundTrip() {
        let pattern = ControllerCapabilities(rawValue: 0x1FFF_FFFF_FF07_FFFF)
        var built = ControllerCapabilities()
        built.mqes = pattern.mqes
        built.cqr = pattern.cqr
        built.ams = pattern.ams
        built.to = pattern.to
        built.dstrd = pattern.dstrd
        built.nssrs = pattern.nssrs
        built.css = pattern.css
        built.bps = pattern.bps
        built.mpsmin = pattern.mpsmin
        built.mpsmax = pattern.mpsmax
        built.pmrs = pattern.pmrs
        built.cmbs = pattern.cmbs
        built.nsss = pattern.nsss
        built.crms = pattern.crms

        // Bits 47:46 (CPS) have no property.
        #expect(built.rawValue == 0x1FFF_3FFF_FF07_FFFF)
    }

    @Test("a setter changes its own bits only and cuts what does not fit")
    func cutting() {
        var cap = ControllerCapabilities(rawValue: 0)
        cap.dstrd = 0xFF
        var status = ControllerStatus(rawValue: .max)
        status.shst = .normal

        #expect(cap.rawValue == 0x0000_000F_0000_0000)
        #expect(status.rawValue == 0xFFFF_FFF3)
    }

    @Test("CC for 4 KiB pages and standard entries is 00460001h when enabled")
    func configuration() {
        var cc = ControllerConfiguration(enabled: true, mps: 0)

        #expect(cc.rawValue == 0x0046_0001)
        cc.shn = .normal
        #expect(cc.rawValue == 0x0046_4001)
        #expect(cc.reservedBits == 0)
        #expect(ControllerConfiguration(rawValue: 0x0000_0780).pageByteCount == 4096 << 15)
        #expect(ControllerConfiguration(rawValue: 0x8000_000E).reservedBits == 0x8000_000E)
    }

    @Test("CSTS tells ready, fatal, shutdown and a device that is gone apart")
    func status() {
        #expect(ControllerStatus(rawValue: 0x01).rdy)
        #expect(ControllerStatus(rawValue: 0x02).cfs)
        #expect(ControllerStatus(rawValue: 0x08).shst == .complete)
        #expect(ControllerStatus(rawValue: 0x04).shst == .occurring)
        #expect(ControllerStatus(rawValue: 0x10).nssro)
        #expect(ControllerStatus(rawValue: 0x20).pp)
        #expect(ControllerStatus(rawValue: 0xFFFF_FFFF).isGone)
    }

    @Test("AQA, CRTO and VS hold what they were built from")
    func small() {
        let aqa = AdminQueueAttributes(submissionEntryCount: 64, completionEntryCount: 4096)

        #expect(aqa.rawValue == 0x0FFF_003F)
        #expect(aqa.submissionEntryCount == 64)
        #expect(aqa.completionEntryCount == 4096)
        #expect(ControllerReadyTimeouts(rawValue: 0x0003_0014).readyWithMediaMilliseconds == 10000)
        #expect(
            ControllerReadyTimeouts(rawValue: 0x0003_0014).readyIndependentOfMediaMilliseconds
                == 1500)
        #expect(SpecificationVersion(rawValue: 0x0001_0201).description == "1.2.1")
        #expect(SpecificationVersion.v2_0.description == "2.0")
        #expect(SpecificationVersion.v1_3 < .v2_0)
    }

    @Test("doorbells interleave tails and heads at the stride of CAP.DSTRD")
    func doorbells() {
        #expect(Doorbell.offset(queueID: 0, isCompletion: false, dstrd: 0) == 0x1000)
        #expect(Doorbell.offset(queueID: 0, isCompletion: true, dstrd: 0) == 0x1004)
        #expect(Doorbell.offset(queueID: 3, isCompletion: false, dstrd: 0) == 0x1018)
        #expect(Doorbell.offset(queueID: 3, isCompletion: true, dstrd: 2) == 0x1070)
        #expect(
            Doorbell.offset(queueID: 0xFFFF, isCompletion: true, dstrd: 15)
                == 0x1000 + 131_071 * 131_072)
        #expect(Doorbell.registerSpaceByteCount(lastQueueID: 1, dstrd: 0) == 0x1010)
    }
}
