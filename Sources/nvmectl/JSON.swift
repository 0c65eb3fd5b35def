// SPDX-License-Identifier: Apache-2.0
// Writes JSON (RFC 8259). Keys keep the order they are given in.

/// A JSON value.
enum JSON: ExpressibleByIntegerLiteral {
    case null
    case bool(Bool)
    case number(UInt64)
    case signed(Int64)
    /// A finite number; others become null.
    case decimal(Double)
    case string(String)
    case array([JSON])
    case object([(String, JSON)])

    init(integerLiteral value: UInt64) { self = .number(value) }

    /// A text, or null when it is empty.
    static func text(_ value: String) -> JSON { value.isEmpty ? .null : .string(value) }

    /// The value on one line.
    var text: String {
        var text = ""
        write(into: &text)
        return text
    }

    private func write(into text: inout String) {
        switch self {
        case .null: text += "null"
        case .bool(let value): text += value ? "true" : "false"
        case .number(let value): text += String(value)
        case .signed(let value): text += String(value)
        case .decimal(let value): text += value.isFinite ? String(value) : "null"
        case .string(let value): Self.write(value, into: &text)
        case .array(let values):
            text += "["
            for (index, value) in values.enumerated() {
                if index > 0 { text += "," }
                value.write(into: &text)
            }
            text += "]"
        case .object(let members):
            text += "{"
            for (index, member) in members.enumerated() {
                if index > 0 { text += "," }
                Self.write(member.0, into: &text)
                text += ":"
                member.1.write(into: &text)
            }
            text += "}"
        }
    }

    private static func write(_ value: String, into text: inout String) {
        text += "\""
        for scalar in value.unicodeScalars {
            switch scalar {
            case "\"": text += "\\\""
            case "\\": text += "\\\\"
            case "\n": text += "\\n"
            case "\t": text += "\\t"
            case "\r": text += "\\r"
            case _ where scalar.value < 0x20:
                let hex = String(scalar.value, radix: 16)
                text += "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
            default: text.unicodeScalars.append(scalar)
            }
        }
        text += "\""
    }
}
