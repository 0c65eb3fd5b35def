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
                list: { directory, limit in
                    outcome { () throws(SystemCallError) in
                        try Files.list(directory, limit: limit)
                    }
                },
                read: { path, limit in
                    outcome { () throws(SystemCallError) in try Files.read(path, limit: limit) }
                }),
            // Who may open disks is none of the opener's business.
            lookup: NameLookup(user: { _ in 0 }, group: { _ in 0 }))
    }

    private static func outcome<Value>(
        _ body: () throws(SystemCallError) -> Value
    ) -> ConfigFileAccess.Outcome<Value> {
        do {
            return .read(try body())
        } catch {
            return error.errno == Errno.noEntry ? .missing : .failed("\(error)")
        }
    }
}
