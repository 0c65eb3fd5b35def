// SPDX-License-Identifier: Apache-2.0
// The status field of a completion. NVM Express Base Specification 2.0, section 3.3.3.2.

/// The status field of a completion queue entry, without the phase bit: 15 bits.
///
/// SC is bits 7:0, SCT bits 10:8, CRD bits 12:11, More bit 13, Do Not Retry bit 14.
@frozen
public struct Status: RawRepresentable, Hashable, Sendable {
    /// Fifteen bits; bit 15 is ignored.
    public var rawValue: UInt16

    /// Any status, known or not.
    @inlinable
    public init(rawValue: UInt16) { self.rawValue = rawValue & 0x7FFF }

    /// A status from its type and code.
    @inlinable
    public init(_ type: StatusCodeType, _ code: UInt8, doNotRetry: Bool = false, more: Bool = false)
    {
        rawValue =
            UInt16(code) | UInt16(type.rawValue & 7) << 8 | (more ? 0x2000 : 0)
            | (doNotRetry ? 0x4000 : 0)
    }

    /// SC, status code.
    @inlinable
    public var code: UInt8 { UInt8(truncatingIfNeeded: rawValue) }

    /// SCT, status code type.
    @inlinable
    public var type: StatusCodeType {
        StatusCodeType(rawValue: UInt8(truncatingIfNeeded: rawValue >> 8) & 7)
    }

    /// CRD, which command retry delay to use; 0 means none, 1 to 3 name CRDT1 to CRDT3.
    @inlinable
    public var commandRetryDelay: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 11) & 3 }

    /// M: the error log page has more about this command.
    @inlinable
    public var hasMore: Bool { rawValue & 0x2000 != 0 }

    /// DNR: the same command sent again will fail again.
    @inlinable
    public var doNotRetry: Bool { rawValue & 0x4000 != 0 }

    /// True if the type is generic and the code is zero.
    @inlinable
    public var isSuccess: Bool { rawValue & 0x7FF == 0 }

    /// Type and code alone: what the named values compare equal to.
    @inlinable
    public var kind: Status { Status(rawValue: rawValue & 0x7FF) }

    /// The same status with Do Not Retry set.
    @inlinable
    public var withDoNotRetry: Status { Status(rawValue: rawValue | 0x4000) }

    /// True if type and code are those of `other`; More, CRD and DNR do not matter.
    @inlinable
    public func matches(_ other: Status) -> Bool { kind.rawValue == other.kind.rawValue }
}

extension Status: CustomStringConvertible {
    /// For example "LBA Out of Range (0h/80h)", with ", do not retry" if DNR is set.
    public var description: String {
        let known = Self.names.first { $0.0 == kind }?.1
        let name = known ?? (type == .vendorSpecific ? "Vendor Specific" : "Unknown Status")
        let suffix = doNotRetry ? ", do not retry" : ""
        return "\(name) (\(hex(type.rawValue, digits: 1))/\(hex(code)))\(suffix)"
    }
}

/// SCT, the table a status code belongs to.
@frozen
public struct StatusCodeType: RawRepresentable, Hashable, Sendable {
    /// Three bits.
    public var rawValue: UInt8

    /// Any type, known or not.
    @inlinable
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Generic Command Status.
    @inlinable
    public static var generic: Self { Self(rawValue: 0) }
    /// Command Specific Status.
    @inlinable
    public static var commandSpecific: Self { Self(rawValue: 1) }
    /// Media and Data Integrity Errors.
    @inlinable
    public static var mediaAndDataIntegrity: Self { Self(rawValue: 2) }
    /// Path Related Status.
    @inlinable
    public static var pathRelated: Self { Self(rawValue: 3) }
    /// Vendor Specific.
    @inlinable
    public static var vendorSpecific: Self { Self(rawValue: 7) }
}
