// SPDX-License-Identifier: Apache-2.0
// Encodes protobuf fields. Decoding is protobuf-c's; that the two agree is what the round-trip
// tests hold.

/// Bytes of a message being written, fields in rising order of their numbers.
///
/// It writes itself instead of filling the generated C structures because those would have to be
/// allocated, linked and outlive the call, and because the payload of a message must not be copied:
/// the writer ends with the payload's tag and length, and the payload goes out as a second part.
public struct MessageWriter: Sendable {
    /// What was written.
    public private(set) var bytes: [UInt8] = []

    /// Starts with room for an ordinary message.
    public init() { bytes.reserveCapacity(512) }

    /// Forgets what was written and keeps the room.
    mutating func reset() { bytes.removeAll(keepingCapacity: true) }

    private mutating func varint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(truncatingIfNeeded: rest))
    }

    /// A number, zero too.
    mutating func number(_ field: UInt32, _ value: some FixedWidthInteger & UnsignedInteger) {
        varint(UInt64(field) << 3)
        varint(UInt64(truncatingIfNeeded: value))
    }

    /// A number unless it is absent.
    mutating func number(_ field: UInt32, _ value: (some FixedWidthInteger & UnsignedInteger)?) {
        if let value { number(field, value) }
    }

    /// An int32 (negative ones take ten bytes, as protobuf wants it).
    mutating func signed(_ field: UInt32, _ value: Int32?) {
        if let value { number(field, UInt64(bitPattern: Int64(value))) }
    }

    /// A bool; false is left out.
    mutating func flag(_ field: UInt32, _ value: Bool) {
        if value { number(field, UInt32(1)) }
    }

    /// Bytes; none are left out.
    mutating func bytes(_ field: UInt32, _ value: some Collection<UInt8>) {
        guard !value.isEmpty else { return }
        varint(UInt64(field) << 3 | 2)
        varint(UInt64(value.count))
        bytes.append(contentsOf: value)
    }

    /// A name or text; an empty one is left out, and a long one is cut at a character.
    mutating func text(_ field: UInt32, _ value: String) {
        guard value.utf8.count > WireLimits.textByteCount else { return bytes(field, value.utf8) }
        bytes(field, Self.clipped(value).utf8)
    }

    /// A text unless it is absent.
    mutating func text(_ field: UInt32, _ value: String?) {
        if let value { text(field, value) }
    }

    /// The beginning of a text, cut at a character.
    static func clipped(_ value: String) -> Substring {
        var end = value.utf8.index(value.startIndex, offsetBy: WireLimits.textByteCount)
        while String.Index(end, within: value) == nil { end = value.utf8.index(before: end) }
        return value[..<end]
    }

    /// A nested message, empty ones too.
    mutating func message(_ field: UInt32, _ body: (inout MessageWriter) -> Void) {
        varint(UInt64(field) << 3 | 2)
        let start = bytes.count
        bytes.append(0)
        body(&self)
        var rest = UInt64(bytes.count - start - 1)
        guard rest >= 0x80 else {
            bytes[start] = UInt8(truncatingIfNeeded: rest)
            return
        }
        var length: [UInt8] = []
        while rest >= 0x80 {
            length.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        length.append(UInt8(truncatingIfNeeded: rest))
        bytes.replaceSubrange(start...start, with: length)
    }

    /// Tag and length of a payload that follows as the last bytes of the message.
    mutating func payloadPrefix(_ field: UInt32, byteCount: Int) {
        varint(UInt64(field) << 3 | 2)
        varint(UInt64(byteCount))
    }
}
