// SPDX-License-Identifier: Apache-2.0
// What can go wrong between the driver and the thing that carries its device.

public import Linux

/// An error of a device backing. Each case names what to look at next.
public enum VFIOError: Error, Sendable, Equatable, CustomStringConvertible {
    /// A system call failed.
    case system(SystemCallError)
    /// The device, or the server that stands for it, is gone; nothing more can be asked of it.
    case gone(String)
    /// The server did not answer within the bound.
    case timedOut(operation: String, milliseconds: Int)
    /// The server broke the protocol.
    case protocolViolation(operation: String, detail: String)
    /// The function reported an error by itself (AER) and must be reset before it is believed.
    case deviceError(String)
    /// The server answered with an error number.
    case refused(operation: String, errno: Int32)
    /// Another driver than vfio-pci has the device; which, and what helps.
    case notBound(String)
    /// The device lacks something the driver needs.
    case unsupported(String)

    /// The error in words for an operator.
    public var description: String {
        switch self {
        case .system(let error): error.description
        case .gone(let detail): "the device is gone: \(detail)"
        case .timedOut(let operation, let milliseconds):
            "\(operation): no answer within \(milliseconds) ms"
        case .protocolViolation(let operation, let detail):
            "\(operation): the vfio-user server broke the protocol: \(detail)"
        case .deviceError(let detail): detail
        case .refused(let operation, let errno):
            SystemCallError("\(operation) refused by the device", errno: errno).description
        case .notBound(let what): what
        case .unsupported(let what): "not usable: \(what)"
        }
    }
}
