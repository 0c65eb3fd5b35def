// SPDX-License-Identifier: Apache-2.0
// Reads fields out of what protobuf-c decoded, with the checks that every field of their kind
// needs.

internal import CProtobufC
internal import CWire

/// Readers of single fields; errors name the field.
enum Field {
    /// A field that must be there.
    static func need<Value>(
        _ has: protobuf_c_boolean, _ value: Value, _ field: String
    ) throws(WireError) -> Value {
        guard has != 0 else {
            throw WireError(.invalidArgument, "\(field) is missing", field: field)
        }
        return value
    }

    /// A field that may be absent.
    static func optional<Value>(_ has: protobuf_c_boolean, _ value: Value) -> Value? {
        has != 0 ? value : nil
    }

    /// A nested message that must be there.
    static func need<Value>(
        _ pointer: UnsafeMutablePointer<Value>?, _ field: String
    ) throws(WireError) -> UnsafeMutablePointer<Value> {
        guard let pointer = unsafe pointer else {
            throw WireError(.invalidArgument, "\(field) is missing", field: field)
        }
        return unsafe pointer
    }

    /// A name: UTF-8 without NUL, 1 to 255 bytes.
    static func name(
        _ has: protobuf_c_boolean, _ data: ProtobufCBinaryData, _ field: String
    ) throws(WireError) -> String {
        let name = try unsafe bytesText(data, field, limit: WireLimits.nameByteCount)
        guard has != 0, !name.isEmpty else {
            throw WireError(.invalidArgument, "\(field) is missing or empty", field: field)
        }
        return name
    }

    /// A name that may be absent.
    static func optionalName(
        _ has: protobuf_c_boolean, _ data: ProtobufCBinaryData, _ field: String
    ) throws(WireError) -> String? {
        has != 0 ? try unsafe name(has, data, field) : nil
    }

    /// Text in a bytes field: UTF-8 without NUL; absent is empty.
    static func bytesText(
        _ data: ProtobufCBinaryData, _ field: String, limit: Int = WireLimits.textByteCount
    ) throws(WireError) -> String {
        guard unsafe data.len <= limit else {
            throw WireError(
                .invalidArgument, "\(field) has \(unsafe data.len) bytes; at most \(limit) go",
                field: field)
        }
        let bytes = unsafe UnsafeBufferPointer(start: data.data, count: data.len)
        guard unsafe !bytes.contains(0),
            let text = unsafe String(validating: bytes, as: UTF8.self)
        else {
            throw WireError(
                .invalidArgument, "\(field) is not UTF-8 without NUL", field: field)
        }
        return text
    }

    /// Text for people: what is not UTF-8 is replaced; absent is empty.
    static func text(_ pointer: UnsafeMutablePointer<CChar>?) -> String {
        guard let pointer = unsafe pointer else { return "" }
        let text = unsafe String(cString: pointer)
        return text.utf8.count <= WireLimits.textByteCount
            ? text : String(MessageWriter.clipped(text))
    }

    /// An identifier of a fixed length, or none.
    static func identifier(
        _ data: ProtobufCBinaryData, _ byteCount: Int, _ field: String
    ) throws(WireError) -> [UInt8] {
        guard unsafe data.len == 0 || data.len == byteCount else {
            throw WireError(
                .invalidArgument, "\(field) has \(unsafe data.len) bytes instead of \(byteCount)",
                field: field)
        }
        return unsafe Array(UnsafeBufferPointer(start: data.data, count: data.len))
    }

    /// A list, bounded.
    static func list<Element, Value>(
        _ pointers: UnsafeMutablePointer<UnsafeMutablePointer<Element>?>?, _ count: Int,
        limit: Int, _ field: String,
        _ read: (UnsafeMutablePointer<Element>) throws(WireError) -> Value
    ) throws(WireError) -> [Value] {
        guard count <= limit else {
            throw WireError(
                .invalidArgument, "\(field) has \(count) entries; at most \(limit) go", field: field
            )
        }
        var values: [Value] = []
        values.reserveCapacity(count)
        for index in 0..<count {
            guard let element = unsafe pointers?[index] else { continue }
            values.append(try unsafe read(element))
        }
        return values
    }

    /// The version of an envelope.
    static func checkVersion(
        _ has: protobuf_c_boolean, _ version: UInt32
    ) throws(WireError) {
        guard has != 0, version == WireLimits.version else {
            throw WireError(
                .unsupportedVersion,
                "protocol version \(has != 0 ? String(version) : "(none)") is not spoken here; "
                    + "version \(WireLimits.version) is", field: "version")
        }
    }

    /// What to say about bytes that are no message (or decode to more than the budget).
    static var malformed: WireError {
        WireError(.malformedMessage, "the message is not protobuf, or too complex")
    }

    /// What to say about an envelope without a body known here.
    static func unknownBody(_ base: ProtobufCMessage) -> WireError {
        guard unsafe base.n_unknown_fields > 0, let first = unsafe base.unknown_fields?.pointee
        else { return WireError(.unknownMessage, "the message has no body", field: "body") }
        return WireError(
            .unknownMessage, "message \(unsafe first.tag) is not known to this version",
            field: "body")
    }

    /// An access mode; nil when absent.
    static func access(
        _ has: protobuf_c_boolean, _ value: Nvmed__V1__AccessMode, _ field: String
    ) throws(WireError) -> AccessMode? {
        guard has != 0, value.rawValue != 0 else { return nil }
        guard let mode = AccessMode(rawValue: UInt32(truncatingIfNeeded: value.rawValue)) else {
            throw WireError(
                .invalidArgument, "\(field) is \(value.rawValue), which is no access mode",
                field: field)
        }
        return mode
    }

    /// An access mode that must be there.
    static func needAccess(
        _ has: protobuf_c_boolean, _ value: Nvmed__V1__AccessMode, _ field: String
    ) throws(WireError) -> AccessMode {
        guard let mode = try access(has, value, field) else {
            throw WireError(.invalidArgument, "\(field) is missing", field: field)
        }
        return mode
    }

    /// A device state; unknown ones are kept as unknown.
    static func state(_ value: Nvmed__V1__DeviceState) -> DeviceState {
        DeviceState(rawValue: UInt32(truncatingIfNeeded: value.rawValue)) ?? .unknown
    }
}
