// SPDX-License-Identifier: Apache-2.0
// Which files make up one entry: its main file and its drop-ins, as systemd does it.
//
// The main file is the one of the highest directory; an empty one masks the entry. Drop-ins of all
// directories are read after it in the order of their names, and a name in a higher directory
// replaces the same one in a lower.

/// The kind of an entry, from the file's name.
enum ConfigKind: Sendable, Hashable {
    case supervisor, device, disk

    var section: String {
        switch self {
        case .supervisor: "Supervisor"
        case .device: "Device"
        case .disk: "Disk"
        }
    }
}

/// An entry and its assignments, later ones win.
struct ConfigUnit {
    var kind: ConfigKind
    var name: String
    var location: ConfigLocation
    var assignments: [INIFile.Assignment]
    var problems: [ConfigProblem]

    /// The kind and the name that a file's name says.
    static func identify(_ fileName: String) -> (kind: ConfigKind, name: String)? {
        if fileName == "nvmed.conf" { return (.supervisor, "nvmed") }
        if fileName.hasSuffix(".device") { return (.device, String(fileName.dropLast(7))) }
        if fileName.hasSuffix(".disk") { return (.disk, String(fileName.dropLast(5))) }
        return nil
    }

    /// Groups files into entries, by file name. Devices come before disks.
    static func group(
        _ files: [ConfigSourceFile], problems: inout [ConfigProblem]
    ) -> [ConfigUnit] {
        var mains: [String: ConfigSourceFile] = [:]
        var dropIns: [String: [String: ConfigSourceFile]] = [:]
        for file in files {
            let parts = file.relativePath.split(separator: "/", omittingEmptySubsequences: false)
            if parts.count == 1 {
                let old = mains[file.relativePath]
                if (old?.directory ?? -1) <= file.directory { mains[file.relativePath] = file }
            } else if parts.count == 2, parts[0].hasSuffix(".d"), parts[1].hasSuffix(".conf") {
                let owner = String(parts[0].dropLast(2))
                let name = String(parts[1])
                let old = dropIns[owner]?[name]
                if (old?.directory ?? -1) <= file.directory {
                    dropIns[owner, default: [:]][name] = file
                }
            }
        }
        for owner in dropIns.keys.sorted() where mains[owner] == nil && owner != "nvmed.conf" {
            guard let first = dropIns[owner]?.values.first else { continue }
            problems.append(
                ConfigProblem(
                    .warning, ConfigLocation(file: first.path, line: 0),
                    "there is no \(owner) to which this drop-in could belong; it is ignored"))
        }
        var names = Set(mains.keys)
        if dropIns["nvmed.conf"] != nil { names.insert("nvmed.conf") }
        // Disks last: they name devices.
        let order = names.sorted {
            ($0.hasSuffix(".disk") ? 1 : 0, $0) < ($1.hasSuffix(".disk") ? 1 : 0, $1)
        }
        return order.compactMap { unit($0, mains[$0], dropIns[$0] ?? [:], &problems) }
    }

    private static func unit(
        _ fileName: String, _ main: ConfigSourceFile?, _ dropIns: [String: ConfigSourceFile],
        _ problems: inout [ConfigProblem]
    ) -> ConfigUnit? {
        guard let (kind, name) = identify(fileName) else { return nil }
        let location = ConfigLocation(file: main?.path ?? fileName, line: 0)
        guard ConfigValue.isName(name) else {
            problems.append(
                ConfigProblem(
                    .error, location,
                    "'\(name.shortened)' cannot be a name; rename the file to at most "
                        + "\(ConfigLimits.nameByteCount) of A-Z a-z 0-9 _ . : -"))
            return nil
        }
        var unit = ConfigUnit(
            kind: kind, name: name, location: location, assignments: [], problems: [])
        var parts = dropIns.keys.sorted().compactMap { dropIns[$0] }
        if let main { parts.insert(main, at: 0) }
        for (index, part) in parts.enumerated() {
            let file = INIFile.parse(part.bytes, path: part.path)
            if index == 0, main != nil, file.isMask { return nil }
            unit.assignments += file.assignments
            unit.problems += file.problems
            if file.problems.isEmpty { unit.warnAboutRepeats(file) }
        }
        return unit
    }

    /// Warns where one file assigns a key twice and the key is no list.
    private mutating func warnAboutRepeats(_ file: INIFile) {
        var seen: [String: Int] = [:]
        for assignment in file.assignments where !ConfigurationReader.isList(assignment.key) {
            let id = "\(assignment.section)/\(assignment.key)"
            if let line = seen[id], !assignment.value.isEmpty {
                problems.append(
                    ConfigProblem(
                        .warning, assignment.location, key: assignment.key,
                        "assigned before in line \(line); this one counts. Remove one"))
            }
            seen[id] = assignment.location.line
        }
    }
}
