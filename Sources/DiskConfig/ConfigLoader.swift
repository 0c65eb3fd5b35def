// SPDX-License-Identifier: Apache-2.0
// Finds the configuration files in a list of directories. How files are read is the caller's.

/// Access to files; the supervisor gives the real one, tests give their own.
public struct ConfigFileAccess {
    /// What became of reading.
    public enum Outcome<Value> {
        /// It was read.
        case read(Value)
        /// There is no such file or directory.
        case missing
        /// It failed; why, in words.
        case failed(String)
    }

    /// The names in a directory, sorted, without hidden ones; at most one more than the limit.
    public var list: (_ directory: String, _ limit: Int) -> Outcome<[String]>
    /// The bytes of a file; at most one more than the limit.
    public var read: (_ path: String, _ limit: Int) -> Outcome<[UInt8]>

    /// Reads with two functions.
    public init(
        list: @escaping (_ directory: String, _ limit: Int) -> Outcome<[String]>,
        read: @escaping (_ path: String, _ limit: Int) -> Outcome<[UInt8]>
    ) {
        self.list = list
        self.read = read
    }

    /// Reads with two functions that throw; `isMissing` knows the error of what is not there.
    public init<Failure: Error>(
        isMissing: @escaping (Failure) -> Bool,
        list: @escaping (_ directory: String, _ limit: Int) throws(Failure) -> [String],
        read: @escaping (_ path: String, _ limit: Int) throws(Failure) -> [UInt8]
    ) {
        self.list = { directory, limit in
            do throws(Failure) { return .read(try list(directory, limit)) } catch {
                return isMissing(error) ? .missing : .failed("\(error)")
            }
        }
        self.read = { path, limit in
            do throws(Failure) { return .read(try read(path, limit)) } catch {
                return isMissing(error) ? .missing : .failed("\(error)")
            }
        }
    }
}

/// Loads the files of configuration directories.
public struct ConfigLoader {
    /// The directories in rising precedence.
    public static let standardDirectories = ["/usr/lib/nvmed", "/run/nvmed", "/etc/nvmed"]

    private let access: ConfigFileAccess
    private var files: [ConfigSourceFile] = []
    private var problems: [ConfigProblem] = []

    private init(_ access: ConfigFileAccess) { self.access = access }

    /// Loads and parses the files of `directories`, which rise in precedence. Missing ones are
    /// skipped; what cannot be read becomes a problem.
    public static func configuration(
        _ directories: [String] = standardDirectories, access: ConfigFileAccess,
        lookup: NameLookup
    ) -> Configuration {
        var loader = ConfigLoader(access)
        for (rank, directory) in directories.enumerated() { loader.load(directory, rank) }
        var configuration = Configuration.parse(loader.files, lookup: lookup)
        configuration.problems.insert(contentsOf: loader.problems, at: 0)
        return configuration
    }

    private mutating func load(_ directory: String, _ rank: Int) {
        for name in list(directory) {
            if ConfigUnit.identify(name) != nil {
                read(rank, directory, name)
            } else if name.hasSuffix(".d"), ConfigUnit.identify(String(name.dropLast(2))) != nil {
                for dropIn in list("\(directory)/\(name)") where dropIn.hasSuffix(".conf") {
                    read(rank, directory, "\(name)/\(dropIn)")
                }
            }
        }
    }

    private mutating func complain(_ path: String, _ message: String) {
        guard problems.count < ConfigLimits.problemCount else { return }
        problems.append(ConfigProblem(.error, ConfigLocation(file: path, line: 0), message))
    }

    private mutating func list(_ path: String) -> [String] {
        switch access.list(path, ConfigLimits.fileCount) {
        case .missing: return []
        case .failed(let reason):
            complain(path, "cannot be listed (\(reason)); its files are ignored")
            return []
        case .read(let names):
            guard names.count > ConfigLimits.fileCount else { return names }
            complain(path, "has more than \(ConfigLimits.fileCount) files; some are ignored")
            return Array(names.prefix(ConfigLimits.fileCount))
        }
    }

    private mutating func read(_ rank: Int, _ directory: String, _ name: String) {
        let path = "\(directory)/\(name)"
        switch access.read(path, ConfigLimits.fileByteCount) {
        case .missing: break
        case .failed(let reason): complain(path, "cannot be read (\(reason)); it is ignored")
        case .read(let bytes):
            files.append(
                ConfigSourceFile(directory: rank, relativePath: name, path: path, bytes: bytes))
        }
    }
}
