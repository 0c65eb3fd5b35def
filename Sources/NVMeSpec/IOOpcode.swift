// SPDX-License-Identifier: Apache-2.0
// Opcodes of I/O queues. NVM Express Base Specification 2.0, section 7; NVM Command Set
// Specification 1.0, section 3.2.

/// An opcode of the NVM I/O command set.
///
/// Not an enumeration: devices and clients may name an opcode this module does not know.
@frozen
public struct IOOpcode: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
    /// The opcode as in byte 0 of a submission queue entry.
    public var rawValue: UInt8

    /// Any opcode, known or not.
    @inlinable
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Flush.
    @inlinable
    public static var flush: Self { Self(rawValue: 0x00) }
    /// Write.
    @inlinable
    public static var write: Self { Self(rawValue: 0x01) }
    /// Read.
    @inlinable
    public static var read: Self { Self(rawValue: 0x02) }
    /// Write Uncorrectable.
    @inlinable
    public static var writeUncorrectable: Self { Self(rawValue: 0x04) }
    /// Compare.
    @inlinable
    public static var compare: Self { Self(rawValue: 0x05) }
    /// Write Zeroes.
    @inlinable
    public static var writeZeroes: Self { Self(rawValue: 0x08) }
    /// Dataset Management.
    @inlinable
    public static var datasetManagement: Self { Self(rawValue: 0x09) }
    /// Verify.
    @inlinable
    public static var verify: Self { Self(rawValue: 0x0C) }
    /// Reservation Register.
    @inlinable
    public static var reservationRegister: Self { Self(rawValue: 0x0D) }
    /// Reservation Report.
    @inlinable
    public static var reservationReport: Self { Self(rawValue: 0x0E) }
    /// Reservation Acquire.
    @inlinable
    public static var reservationAcquire: Self { Self(rawValue: 0x11) }
    /// Reservation Release.
    @inlinable
    public static var reservationRelease: Self { Self(rawValue: 0x15) }
    /// Copy.
    @inlinable
    public static var copy: Self { Self(rawValue: 0x19) }

    /// Every opcode this module knows, in rising order.
    public static let known: [Self] = names.map(\.0)

    /// Which way data flows, from bits 1:0.
    @inlinable
    public var dataDirection: DataDirection { DataDirection(opcode: rawValue) }

    /// True if the opcode lies in the range left to vendors.
    @inlinable
    public var isVendorSpecific: Bool { rawValue >= 0x80 }

    /// The name from the specification, or the number in hex for an unknown one.
    public var description: String {
        Self.names.first { $0.0 == self }?.1 ?? "opcode \(hex(rawValue))"
    }

    private static let names: [(Self, String)] = [
        (.flush, "Flush"),
        (.write, "Write"),
        (.read, "Read"),
        (.writeUncorrectable, "Write Uncorrectable"),
        (.compare, "Compare"),
        (.writeZeroes, "Write Zeroes"),
        (.datasetManagement, "Dataset Management"),
        (.verify, "Verify"),
        (.reservationRegister, "Reservation Register"),
        (.reservationReport, "Reservation Report"),
        (.reservationAcquire, "Reservation Acquire"),
        (.reservationRelease, "Reservation Release"),
        (.copy, "Copy"),
    ]
}
