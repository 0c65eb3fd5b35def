// SPDX-License-Identifier: Apache-2.0
// What can go wrong with a controller, as values; every case says which field or command it was.

public import Linux
public import NVMeSpec
public import VFIO

/// An error of the driver. All of them concern one device and leave every other alone.
public enum DriverError: Error, Sendable, CustomStringConvertible {
    /// The device's carrier failed: connection, memory, interrupts.
    case device(VFIOError)
    /// A system call of our own failed.
    case system(SystemCallError)
    /// Registers read as all ones: the device is not there any more.
    case gone(register: String)
    /// A register or an identify field has a value that the driver cannot work with.
    case unusable(field: String, value: UInt64, rule: String)
    /// CSTS.RDY did not become what it should within the controller's own bound.
    case notReady(waitingFor: Bool, milliseconds: UInt32, status: UInt32)
    /// CSTS.CFS: the controller reports a fatal error.
    case fatalStatus(during: String, status: UInt32)
    /// CSTS.RDY is 0 although nobody here disabled the controller.
    case stopped(during: String, status: UInt32)
    /// An identify or log page was malformed.
    case page(PageError)
    /// An admin command was answered with an error.
    case command(operation: String, status: Status)
    /// An admin command was not answered.
    case commandTimedOut(operation: String, milliseconds: Int)
    /// The device broke the rules of a queue.
    case queueFault(queue: UInt16, fault: QueueFault, entry: UInt64)
    /// A limit of ours was reached.
    case exhausted(String)
    /// What a predecessor left cannot be gone on with; the device was not changed.
    case notAdoptable(String)

    /// The error in words for an operator.
    public var description: String {
        switch self {
        case .device(let error): error.description
        case .system(let error): error.description
        case .gone(let register): "the device is gone: \(register) reads as all ones"
        case .unusable(let field, let value, let rule):
            "\(field) is 0x\(String(value, radix: 16)), but \(rule)"
        case .notReady(let ready, let milliseconds, let status):
            "CSTS.RDY did not become \(ready ? 1 : 0) within \(milliseconds) ms "
                + "(CSTS 0x\(String(status, radix: 16)))"
        case .fatalStatus(let during, let status):
            "the controller reports a fatal error (CSTS.CFS) during \(during), "
                + "CSTS 0x\(String(status, radix: 16))"
        case .stopped(let during, let status):
            "the controller stopped by itself (CSTS.RDY is 0) during \(during), "
                + "CSTS 0x\(String(status, radix: 16))"
        case .page(let error): error.description
        case .command(let operation, let status): "\(operation): \(status)"
        case .commandTimedOut(let operation, let milliseconds):
            "\(operation): no answer from the controller within \(milliseconds) ms"
        case .queueFault(let queue, let fault, let entry):
            "queue \(queue): \(fault) (entry 0x\(String(entry, radix: 16)))"
        case .exhausted(let what): what
        case .notAdoptable(let reason): "cannot be gone on with as it is: \(reason)"
        }
    }
}

extension DriverError {
    /// Whether the device is not there any more: nothing that is asked of it will be answered.
    public var isGone: Bool {
        switch self {
        case .gone, .device(.gone): true
        default: false
        }
    }
}
