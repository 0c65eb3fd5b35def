// SPDX-License-Identifier: Apache-2.0
// Errors as a person or a script sees them: what, about what, what to do next, which exit code.

import Linux
import NVMeClient
import Wire

/// The documented exit codes.
enum ProgramStatus: Int32 {
    case success = 0
    case failure = 1
    case usage = 2
    case notFound = 3
    case permission = 4
    case deviceFailed = 5
    case dataMismatch = 6
    case connection = 7
    case partly = 8
    case retry = 75
}

/// A command that failed.
struct Failure: Error {
    /// What the command was about.
    enum Subject {
        case disk(String)
        case device(String)
        case session(UInt64)
        case service

        var text: String {
            switch self {
            case .disk(let name): "disk \(name): "
            case .device(let name): "device \(name): "
            case .session(let id): "session \(id): "
            case .service: ""
            }
        }
    }

    let exitCode: ProgramStatus
    let subject: Subject
    let message: String
    let code: String
    let hint: String?
    let output: OutputFormat

    init(
        _ exitCode: ProgramStatus, _ subject: Subject, _ message: String, _ output: OutputFormat,
        code: String = "failure", hint: String? = nil
    ) {
        self.exitCode = exitCode
        self.subject = subject
        // The service often names the object itself.
        self.message =
            message.hasPrefix(subject.text) && !subject.text.isEmpty
            ? String(message.dropFirst(subject.text.count)) : message
        self.code = code
        self.hint = hint
        self.output = output
    }

    init(_ error: ClientError, _ subject: Subject, _ output: OutputFormat) {
        let exitCode: ProgramStatus
        switch error {
        case .unreachable(_, let cause):
            exitCode = cause.errno == Errno.accessDenied ? .permission : .connection
        case .disconnected, .protocolViolation: exitCode = .connection
        case .timedOut: exitCode = .retry
        case .failed(let wire): exitCode = Self.exitCode(wire)
        }
        self.init(
            exitCode, subject, error.wireError?.message ?? error.description, output,
            code: error.wireError?.code.description ?? "connection",
            hint: error.wireError.flatMap { Self.hint($0, subject) })
    }

    private static func exitCode(_ error: WireError) -> ProgramStatus {
        switch error.code {
        case .notFound: .notFound
        case .permissionDenied, .readOnly: .permission
        case .deviceFailed, .deviceRemoved, .mediaError: .deviceFailed
        case .compareFailed: .dataMismatch
        case .invalidArgument, .outOfRange: .usage
        default: error.isRetriable ? .retry : .failure
        }
    }

    private static func hint(_ error: WireError, _ subject: Subject) -> String? {
        let device = error.device ?? "NAME"
        switch (error.code, subject) {
        case (.notFound, .disk): return "See: nvmectl disk list"
        case (.notFound, .device): return "See: nvmectl device list"
        case (.notFound, .session): return "See: nvmectl session list"
        case (.busy, _): return "Somebody has it open. See: nvmectl session list"
        case (.permissionDenied, .disk):
            return "Add yourself to User= or Group= of the disk's file and reload, or use root."
        case (.permissionDenied, _):
            return "Use root, or name yourself in AdminUser= or AdminGroup= of nvmed.conf."
        case (.readOnly, _): return "The disk or this session may only read. See: nvmectl disk list"
        case (.deviceFailed, _):
            return "See: nvmectl device show \(device); then: nvmectl device retry \(device)"
        case (.workerRestarted, _):
            return "Try again; io commands go on by themselves with --reopen."
        case (.deviceStarting, _), (.resourceExhausted, _),
            (.shuttingDown, _), (.deadlineExceeded, _):
            return "Try again in a moment."
        default: return nil
        }
    }

    /// Tells the person (and with `--output json` the script).
    func show() {
        Program.complain("nvmectl: \(subject.text)\(message)")
        if let hint { Program.complain(hint) }
        if output == .json { Program.show(json.text) }
    }

    /// The failure for a script.
    var json: JSON {
        .object([
            ("version", 1),
            (
                "error",
                .object([
                    ("code", .string(code)), ("message", .string(subject.text + message)),
                    ("hint", hint.map { .string($0) } ?? .null),
                    ("exit_code", .number(UInt64(exitCode.rawValue))),
                ])
            ),
        ])
    }
}
