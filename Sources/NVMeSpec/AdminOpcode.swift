// SPDX-License-Identifier: Apache-2.0
// Opcodes of the admin queue. NVM Express Base Specification 2.0, section 5.

/// An opcode of the admin command set.
///
/// Not an enumeration: devices and clients may name an opcode this module does not know.
@frozen
public struct AdminOpcode: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
    /// The opcode as in byte 0 of a submission queue entry.
    public var rawValue: UInt8

    /// Any opcode, known or not.
    @inlinable
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Delete I/O Submission Queue.
    @inlinable
    public static var deleteIOSubmissionQueue: Self { Self(rawValue: 0x00) }
    /// Create I/O Submission Queue.
    @inlinable
    public static var createIOSubmissionQueue: Self { Self(rawValue: 0x01) }
    /// Get Log Page.
    @inlinable
    public static var getLogPage: Self { Self(rawValue: 0x02) }
    /// Delete I/O Completion Queue.
    @inlinable
    public static var deleteIOCompletionQueue: Self { Self(rawValue: 0x04) }
    /// Create I/O Completion Queue.
    @inlinable
    public static var createIOCompletionQueue: Self { Self(rawValue: 0x05) }
    /// Identify.
    @inlinable
    public static var identify: Self { Self(rawValue: 0x06) }
    /// Abort.
    @inlinable
    public static var abort: Self { Self(rawValue: 0x08) }
    /// Set Features.
    @inlinable
    public static var setFeatures: Self { Self(rawValue: 0x09) }
    /// Get Features.
    @inlinable
    public static var getFeatures: Self { Self(rawValue: 0x0A) }
    /// Asynchronous Event Request.
    @inlinable
    public static var asynchronousEventRequest: Self { Self(rawValue: 0x0C) }
    /// Namespace Management.
    @inlinable
    public static var namespaceManagement: Self { Self(rawValue: 0x0D) }
    /// Firmware Commit.
    @inlinable
    public static var firmwareCommit: Self { Self(rawValue: 0x10) }
    /// Firmware Image Download.
    @inlinable
    public static var firmwareImageDownload: Self { Self(rawValue: 0x11) }
    /// Device Self-test.
    @inlinable
    public static var deviceSelfTest: Self { Self(rawValue: 0x14) }
    /// Namespace Attachment.
    @inlinable
    public static var namespaceAttachment: Self { Self(rawValue: 0x15) }
    /// Keep Alive.
    @inlinable
    public static var keepAlive: Self { Self(rawValue: 0x18) }
    /// Directive Send.
    @inlinable
    public static var directiveSend: Self { Self(rawValue: 0x19) }
    /// Directive Receive.
    @inlinable
    public static var directiveReceive: Self { Self(rawValue: 0x1A) }
    /// Virtualization Management.
    @inlinable
    public static var virtualizationManagement: Self { Self(rawValue: 0x1C) }
    /// NVMe-MI Send.
    @inlinable
    public static var nvmeMISend: Self { Self(rawValue: 0x1D) }
    /// NVMe-MI Receive.
    @inlinable
    public static var nvmeMIReceive: Self { Self(rawValue: 0x1E) }
    /// Capacity Management.
    @inlinable
    public static var capacityManagement: Self { Self(rawValue: 0x20) }
    /// Lockdown.
    @inlinable
    public static var lockdown: Self { Self(rawValue: 0x24) }
    /// Doorbell Buffer Config.
    @inlinable
    public static var doorbellBufferConfig: Self { Self(rawValue: 0x7C) }
    /// Fabrics Commands.
    @inlinable
    public static var fabricsCommands: Self { Self(rawValue: 0x7F) }
    /// Format NVM.
    @inlinable
    public static var formatNVM: Self { Self(rawValue: 0x80) }
    /// Security Send.
    @inlinable
    public static var securitySend: Self { Self(rawValue: 0x81) }
    /// Security Receive.
    @inlinable
    public static var securityReceive: Self { Self(rawValue: 0x82) }
    /// Sanitize.
    @inlinable
    public static var sanitize: Self { Self(rawValue: 0x84) }
    /// Get LBA Status.
    @inlinable
    public static var getLBAStatus: Self { Self(rawValue: 0x86) }

    /// Every opcode this module knows, in rising order.
    public static let known: [Self] = names.map(\.0)

    /// Which way data flows, from bits 1:0.
    @inlinable
    public var dataDirection: DataDirection { DataDirection(opcode: rawValue) }

    /// True if the opcode lies in the range left to vendors.
    @inlinable
    public var isVendorSpecific: Bool { rawValue >= 0xC0 }

    /// The name from the specification, or the number in hex for an unknown one.
    public var description: String {
        Self.names.first { $0.0 == self }?.1 ?? "opcode \(hex(rawValue))"
    }

    private static let names: [(Self, String)] = [
        (.deleteIOSubmissionQueue, "Delete I/O Submission Queue"),
        (.createIOSubmissionQueue, "Create I/O Submission Queue"),
        (.getLogPage, "Get Log Page"),
        (.deleteIOCompletionQueue, "Delete I/O Completion Queue"),
        (.createIOCompletionQueue, "Create I/O Completion Queue"),
        (.identify, "Identify"),
        (.abort, "Abort"),
        (.setFeatures, "Set Features"),
        (.getFeatures, "Get Features"),
        (.asynchronousEventRequest, "Asynchronous Event Request"),
        (.namespaceManagement, "Namespace Management"),
        (.firmwareCommit, "Firmware Commit"),
        (.firmwareImageDownload, "Firmware Image Download"),
        (.deviceSelfTest, "Device Self-test"),
        (.namespaceAttachment, "Namespace Attachment"),
        (.keepAlive, "Keep Alive"),
        (.directiveSend, "Directive Send"),
        (.directiveReceive, "Directive Receive"),
        (.virtualizationManagement, "Virtualization Management"),
        (.nvmeMISend, "NVMe-MI Send"),
        (.nvmeMIReceive, "NVMe-MI Receive"),
        (.capacityManagement, "Capacity Management"),
        (.lockdown, "Lockdown"),
        (.doorbellBufferConfig, "Doorbell Buffer Config"),
        (.fabricsCommands, "Fabrics Commands"),
        (.formatNVM, "Format NVM"),
        (.securitySend, "Security Send"),
        (.securityReceive, "Security Receive"),
        (.sanitize, "Sanitize"),
        (.getLBAStatus, "Get LBA Status"),
    ]
}
