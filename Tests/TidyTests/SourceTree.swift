// SPDX-License-Identifier: Apache-2.0
// The source tree this test was built from, as text.

import Foundation
import Testing

/// One file of the repository.
struct SourceFile: Sendable, CustomTestStringConvertible {
    /// The path from the top of the repository.
    let path: String
    let lines: [String]

    init(path: String, text: String) {
        self.path = path
        lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
    }

    var name: String { path.split(separator: "/").last.map(String.init) ?? path }
    var isSwift: Bool { path.hasSuffix(".swift") }
    var isHeader: Bool { path.hasSuffix(".h") }
    var isC: Bool { path.hasSuffix(".c") || isHeader }
    /// Made by protoc-c.
    var isGenerated: Bool { path.contains(".pb-c.") }
    var isSource: Bool { path.hasPrefix("Sources/") }
    /// The module of a file below Sources, else nil.
    var module: String? {
        let parts = path.split(separator: "/")
        return isSource && parts.count > 2 ? String(parts[1]) : nil
    }

    var testDescription: String { path }
}

/// A line that breaks a rule.
struct Violation: CustomStringConvertible {
    let path: String
    let line: Int
    let what: String

    var description: String { "\(path):\(line): \(what)" }
}

enum SourceTree {
    /// The top of the repository, two directories above this one.
    static let root: URL = URL(filePath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    /// Every text file that people write, in the order of their paths.
    static let files: [SourceFile] = {
        let directories = ["Sources", "Tests", "Proto", "Units", ".ci"]
        let found = directories.flatMap { contents(of: $0) }
        let top = ["Package.swift", "Makefile", "README.md", ".swift-format", ".gitignore"]
        return (found + top).sorted().compactMap { read($0) }
    }()

    static var swift: [SourceFile] { files.filter(\.isSwift) }

    private static func contents(of directory: String) -> [String] {
        let start = root.appending(path: directory)
        guard let all = FileManager.default.enumerator(atPath: start.path) else { return [] }
        return all.compactMap { ($0 as? String).map { "\(directory)/\($0)" } }
    }

    private static func read(_ path: String) -> SourceFile? {
        let url = root.appending(path: path)
        guard let text = try? String(contentsOf: url, encoding: .utf8) else { return nil }
        return SourceFile(path: path, text: text)
    }

    /// What git keeps at the top, or what lies there if this is no repository.
    static func topLevelNames() throws -> Set<String> {
        if FileManager.default.fileExists(atPath: root.appending(path: ".git").path) {
            // Git refuses repositories of somebody else; then what lies there counts.
            let listing = try run("git", ["ls-files", "--cached"])
            guard listing.status == 0 else { return try directoryNames() }
            return Set(
                listing.output.split(separator: "\n").compactMap { $0.split(separator: "/").first }
                    .map(String.init))
        }
        return try directoryNames()
    }

    private static func directoryNames() throws -> Set<String> {
        Set(try FileManager.default.contentsOfDirectory(atPath: root.path))
    }

    /// Runs a program at the top of the repository to its end.
    static func run(
        _ program: String, _ arguments: [String], path: String? = nil
    ) throws -> (status: Int32, output: String) {
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/env")
        process.arguments = [program] + arguments
        process.currentDirectoryURL = root
        if let path { process.environment = ["PATH": path] }
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = pipe
        try process.run()
        let output = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return (process.terminationStatus, String(decoding: output, as: UTF8.self))
    }
}
