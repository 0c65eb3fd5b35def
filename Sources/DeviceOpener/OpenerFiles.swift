// SPDX-License-Identifier: Apache-2.0
// The configuration, read anew for every request: it is what an operator last wrote that counts.

internal import DiskConfig
internal import Linux

/// Reads the configuration's files.
enum OpenerFiles {
    /// The configuration in directories that rise in precedence.
    static func configuration(_ directories: [String]) -> Configuration {
        ConfigLoader.configuration(
            directories.isEmpty ? ConfigLoader.standardDirectories : directories,
            access: ConfigFileAccess(
                isMissing: { (error: SystemCallError) in error.errno == Errno.noEntry },
                list: Files.list, read: Files.read),
            // Who may open disks is none of the opener's business.
            lookup: NameLookup(user: { _ in 0 }, group: { _ in 0 }))
    }
}
