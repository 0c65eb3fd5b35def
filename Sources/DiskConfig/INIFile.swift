// SPDX-License-Identifier: Apache-2.0
// The syntax of configuration files: systemd.syntax(7) as far as it is used here.

/// Bounds of configuration, each far above any honest use and small enough to refuse a wrong file
/// fast.
public enum ConfigLimits {
    /// The most bytes of a file.
    public static let fileByteCount = 1 << 20
    /// The most lines of a file.
    public static let lineCount = 10_000
    /// The most bytes of a value, continuation lines joined.
    public static let valueByteCount = 4096
    /// The most words of a list.
    public static let listCount = 256
    /// The most files of one directory.
    public static let fileCount = 4096
    /// The most devices: each costs a worker process, and a saved state has room for so many.
    public static let deviceCount = 1000
    /// The most problems told; a broken file would otherwise fill the log.
    public static let problemCount = 256
    /// The most bytes of a device's or disk's name.
    public static let nameByteCount = 64
    /// The most bytes of a path: PATH_MAX of Linux with its NUL is 4096.
    public static let pathByteCount = 4095
}

/// The assignments of one file, in order.
public struct INIFile: Sendable, Hashable {
    /// One `Key=value` line.
    public struct Assignment: Sendable, Hashable {
        /// The section it is in; empty before the first.
        public var section: String
        /// The key.
        public var key: String
        /// The value without surrounding blanks.
        public var value: String
        /// Where it begins.
        public var location: ConfigLocation
    }

    /// The path of the file, for messages.
    public var path: String
    /// The assignments, in order.
    public var assignments: [Assignment] = []
    /// What is wrong with the syntax.
    public var problems: [ConfigProblem] = []
    /// The file is empty: it masks files of the same name in directories of lower precedence.
    public var isMask = false

    /// Parses the bytes of a file. Never fails: what cannot be read becomes a problem. Fuzzed.
    public static func parse(_ bytes: [UInt8], path: String) -> INIFile {
        var file = INIFile(path: path)
        guard bytes.count <= ConfigLimits.fileByteCount else {
            file.problem(
                0,
                "the file has \(bytes.count) bytes; at most \(ConfigLimits.fileByteCount) are "
                    + "read. Is it a configuration file?")
            return file
        }
        file.isMask = bytes.isEmpty
        var parser = LineParser(file: file)
        var number = 0
        for line in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false) {
            number += 1
            guard number <= ConfigLimits.lineCount else {
                parser.file.problem(
                    number, "the file has more than \(ConfigLimits.lineCount) lines; split it")
                break
            }
            parser.take(line, number)
        }
        parser.finish()
        return parser.file
    }

    fileprivate mutating func problem(_ line: Int, _ message: String) {
        guard problems.count < ConfigLimits.problemCount else { return }
        problems.append(ConfigProblem(.error, ConfigLocation(file: path, line: line), message))
    }
}

/// Collects lines into assignments.
private struct LineParser {
    var file: INIFile
    private var section = ""
    /// A line that ended with a backslash, and where it began.
    private var pending: (text: String, line: Int)?

    init(file: INIFile) { self.file = file }

    mutating func take(_ bytes: ArraySlice<UInt8>, _ number: Int) {
        guard !bytes.contains(0), let raw = String(validating: bytes, as: UTF8.self) else {
            return file.problem(number, "the line is not UTF-8 text without NUL; rewrite it")
        }
        let line = raw.trimmedBlanks
        // As in systemd, a comment between continued lines does not end them.
        if line.hasPrefix("#") || line.hasPrefix(";") { return }
        let isContinued = line.hasSuffix("\\")
        let text = isContinued ? String(line.dropLast()).trimmedBlanks : line
        let start = pending?.line ?? number
        let joined = pending.map { $0.text.isEmpty ? text : "\($0.text) \(text)" } ?? text
        guard joined.utf8.count <= ConfigLimits.valueByteCount else {
            pending = nil
            return file.problem(
                start, "the line is longer than \(ConfigLimits.valueByteCount) bytes; shorten it")
        }
        if isContinued {
            pending = (joined, start)
        } else {
            pending = nil
            finishLine(joined, start)
        }
    }

    mutating func finish() {
        if let pending { finishLine(pending.text, pending.line) }
        pending = nil
    }

    private mutating func finishLine(_ line: String, _ number: Int) {
        if line.isEmpty { return }
        if line.hasPrefix("[") {
            guard line.hasSuffix("]"), line.utf8.count > 2 else {
                return file.problem(
                    number,
                    "'\(line.shortened)' is not a section; write [Device], [Disk] or "
                        + "[Supervisor]")
            }
            section = String(line.dropFirst().dropLast())
            return
        }
        guard let equals = line.firstIndex(of: "=") else {
            return file.problem(
                number,
                "'\(line.shortened)' is not an assignment; write Key=value, or # before a "
                    + "comment")
        }
        let key = String(line[..<equals]).trimmedBlanks
        guard !key.isEmpty else {
            return file.problem(number, "there is no key before '='; write Key=value")
        }
        file.assignments.append(
            INIFile.Assignment(
                section: section, key: key,
                value: String(line[line.index(after: equals)...]).trimmedBlanks,
                location: ConfigLocation(file: file.path, line: number)))
    }
}

extension String {
    /// Without blanks (space, tab, carriage return) at either end.
    var trimmedBlanks: String {
        let isBlank = { (byte: UInt8) in byte == 32 || byte == 9 || byte == 13 }
        guard let first = utf8.firstIndex(where: { !isBlank($0) }),
            let last = utf8.lastIndex(where: { !isBlank($0) })
        else { return "" }
        return String(self[first...last])
    }

    /// At most 64 characters, for messages.
    var shortened: String { count > 64 ? "\(prefix(64))…" : self }

    /// The words between blanks.
    var words: [String] {
        utf8.split { $0 == 32 || $0 == 9 }.map { String(decoding: $0, as: UTF8.self) }
    }
}
