// SPDX-License-Identifier: Apache-2.0
// Reads the configuration from the file system, with the names of this system's users and groups.

public import DiskConfig
internal import Linux
internal import Wire

/// The configuration as the files have it.
public enum ConfigurationFiles {
    /// The directories in rising precedence, unless the command line names one.
    public static let standardDirectories = ConfigLoader.standardDirectories

    /// Reads all files. Problems are part of the value.
    ///
    /// The standard directories may be missing; one that somebody named may not.
    public static func read(_ directories: [String]) -> Configuration {
        var configuration = ConfigLoader.configuration(directories, access: access, lookup: lookup)
        guard directories != standardDirectories else { return configuration }
        for directory in directories {
            guard case .missing = access.list(directory, 1) else { continue }
            configuration.problems.insert(
                ConfigProblem(
                    .error, ConfigLocation(file: directory, line: 0),
                    "there is no such directory; make it or correct --config"), at: 0)
        }
        return configuration
    }

    /// Reads all files; one that is wrong is an error that says where.
    static func plan(_ directories: [String]) throws(WireError) -> Plan {
        let configuration = read(directories)
        let errors = configuration.problems.filter { $0.severity == .error }
        guard errors.isEmpty else {
            let told = errors.prefix(8).map(\.description).joined(separator: "\n")
            let rest = errors.count > 8 ? "\nand \(errors.count - 8) more" : ""
            throw WireError(.invalidArgument, "the configuration stays as it was: \(told)\(rest)")
        }
        return Plan(configuration)
    }

    private static var lookup: NameLookup {
        NameLookup(user: { Accounts.user(named: $0) }, group: { Accounts.group(named: $0) })
    }

    private static var access: ConfigFileAccess {
        ConfigFileAccess(
            isMissing: { (error: SystemCallError) in error.errno == Errno.noEntry },
            list: Files.list, read: Files.read)
    }
}
