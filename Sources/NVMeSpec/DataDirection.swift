// SPDX-License-Identifier: Apache-2.0
// The direction of a data transfer, encoded in each opcode. NVM Express Base Specification 2.0,
// section 3.3.3.1 (opcode bits 1:0).

/// Which way a command moves data, seen from the host.
@frozen
public enum DataDirection: UInt8, Sendable, CaseIterable {
    /// No data.
    case none = 0
    /// The controller reads host memory.
    case hostToController = 1
    /// The controller writes host memory.
    case controllerToHost = 2
    /// Both.
    case bidirectional = 3

    /// The direction in bits 1:0 of an opcode; every opcode has one.
    @inlinable
    public init(opcode: UInt8) {
        switch opcode & 3 {
        case 0: self = .none
        case 1: self = .hostToController
        case 2: self = .controllerToHost
        default: self = .bidirectional
        }
    }
}
