// SPDX-License-Identifier: Apache-2.0
// The frame around a section's payload (Proto/saved.md, "Section"). Numbers are little-endian.

/// What kind of section there is.
enum SectionKind {
    static let host: UInt32 = 1
    static let device: UInt32 = 2
    /// Of every kind that is known here.
    static let version: UInt32 = 1
}

/// A section that was read: what its header says, and its payload.
struct Section {
    static let magic = Array("NVMEDSEC".utf8)
    static let headerByteCount = 64
    static let writerByteCount = 24
    static let requiredFlag: UInt32 = 1

    var kind: UInt32
    var version: UInt32
    /// Whoever does not know this kind or version must not go on without it.
    var isRequired: Bool
    /// The version of nvmed that wrote it.
    var writer: String
    var payload: ArraySlice<UInt8>

    /// The bytes of a section with its frame.
    static func encode(
        kind: UInt32, version: UInt32 = SectionKind.version, isRequired: Bool = true,
        writer: String, payload: [UInt8], name: String
    ) throws(SavedStateError) -> [UInt8] {
        guard payload.count <= SavedLimits.sectionByteCount else {
            throw .tooLarge(
                section: name, what: "bytes", count: payload.count,
                limit: SavedLimits.sectionByteCount)
        }
        var bytes = Self.magic
        bytes.append(little: kind)
        bytes.append(little: version)
        bytes.append(little: isRequired ? Self.requiredFlag : 0)
        bytes.append(little: CRC32C.of(payload))
        bytes.append(little: UInt64(payload.count))
        bytes += Array(writer.utf8.filter { $0 > 0x20 && $0 < 0x7F }.prefix(Self.writerByteCount))
        bytes += [UInt8](repeating: 0, count: Self.headerByteCount - 4 - bytes.count)
        bytes.append(little: CRC32C.of(bytes))
        return bytes + payload
    }

    /// Reads a section that takes all of `bytes`. `name` is what errors call it.
    init(_ bytes: ArraySlice<UInt8>, name: String) throws(SavedStateError) {
        let header = bytes.prefix(Self.headerByteCount)
        guard header.count == Self.headerByteCount, header.starts(with: Self.magic) else {
            throw .damaged(section: name, what: "it does not begin like one")
        }
        guard header.little32(60) == CRC32C.of(header.prefix(60)) else {
            throw .damaged(section: name, what: "the checksum of its header")
        }
        kind = header.little32(8)
        version = header.little32(12)
        isRequired = header.little32(16) & Self.requiredFlag != 0
        writer = String(
            decoding: header.dropFirst(32).prefix(Self.writerByteCount).prefix { $0 != 0 },
            as: UTF8.self)
        payload = bytes.dropFirst(Self.headerByteCount)
        guard UInt64(payload.count) == header.little64(24) else {
            throw .damaged(
                section: name,
                what: "it has \(payload.count) bytes, not the \(header.little64(24)) it says")
        }
        guard payload.count <= SavedLimits.sectionByteCount else {
            throw .tooLarge(
                section: name, what: "bytes", count: payload.count,
                limit: SavedLimits.sectionByteCount)
        }
        guard header.little32(20) == CRC32C.of(payload) else {
            throw .damaged(section: name, what: "its checksum")
        }
    }

    /// Throws unless it is of that kind, in a version that may be read here.
    func check(is kind: UInt32, name: String) throws(SavedStateError) {
        guard self.kind == kind, version > 0 else {
            throw .damaged(section: name, what: "it is of another kind (\(self.kind))")
        }
        guard version <= SectionKind.version || !isRequired else {
            throw .newer(section: name, version: version, writer: writer)
        }
    }
}

extension [UInt8] {
    mutating func append(little value: UInt32) {
        for shift in stride(from: UInt32(0), to: 32, by: 8) {
            append(UInt8(truncatingIfNeeded: value >> shift))
        }
    }

    mutating func append(little value: UInt64) {
        append(little: UInt32(truncatingIfNeeded: value))
        append(little: UInt32(truncatingIfNeeded: value >> 32))
    }
}

extension ArraySlice<UInt8> {
    /// The number at an offset from its start; 0 bytes stand for those that are missing.
    func little64(_ offset: Int) -> UInt64 {
        dropFirst(offset).prefix(8).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    func little32(_ offset: Int) -> UInt32 {
        dropFirst(offset).prefix(4).reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }
}
