// SPDX-License-Identifier: Apache-2.0
// Encodes protobuf fields; decoding is protobuf-c's. Fields in rising order of their numbers, then
// those that this version does not know.

/// Bytes of a message being written.
struct ProtobufWriter {
    private(set) var bytes: [UInt8] = []

    private mutating func varint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(truncatingIfNeeded: rest))
    }

    /// A number; 0 is left out.
    mutating func number(_ field: UInt32, _ value: some FixedWidthInteger & UnsignedInteger) {
        guard value != 0 else { return }
        varint(UInt64(field) << 3)
        varint(UInt64(truncatingIfNeeded: value))
    }

    /// A number, 0 too.
    mutating func present(_ field: UInt32, _ value: UInt32) {
        varint(UInt64(field) << 3)
        varint(UInt64(value))
    }

    /// A bool; false is left out.
    mutating func flag(_ field: UInt32, _ value: Bool) { number(field, value ? 1 : UInt8(0)) }

    /// Bytes, none too; nil is left out.
    mutating func bytes(_ field: UInt32, _ value: (some Collection<UInt8>)?) {
        guard let value else { return }
        varint(UInt64(field) << 3 | 2)
        varint(UInt64(value.count))
        bytes.append(contentsOf: value)
    }

    /// Text; an empty one is left out.
    mutating func text(_ field: UInt32, _ value: String) {
        if !value.isEmpty { bytes(field, value.utf8) }
    }

    /// A page of a controller without the zeroes at its end; nil is left out.
    mutating func page(_ field: UInt32, _ value: [UInt8]?) {
        guard let value else { return }
        let end = value.lastIndex { $0 != 0 } ?? -1
        bytes(field, value.prefix(end + 1))
    }

    /// A nested message, an empty one too.
    mutating func message(_ field: UInt32, _ body: (inout ProtobufWriter) -> Void) {
        var inner = ProtobufWriter()
        body(&inner)
        bytes(field, inner.bytes)
    }

    /// Fields of a later version.
    mutating func unknown(_ fields: UnknownFields) { bytes += fields.bytes }

    /// A field as protobuf-c kept it: its number, its wire type, and what followed the tag.
    mutating func raw(_ field: UInt32, _ wireType: UInt32, _ content: some Sequence<UInt8>) {
        varint(UInt64(field) << 3 | UInt64(wireType & 7))
        bytes += content
    }
}
