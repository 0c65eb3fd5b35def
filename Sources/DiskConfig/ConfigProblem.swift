// SPDX-License-Identifier: Apache-2.0
// What is wrong or odd about configuration, with its place.

/// A place in a configuration file.
public struct ConfigLocation: Sendable, Hashable, CustomStringConvertible {
    /// The path of the file.
    public var file: String
    /// The line, from 1; 0 means the file as a whole.
    public var line: Int

    /// Names a place.
    public init(file: String, line: Int) {
        self.file = file
        self.line = line
    }

    /// `file:line`, or `file`.
    public var description: String { line > 0 ? "\(file):\(line)" : file }
}

/// Something wrong (it takes the entry away) or odd (it does not) about configuration.
public struct ConfigProblem: Sendable, Hashable, CustomStringConvertible {
    /// How bad it is.
    public enum Severity: String, Sendable, Hashable {
        /// The entry cannot be used.
        case error
        /// The entry is used; somebody should look.
        case warning
    }

    /// How bad it is.
    public var severity: Severity
    /// Where.
    public var location: ConfigLocation
    /// The key, where one is to blame.
    public var key: String?
    /// What is wrong and what to do.
    public var message: String

    /// Describes a problem.
    public init(
        _ severity: Severity, _ location: ConfigLocation, key: String? = nil, _ message: String
    ) {
        self.severity = severity
        self.location = location
        self.key = key
        self.message = message
    }

    /// `file:line: error: Key=: message`.
    public var description: String {
        "\(location): \(severity.rawValue): " + (key.map { "\($0)=: " } ?? "") + message
    }
}
