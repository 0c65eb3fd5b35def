// SPDX-License-Identifier: Apache-2.0
// One description of a page's layout, used in both directions: each field is named once, with its
// offset, and is read from the page while parsing and written to it while encoding.

/// A page of fixed layout.
public protocol Page: Equatable, Sendable {
    /// The name of the page in the specification.
    static var pageName: String { get }

    /// Bytes of the whole page.
    static var pageByteCount: Int { get }

    /// A page with every field zero.
    init()

    /// Parses bytes that were copied from the device; longer input is allowed, its rest ignored.
    init(parsing bytes: [UInt8]) throws(PageError)

    /// The page as a controller returns it: `pageByteCount` bytes.
    func encode() -> [UInt8]
}

/// A page whose fields are listed once, by a function that visits them.
protocol LaidOutPage: Page {
    mutating func visit(_ codec: inout PageCodec)
}

extension LaidOutPage {
    static func parsed(from bytes: [UInt8]) throws(PageError) -> Self {
        var page = Self()
        var codec = PageCodec(reading: bytes, page: pageName)
        page.visit(&codec)
        if let failure = codec.failure { throw failure }
        return page
    }

    func encoded() -> [UInt8] {
        var page = self
        var codec = PageCodec(writing: Self.pageByteCount, page: Self.pageName)
        page.visit(&codec)
        return codec.bytes
    }
}

/// Moves fields between values and little-endian bytes; remembers the first field that did not fit.
struct PageCodec {
    private(set) var bytes: [UInt8]
    private(set) var failure: PageError?
    let isReading: Bool
    private let page: String

    init(reading bytes: [UInt8], page: String) {
        self.bytes = bytes
        self.page = page
        isReading = true
    }

    init(writing byteCount: Int, page: String) {
        bytes = [UInt8](repeating: 0, count: byteCount)
        self.page = page
        isReading = false
    }

    /// True if the bytes of a field are there; otherwise the field is recorded as the failure.
    private mutating func holds(_ offset: Int, _ count: Int, _ name: String) -> Bool {
        guard failure == nil else { return false }
        guard offset >= 0, count >= 0, offset &+ count <= bytes.count else {
            failure = .truncated(
                page: page, field: name, neededByteCount: offset &+ count, byteCount: bytes.count)
            return false
        }
        return true
    }

    /// Rejects the page while reading.
    mutating func reject(_ name: String, _ value: UInt64, because rule: String) {
        guard isReading, failure == nil else { return }
        failure = .invalid(page: page, field: name, value: value, rule: rule)
    }

    /// A little-endian number of the width of its type, or of its first `byteCount` bytes.
    mutating func field<Value: FixedWidthInteger & UnsignedInteger>(
        _ value: inout Value, at offset: Int, _ name: String, byteCount: Int? = nil
    ) {
        let count = byteCount ?? Value.bitWidth / 8
        guard holds(offset, count, name) else { return }
        if isReading {
            value = bytes.littleEndian(at: offset, byteCount: count)
        } else {
            bytes.storeLittleEndian(value, at: offset, byteCount: count)
        }
    }

    /// Bytes that are no number; a value of another length is cut or padded with zeroes.
    mutating func opaque(
        _ value: inout [UInt8], at offset: Int, byteCount: Int, _ name: String
    ) {
        guard holds(offset, byteCount, name) else { return }
        if isReading {
            value = Array(bytes[offset..<(offset &+ byteCount)])
        } else {
            for (index, byte) in value.prefix(byteCount).enumerated() {
                bytes[offset &+ index] = byte
            }
        }
    }

    /// ASCII text, padded with `padding`. What is not printable is read as "?", so that text of a
    /// device can go to logs and terminals; padding at the end is dropped.
    mutating func text(
        _ value: inout String, at offset: Int, byteCount: Int, padding: UInt8 = 0x20,
        _ name: String
    ) {
        guard holds(offset, byteCount, name) else { return }
        if isReading {
            value = Self.printable(bytes[offset..<(offset &+ byteCount)])
        } else {
            for index in 0..<byteCount { bytes[offset &+ index] = padding }
            for (index, byte) in value.utf8.prefix(byteCount).enumerated() {
                bytes[offset &+ index] = byte
            }
        }
    }

    private static func printable(_ field: ArraySlice<UInt8>) -> String {
        let text = field.prefix { $0 != 0 }
        let end = text.lastIndex { $0 != 0x20 }.map { $0 &+ 1 } ?? text.startIndex
        let safe = text[text.startIndex..<end].map { (0x20...0x7E).contains($0) ? $0 : 0x3F }
        return String(decoding: safe, as: UTF8.self)
    }
}

extension [UInt8] {
    /// The number in `byteCount` bytes from `offset`; the caller has checked that they exist.
    func littleEndian<Value: FixedWidthInteger>(at offset: Int, byteCount: Int) -> Value {
        var value: Value = 0
        for index in stride(from: byteCount &- 1, through: 0, by: -1) {
            value = value << 8 | Value(truncatingIfNeeded: self[offset &+ index])
        }
        return value
    }

    /// Stores `byteCount` bytes at `offset`; the caller has checked that they exist.
    mutating func storeLittleEndian<Value: FixedWidthInteger>(
        _ value: Value, at offset: Int, byteCount: Int
    ) {
        for index in 0..<byteCount {
            self[offset &+ index] = UInt8(
                truncatingIfNeeded: value >> Value(truncatingIfNeeded: index &* 8))
        }
    }
}
