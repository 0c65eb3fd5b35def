// SPDX-License-Identifier: Apache-2.0
// The status codes of the specification as named values, with their names for humans.
// NVM Express Base Specification 2.0, section 3.3.3.2.1; NVM Command Set
// Specification 1.0, section 3.1.2.

extension Status {
    /// Successful Completion (0h/00h).
    @inlinable
    public static var success: Self { Self(.generic, 0x00) }
    /// Invalid Command Opcode (0h/01h).
    @inlinable
    public static var invalidOpcode: Self { Self(.generic, 0x01) }
    /// Invalid Field in Command (0h/02h).
    @inlinable
    public static var invalidField: Self { Self(.generic, 0x02) }
    /// Command ID Conflict (0h/03h).
    @inlinable
    public static var commandIDConflict: Self { Self(.generic, 0x03) }
    /// Data Transfer Error (0h/04h).
    @inlinable
    public static var dataTransferError: Self { Self(.generic, 0x04) }
    /// Commands Aborted due to Power Loss Notification (0h/05h).
    @inlinable
    public static var abortedPowerLoss: Self { Self(.generic, 0x05) }
    /// Internal Error (0h/06h).
    @inlinable
    public static var internalError: Self { Self(.generic, 0x06) }
    /// Command Abort Requested (0h/07h).
    @inlinable
    public static var abortRequested: Self { Self(.generic, 0x07) }
    /// Command Aborted due to SQ Deletion (0h/08h).
    @inlinable
    public static var abortedQueueDeletion: Self { Self(.generic, 0x08) }
    /// Command Aborted due to Failed Fused Command (0h/09h).
    @inlinable
    public static var abortedFailedFused: Self { Self(.generic, 0x09) }
    /// Command Aborted due to Missing Fused Command (0h/0Ah).
    @inlinable
    public static var abortedMissingFused: Self { Self(.generic, 0x0A) }
    /// Invalid Namespace or Format (0h/0Bh).
    @inlinable
    public static var invalidNamespaceOrFormat: Self { Self(.generic, 0x0B) }
    /// Command Sequence Error (0h/0Ch).
    @inlinable
    public static var commandSequenceError: Self { Self(.generic, 0x0C) }
    /// Invalid SGL Segment Descriptor (0h/0Dh).
    @inlinable
    public static var invalidSGLSegmentDescriptor: Self { Self(.generic, 0x0D) }
    /// Invalid Number of SGL Descriptors (0h/0Eh).
    @inlinable
    public static var invalidSGLDescriptorCount: Self { Self(.generic, 0x0E) }
    /// Data SGL Length Invalid (0h/0Fh).
    @inlinable
    public static var dataSGLLengthInvalid: Self { Self(.generic, 0x0F) }
    /// Metadata SGL Length Invalid (0h/10h).
    @inlinable
    public static var metadataSGLLengthInvalid: Self { Self(.generic, 0x10) }
    /// SGL Descriptor Type Invalid (0h/11h).
    @inlinable
    public static var sglDescriptorTypeInvalid: Self { Self(.generic, 0x11) }
    /// Invalid Use of Controller Memory Buffer (0h/12h).
    @inlinable
    public static var invalidUseOfControllerMemoryBuffer: Self { Self(.generic, 0x12) }
    /// PRP Offset Invalid (0h/13h).
    @inlinable
    public static var prpOffsetInvalid: Self { Self(.generic, 0x13) }
    /// Atomic Write Unit Exceeded (0h/14h).
    @inlinable
    public static var atomicWriteUnitExceeded: Self { Self(.generic, 0x14) }
    /// Operation Denied (0h/15h).
    @inlinable
    public static var operationDenied: Self { Self(.generic, 0x15) }
    /// SGL Offset Invalid (0h/16h).
    @inlinable
    public static var sglOffsetInvalid: Self { Self(.generic, 0x16) }
    /// Host Identifier Inconsistent Format (0h/18h).
    @inlinable
    public static var hostIdentifierInconsistent: Self { Self(.generic, 0x18) }
    /// Keep Alive Timer Expired (0h/19h).
    @inlinable
    public static var keepAliveExpired: Self { Self(.generic, 0x19) }
    /// Keep Alive Timeout Invalid (0h/1Ah).
    @inlinable
    public static var keepAliveInvalid: Self { Self(.generic, 0x1A) }
    /// Command Aborted due to Preempt and Abort (0h/1Bh).
    @inlinable
    public static var abortedPreempt: Self { Self(.generic, 0x1B) }
    /// Sanitize Failed (0h/1Ch).
    @inlinable
    public static var sanitizeFailed: Self { Self(.generic, 0x1C) }
    /// Sanitize In Progress (0h/1Dh).
    @inlinable
    public static var sanitizeInProgress: Self { Self(.generic, 0x1D) }
    /// SGL Data Block Granularity Invalid (0h/1Eh).
    @inlinable
    public static var sglDataBlockGranularityInvalid: Self { Self(.generic, 0x1E) }
    /// Command Not Supported for Queue in CMB (0h/1Fh).
    @inlinable
    public static var notSupportedForQueueInCMB: Self { Self(.generic, 0x1F) }
    /// Namespace is Write Protected (0h/20h).
    @inlinable
    public static var namespaceWriteProtected: Self { Self(.generic, 0x20) }
    /// Command Interrupted (0h/21h).
    @inlinable
    public static var commandInterrupted: Self { Self(.generic, 0x21) }
    /// Transient Transport Error (0h/22h).
    @inlinable
    public static var transientTransportError: Self { Self(.generic, 0x22) }
    /// Command Prohibited by Command and Feature Lockdown (0h/23h).
    @inlinable
    public static var prohibitedByLockdown: Self { Self(.generic, 0x23) }
    /// Admin Command Media Not Ready (0h/24h).
    @inlinable
    public static var adminCommandMediaNotReady: Self { Self(.generic, 0x24) }
    /// LBA Out of Range (0h/80h).
    @inlinable
    public static var lbaOutOfRange: Self { Self(.generic, 0x80) }
    /// Capacity Exceeded (0h/81h).
    @inlinable
    public static var capacityExceeded: Self { Self(.generic, 0x81) }
    /// Namespace Not Ready (0h/82h).
    @inlinable
    public static var namespaceNotReady: Self { Self(.generic, 0x82) }
    /// Reservation Conflict (0h/83h).
    @inlinable
    public static var reservationConflict: Self { Self(.generic, 0x83) }
    /// Format In Progress (0h/84h).
    @inlinable
    public static var formatInProgress: Self { Self(.generic, 0x84) }
    /// Completion Queue Invalid (1h/00h).
    @inlinable
    public static var completionQueueInvalid: Self { Self(.commandSpecific, 0x00) }
    /// Invalid Queue Identifier (1h/01h).
    @inlinable
    public static var invalidQueueIdentifier: Self { Self(.commandSpecific, 0x01) }
    /// Invalid Queue Size (1h/02h).
    @inlinable
    public static var invalidQueueSize: Self { Self(.commandSpecific, 0x02) }
    /// Abort Command Limit Exceeded (1h/03h).
    @inlinable
    public static var abortLimitExceeded: Self { Self(.commandSpecific, 0x03) }
    /// Asynchronous Event Request Limit Exceeded (1h/05h).
    @inlinable
    public static var asynchronousEventLimitExceeded: Self { Self(.commandSpecific, 0x05) }
    /// Invalid Firmware Slot (1h/06h).
    @inlinable
    public static var invalidFirmwareSlot: Self { Self(.commandSpecific, 0x06) }
    /// Invalid Firmware Image (1h/07h).
    @inlinable
    public static var invalidFirmwareImage: Self { Self(.commandSpecific, 0x07) }
    /// Invalid Interrupt Vector (1h/08h).
    @inlinable
    public static var invalidInterruptVector: Self { Self(.commandSpecific, 0x08) }
    /// Invalid Log Page (1h/09h).
    @inlinable
    public static var invalidLogPage: Self { Self(.commandSpecific, 0x09) }
    /// Invalid Format (1h/0Ah).
    @inlinable
    public static var invalidFormat: Self { Self(.commandSpecific, 0x0A) }
    /// Firmware Activation Requires Conventional Reset (1h/0Bh).
    @inlinable
    public static var firmwareNeedsConventionalReset: Self { Self(.commandSpecific, 0x0B) }
    /// Invalid Queue Deletion (1h/0Ch).
    @inlinable
    public static var invalidQueueDeletion: Self { Self(.commandSpecific, 0x0C) }
    /// Feature Identifier Not Saveable (1h/0Dh).
    @inlinable
    public static var featureNotSaveable: Self { Self(.commandSpecific, 0x0D) }
    /// Feature Not Changeable (1h/0Eh).
    @inlinable
    public static var featureNotChangeable: Self { Self(.commandSpecific, 0x0E) }
    /// Feature Not Namespace Specific (1h/0Fh).
    @inlinable
    public static var featureNotNamespaceSpecific: Self { Self(.commandSpecific, 0x0F) }
    /// Firmware Activation Requires NVM Subsystem Reset (1h/10h).
    @inlinable
    public static var firmwareNeedsSubsystemReset: Self { Self(.commandSpecific, 0x10) }
    /// Firmware Activation Requires Controller Level Reset (1h/11h).
    @inlinable
    public static var firmwareNeedsControllerReset: Self { Self(.commandSpecific, 0x11) }
    /// Firmware Activation Requires Maximum Time Violation (1h/12h).
    @inlinable
    public static var firmwareNeedsMaximumTimeViolation: Self { Self(.commandSpecific, 0x12) }
    /// Firmware Activation Prohibited (1h/13h).
    @inlinable
    public static var firmwareActivationProhibited: Self { Self(.commandSpecific, 0x13) }
    /// Overlapping Range (1h/14h).
    @inlinable
    public static var overlappingRange: Self { Self(.commandSpecific, 0x14) }
    /// Namespace Insufficient Capacity (1h/15h).
    @inlinable
    public static var namespaceInsufficientCapacity: Self { Self(.commandSpecific, 0x15) }
    /// Namespace Identifier Unavailable (1h/16h).
    @inlinable
    public static var namespaceIdentifierUnavailable: Self { Self(.commandSpecific, 0x16) }
    /// Namespace Already Attached (1h/18h).
    @inlinable
    public static var namespaceAlreadyAttached: Self { Self(.commandSpecific, 0x18) }
    /// Namespace Is Private (1h/19h).
    @inlinable
    public static var namespaceIsPrivate: Self { Self(.commandSpecific, 0x19) }
    /// Namespace Not Attached (1h/1Ah).
    @inlinable
    public static var namespaceNotAttached: Self { Self(.commandSpecific, 0x1A) }
    /// Thin Provisioning Not Supported (1h/1Bh).
    @inlinable
    public static var thinProvisioningNotSupported: Self { Self(.commandSpecific, 0x1B) }
    /// Controller List Invalid (1h/1Ch).
    @inlinable
    public static var controllerListInvalid: Self { Self(.commandSpecific, 0x1C) }
    /// Device Self-test In Progress (1h/1Dh).
    @inlinable
    public static var selfTestInProgress: Self { Self(.commandSpecific, 0x1D) }
    /// Boot Partition Write Prohibited (1h/1Eh).
    @inlinable
    public static var bootPartitionWriteProhibited: Self { Self(.commandSpecific, 0x1E) }
    /// Invalid Controller Identifier (1h/1Fh).
    @inlinable
    public static var invalidControllerIdentifier: Self { Self(.commandSpecific, 0x1F) }
    /// Invalid Secondary Controller State (1h/20h).
    @inlinable
    public static var invalidSecondaryControllerState: Self { Self(.commandSpecific, 0x20) }
    /// Invalid Number of Controller Resources (1h/21h).
    @inlinable
    public static var invalidControllerResourceCount: Self { Self(.commandSpecific, 0x21) }
    /// Invalid Resource Identifier (1h/22h).
    @inlinable
    public static var invalidResourceIdentifier: Self { Self(.commandSpecific, 0x22) }
    /// Sanitize Prohibited While Persistent Memory Region is Enabled (1h/23h).
    @inlinable
    public static var sanitizeProhibitedByPMR: Self { Self(.commandSpecific, 0x23) }
    /// ANA Group Identifier Invalid (1h/24h).
    @inlinable
    public static var anaGroupIdentifierInvalid: Self { Self(.commandSpecific, 0x24) }
    /// ANA Attach Failed (1h/25h).
    @inlinable
    public static var anaAttachFailed: Self { Self(.commandSpecific, 0x25) }
    /// Insufficient Capacity (1h/26h).
    @inlinable
    public static var insufficientCapacity: Self { Self(.commandSpecific, 0x26) }
    /// Namespace Attachment Limit Exceeded (1h/27h).
    @inlinable
    public static var namespaceAttachmentLimitExceeded: Self { Self(.commandSpecific, 0x27) }
    /// Prohibition of Command Execution Not Supported (1h/28h).
    @inlinable
    public static var prohibitionNotSupported: Self { Self(.commandSpecific, 0x28) }
    /// I/O Command Set Not Supported (1h/29h).
    @inlinable
    public static var ioCommandSetNotSupported: Self { Self(.commandSpecific, 0x29) }
    /// I/O Command Set Not Enabled (1h/2Ah).
    @inlinable
    public static var ioCommandSetNotEnabled: Self { Self(.commandSpecific, 0x2A) }
    /// I/O Command Set Combination Rejected (1h/2Bh).
    @inlinable
    public static var ioCommandSetCombinationRejected: Self { Self(.commandSpecific, 0x2B) }
    /// Invalid I/O Command Set (1h/2Ch).
    @inlinable
    public static var invalidIOCommandSet: Self { Self(.commandSpecific, 0x2C) }
    /// Identifier Unavailable (1h/2Dh).
    @inlinable
    public static var identifierUnavailable: Self { Self(.commandSpecific, 0x2D) }
    /// Conflicting Attributes (1h/80h).
    @inlinable
    public static var conflictingAttributes: Self { Self(.commandSpecific, 0x80) }
    /// Invalid Protection Information (1h/81h).
    @inlinable
    public static var invalidProtectionInformation: Self { Self(.commandSpecific, 0x81) }
    /// Attempted Write to Read Only Range (1h/82h).
    @inlinable
    public static var writeToReadOnlyRange: Self { Self(.commandSpecific, 0x82) }
    /// Command Size Limit Exceeded (1h/83h).
    @inlinable
    public static var commandSizeLimitExceeded: Self { Self(.commandSpecific, 0x83) }
    /// Write Fault (2h/80h).
    @inlinable
    public static var writeFault: Self { Self(.mediaAndDataIntegrity, 0x80) }
    /// Unrecovered Read Error (2h/81h).
    @inlinable
    public static var unrecoveredReadError: Self { Self(.mediaAndDataIntegrity, 0x81) }
    /// End-to-end Guard Check Error (2h/82h).
    @inlinable
    public static var guardCheckError: Self { Self(.mediaAndDataIntegrity, 0x82) }
    /// End-to-end Application Tag Check Error (2h/83h).
    @inlinable
    public static var applicationTagCheckError: Self { Self(.mediaAndDataIntegrity, 0x83) }
    /// End-to-end Reference Tag Check Error (2h/84h).
    @inlinable
    public static var referenceTagCheckError: Self { Self(.mediaAndDataIntegrity, 0x84) }
    /// Compare Failure (2h/85h).
    @inlinable
    public static var compareFailure: Self { Self(.mediaAndDataIntegrity, 0x85) }
    /// Access Denied (2h/86h).
    @inlinable
    public static var accessDenied: Self { Self(.mediaAndDataIntegrity, 0x86) }
    /// Deallocated or Unwritten Logical Block (2h/87h).
    @inlinable
    public static var deallocatedOrUnwritten: Self { Self(.mediaAndDataIntegrity, 0x87) }
    /// End-to-end Storage Tag Check Error (2h/88h).
    @inlinable
    public static var storageTagCheckError: Self { Self(.mediaAndDataIntegrity, 0x88) }
    /// Internal Path Error (3h/00h).
    @inlinable
    public static var internalPathError: Self { Self(.pathRelated, 0x00) }
    /// Asymmetric Access Persistent Loss (3h/01h).
    @inlinable
    public static var anaPersistentLoss: Self { Self(.pathRelated, 0x01) }
    /// Asymmetric Access Inaccessible (3h/02h).
    @inlinable
    public static var anaInaccessible: Self { Self(.pathRelated, 0x02) }
    /// Asymmetric Access Transition (3h/03h).
    @inlinable
    public static var anaTransition: Self { Self(.pathRelated, 0x03) }
    /// Controller Pathing Error (3h/60h).
    @inlinable
    public static var controllerPathingError: Self { Self(.pathRelated, 0x60) }
    /// Host Pathing Error (3h/70h).
    @inlinable
    public static var hostPathingError: Self { Self(.pathRelated, 0x70) }
    /// Command Aborted By Host (3h/71h).
    @inlinable
    public static var abortedByHost: Self { Self(.pathRelated, 0x71) }

    /// Every status this module knows by name.
    public static let known: [Self] = names.map(\.0)

    static let names: [(Self, String)] = [
        (.success, "Successful Completion"),
        (.invalidOpcode, "Invalid Command Opcode"),
        (.invalidField, "Invalid Field in Command"),
        (.commandIDConflict, "Command ID Conflict"),
        (.dataTransferError, "Data Transfer Error"),
        (.abortedPowerLoss, "Commands Aborted due to Power Loss Notification"),
        (.internalError, "Internal Error"),
        (.abortRequested, "Command Abort Requested"),
        (.abortedQueueDeletion, "Command Aborted due to SQ Deletion"),
        (.abortedFailedFused, "Command Aborted due to Failed Fused Command"),
        (.abortedMissingFused, "Command Aborted due to Missing Fused Command"),
        (.invalidNamespaceOrFormat, "Invalid Namespace or Format"),
        (.commandSequenceError, "Command Sequence Error"),
        (.invalidSGLSegmentDescriptor, "Invalid SGL Segment Descriptor"),
        (.invalidSGLDescriptorCount, "Invalid Number of SGL Descriptors"),
        (.dataSGLLengthInvalid, "Data SGL Length Invalid"),
        (.metadataSGLLengthInvalid, "Metadata SGL Length Invalid"),
        (.sglDescriptorTypeInvalid, "SGL Descriptor Type Invalid"),
        (.invalidUseOfControllerMemoryBuffer, "Invalid Use of Controller Memory Buffer"),
        (.prpOffsetInvalid, "PRP Offset Invalid"),
        (.atomicWriteUnitExceeded, "Atomic Write Unit Exceeded"),
        (.operationDenied, "Operation Denied"),
        (.sglOffsetInvalid, "SGL Offset Invalid"),
        (.hostIdentifierInconsistent, "Host Identifier Inconsistent Format"),
        (.keepAliveExpired, "Keep Alive Timer Expired"),
        (.keepAliveInvalid, "Keep Alive Timeout Invalid"),
        (.abortedPreempt, "Command Aborted due to Preempt and Abort"),
        (.sanitizeFailed, "Sanitize Failed"),
        (.sanitizeInProgress, "Sanitize In Progress"),
        (.sglDataBlockGranularityInvalid, "SGL Data Block Granularity Invalid"),
        (.notSupportedForQueueInCMB, "Command Not Supported for Queue in CMB"),
        (.namespaceWriteProtected, "Namespace is Write Protected"),
        (.commandInterrupted, "Command Interrupted"),
        (.transientTransportError, "Transient Transport Error"),
        (.prohibitedByLockdown, "Command Prohibited by Command and Feature Lockdown"),
        (.adminCommandMediaNotReady, "Admin Command Media Not Ready"),
        (.lbaOutOfRange, "LBA Out of Range"),
        (.capacityExceeded, "Capacity Exceeded"),
        (.namespaceNotReady, "Namespace Not Ready"),
        (.reservationConflict, "Reservation Conflict"),
        (.formatInProgress, "Format In Progress"),
        (.completionQueueInvalid, "Completion Queue Invalid"),
        (.invalidQueueIdentifier, "Invalid Queue Identifier"),
        (.invalidQueueSize, "Invalid Queue Size"),
        (.abortLimitExceeded, "Abort Command Limit Exceeded"),
        (.asynchronousEventLimitExceeded, "Asynchronous Event Request Limit Exceeded"),
        (.invalidFirmwareSlot, "Invalid Firmware Slot"),
        (.invalidFirmwareImage, "Invalid Firmware Image"),
        (.invalidInterruptVector, "Invalid Interrupt Vector"),
        (.invalidLogPage, "Invalid Log Page"),
        (.invalidFormat, "Invalid Format"),
        (.firmwareNeedsConventionalReset, "Firmware Activation Requires Conventional Reset"),
        (.invalidQueueDeletion, "Invalid Queue Deletion"),
        (.featureNotSaveable, "Feature Identifier Not Saveable"),
        (.featureNotChangeable, "Feature Not Changeable"),
        (.featureNotNamespaceSpecific, "Feature Not Namespace Specific"),
        (.firmwareNeedsSubsystemReset, "Firmware Activation Requires NVM Subsystem Reset"),
        (.firmwareNeedsControllerReset, "Firmware Activation Requires Controller Level Reset"),
        (.firmwareNeedsMaximumTimeViolation, "Firmware Activation Requires Maximum Time Violation"),
        (.firmwareActivationProhibited, "Firmware Activation Prohibited"),
        (.overlappingRange, "Overlapping Range"),
        (.namespaceInsufficientCapacity, "Namespace Insufficient Capacity"),
        (.namespaceIdentifierUnavailable, "Namespace Identifier Unavailable"),
        (.namespaceAlreadyAttached, "Namespace Already Attached"),
        (.namespaceIsPrivate, "Namespace Is Private"),
        (.namespaceNotAttached, "Namespace Not Attached"),
        (.thinProvisioningNotSupported, "Thin Provisioning Not Supported"),
        (.controllerListInvalid, "Controller List Invalid"),
        (.selfTestInProgress, "Device Self-test In Progress"),
        (.bootPartitionWriteProhibited, "Boot Partition Write Prohibited"),
        (.invalidControllerIdentifier, "Invalid Controller Identifier"),
        (.invalidSecondaryControllerState, "Invalid Secondary Controller State"),
        (.invalidControllerResourceCount, "Invalid Number of Controller Resources"),
        (.invalidResourceIdentifier, "Invalid Resource Identifier"),
        (.sanitizeProhibitedByPMR, "Sanitize Prohibited While Persistent Memory Region is Enabled"),
        (.anaGroupIdentifierInvalid, "ANA Group Identifier Invalid"),
        (.anaAttachFailed, "ANA Attach Failed"),
        (.insufficientCapacity, "Insufficient Capacity"),
        (.namespaceAttachmentLimitExceeded, "Namespace Attachment Limit Exceeded"),
        (.prohibitionNotSupported, "Prohibition of Command Execution Not Supported"),
        (.ioCommandSetNotSupported, "I/O Command Set Not Supported"),
        (.ioCommandSetNotEnabled, "I/O Command Set Not Enabled"),
        (.ioCommandSetCombinationRejected, "I/O Command Set Combination Rejected"),
        (.invalidIOCommandSet, "Invalid I/O Command Set"),
        (.identifierUnavailable, "Identifier Unavailable"),
        (.conflictingAttributes, "Conflicting Attributes"),
        (.invalidProtectionInformation, "Invalid Protection Information"),
        (.writeToReadOnlyRange, "Attempted Write to Read Only Range"),
        (.commandSizeLimitExceeded, "Command Size Limit Exceeded"),
        (.writeFault, "Write Fault"),
        (.unrecoveredReadError, "Unrecovered Read Error"),
        (.guardCheckError, "End-to-end Guard Check Error"),
        (.applicationTagCheckError, "End-to-end Application Tag Check Error"),
        (.referenceTagCheckError, "End-to-end Reference Tag Check Error"),
        (.compareFailure, "Compare Failure"),
        (.accessDenied, "Access Denied"),
        (.deallocatedOrUnwritten, "Deallocated or Unwritten Logical Block"),
        (.storageTagCheckError, "End-to-end Storage Tag Check Error"),
        (.internalPathError, "Internal Path Error"),
        (.anaPersistentLoss, "Asymmetric Access Persistent Loss"),
        (.anaInaccessible, "Asymmetric Access Inaccessible"),
        (.anaTransition, "Asymmetric Access Transition"),
        (.controllerPathingError, "Controller Pathing Error"),
        (.hostPathingError, "Host Pathing Error"),
        (.abortedByHost, "Command Aborted By Host"),
    ]
}
