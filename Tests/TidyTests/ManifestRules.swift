// SPDX-License-Identifier: Apache-2.0
// Which module may depend on which: dependencies point down only, from a floor to a lower one.

/// The targets that Package.swift declares, read as text.
struct Manifest {
    /// The names of the dependencies of each target.
    let dependencies: [String: [String]]

    init(text: String) {
        var found: [String: [String]] = [:]
        let lines = text.split(separator: "\n").map { Rules.comment(removedFrom: String($0)) }
        let calls = (" " + lines.joined(separator: " ")).split(
            separator: #/\b(module|program|tests)\(\s*"/#)
        for call in calls.dropFirst() {
            let words = call.prefix { $0 != "]" }.split(separator: "\"").map(String.init)
            guard let name = words.first else { continue }
            let list = call.contains("[") ? Self.quoted(in: call) : []
            found[name] = list
        }
        dependencies = found
    }

    /// The names in the first brackets after the target's own name.
    private static func quoted(in call: Substring) -> [String] {
        let ownName = call.prefix { $0 != "\"" }
        let rest = call.dropFirst(ownName.count + 1)
        // A target without dependencies ends before any bracket opens.
        guard let first = rest.first(where: { $0 != " " && $0 != "," && $0 != "\n" }), first == "["
        else { return [] }
        let list = rest.drop { $0 != "[" }.dropFirst().prefix { $0 != "]" }
        return list.split(separator: "\"", omittingEmptySubsequences: false).enumerated()
            .filter { $0.offset % 2 == 1 }.map { String($0.element) }
    }
}

extension Rules {
    /// A line without its comment; text in quotes stays.
    static func comment(removedFrom line: String) -> String {
        let trimmed = line.drop { $0 == " " }
        return trimmed.hasPrefix("//") ? "" : line
    }

    /// The floor of each module; a module may only use modules of lower floors.
    static let floors: [String: Int] = [
        "CMemory": 0, "CRing": 0, "CStatistics": 0, "CLinux": 0, "CSystemd": 0, "CProtobufC": 0,
        "CVersion": 0,
        "CSystemdShim": 1, "CWire": 1,
        "NVMeSpec": 1, "DiskConfig": 1, "Linux": 1,
        "VFIO": 2, "PCI": 2, "Systemd": 2, "Wire": 2, "SavedState": 2,
        "DMA": 3, "NullDevice": 3, "ServiceManager": 3, "NVMeEmulator": 3, "NVMeClient": 3,
        "NVMeDriver": 4,
        "Worker": 5, "Supervisor": 5, "DeviceOpener": 5,
        "nvmed": 6, "nvmed-worker": 6, "nvmed-opener": 6, "nvmed-emulator": 6, "nvmectl": 6,
        "nvmed-bench": 6,
    ]

    /// Modules of values only: no dependencies at all.
    static let pureModules: Set = ["NVMeSpec", "DiskConfig"]

    /// Modules that may touch memory, descriptors or C. Everything else has to stay safe.
    static let modulesAllowedUnsafe: Set = [
        "Linux", "VFIO", "NullDevice", "DMA", "NVMeDriver", "NVMeEmulator", "Systemd",
        "ServiceManager", "Wire", "SavedState",
        "Worker", "NVMeClient", "nvmed-bench",
    ]

    /// Files of other modules that may.
    static let filesAllowedUnsafe: Set = [
        // The one door of its module to the file system.
        "Sources/DiskConfig/ConfigLoader.swift"
    ]

    static func dependencyViolations(_ manifest: Manifest) -> [String] {
        manifest.dependencies.sorted { $0.key < $1.key }.flatMap { name, dependencies in
            dependencies.compactMap { violation(of: name, using: $0) }
        }
    }

    private static func violation(of name: String, using dependency: String) -> String? {
        guard !name.hasSuffix("Tests"), dependency != "swift-argument-parser" else { return nil }
        if dependency == "ArgumentParser" {
            return name == "nvmectl" ? nil : "\(name) may not use ArgumentParser"
        }
        guard let floor = floors[name] else { return "\(name) has no floor in ManifestRules" }
        guard let lower = floors[dependency] else { return "\(dependency) has no floor" }
        if pureModules.contains(name) { return "\(name) may depend on nothing" }
        return lower < floor ? nil : "\(name) may not depend on \(dependency): same floor or above"
    }
}
