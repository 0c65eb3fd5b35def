// SPDX-License-Identifier: Apache-2.0
// What can be wrong with a page that a device returned.

/// Why a page could not be parsed; names the page and the field.
public enum PageError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The page ends before the field does.
    case truncated(page: String, field: String, neededByteCount: Int, byteCount: Int)
    /// The field holds what the specification forbids.
    case invalid(page: String, field: String, value: UInt64, rule: String)

    /// For example "Identify Controller ends at byte 516, before the end of NN at byte 520".
    public var description: String {
        switch self {
        case .truncated(let page, let field, let needed, let got):
            "\(page) ends at byte \(got), before the end of \(field) at byte \(needed)"
        case .invalid(let page, let field, let value, let rule):
            "\(page) has \(field) = \(hex(value)), but \(rule)"
        }
    }
}
