// SPDX-License-Identifier: Apache-2.0
// What the fields of Identify Controller mean. NVM Express Base Specification 2.0,
// section 5.17.2.1.

/// OACS, optional admin commands.
public struct OptionalAdminCommands: OptionSet, Sendable {
    /// The field as in the page.
    public var rawValue: UInt16
    /// A field as in the page.
    public init(rawValue: UInt16) { self.rawValue = rawValue }
    /// Security Send and Receive.
    public static let security = Self(rawValue: 1 << 0)
    /// Format NVM.
    public static let formatNVM = Self(rawValue: 1 << 1)
    /// Firmware Commit and Image Download.
    public static let firmware = Self(rawValue: 1 << 2)
    /// Namespace Management and Attachment.
    public static let namespaceManagement = Self(rawValue: 1 << 3)
    /// Device Self-test.
    public static let selfTest = Self(rawValue: 1 << 4)
    /// Directive Send and Receive.
    public static let directives = Self(rawValue: 1 << 5)
    /// Virtualization Management.
    public static let virtualization = Self(rawValue: 1 << 7)
    /// Doorbell Buffer Config.
    public static let doorbellBufferConfig = Self(rawValue: 1 << 8)
    /// Get LBA Status.
    public static let getLBAStatus = Self(rawValue: 1 << 9)
}

/// ONCS, optional commands of the NVM command set.
public struct OptionalNVMCommands: OptionSet, Sendable {
    /// The field as in the page.
    public var rawValue: UInt16
    /// A field as in the page.
    public init(rawValue: UInt16) { self.rawValue = rawValue }
    /// Compare.
    public static let compare = Self(rawValue: 1 << 0)
    /// Write Uncorrectable.
    public static let writeUncorrectable = Self(rawValue: 1 << 1)
    /// Dataset Management.
    public static let datasetManagement = Self(rawValue: 1 << 2)
    /// Write Zeroes.
    public static let writeZeroes = Self(rawValue: 1 << 3)
    /// The save and select fields of features.
    public static let saveFeatures = Self(rawValue: 1 << 4)
    /// Reservations.
    public static let reservations = Self(rawValue: 1 << 5)
    /// Timestamp.
    public static let timestamp = Self(rawValue: 1 << 6)
    /// Verify.
    public static let verify = Self(rawValue: 1 << 7)
    /// Copy.
    public static let copy = Self(rawValue: 1 << 8)
}

extension IdentifyController {
    /// OACS as a set.
    public var optionalAdminCommands: OptionalAdminCommands {
        OptionalAdminCommands(rawValue: oacs)
    }

    /// ONCS as a set.
    public var optionalNVMCommands: OptionalNVMCommands { OptionalNVMCommands(rawValue: oncs) }

    /// VWC bit 0: data may be lost at power fail until it was flushed.
    public var hasVolatileWriteCache: Bool { vwc & 0x01 != 0 }

    /// VWC bits 2:1 = 11b: Flush with the broadcast NSID flushes every namespace.
    public var flushTakesBroadcast: Bool { vwc & 0x06 == 0x06 }

    /// LPA bit 2: Get Log Page takes offsets and counts above 12 bits.
    public var logPagesTakeOffsets: Bool { lpa & 0x04 != 0 }

    /// SQES bits 3:0: the smallest submission entry is `2 ^ n` bytes; has to be 6.
    public var minimumSubmissionEntryShift: UInt8 { sqes & 0xF }

    /// SQES bits 7:4: the largest submission entry is `2 ^ n` bytes.
    public var maximumSubmissionEntryShift: UInt8 { sqes >> 4 }

    /// CQES bits 3:0: the smallest completion entry is `2 ^ n` bytes; has to be 4.
    public var minimumCompletionEntryShift: UInt8 { cqes & 0xF }

    /// CQES bits 7:4: the largest completion entry is `2 ^ n` bytes.
    public var maximumCompletionEntryShift: UInt8 { cqes >> 4 }

    /// Bytes of the largest transfer, from MDTS and CAP.MPSMIN; nil if there is no limit.
    public func maximumTransferByteCount(capabilities: ControllerCapabilities) -> UInt64? {
        Self.limitByteCount(shift: mdts, capabilities: capabilities)
    }

    /// `2 ^ shift` pages of CAP.MPSMIN in bytes; nil if there is no limit.
    static func limitByteCount(shift: UInt8, capabilities: ControllerCapabilities) -> UInt64? {
        // A limit of 2^36 pages is above any transfer a command can name: none.
        guard shift > 0, shift < 36 else { return nil }
        return capabilities.minimumPageByteCount << UInt64(shift)
    }
}

extension IdentifyNVMController {
    /// Bytes that one Write Zeroes may cover, from WZSL; nil if there is no limit.
    public func writeZeroesByteCount(capabilities: ControllerCapabilities) -> UInt64? {
        IdentifyController.limitByteCount(shift: wzsl, capabilities: capabilities)
    }

    /// Bytes that one Verify may cover, from VSL; nil if there is no limit.
    public func verifyByteCount(capabilities: ControllerCapabilities) -> UInt64? {
        IdentifyController.limitByteCount(shift: vsl, capabilities: capabilities)
    }
}
