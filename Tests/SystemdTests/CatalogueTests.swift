// SPDX-License-Identifier: Apache-2.0
// The message catalogue and the events of the code are the same.

import Foundation
import Testing

@testable import Systemd

/// An entry of the catalogue.
private struct Entry {
    var id: String
    var lines: [String] = []

    func value(_ name: String) -> String? {
        lines.first { $0.hasPrefix("\(name): ") }.map { String($0.dropFirst(name.count + 2)) }
    }

    var text: String {
        lines.drop { !$0.isEmpty }.joined(separator: "\n").trimmingCharacters(in: .newlines)
    }
}

@Suite("The message catalogue")
struct CatalogueTests {
    private static let path =
        URL(filePath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent().path + "/Units/nvmed.catalog"

    private let entries: [Entry]

    init() throws {
        let text = try String(contentsOfFile: Self.path, encoding: .utf8)
        entries = text.split(separator: "\n-- ").dropFirst().map { part in
            let lines = part.split(separator: "\n", omittingEmptySubsequences: false).map(
                String.init)
            return Entry(id: lines[0], lines: Array(lines.dropFirst()))
        }
    }

    @Test("every event has one entry, and every entry its event")
    func complete() {
        #expect(entries.map(\.id).sorted() == LogEvent.allCases.map(\.rawValue).sorted())
    }

    @Test("identities are 128 random bits", arguments: LogEvent.allCases)
    func identity(event: LogEvent) {
        #expect(
            event.rawValue.wholeMatch(of: #/[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}/#) != nil)
    }

    @Test("every entry says what happened and what to do")
    func contents() {
        for entry in entries {
            #expect(entry.value("Subject") != nil, "\(entry.id)")
            #expect(entry.value("Defined-By") == "nvmed", "\(entry.id)")
            #expect(entry.text.count > 20, "\(entry.id)")
        }
    }

    @Test("fields that are filled in are those that the log has")
    func fields() {
        let names = entries.flatMap(\.lines).flatMap { $0.matches(of: #/@([A-Z_]+)@/#) }
            .map { String($0.1) }
        #expect(Set(names) == ["NVME_DEVICE", "NVME_QUEUE", "NVME_NSID"])
    }

    @Test(
        "journalctl reads it",
        .enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/journalctl")))
    func accepted() throws {
        let root = URL.temporaryDirectory.appending(path: "nvc-\(UUID().uuidString)")
        let directory = root.appending(path: "usr/lib/systemd/catalog")
        defer { try? FileManager.default.removeItem(at: root) }
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        try FileManager.default.createDirectory(
            at: root.appending(path: "var/lib/systemd/catalog"), withIntermediateDirectories: true)
        try FileManager.default.copyItem(
            atPath: Self.path, toPath: directory.appending(path: "nvmed.catalog").path)
        let update = try journalctl("--root=\(root.path)", "--update-catalog")
        let list = try journalctl("--root=\(root.path)", "--list-catalog")
        #expect(update.status == 0, "\(update.output)")
        #expect(list.output.contains(LogEvent.deviceFailed.rawValue))
        #expect(list.output.split(separator: "\n").count == LogEvent.allCases.count)
    }

    private func journalctl(_ arguments: String...) throws -> (status: Int32, output: String) {
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/journalctl")
        process.arguments = arguments
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = pipe
        try process.run()
        let output = try pipe.fileHandleForReading.readToEnd() ?? Data()
        process.waitUntilExit()
        return (process.terminationStatus, String(decoding: output, as: UTF8.self))
    }
}
