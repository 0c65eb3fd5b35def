// SPDX-License-Identifier: Apache-2.0
// The error that crosses process borders (Proto/common.proto, Error).

/// Why a request failed. Open: codes from newer peers are kept as they are.
public struct ErrorCode: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
    /// The number on the wire.
    public let rawValue: UInt32
    /// Wraps a number from the wire.
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// A field has a value that can never be right. Not retriable.
    public static let invalidArgument = ErrorCode(rawValue: 1)
    /// The bytes are not a message. Not retriable; the connection ends.
    public static let malformedMessage = ErrorCode(rawValue: 2)
    /// The envelope's version is not spoken here. Not retriable.
    public static let unsupportedVersion = ErrorCode(rawValue: 3)
    /// The body is of a kind unknown here. Not retriable; the connection lives on.
    public static let unknownMessage = ErrorCode(rawValue: 4)
    /// Another number of descriptors came than was said. Not retriable.
    public static let fdMismatch = ErrorCode(rawValue: 5)
    /// No such disk, device, session, region or namespace. Not retriable.
    public static let notFound = ErrorCode(rawValue: 6)
    /// The id is in use. Not retriable with the same id.
    public static let alreadyExists = ErrorCode(rawValue: 7)
    /// Held by somebody else (a second exclusive open). Retriable.
    public static let busy = ErrorCode(rawValue: 8)
    /// Policy refuses this caller. Not retriable.
    public static let permissionDenied = ErrorCode(rawValue: 9)
    /// A write where only reads are allowed. Not retriable.
    public static let readOnly = ErrorCode(rawValue: 10)
    /// The blocks are past the end of the disk. Not retriable.
    public static let outOfRange = ErrorCode(rawValue: 11)
    /// A bound is reached. Retriable.
    public static let resourceExhausted = ErrorCode(rawValue: 12)
    /// The device failed; an operator must retry it. Not retriable.
    public static let deviceFailed = ErrorCode(rawValue: 13)
    /// The device is gone. Not retriable.
    public static let deviceRemoved = ErrorCode(rawValue: 14)
    /// The device is being brought up. Retriable.
    public static let deviceStarting = ErrorCode(rawValue: 15)
    /// The worker was restarted; reopen the disk. Retriable.
    public static let workerRestarted = ErrorCode(rawValue: 16)
    /// The deadline passed before the device saw the request: no effect. Retriable.
    public static let deadlineExceeded = ErrorCode(rawValue: 17)
    /// Cancelled. Not retriable.
    public static let cancelled = ErrorCode(rawValue: 18)
    /// The command failed in the device; see `nvmeStatus`. Retriable when its DNR bit is clear.
    public static let nvmeStatus = ErrorCode(rawValue: 19)
    /// The medium is bad at these blocks. Not retriable.
    public static let mediaError = ErrorCode(rawValue: 20)
    /// Compare found a difference. Not retriable.
    public static let compareFailed = ErrorCode(rawValue: 21)
    /// The session was ended by an operator or by policy. Not retriable on this session.
    public static let sessionRevoked = ErrorCode(rawValue: 22)
    /// The service is stopping. Retriable later.
    public static let shuttingDown = ErrorCode(rawValue: 23)
    /// The device or this version cannot do it. Not retriable.
    public static let notSupported = ErrorCode(rawValue: 24)
    /// It may or may not have happened: read before repeating. Not retriable blindly.
    public static let outcomeUnknown = ErrorCode(rawValue: 25)
    /// A mistake inside the service. Not retriable.
    public static let internalError = ErrorCode(rawValue: 26)

    /// The names, by number from 1; they are part of the command line's JSON.
    static let names = [
        "invalid-argument", "malformed-message", "unsupported-version", "unknown-message",
        "fd-mismatch", "not-found", "already-exists", "busy", "permission-denied", "read-only",
        "out-of-range", "resource-exhausted", "device-failed", "device-removed",
        "device-starting", "worker-restarted", "deadline-exceeded", "cancelled", "nvme-status",
        "media-error", "compare-failed", "session-revoked", "shutting-down", "not-supported",
        "outcome-unknown", "internal-error",
    ]

    /// The name of the code in words joined by hyphens; `error-N` for one unknown here.
    public var description: String {
        let index = Int(clamping: rawValue) - 1
        return Self.names.indices.contains(index) ? Self.names[index] : "error-\(rawValue)"
    }

    /// Whether the same request may succeed later without anybody changing anything.
    ///
    /// For `nvmeStatus` see `WireError.isRetriable`, which looks at the status.
    public var isRetriable: Bool {
        switch self {
        case .busy, .resourceExhausted, .deviceStarting, .workerRestarted, .deadlineExceeded,
            .shuttingDown:
            true
        default: false
        }
    }
}

/// A failed request, as the other process tells it.
public struct WireError: Error, Sendable, Hashable, CustomStringConvertible {
    /// What kind of failure.
    public var code: ErrorCode
    /// What happened and what to do, for people.
    public var message: String
    /// The device concerned.
    public var device: String?
    /// The disk concerned.
    public var disk: String?
    /// The offending field of the request: `write.lba`.
    public var field: String?
    /// The NVMe status field without the phase bit: SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14.
    public var nvmeStatus: UInt16?

    /// Creates an error.
    public init(
        _ code: ErrorCode, _ message: String, device: String? = nil, disk: String? = nil,
        field: String? = nil, nvmeStatus: UInt16? = nil
    ) {
        self.code = code
        self.message = message
        self.device = device
        self.disk = disk
        self.field = field
        self.nvmeStatus = nvmeStatus
    }

    /// Whether the same request may succeed later without anybody changing anything.
    public var isRetriable: Bool {
        guard code == .nvmeStatus, let nvmeStatus else { return code.isRetriable }
        return nvmeStatus & (1 << 14) == 0
    }

    /// `code: message (field f, NVMe status 0x281)`.
    public var description: String {
        var text = message.isEmpty ? code.description : "\(code): \(message)"
        if let field { text += " (field \(field))" }
        if let nvmeStatus { text += " (NVMe status 0x\(String(nvmeStatus, radix: 16)))" }
        return text
    }
}
