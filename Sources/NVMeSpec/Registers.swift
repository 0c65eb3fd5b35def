// SPDX-License-Identifier: Apache-2.0
// Offsets of the memory-mapped controller properties and of the doorbells.
// NVM Express Base Specification 2.0, section 3.1.3; NVMe over PCIe Transport 1.0, section 3.1.2.

/// Byte offsets from the start of BAR0 of the memory-mapped controller properties.
public enum RegisterOffset {
    /// CAP, controller capabilities: 64 bits, read only.
    public static let cap: UInt64 = 0x00
    /// VS, version: 32 bits, read only.
    public static let vs: UInt64 = 0x08
    /// INTMS, interrupt mask set: 32 bits, not to be touched with MSI-X.
    public static let intms: UInt64 = 0x0C
    /// INTMC, interrupt mask clear: 32 bits, not to be touched with MSI-X.
    public static let intmc: UInt64 = 0x10
    /// CC, controller configuration: 32 bits, read and write.
    public static let cc: UInt64 = 0x14
    /// CSTS, controller status: 32 bits.
    public static let csts: UInt64 = 0x1C
    /// NSSR, NVM subsystem reset: 32 bits.
    public static let nssr: UInt64 = 0x20
    /// AQA, admin queue attributes: 32 bits.
    public static let aqa: UInt64 = 0x24
    /// ASQ, admin submission queue base address: 64 bits.
    public static let asq: UInt64 = 0x28
    /// ACQ, admin completion queue base address: 64 bits.
    public static let acq: UInt64 = 0x30
    /// CMBLOC, controller memory buffer location: 32 bits, read only.
    public static let cmbloc: UInt64 = 0x38
    /// CMBSZ, controller memory buffer size: 32 bits, read only.
    public static let cmbsz: UInt64 = 0x3C
    /// BPINFO, boot partition information: 32 bits, read only.
    public static let bpinfo: UInt64 = 0x40
    /// BPRSEL, boot partition read select: 32 bits.
    public static let bprsel: UInt64 = 0x44
    /// BPMBL, boot partition memory buffer location: 64 bits.
    public static let bpmbl: UInt64 = 0x48
    /// CMBMSC, controller memory buffer memory space control: 64 bits.
    public static let cmbmsc: UInt64 = 0x50
    /// CMBSTS, controller memory buffer status: 32 bits, read only.
    public static let cmbsts: UInt64 = 0x58
    /// NSSD, NVM subsystem shutdown: 32 bits.
    public static let nssd: UInt64 = 0x64
    /// CRTO, controller ready timeouts: 32 bits, read only.
    public static let crto: UInt64 = 0x68
    /// The first doorbell: the tail of submission queue 0.
    public static let doorbells: UInt64 = 0x1000
}

/// Where the doorbells of each queue are.
public enum Doorbell {
    /// The byte offset from the start of BAR0 of a queue's doorbell.
    ///
    /// - Parameters:
    ///   - queueID: 0 for the admin queue.
    ///   - isCompletion: false for a submission queue tail, true for a completion queue head.
    ///   - dstrd: the raw CAP.DSTRD; doorbells lie `4 << dstrd` bytes apart.
    @inlinable
    public static func offset(queueID: UInt16, isCompletion: Bool, dstrd: UInt8) -> UInt64 {
        let index = UInt64(queueID) &* 2 &+ (isCompletion ? 1 : 0)
        return RegisterOffset.doorbells &+ index &* strideByteCount(dstrd: dstrd)
    }

    /// Bytes from one doorbell to the next for a raw CAP.DSTRD (its low four bits are used).
    @inlinable
    public static func strideByteCount(dstrd: UInt8) -> UInt64 {
        4 << UInt64(dstrd & 0xF)
    }

    /// Bytes of BAR0 that hold the properties and the doorbells of queues 0 through `lastQueueID`.
    @inlinable
    public static func registerSpaceByteCount(lastQueueID: UInt16, dstrd: UInt8) -> UInt64 {
        offset(queueID: lastQueueID, isCompletion: true, dstrd: dstrd) &+ 4
    }
}

/// The value written to NSSR.NSSRC that resets the NVM subsystem: the letters "NVMe".
public let subsystemResetSignature: UInt32 = 0x4E56_4D65

/// Reads of all ones from a register mean that the device no longer answers.
public let goneDevicePattern: UInt32 = 0xFFFF_FFFF
