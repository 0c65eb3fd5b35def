// SPDX-License-Identifier: Apache-2.0
// Values of D-Bus messages, read from and written to messages of sd-bus (libsystemd 252).

internal import CSystemd
internal import Glibc
internal import Linux

/// A value of a D-Bus message (D-Bus Specification 0.41, "Type System").
public indirect enum BusValue: Sendable, Equatable {
    /// `b`
    case boolean(Bool)
    /// `y`
    case byte(UInt8)
    /// `n` and `i`
    case int32(Int32)
    /// `q` and `u`
    case uint32(UInt32)
    /// `x`
    case int64(Int64)
    /// `t`
    case uint64(UInt64)
    /// `d`
    case double(Double)
    /// `s`, cut where it is longer than any value that is asked for here.
    case string(String)
    /// `o`
    case objectPath(String)
    /// `g`
    case signature(String)
    /// `a`
    case array([BusValue])
    /// `(…)`
    case structure([BusValue])
    /// `{…}`
    case entry(BusValue, BusValue)
    /// `v`
    case variant(BusValue)

    /// The string or object path; nil for anything else.
    public var text: String? {
        switch self {
        case .string(let text), .objectPath(let text), .signature(let text): text
        case .variant(let value): value.text
        default: nil
        }
    }

    /// The number as an unsigned one; nil for anything else and for negative ones.
    public var number: UInt64? {
        switch self {
        case .byte(let number): UInt64(number)
        case .uint32(let number): UInt64(number)
        case .uint64(let number): number
        case .int32(let number): UInt64(exactly: number)
        case .int64(let number): UInt64(exactly: number)
        case .variant(let value): value.number
        default: nil
        }
    }

    /// The members of a structure or array; empty for anything else.
    public var members: [BusValue] {
        switch self {
        case .array(let values), .structure(let values): values
        case .variant(let value): value.members
        default: []
        }
    }
}

/// Bounds on what a message may make this process hold.
enum BusLimits {
    /// Values of one message: PID 1's largest answers that are asked for here have a dozen.
    static let valueCount = 4096
    /// Containers within containers: the protocol allows 64, PID 1 uses 4.
    static let depth = 8
    /// Bytes of one text.
    static let textByteCount = 4096
}

/// Reads the values of a message; every bound is checked, nothing is trusted.
@safe
struct BusReader {
    private let message: OpaquePointer
    private var left = BusLimits.valueCount

    init(_ message: OpaquePointer) { unsafe self.message = unsafe message }

    /// All values; nil when the message breaks a bound or a rule.
    mutating func values(depth: Int = 0) -> [BusValue]? {
        guard depth <= BusLimits.depth else { return nil }
        var values: [BusValue] = []
        while true {
            var type: CChar = 0
            var contents: UnsafePointer<CChar>?
            let found = unsafe sd_bus_message_peek_type(message, &type, &contents)
            guard found >= 0 else { return nil }
            if found == 0 { return values }
            guard left > 0 else { return nil }
            left -= 1
            guard let value = unsafe value(UInt8(bitPattern: type), contents, depth) else {
                return nil
            }
            values.append(value)
        }
    }

    private mutating func value(
        _ type: UInt8, _ contents: UnsafePointer<CChar>?, _ depth: Int
    ) -> BusValue? {
        switch type {
        case UInt8(ascii: "a"), UInt8(ascii: "r"), UInt8(ascii: "e"), UInt8(ascii: "v"):
            unsafe container(type, contents, depth)
        case UInt8(ascii: "s"): text(type).map { .string($0) }
        case UInt8(ascii: "o"): text(type).map { .objectPath($0) }
        case UInt8(ascii: "g"): text(type).map { .signature($0) }
        case UInt8(ascii: "b"): number(type, CInt.self).map { .boolean($0 != 0) }
        case UInt8(ascii: "y"): number(type, UInt8.self).map { .byte($0) }
        case UInt8(ascii: "n"): number(type, Int16.self).map { .int32(Int32($0)) }
        case UInt8(ascii: "q"): number(type, UInt16.self).map { .uint32(UInt32($0)) }
        case UInt8(ascii: "i"): number(type, Int32.self).map { .int32($0) }
        case UInt8(ascii: "u"): number(type, UInt32.self).map { .uint32($0) }
        case UInt8(ascii: "x"): number(type, Int64.self).map { .int64($0) }
        case UInt8(ascii: "t"): number(type, UInt64.self).map { .uint64($0) }
        case UInt8(ascii: "d"): number(type, UInt64.self).map { .double(Double(bitPattern: $0)) }
        // Descriptors are not asked for.
        default: nil
        }
    }

    private mutating func container(
        _ type: UInt8, _ contents: UnsafePointer<CChar>?, _ depth: Int
    ) -> BusValue? {
        let entered = unsafe sd_bus_message_enter_container(
            message, CChar(bitPattern: type), contents)
        guard entered > 0, let inside = values(depth: depth + 1),
            unsafe sd_bus_message_exit_container(message) >= 0
        else { return nil }
        switch type {
        case UInt8(ascii: "a"): return .array(inside)
        case UInt8(ascii: "r"): return .structure(inside)
        case UInt8(ascii: "v"): return inside.first.map { .variant($0) }
        default:
            guard inside.count == 2 else { return nil }
            return .entry(inside[0], inside[1])
        }
    }

    private func text(_ type: UInt8) -> String? {
        var text: UnsafePointer<CChar>?
        guard unsafe sd_bus_message_read_basic(message, CChar(bitPattern: type), &text) > 0,
            let text = unsafe text
        else { return nil }
        let count = unsafe strnlen(text, BusLimits.textByteCount)
        let bytes = unsafe UnsafeRawBufferPointer(start: text, count: count)
        return unsafe String(decoding: bytes, as: UTF8.self)
    }

    private func number<Number: FixedWidthInteger>(_ type: UInt8, _: Number.Type) -> Number? {
        var number: Number = 0
        let read = unsafe sd_bus_message_read_basic(message, CChar(bitPattern: type), &number)
        return read > 0 ? number : nil
    }
}

/// Writes values to a message that is being made.
@safe
struct BusWriter {
    private let message: OpaquePointer

    init(_ message: OpaquePointer) { unsafe self.message = unsafe message }

    /// Appends a value. Arrays are of strings; variants and the like are not needed for any call
    /// that is made here.
    func append(_ value: BusValue) throws(SystemCallError) {
        switch value {
        case .string(let text): try append("s", text)
        case .objectPath(let text): try append("o", text)
        case .signature(let text): try append("g", text)
        case .boolean(let value): try append("b", CInt(value ? 1 : 0))
        case .byte(let value): try append("y", value)
        case .int32(let value): try append("i", value)
        case .uint32(let value): try append("u", value)
        case .int64(let value): try append("x", value)
        case .uint64(let value): try append("t", value)
        case .double(let value): try append("d", value.bitPattern)
        case .array(let values): try append(values)
        case .structure, .entry, .variant:
            throw SystemCallError("sd_bus_message_append", errno: EOPNOTSUPP)
        }
    }

    private func append(_ texts: [BusValue]) throws(SystemCallError) {
        let array = CChar(truncatingIfNeeded: UInt8(ascii: "a"))
        try checked(
            "sd_bus_message_open_container",
            unsafe sd_bus_message_open_container(message, array, "s"))
        for text in texts { try append(text) }
        try checked(
            "sd_bus_message_close_container", unsafe sd_bus_message_close_container(message))
    }

    private func append(_ type: Unicode.Scalar, _ text: String) throws(SystemCallError) {
        let result = unsafe text.withCString {
            unsafe sd_bus_message_append_basic(message, CChar(truncatingIfNeeded: type.value), $0)
        }
        try checked("sd_bus_message_append_basic", result)
    }

    private func append<Number: FixedWidthInteger>(_ type: Unicode.Scalar, _ number: Number)
        throws(SystemCallError)
    {
        var number = number
        try checked(
            "sd_bus_message_append_basic",
            unsafe sd_bus_message_append_basic(
                message, CChar(truncatingIfNeeded: type.value), &number))
    }
}
