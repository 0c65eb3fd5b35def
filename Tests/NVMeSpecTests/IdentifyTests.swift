// SPDX-License-Identifier: Apache-2.0
// Identify pages against bytes at the offsets of the specification.

import NVMeSpec
import Testing

@Suite("Identify pages")
struct IdentifyTests {
    /// A page of zeroes with some bytes replaced.
    private func page(_ parts: [(Int, [UInt8])]) -> [UInt8] {
        var page = [UInt8](repeating: 0, count: 4096)
        for (offset, part) in parts {
            page.replaceSubrange(offset..<(offset + part.count), with: part)
        }
        return page
    }

    @Test("Identify Controller reads each field at its offset")
    func controller() throws {
        let bytes = page([
            (0, bytes("36 1B  F4 1A        # VID 1B36h, SSVID 1AF4h")),
            (4, Array("S123                ".utf8)),
            (24, Array("Model X".utf8) + [0x20, 0x1B, 0x20]),
            (64, Array("1.0     ".utf8)),
            (72, bytes("06  00 54 52  02 07 0A 00  # RAB, IEEE, CMIC, MDTS, CNTLID")),
            (80, bytes("00 00 02 00         # VER 2.0")),
            (92, bytes("00 01 00 00         # OAES namespace attribute")),
            (256, bytes("0A 01 03 07 02 04 3F # OACS, ACL, AERL, FRMW, LPA, ELPE")),
            (266, bytes("57 01 60 01         # WCTEMP 343 K, CCTEMP 352 K")),
            (280, bytes("00 00 00 00 00 00 00 00 01  # TNVMCAP 2^64")),
            (512, bytes("66 44 00 01         # SQES, CQES, MAXCMD 256")),
            (516, bytes("00 01 00 00         # NN 256")),
            (520, bytes("8D 00 01 00 00 07   # ONCS, FUSES, FNA, VWC")),
            (526, bytes("FF 00 07 00         # AWUN 255, AWUPF 7")),
            (768, Array("nqn.2019-08.org.qemu:x".utf8)),
        ])

        let identify = try IdentifyController(parsing: bytes)

        #expect(identify.vid == 0x1B36)
        #expect(identify.ssvid == 0x1AF4)
        #expect(identify.sn == "S123")
        #expect(identify.mn == "Model X ?")
        #expect(identify.fr == "1.0")
        #expect(identify.rab == 6)
        #expect(identify.ieee == 0x525400)
        #expect(identify.cmic == 2)
        #expect(identify.mdts == 7)
        #expect(identify.cntlid == 10)
        #expect(identify.ver == .v2_0)
        #expect(identify.oaes == 0x100)
        #expect(
            identify.optionalAdminCommands == [
                .formatNVM, .namespaceManagement, .doorbellBufferConfig,
            ])
        #expect(identify.acl == 3)
        #expect(identify.aerl == 7)
        #expect(identify.logPagesTakeOffsets)
        #expect(identify.elpe == 63)
        #expect(identify.wctemp == 343)
        #expect(identify.cctemp == 352)
        #expect(identify.tnvmcap == 1 << 64)
        #expect(identify.minimumSubmissionEntryShift == 6)
        #expect(identify.maximumCompletionEntryShift == 4)
        #expect(identify.maxcmd == 256)
        #expect(identify.nn == 256)
        #expect(
            identify.optionalNVMCommands == [.compare, .datasetManagement, .writeZeroes, .verify])
        #expect(identify.fuses == 1)
        #expect(identify.hasVolatileWriteCache)
        #expect(identify.flushTakesBroadcast)
        #expect(identify.awun == 255)
        #expect(identify.awupf == 7)
        #expect(identify.subnqn == "nqn.2019-08.org.qemu:x")
    }

    @Test("MDTS counts in the smallest page, zero and absurd values mean no limit")
    func transferLimit() {
        var cap = ControllerCapabilities()
        cap.mpsmin = 1
        var identify = IdentifyController()

        #expect(identify.maximumTransferByteCount(capabilities: cap) == nil)
        identify.mdts = 5
        #expect(identify.maximumTransferByteCount(capabilities: cap) == 8192 * 32)
        identify.mdts = 255
        #expect(identify.maximumTransferByteCount(capabilities: cap) == nil)
    }

    @Test("Identify Namespace reads sizes, features and the block format in use")
    func namespace() throws {
        let bytes = page([
            (0, bytes("00 00 10 00 00 00 00 00  # NSZE 1048576")),
            (8, bytes("00 00 10 00 00 00 00 00  # NCAP")),
            (16, bytes("01 00 00 00 00 00 00 00  # NUSE")),
            (
                24,
                bytes(
                    "15 01 01 00 00 00 01 00 80 09  # NSFEAT NLBAF FLBAS ... NMIC RESCAP FPI DLFEAT"
                )
            ),
            (46, bytes("00 01               # NOIOB 256")),
            (64, bytes("07 00 07 00 FF 00 FF 00 1F 00  # NPWG NPWA NPDG NPDA NOWS")),
            (99, bytes("01                  # NSATTR write protected")),
            (104, bytes("00 11 22 33 44 55 66 77 88 99 AA BB CC DD EE FF  # NGUID")),
            (120, bytes("01 23 45 67 89 AB CD EF  # EUI64")),
            (128, bytes("00 00 09 00         # LBAF0 512 bytes")),
            (132, bytes("08 00 0C 02         # LBAF1 4096 bytes, 8 metadata, RP 2")),
        ])

        let identify = try IdentifyNamespace(parsing: bytes)

        #expect(identify.nsze == 1_048_576)
        #expect(identify.nuse == 1)
        #expect(identify.isThin)
        #expect(identify.hasOptimalSizes)
        #expect(!identify.hasAtomicUnits)
        #expect(identify.isShared)
        #expect(identify.fpi == 0x80)
        #expect(identify.deallocatedReadBehavior == .zeroes)
        #expect(identify.writeZeroesDeallocates)
        #expect(identify.noiob == 256)
        #expect(identify.npwg == 7)
        #expect(identify.npdg == 255)
        #expect(identify.nows == 31)
        #expect(identify.isWriteProtected)
        #expect(identify.nguid.first == 0x00)
        #expect(identify.nguid.last == 0xFF)
        #expect(identify.eui64 == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF])
        #expect(identify.blockByteCount == 4096)
        #expect(identify.hasMetadata)
        #expect(identify.format?.rp == 2)
    }

    @Test("a block format that does not exist or is absurd has no block size")
    func blockFormats() {
        var identify = IdentifyNamespace()
        identify.nlbaf = 1
        identify.lbaf[0] = LBAFormat(lbads: 12)
        #expect(identify.blockByteCount == 4096)

        identify.flbas = 0x02
        #expect(identify.format == nil)
        identify.flbas = 0x61
        #expect(identify.formatIndex == 1)
        identify.nlbaf = 40
        #expect(identify.formatIndex == 49)
        #expect(identify.format == nil)
        identify.flbas = 0x40
        identify.lbaf[32] = LBAFormat(lbads: 9, ms: 8)
        #expect(identify.blockByteCount == 512)
        identify.nlbaf = 255
        identify.flbas = 0x6F
        #expect(identify.blockByteCount == nil)
        #expect(LBAFormat(lbads: 8).blockByteCount == nil)
        #expect(LBAFormat(lbads: 31).blockByteCount == nil)
        #expect(LBAFormat(lbads: 255).blockByteCount == nil)
    }

    @Test("an emulated namespace survives encode and parse")
    func namespaceRoundTrip() throws {
        var identify = IdentifyNamespace()
        identify.nsze = 1 << 40
        identify.ncap = 1 << 40
        identify.lbaf[0] = LBAFormat(lbads: 9)
        identify.lbaf[63] = LBAFormat(lbads: 12, ms: 64, rp: 3)
        identify.nvmcap = 1 << 100
        identify.nguid = Array(1...16)

        #expect(try IdentifyNamespace(parsing: identify.encode()) == identify)
        #expect(identify.encode()[128...131] == [0, 0, 9, 0])
        #expect(identify.encode()[380...383] == [64, 0, 12, 3])
    }

    @Test("the limits of the NVM command set are powers of two pages or block counts")
    func commandSetLimits() throws {
        let limits = try IdentifyNVMController(
            parsing: page([(0, bytes("03 04 00 10 00 01 00 00 00 00 00 00 00 00 00 01"))]))

        #expect(limits.verifyByteCount(capabilities: ControllerCapabilities()) == 32768)
        #expect(limits.writeZeroesByteCount(capabilities: ControllerCapabilities()) == 65536)
        #expect(limits.dmrl == 16)
        #expect(limits.dmrsl == 256)
        #expect(limits.dmsl == 1 << 56)
    }

    @Test("the independent page of a namespace says shared, protected and ready")
    func independent() throws {
        let identify = try IdentifyIndependentNamespace(
            parsing: page([(0, bytes("00 01 00 00 02 00 00 00 01 00 03 00 04 00 01"))]))

        #expect(identify.nmic == 1)
        #expect(identify.anagrpid == 2)
        #expect(identify.nsattr == 1)
        #expect(identify.nvmsetid == 3)
        #expect(identify.endgid == 4)
        #expect(identify.nstat == 1)
    }
}
