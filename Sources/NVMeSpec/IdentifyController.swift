// SPDX-License-Identifier: Apache-2.0
// The Identify Controller page, CNS 01h. NVM Express Base Specification 2.0, section 5.17.2.1.

/// Identify Controller. Properties carry the mnemonic of the specification and the raw value.
public struct IdentifyController: Page {
    /// VID, PCI vendor ID.
    public var vid: UInt16 = 0
    /// SSVID, PCI subsystem vendor ID.
    public var ssvid: UInt16 = 0
    /// SN, serial number, up to 20 printable characters.
    public var sn = ""
    /// MN, model number, up to 40 printable characters.
    public var mn = ""
    /// FR, firmware revision, up to 8 printable characters.
    public var fr = ""
    /// RAB, recommended arbitration burst, 2 ^ n commands.
    public var rab: UInt8 = 0
    /// IEEE, OUI of the maker.
    public var ieee: UInt32 = 0
    /// CMIC: bit 0 several ports, 1 several controllers, 2 virtual function, 3 ANA.
    public var cmic: UInt8 = 0
    /// MDTS: a transfer is at most 2 ^ n pages of CAP.MPSMIN; 0 means no limit.
    public var mdts: UInt8 = 0
    /// CNTLID, controller ID.
    public var cntlid: UInt16 = 0
    /// VER, as in VS.
    public var ver = SpecificationVersion(rawValue: 0)
    /// RTD3R, typical time to resume from D3cold, in microseconds.
    public var rtd3r: UInt32 = 0
    /// RTD3E, typical time to enter D3cold after a normal shutdown, in microseconds.
    public var rtd3e: UInt32 = 0
    /// OAES, optional asynchronous events: bit 8 namespace attribute notices.
    public var oaes: UInt32 = 0
    /// CTRATT, controller attributes.
    public var ctratt: UInt32 = 0
    /// RRLS, read recovery levels.
    public var rrls: UInt16 = 0
    /// CNTRLTYPE: 1 I/O, 2 discovery, 3 administrative controller.
    public var cntrltype: UInt8 = 0
    /// FGUID, FRU GUID, 16 bytes.
    public var fguid = [UInt8](repeating: 0, count: 16)
    /// CRDT1, first command retry delay, in units of 100 ms.
    public var crdt1: UInt16 = 0
    /// CRDT2, second command retry delay, in units of 100 ms.
    public var crdt2: UInt16 = 0
    /// CRDT3, third command retry delay, in units of 100 ms.
    public var crdt3: UInt16 = 0
    /// NVMSR, NVM subsystem report.
    public var nvmsr: UInt8 = 0
    /// VWCI, VPD write cycles.
    public var vwci: UInt8 = 0
    /// MEC, management endpoint capabilities.
    public var mec: UInt8 = 0
    /// OACS, optional admin commands; see `OptionalAdminCommands`.
    public var oacs: UInt16 = 0
    /// ACL, concurrent Abort commands less one.
    public var acl: UInt8 = 0
    /// AERL, concurrent Asynchronous Event Requests less one.
    public var aerl: UInt8 = 0
    /// FRMW, firmware updates: bit 0 slot 1 read only, 3:1 slots.
    public var frmw: UInt8 = 0
    /// LPA, log page attributes: bit 1 effects log, bit 2 offsets in Get Log Page.
    public var lpa: UInt8 = 0
    /// ELPE, error log page entries less one.
    public var elpe: UInt8 = 0
    /// NPSS, power states less one.
    public var npss: UInt8 = 0
    /// AVSCC, admin vendor specific command configuration.
    public var avscc: UInt8 = 0
    /// APSTA, autonomous power state transitions.
    public var apsta: UInt8 = 0
    /// WCTEMP, warning composite temperature, in kelvins.
    public var wctemp: UInt16 = 0
    /// CCTEMP, critical composite temperature, in kelvins.
    public var cctemp: UInt16 = 0
    /// MTFA, longest pause for firmware activation, in units of 100 ms.
    public var mtfa: UInt16 = 0
    /// HMPRE, preferred host memory buffer, in units of 4 KiB.
    public var hmpre: UInt32 = 0
    /// HMMIN, minimum host memory buffer, in units of 4 KiB.
    public var hmmin: UInt32 = 0
    /// TNVMCAP, total capacity in bytes.
    public var tnvmcap: UInt128 = 0
    /// UNVMCAP, unallocated capacity in bytes.
    public var unvmcap: UInt128 = 0
    /// RPMBS, replay protected memory block support.
    public var rpmbs: UInt32 = 0
    /// EDSTT, time of an extended self-test, in minutes.
    public var edstt: UInt16 = 0
    /// DSTO, device self-test options.
    public var dsto: UInt8 = 0
    /// FWUG, firmware update granularity, in units of 4 KiB.
    public var fwug: UInt8 = 0
    /// KAS, keep alive granularity, in units of 100 ms.
    public var kas: UInt16 = 0
    /// HCTMA, host controlled thermal management.
    public var hctma: UInt16 = 0
    /// MNTMT, minimum thermal management temperature, in kelvins.
    public var mntmt: UInt16 = 0
    /// MXTMT, maximum thermal management temperature, in kelvins.
    public var mxtmt: UInt16 = 0
    /// SANICAP, sanitize capabilities.
    public var sanicap: UInt32 = 0
    /// HMMINDS, minimum descriptor entry of the host memory buffer, in units of 4 KiB.
    public var hmminds: UInt32 = 0
    /// HMMAXD, maximum descriptors of the host memory buffer.
    public var hmmaxd: UInt16 = 0
    /// NSETIDMAX, highest NVM set.
    public var nsetidmax: UInt16 = 0
    /// ENDGIDMAX, highest endurance group.
    public var endgidmax: UInt16 = 0
    /// ANATT, longest ANA transition, in seconds.
    public var anatt: UInt8 = 0
    /// ANACAP, asymmetric namespace access capabilities.
    public var anacap: UInt8 = 0
    /// ANAGRPMAX, highest ANA group.
    public var anagrpmax: UInt32 = 0
    /// NANAGRPID, number of ANA groups.
    public var nanagrpid: UInt32 = 0
    /// PELS, size of the persistent event log, in units of 64 KiB.
    public var pels: UInt32 = 0
    /// Domain identifier.
    public var did: UInt16 = 0
    /// MEGCAP, maximum capacity of an endurance group, in bytes.
    public var megcap: UInt128 = 0
    /// SQES, submission entry: 3:0 required and 7:4 maximum size, 2 ^ n bytes.
    public var sqes: UInt8 = 0
    /// CQES, completion entry: 3:0 required and 7:4 maximum size, 2 ^ n bytes.
    public var cqes: UInt8 = 0
    /// MAXCMD, commands to have outstanding on a queue; 0 if not reported.
    public var maxcmd: UInt16 = 0
    /// NN, the highest valid NSID.
    public var nn: UInt32 = 0
    /// ONCS, optional NVM commands; see `OptionalNVMCommands`.
    public var oncs: UInt16 = 0
    /// FUSES, fused operations: bit 0 compare and write.
    public var fuses: UInt16 = 0
    /// FNA, format NVM attributes.
    public var fna: UInt8 = 0
    /// VWC: bit 0 a volatile write cache is present, 2:1 Flush of all namespaces.
    public var vwc: UInt8 = 0
    /// AWUN, blocks less one that are written atomically in normal operation.
    public var awun: UInt16 = 0
    /// AWUPF, blocks less one that are written atomically over a power fail.
    public var awupf: UInt16 = 0
    /// NVSCC, I/O vendor specific command configuration.
    public var nvscc: UInt8 = 0
    /// NWPC, namespace write protection: bit 0 supported.
    public var nwpc: UInt8 = 0
    /// ACWU, blocks less one of an atomic compare and write.
    public var acwu: UInt16 = 0
    /// OCFS, copy descriptor formats.
    public var ocfs: UInt16 = 0
    /// SGLS, support for scatter gather lists; 1:0 zero means none.
    public var sgls: UInt32 = 0
    /// MNAN, maximum number of allowed namespaces; 0 means NN.
    public var mnan: UInt32 = 0
    /// MAXDNA, maximum domain namespace attachments.
    public var maxdna: UInt128 = 0
    /// MAXCNA, maximum I/O controller namespace attachments.
    public var maxcna: UInt32 = 0
    /// SUBNQN, qualified name of the subsystem, without padding.
    public var subnqn = ""
    /// Maximum power of power state 0, in units of 10 mW.
    public var psd0mp: UInt16 = 0

    /// A page with every field zero.
    public init() {}

    /// Parses bytes that were copied from the device.
    public init(parsing bytes: [UInt8]) throws(PageError) {
        self = try Self.parsed(from: bytes)
    }

    /// The page as a controller returns it.
    public func encode() -> [UInt8] { encoded() }

    /// The name of the page in the specification.
    public static let pageName = "Identify Controller"

    /// Bytes of the whole page.
    public static let pageByteCount = 4096
}

extension IdentifyController: LaidOutPage {
    mutating func visit(_ codec: inout PageCodec) {
        visitFirstPart(&codec)
        visitSecondPart(&codec)
        visitThirdPart(&codec)
    }

    private mutating func visitFirstPart(_ codec: inout PageCodec) {
        codec.field(&vid, at: 0, "VID")
        codec.field(&ssvid, at: 2, "SSVID")
        codec.text(&sn, at: 4, byteCount: 20, "SN")
        codec.text(&mn, at: 24, byteCount: 40, "MN")
        codec.text(&fr, at: 64, byteCount: 8, "FR")
        codec.field(&rab, at: 72, "RAB")
        codec.field(&ieee, at: 73, "IEEE", byteCount: 3)
        codec.field(&cmic, at: 76, "CMIC")
        codec.field(&mdts, at: 77, "MDTS")
        codec.field(&cntlid, at: 78, "CNTLID")
        codec.field(&ver.rawValue, at: 80, "VER")
        codec.field(&rtd3r, at: 84, "RTD3R")
        codec.field(&rtd3e, at: 88, "RTD3E")
        codec.field(&oaes, at: 92, "OAES")
        codec.field(&ctratt, at: 96, "CTRATT")
        codec.field(&rrls, at: 100, "RRLS")
        codec.field(&cntrltype, at: 111, "CNTRLTYPE")
        codec.opaque(&fguid, at: 112, byteCount: 16, "FGUID")
        codec.field(&crdt1, at: 128, "CRDT1")
        codec.field(&crdt2, at: 130, "CRDT2")
        codec.field(&crdt3, at: 132, "CRDT3")
        codec.field(&nvmsr, at: 253, "NVMSR")
        codec.field(&vwci, at: 254, "VWCI")
        codec.field(&mec, at: 255, "MEC")
        codec.field(&oacs, at: 256, "OACS")
        codec.field(&acl, at: 258, "ACL")
        codec.field(&aerl, at: 259, "AERL")
        codec.field(&frmw, at: 260, "FRMW")
        codec.field(&lpa, at: 261, "LPA")
        codec.field(&elpe, at: 262, "ELPE")
        codec.field(&npss, at: 263, "NPSS")
        codec.field(&avscc, at: 264, "AVSCC")
        codec.field(&apsta, at: 265, "APSTA")
        codec.field(&wctemp, at: 266, "WCTEMP")
        codec.field(&cctemp, at: 268, "CCTEMP")
    }

    private mutating func visitSecondPart(_ codec: inout PageCodec) {
        codec.field(&mtfa, at: 270, "MTFA")
        codec.field(&hmpre, at: 272, "HMPRE")
        codec.field(&hmmin, at: 276, "HMMIN")
        codec.field(&tnvmcap, at: 280, "TNVMCAP")
        codec.field(&unvmcap, at: 296, "UNVMCAP")
        codec.field(&rpmbs, at: 312, "RPMBS")
        codec.field(&edstt, at: 316, "EDSTT")
        codec.field(&dsto, at: 318, "DSTO")
        codec.field(&fwug, at: 319, "FWUG")
        codec.field(&kas, at: 320, "KAS")
        codec.field(&hctma, at: 322, "HCTMA")
        codec.field(&mntmt, at: 324, "MNTMT")
        codec.field(&mxtmt, at: 326, "MXTMT")
        codec.field(&sanicap, at: 328, "SANICAP")
        codec.field(&hmminds, at: 332, "HMMINDS")
        codec.field(&hmmaxd, at: 336, "HMMAXD")
        codec.field(&nsetidmax, at: 338, "NSETIDMAX")
        codec.field(&endgidmax, at: 340, "ENDGIDMAX")
        codec.field(&anatt, at: 342, "ANATT")
        codec.field(&anacap, at: 343, "ANACAP")
        codec.field(&anagrpmax, at: 344, "ANAGRPMAX")
        codec.field(&nanagrpid, at: 348, "NANAGRPID")
        codec.field(&pels, at: 352, "PELS")
        codec.field(&did, at: 356, "DID")
        codec.field(&megcap, at: 368, "MEGCAP")
        codec.field(&sqes, at: 512, "SQES")
        codec.field(&cqes, at: 513, "CQES")
        codec.field(&maxcmd, at: 514, "MAXCMD")
        codec.field(&nn, at: 516, "NN")
        codec.field(&oncs, at: 520, "ONCS")
        codec.field(&fuses, at: 522, "FUSES")
        codec.field(&fna, at: 524, "FNA")
        codec.field(&vwc, at: 525, "VWC")
        codec.field(&awun, at: 526, "AWUN")
        codec.field(&awupf, at: 528, "AWUPF")
    }

    private mutating func visitThirdPart(_ codec: inout PageCodec) {
        codec.field(&nvscc, at: 530, "NVSCC")
        codec.field(&nwpc, at: 531, "NWPC")
        codec.field(&acwu, at: 532, "ACWU")
        codec.field(&ocfs, at: 534, "OCFS")
        codec.field(&sgls, at: 536, "SGLS")
        codec.field(&mnan, at: 540, "MNAN")
        codec.field(&maxdna, at: 544, "MAXDNA")
        codec.field(&maxcna, at: 560, "MAXCNA")
        codec.text(&subnqn, at: 768, byteCount: 256, padding: 0, "SUBNQN")
        codec.field(&psd0mp, at: 2048, "PSD0.MP")
    }
}
