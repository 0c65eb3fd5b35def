// SPDX-License-Identifier: Apache-2.0
// Saved state as bytes (Proto/saved.md): a file of sections, each of which stands for itself, and a
// device's section alone.

/// A section as it is in a file, with its frame.
public struct SavedSection: Sendable, Hashable {
    /// Whose it is; empty of one that is no device's.
    public var name: String
    /// The bytes, as `SavedState.encode(device:)` made them.
    public var bytes: [UInt8]

    /// A section.
    public init(name: String, bytes: [UInt8]) {
        self.name = name
        self.bytes = bytes
    }
}

/// What a file of saved state says.
public struct SavedFile: Sendable {
    /// Where and when it was written.
    public let host: SavedHost
    /// Each device that was written, or why it cannot be restored.
    public let devices: [String: Result<SavedDevice, SavedStateError>]
    /// The sections of the devices that can be, by name: what a worker gets.
    public let sections: [String: [UInt8]]
    /// Sections of later versions that need not be known: they are written again.
    public let others: [SavedSection]
}

/// Saved state as bytes and back.
public enum SavedState {
    private static let magic = Array("NVMEDSAV".utf8)
    /// The version of the framing; that of each section is its own.
    private static let version: UInt32 = 1
    private static let headerByteCount = 32
    private static let entryByteCount = 24

    // MARK: A device

    /// A device's section: what goes from the worker to the file, and back. `version` is that of
    /// nvmed, for the message of an older one that cannot read it.
    ///
    /// Throws `tooLarge`, or `invalid` when the values contradict each other.
    public static func encode(
        device: SavedDevice, version: String
    ) throws(SavedStateError) -> [UInt8] {
        let name = device.name
        do throws(FieldProblem) {
            try device.check()
        } catch { throw error.of(name) }
        var writer = ProtobufWriter()
        device.write(into: &writer)
        return try Section.encode(
            kind: SectionKind.device, writer: version, payload: writer.bytes, name: name)
    }

    /// What a device's section says; `name` is what errors call it, and what it must be called
    /// when it is given.
    public static func decode(
        device bytes: [UInt8], name: String? = nil
    ) throws(SavedStateError) -> SavedDevice {
        let called = name ?? "the device"
        let section = try Section(bytes[...], name: called)
        try section.check(is: SectionKind.device, name: called)
        let device: SavedDevice
        do throws(FieldProblem) {
            device = try SavedDevice(payload: section.payload)
            try device.check()
        } catch { throw error.of(called) }
        guard name == nil || device.name == name else {
            throw .invalid(section: called, field: "name", rule: "is \(device.name)")
        }
        return device
    }

    // MARK: A file

    /// A file with these devices.
    public static func encode(
        host: SavedHost, devices: [SavedDevice]
    ) throws(SavedStateError) -> [UInt8] {
        var sections: [SavedSection] = []
        for device in devices {
            sections.append(
                SavedSection(
                    name: device.name, bytes: try encode(device: device, version: host.version)))
        }
        return try encode(host: host, sections: sections)
    }

    /// The first of these sections that fit a file together, by how many they are and by their
    /// bytes; one that does not fit costs no smaller one behind it its place. The others are in
    /// the second list.
    public static func fitting(
        _ sections: [SavedSection]
    ) -> (fitting: [SavedSection], others: [SavedSection]) {
        var room = SavedLimits.fileByteCount - SavedLimits.hostByteCount
        var (fitting, others): ([SavedSection], [SavedSection]) = ([], [])
        for section in sections {
            let byteCount = (section.bytes.count + 7) & ~7 + entryByteCount
            guard fitting.count < SavedLimits.deviceCount, byteCount <= room else {
                others.append(section)
                continue
            }
            room -= byteCount
            fitting.append(section)
        }
        return (fitting, others)
    }

    /// A file with the sections that workers made, none of which is looked into; `others` are those
    /// of a file that is written anew.
    public static func encode(
        host: SavedHost, sections: [SavedSection], others: [SavedSection] = []
    ) throws(SavedStateError) -> [UInt8] {
        guard sections.count <= SavedLimits.deviceCount else {
            throw .tooLarge(
                section: "file", what: "devices", count: sections.count,
                limit: SavedLimits.deviceCount)
        }
        var host = host
        host.deviceNames = sections.map(\.name)
        do throws(FieldProblem) {
            try host.check()
        } catch { throw error.of("host") }
        var writer = ProtobufWriter()
        host.write(into: &writer)
        let first = try Section.encode(
            kind: SectionKind.host, writer: host.version, payload: writer.bytes, name: "host")
        return try file([first] + sections.map(\.bytes) + others.map(\.bytes))
    }

    private static func file(_ sections: [[UInt8]]) throws(SavedStateError) -> [UInt8] {
        guard sections.count <= SavedLimits.sectionCount else {
            throw .tooLarge(
                section: "file", what: "sections", count: sections.count,
                limit: SavedLimits.sectionCount)
        }
        var table: [UInt8] = []
        var body: [UInt8] = []
        let start = headerByteCount + sections.count * entryByteCount
        for bytes in sections {
            var entry: [UInt8] = []
            entry.append(little: UInt64(start + body.count))
            entry.append(little: UInt64(bytes.count))
            entry.append(little: UInt32(0))
            entry.append(little: CRC32C.of(entry))
            table += entry
            body += bytes
            body += [UInt8](repeating: 0, count: -body.count & 7)
        }
        var header = magic
        header.append(little: version)
        header.append(little: UInt32(sections.count))
        header.append(little: UInt64(start + body.count))
        header.append(little: UInt32(0))
        header.append(little: CRC32C.of(header))
        guard start + body.count <= SavedLimits.fileByteCount else {
            throw .tooLarge(
                section: "file", what: "bytes", count: start + body.count,
                limit: SavedLimits.fileByteCount)
        }
        return header + table + body
    }

    /// What a file says. Throws when nothing of it can be used; what is wrong with one device is
    /// said of that.
    public static func decode(_ bytes: [UInt8]) throws(SavedStateError) -> SavedFile {
        let count = try sectionCount(bytes)
        guard count > 0 else { throw .damaged(section: "file", what: "it has no sections") }
        let host = try readHost(try section(0, of: count, bytes, name: "host"))
        guard host.deviceNames.count < count else {
            throw .damaged(section: "file", what: "it has fewer sections than devices")
        }
        var devices: [String: Result<SavedDevice, SavedStateError>] = [:]
        var sections: [String: [UInt8]] = [:]
        for (index, name) in host.deviceNames.enumerated() {
            do throws(SavedStateError) {
                let found = Array(try section(index + 1, of: count, bytes, name: name))
                devices[name] = .success(try decode(device: found, name: name))
                sections[name] = found
            } catch { devices[name] = .failure(error) }
        }
        var others: [SavedSection] = []
        for index in (host.deviceNames.count + 1)..<count {
            let name = "section \(index)"
            let found = try section(index, of: count, bytes, name: name)
            let other = try Section(found, name: name)
            // Nothing that is known here comes after the devices.
            guard !other.isRequired else {
                throw .newer(section: name, version: other.version, writer: other.writer)
            }
            others.append(SavedSection(name: "", bytes: Array(found)))
        }
        return SavedFile(host: host, devices: devices, sections: sections, others: others)
    }

    private static func readHost(
        _ bytes: ArraySlice<UInt8>
    ) throws(SavedStateError) -> SavedHost {
        let section = try Section(bytes, name: "host")
        try section.check(is: SectionKind.host, name: "host")
        do throws(FieldProblem) {
            let host = try SavedHost(payload: section.payload)
            try host.check()
            return host
        } catch { throw error.of("host") }
    }

    private static func sectionCount(_ bytes: [UInt8]) throws(SavedStateError) -> Int {
        let header = bytes.prefix(headerByteCount)
        guard header.count == headerByteCount, header.starts(with: magic) else {
            throw .damaged(section: "file", what: "it does not begin like one")
        }
        guard header.little32(28) == CRC32C.of(header.prefix(28)) else {
            throw .damaged(section: "file", what: "the checksum of its header")
        }
        let version = header.little32(8)
        guard version == Self.version else {
            throw .newer(section: "file", version: version, writer: "")
        }
        let count = header.little32(12)
        guard count <= UInt32(SavedLimits.sectionCount) else {
            throw .tooLarge(
                section: "file", what: "sections", count: Int(count),
                limit: SavedLimits.sectionCount)
        }
        // What is missing at the end costs the sections that lay there.
        guard UInt64(bytes.count) <= header.little64(16) else {
            throw .damaged(
                section: "file",
                what: "it has \(bytes.count) bytes, not the \(header.little64(16)) it says")
        }
        return Int(count)
    }

    /// The bytes of a section, as its entry of the table says.
    private static func section(
        _ index: Int, of count: Int, _ bytes: [UInt8], name: String
    ) throws(SavedStateError) -> ArraySlice<UInt8> {
        let entry = bytes.dropFirst(headerByteCount + index * entryByteCount)
            .prefix(entryByteCount)
        guard entry.count == entryByteCount, entry.little32(20) == CRC32C.of(entry.prefix(20))
        else { throw .damaged(section: name, what: "its place in the file") }
        let (offset, length) = (entry.little64(0), entry.little64(8))
        guard offset >= UInt64(headerByteCount + count * entryByteCount),
            offset <= UInt64(bytes.count), length <= UInt64(bytes.count) - offset
        else { throw .damaged(section: name, what: "it lies outside of the file") }
        return bytes[Int(offset)..<(Int(offset) + Int(length))]
    }
}
