// SPDX-License-Identifier: Apache-2.0
// Reads configuration files; the only part of this module that touches the file system.

internal import Glibc

/// Loads the files of configuration directories.
public enum ConfigLoader {
    /// The directories in rising precedence.
    public static let standardDirectories = ["/usr/lib/nvmed", "/run/nvmed", "/etc/nvmed"]

    /// The configuration files of `directories`, which rise in precedence. Missing ones are skipped;
    /// what cannot be read becomes a problem.
    public static func load(
        _ directories: [String]
    ) -> (files: [ConfigSourceFile], problems: [ConfigProblem]) {
        var files: [ConfigSourceFile] = []
        var problems: [ConfigProblem] = []
        for (rank, directory) in directories.enumerated() {
            for name in list(directory, &problems) {
                if ConfigUnit.identify(name) != nil {
                    read(rank, directory, name, &files, &problems)
                } else if name.hasSuffix(".d"),
                    ConfigUnit.identify(String(name.dropLast(2))) != nil
                {
                    let dropIns = list("\(directory)/\(name)", &problems)
                    for dropIn in dropIns where dropIn.hasSuffix(".conf") {
                        read(rank, directory, "\(name)/\(dropIn)", &files, &problems)
                    }
                }
            }
        }
        return (files, problems)
    }

    /// Loads and parses.
    public static func configuration(
        _ directories: [String] = standardDirectories, lookup: NameLookup
    ) -> Configuration {
        let (files, problems) = load(directories)
        var configuration = Configuration.parse(files, lookup: lookup)
        configuration.problems.insert(contentsOf: problems, at: 0)
        return configuration
    }

    private static func complain(
        _ path: String, _ message: String, _ problems: inout [ConfigProblem]
    ) {
        problems.append(
            ConfigProblem(.error, ConfigLocation(file: path, line: 0), message))
    }

    /// The names in a directory, sorted, without those that begin with a dot.
    private static func list(_ path: String, _ problems: inout [ConfigProblem]) -> [String] {
        guard let directory = unsafe opendir(path) else {
            let error = errno
            if error != ENOENT && error != ENOTDIR {
                complain(
                    path, "cannot be listed: \(unsafe String(cString: strerror(error)))", &problems)
            }
            return []
        }
        defer { _ = unsafe closedir(directory) }
        var names: [String] = []
        while let entry = unsafe readdir(directory) {
            let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) {
                unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name.hasPrefix(".") { continue }
            guard names.count < ConfigLimits.fileCount else {
                complain(
                    path, "has more than \(ConfigLimits.fileCount) files; the rest is ignored",
                    &problems)
                break
            }
            names.append(name)
        }
        return names.sorted()
    }

    private static func read(
        _ rank: Int, _ directory: String, _ name: String, _ files: inout [ConfigSourceFile],
        _ problems: inout [ConfigProblem]
    ) {
        let path = "\(directory)/\(name)"
        // Not blocking: a FIFO in the directory must not hang the supervisor.
        let fd = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard fd >= 0 else {
            return complain(
                path, "cannot be opened: \(unsafe String(cString: strerror(errno)))", &problems)
        }
        defer { _ = close(fd) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 16384)
        while bytes.count <= ConfigLimits.fileByteCount {
            let count = unsafe Glibc.read(fd, &chunk, chunk.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else {
                return complain(
                    path, "cannot be read: \(unsafe String(cString: strerror(errno)))", &problems)
            }
            if count == 0 { break }
            bytes += chunk.prefix(count)
        }
        files.append(
            ConfigSourceFile(directory: rank, relativePath: name, path: path, bytes: bytes))
    }
}
