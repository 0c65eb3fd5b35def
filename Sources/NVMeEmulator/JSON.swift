// SPDX-License-Identifier: Apache-2.0
// The little JSON that is needed: a tolerant, bounded reader for capabilities and a writer for
// statistics.

/// A JSON value.
enum JSONValue: Equatable {
    case null
    case bool(Bool)
    case number(Double)
    case string(String)
    case array([JSONValue])
    case object([String: JSONValue])

    subscript(_ key: String) -> JSONValue? {
        guard case .object(let members) = self else { return nil }
        return members[key]
    }

    /// The value as a number that fits 53 bits and is not negative.
    var unsigned: UInt64? {
        guard case .number(let value) = self, value >= 0, value <= 9_007_199_254_740_992,
            value == value.rounded(.towardZero)
        else { return nil }
        return UInt64(value)
    }

    var bool: Bool? {
        guard case .bool(let value) = self else { return nil }
        return value
    }
}

/// Reads one JSON text. Nothing a peer sends makes it trap, recurse without end or use much memory.
struct JSONParser {
    /// Deeper than any capability list; a bound on recursion.
    static let maxDepth = 16
    /// The most values of one text; a bound on memory.
    static let maxValues = 1024

    private let bytes: [UInt8]
    private var at = 0
    private var values = 0

    /// The value of a text, or nil when it is not JSON within the bounds.
    static func parse(_ bytes: [UInt8]) -> JSONValue? {
        var parser = JSONParser(bytes: bytes)
        guard let value = parser.value(depth: 0) else { return nil }
        parser.skipSpace()
        return parser.at == bytes.count ? value : nil
    }

    private init(bytes: [UInt8]) { self.bytes = bytes }

    private var next: UInt8? { at < bytes.count ? bytes[at] : nil }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || (byte >= 0x09 && byte <= 0x0D) { at &+= 1 }
    }

    private mutating func take(_ byte: UInt8) -> Bool {
        skipSpace()
        guard next == byte else { return false }
        at &+= 1
        return true
    }

    private mutating func value(depth: Int) -> JSONValue? {
        values &+= 1
        guard depth < Self.maxDepth, values <= Self.maxValues else { return nil }
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return object(depth)
        case UInt8(ascii: "["): return array(depth)
        case UInt8(ascii: "\""): return string().map(JSONValue.string)
        case UInt8(ascii: "t"): return word("true") ? .bool(true) : nil
        case UInt8(ascii: "f"): return word("false") ? .bool(false) : nil
        case UInt8(ascii: "n"): return word("null") ? .null : nil
        default: return number()
        }
    }

    private mutating func word(_ text: StaticString) -> Bool {
        let expected = Array(text.description.utf8)
        guard bytes.count &- at >= expected.count,
            bytes[at..<(at &+ expected.count)].elementsEqual(expected)
        else { return false }
        at &+= expected.count
        return true
    }

    private mutating func object(_ depth: Int) -> JSONValue? {
        at &+= 1
        var members: [String: JSONValue] = [:]
        if take(UInt8(ascii: "}")) { return .object(members) }
        while true {
            skipSpace()
            guard next == UInt8(ascii: "\""), let key = string(), take(UInt8(ascii: ":")),
                let member = value(depth: depth &+ 1)
            else { return nil }
            members[key] = member
            if take(UInt8(ascii: "}")) { return .object(members) }
            guard take(UInt8(ascii: ",")) else { return nil }
        }
    }

    private mutating func array(_ depth: Int) -> JSONValue? {
        at &+= 1
        var elements: [JSONValue] = []
        if take(UInt8(ascii: "]")) { return .array(elements) }
        while true {
            guard let element = value(depth: depth &+ 1) else { return nil }
            elements.append(element)
            if take(UInt8(ascii: "]")) { return .array(elements) }
            guard take(UInt8(ascii: ",")) else { return nil }
        }
    }

    /// A string; escapes other than the simple ones are kept as they are written.
    private mutating func string() -> String? {
        at &+= 1
        var content: [UInt8] = []
        while let byte = next {
            at &+= 1
            if byte == UInt8(ascii: "\"") { return String(decoding: content, as: UTF8.self) }
            if byte == UInt8(ascii: "\\") {
                guard let escaped = next else { return nil }
                at &+= 1
                if escaped != UInt8(ascii: "\""), escaped != UInt8(ascii: "\\"),
                    escaped != UInt8(ascii: "/")
                {
                    content.append(byte)
                }
                content.append(escaped)
                continue
            }
            content.append(byte)
        }
        return nil
    }

    private mutating func number() -> JSONValue? {
        let start = at
        while let byte = next,
            (byte >= 0x30 && byte <= 0x39) || [0x2B, 0x2D, 0x2E, 0x45, 0x65].contains(byte)
        {
            at &+= 1
        }
        // 64 characters hold any number that makes sense.
        guard at > start, at &- start <= 64 else { return nil }
        return Double(String(decoding: bytes[start..<at], as: UTF8.self)).map(JSONValue.number)
    }
}

/// Writes one JSON object, member by member.
struct JSONWriter {
    private(set) var text = "{"
    private var needsComma = false

    private mutating func key(_ name: String) {
        if needsComma { text += "," }
        needsComma = true
        text += Self.quote(name) + ":"
    }

    mutating func member(_ name: String, _ value: UInt64) {
        key(name)
        text += String(value)
    }

    mutating func member(_ name: String, _ value: Bool) {
        key(name)
        text += value ? "true" : "false"
    }

    mutating func member(_ name: String, _ value: String) {
        key(name)
        text += Self.quote(value)
    }

    mutating func beginObject(_ name: String) {
        key(name)
        text += "{"
        needsComma = false
    }

    mutating func endObject() {
        text += "}"
        needsComma = true
    }

    /// The finished text.
    consuming func finish() -> String { text + "}" }

    static func quote(_ string: String) -> String {
        var quoted = "\""
        for scalar in string.unicodeScalars {
            switch scalar {
            case "\"": quoted += "\\\""
            case "\\": quoted += "\\\\"
            case "\n": quoted += "\\n"
            case "\t": quoted += "\\t"
            default: if scalar.value >= 0x20 { quoted.unicodeScalars.append(scalar) }
            }
        }
        return quoted + "\""
    }
}
