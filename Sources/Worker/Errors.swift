// SPDX-License-Identifier: Apache-2.0
// Errors of the driver and statuses of the device, as the wire tells them.

internal import Linux
internal import NVMeDriver
internal import NVMeSpec
internal import Systemd
internal import VFIO
internal import Wire

extension DriverError {
    /// Whether the device cannot be believed or used any more. The others concern one operation.
    var isFatal: Bool {
        switch self {
        case .gone, .notReady, .fatalStatus, .stopped, .commandTimedOut, .queueFault: true
        case .device(let error):
            switch error {
            case .gone, .timedOut, .protocolViolation, .deviceError: true
            case .system, .refused, .notBound, .unsupported: false
            }
        case .system, .unusable, .page, .command, .exhausted, .notAdoptable: false
        }
    }

    /// Whether a bring-up that this ended may succeed after a reset of the function: what the
    /// controller does can change by that, what the machine lacks cannot.
    var isCuredByReset: Bool {
        switch self {
        case .gone, .system, .exhausted, .notAdoptable: false
        case .device(.deviceError): true
        case .device: false
        case .unusable, .notReady, .fatalStatus, .stopped, .page, .command, .commandTimedOut,
            .queueFault:
            true
        }
    }

    /// What the journal calls a bring-up that this ended.
    var startEvent: LogEvent {
        switch self {
        case .exhausted: .poolExhausted
        case .system(let error): error.errno == Errno.noMemory ? .poolExhausted : .startFailed
        case .device(.system(let error)):
            error.errno == Errno.noMemory ? .poolExhausted : .startFailed
        case .fatalStatus: .controllerFatal
        case .device(.notBound): .notBound
        default: .startFailed
        }
    }

    /// What the journal calls the end of a controller by this.
    var failureEvent: LogEvent {
        guard case .fatalStatus = self else { return .controllerFailed }
        return .controllerFatal
    }

    /// The register or identify field at fault; nil when it is no field.
    var fieldName: String? {
        switch self {
        case .gone(let register): register
        case .unusable(let field, _, _): field
        case .notReady, .stopped: "CSTS.RDY"
        case .fatalStatus: "CSTS.CFS"
        case .device, .system, .page, .command, .commandTimedOut, .queueFault, .exhausted,
            .notAdoptable:
            nil
        }
    }

    /// The status of the command that failed, if one did.
    var status: UInt16? {
        guard case .command(_, let status) = self else { return nil }
        return status.rawValue
    }

    /// The error for the supervisor or a client.
    func onWire(_ code: ErrorCode? = nil, device: String) -> WireError {
        let natural: ErrorCode =
            switch self {
            case .exhausted: .resourceExhausted
            case .gone: .deviceRemoved
            case .device(.unsupported): .notSupported
            case .device, .system, .unusable, .notReady, .fatalStatus, .stopped, .page, .command,
                .commandTimedOut, .queueFault, .notAdoptable:
                .deviceFailed
            }
        return WireError(
            code ?? natural, description, device: device, field: fieldName, nvmeStatus: status)
    }
}

/// What a status of the device means to a client.
enum CommandStatus {
    /// The error for a status other than success: the code, the status's name, and the raw status.
    static func error(_ raw: UInt16, device: String, disk: String) -> WireError {
        let status = Status(rawValue: raw)
        return WireError(
            code(status), "the device answered: \(status)", device: device, disk: disk,
            nvmeStatus: status.rawValue)
    }

    private static func code(_ status: Status) -> ErrorCode {
        // Whether the client cancelled it is for the caller to know.
        if status.matches(.abortRequested) { return .cancelled }
        return ErrorCode(rawValue: UInt32(RingCode.of(status.rawValue)))
    }
}
