// SPDX-License-Identifier: Apache-2.0
// The Identify Namespace page of the NVM command set, CNS 00h. NVM Command Set Specification 1.0,
// section 4.1.5.1.

/// Identify Namespace. Properties carry the mnemonic of the specification and the raw value.
public struct IdentifyNamespace: Page {
    /// NSZE, size in blocks.
    public var nsze: UInt64 = 0
    /// NCAP, capacity in blocks.
    public var ncap: UInt64 = 0
    /// NUSE, blocks in use.
    public var nuse: UInt64 = 0
    /// NSFEAT: bit 0 thin, 1 NAWUN and so on valid, 2 deallocated read error, 4 NPWG and so on.
    public var nsfeat: UInt8 = 0
    /// NLBAF, block formats less one.
    public var nlbaf: UInt8 = 0
    /// FLBAS: 3:0 and 6:5 the format in use, 4 metadata at the end of each block.
    public var flbas: UInt8 = 0
    /// MC, metadata capabilities: bit 0 with the block, bit 1 in a buffer of its own.
    public var mc: UInt8 = 0
    /// DPC, end-to-end protection capabilities.
    public var dpc: UInt8 = 0
    /// DPS, end-to-end protection in use: 2:0 zero means none.
    public var dps: UInt8 = 0
    /// NMIC: bit 0 the namespace may be shared by several controllers.
    public var nmic: UInt8 = 0
    /// RESCAP, reservation capabilities.
    public var rescap: UInt8 = 0
    /// FPI, format progress: bit 7 supported, 6:0 percent that remains.
    public var fpi: UInt8 = 0
    /// DLFEAT: 2:0 what deallocated blocks read as, 3 Write Zeroes deallocates.
    public var dlfeat: UInt8 = 0
    /// NAWUN, as AWUN for this namespace.
    public var nawun: UInt16 = 0
    /// NAWUPF, as AWUPF for this namespace.
    public var nawupf: UInt16 = 0
    /// NACWU, as ACWU for this namespace.
    public var nacwu: UInt16 = 0
    /// NABSN, atomic boundary in blocks less one, normal operation.
    public var nabsn: UInt16 = 0
    /// NABO, LBA offset of the first atomic boundary.
    public var nabo: UInt16 = 0
    /// NABSPF, atomic boundary in blocks less one, power fail.
    public var nabspf: UInt16 = 0
    /// NOIOB, blocks of the optimal I/O boundary; 0 if not reported.
    public var noiob: UInt16 = 0
    /// NVMCAP, capacity in bytes.
    public var nvmcap: UInt128 = 0
    /// NPWG, preferred write granularity in blocks less one.
    public var npwg: UInt16 = 0
    /// NPWA, preferred write alignment in blocks less one.
    public var npwa: UInt16 = 0
    /// NPDG, preferred deallocate granularity in blocks less one.
    public var npdg: UInt16 = 0
    /// NPDA, preferred deallocate alignment in blocks less one.
    public var npda: UInt16 = 0
    /// NOWS, optimal write size in blocks less one.
    public var nows: UInt16 = 0
    /// MSSRL, blocks of the longest source range of Copy.
    public var mssrl: UInt16 = 0
    /// MCL, blocks of the longest Copy.
    public var mcl: UInt32 = 0
    /// MSRC, source ranges of Copy less one.
    public var msrc: UInt8 = 0
    /// ANAGRPID, ANA group.
    public var anagrpid: UInt32 = 0
    /// NSATTR: bit 0 the namespace is write protected.
    public var nsattr: UInt8 = 0
    /// NVMSETID, NVM set.
    public var nvmsetid: UInt16 = 0
    /// ENDGID, endurance group.
    public var endgid: UInt16 = 0
    /// NGUID, 16 bytes, big endian as it is written; zeroes if there is none.
    public var nguid = [UInt8](repeating: 0, count: 16)
    /// EUI64, 8 bytes, big endian as it is written; zeroes if there is none.
    public var eui64 = [UInt8](repeating: 0, count: 8)
    /// LBAF0 to LBAF63; those above NLBAF do not count.
    public var lbaf = [LBAFormat](repeating: LBAFormat(), count: LBAFormat.maximumCount)

    /// A page with every field zero.
    public init() {}

    /// Parses bytes that were copied from the device.
    public init(parsing bytes: [UInt8]) throws(PageError) {
        self = try Self.parsed(from: bytes)
    }

    /// The page as a controller returns it.
    public func encode() -> [UInt8] { encoded() }

    /// The name of the page in the specification.
    public static let pageName = "Identify Namespace"

    /// Bytes of the whole page.
    public static let pageByteCount = 4096
}

extension IdentifyNamespace: LaidOutPage {
    mutating func visit(_ codec: inout PageCodec) {
        codec.field(&nsze, at: 0, "NSZE")
        codec.field(&ncap, at: 8, "NCAP")
        codec.field(&nuse, at: 16, "NUSE")
        codec.field(&nsfeat, at: 24, "NSFEAT")
        codec.field(&nlbaf, at: 25, "NLBAF")
        codec.field(&flbas, at: 26, "FLBAS")
        codec.field(&mc, at: 27, "MC")
        codec.field(&dpc, at: 28, "DPC")
        codec.field(&dps, at: 29, "DPS")
        codec.field(&nmic, at: 30, "NMIC")
        codec.field(&rescap, at: 31, "RESCAP")
        codec.field(&fpi, at: 32, "FPI")
        codec.field(&dlfeat, at: 33, "DLFEAT")
        codec.field(&nawun, at: 34, "NAWUN")
        codec.field(&nawupf, at: 36, "NAWUPF")
        codec.field(&nacwu, at: 38, "NACWU")
        codec.field(&nabsn, at: 40, "NABSN")
        codec.field(&nabo, at: 42, "NABO")
        codec.field(&nabspf, at: 44, "NABSPF")
        codec.field(&noiob, at: 46, "NOIOB")
        codec.field(&nvmcap, at: 48, "NVMCAP")
        codec.field(&npwg, at: 64, "NPWG")
        codec.field(&npwa, at: 66, "NPWA")
        codec.field(&npdg, at: 68, "NPDG")
        codec.field(&npda, at: 70, "NPDA")
        codec.field(&nows, at: 72, "NOWS")
        codec.field(&mssrl, at: 74, "MSSRL")
        codec.field(&mcl, at: 76, "MCL")
        codec.field(&msrc, at: 80, "MSRC")
        codec.field(&anagrpid, at: 92, "ANAGRPID")
        codec.field(&nsattr, at: 99, "NSATTR")
        codec.field(&nvmsetid, at: 100, "NVMSETID")
        codec.field(&endgid, at: 102, "ENDGID")
        codec.opaque(&nguid, at: 104, byteCount: 16, "NGUID")
        codec.opaque(&eui64, at: 120, byteCount: 8, "EUI64")
        for index in 0..<LBAFormat.maximumCount {
            var raw = index < lbaf.count ? lbaf[index].rawValue : 0
            codec.field(&raw, at: 128 &+ index &* 4, "LBAF\(index)")
            if index < lbaf.count { lbaf[index].rawValue = raw }
        }
    }
}
