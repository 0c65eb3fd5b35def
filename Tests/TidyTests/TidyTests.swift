// SPDX-License-Identifier: Apache-2.0
// The house rules, held against the whole source tree.

import Testing

@Suite("House rules")
struct TidyTests {
    static let written = SourceTree.files.filter { !$0.isGenerated }
    static let sources = written.filter(\.isSource)

    /// Files that may end the process, and why.
    static let mayTrap: Set = [
        // A thread of its own has nobody to throw to; tests use it, and want the message.
        "Sources/Systemd/EventLoop.swift"
    ]

    private func expectNone(_ violations: [Violation]) {
        // Compared as a count, because the failure would show the list twice.
        let count = violations.count
        #expect(count == 0, "\n\(violations.map(\.description).joined(separator: "\n"))")
    }

    @Test("the tree is found")
    func found() {
        #expect(SourceTree.files.count > 50)
        #expect(SourceTree.files.contains { $0.path == "Package.swift" })
    }

    @Test("each file opens with its license, and says what it is")
    func opening() {
        let licensed = Self.written.filter {
            $0.isSwift || $0.isC || $0.path.hasSuffix(".proto") || $0.path.hasPrefix(".ci/")
                || $0.path == "Makefile"
        }
        expectNone(licensed.flatMap(Rules.license))
        expectNone(Self.sources.filter(\.isSwift).flatMap(Rules.opening))
    }

    @Test("no line is wider than its language allows")
    func columns() {
        expectNone(
            SourceTree.swift.flatMap {
                Rules.longLines($0, limit: Rules.maximumSwiftColumnCount)
            })
        expectNone(
            Self.written.filter(\.isC).flatMap {
                Rules.longLines($0, limit: Rules.maximumCColumnCount)
            })
    }

    @Test("no function and no file is longer than a reader can hold")
    func lengths() {
        expectNone(SourceTree.swift.flatMap(Rules.longSwiftFunctions))
        expectNone(Self.written.filter(\.isC).flatMap(Rules.longCFunctions))
        expectNone(Self.written.filter { $0.isSwift || $0.isC }.flatMap(Rules.longFile))
    }

    @Test("no program and no library uses Foundation or Dispatch")
    func foundation() {
        expectNone(
            Self.sources.flatMap {
                Rules.code($0, matching: Forbidden.foundation, "starts threads and costs memory")
            })
    }

    @Test("only nvmectl parses arguments with ArgumentParser")
    func argumentParser() {
        expectNone(
            Self.sources.filter { $0.module != "nvmectl" }.flatMap {
                Rules.code($0, matching: Forbidden.argumentParser, "belongs to nvmectl")
            })
    }

    @Test("nothing in the sources waits by sleeping")
    func sleeping() {
        expectNone(
            Self.sources.flatMap {
                Rules.code($0, matching: Forbidden.waits, "wait for an event or a timer instead")
            })
    }

    @Test("nothing in the sources asks for a trap")
    func traps() {
        expectNone(
            Self.sources.filter { $0.isSwift && !Self.mayTrap.contains($0.path) }.flatMap {
                Rules.code($0, matching: Forbidden.traps, "throw, or say precondition and why")
            })
    }

    @Test("headers leave the feature macros alone")
    func headers() {
        expectNone(
            Self.sources.filter(\.isHeader).flatMap {
                Rules.code(
                    $0, matching: Forbidden.featureMacro,
                    "breaks the Glibc module; define it in the .c file")
            })
    }

    @Test("unsafe code stays in the modules that touch memory")
    func unsafeModules() {
        let safe = Self.sources.filter { file in
            file.isSwift && !(file.module.map(Rules.modulesAllowedUnsafe.contains) ?? false)
                && !Rules.filesAllowedUnsafe.contains(file.path)
        }
        expectNone(
            safe.flatMap {
                Rules.code($0, matching: Forbidden.unsafeCode, "this module has to stay safe")
            })
    }

    @Test("nothing is left unfinished, and no path of a machine is kept")
    func words() throws {
        for word in Forbidden.unfinished {
            let pattern = try Regex("\\b\(word)\\b", as: Substring.self)
            expectNone(Self.written.flatMap { Rules.text($0, matching: pattern, word) })
        }
        for path in Forbidden.machinePaths {
            let pattern = try Regex("(?:^|[^A-Za-z0-9_.$)}-])\(path)", as: Substring.self)
            expectNone(Self.written.flatMap { Rules.text($0, matching: pattern, path) })
        }
    }

    @Test("dependencies point down only")
    func dependencies() throws {
        let package = try #require(SourceTree.files.first { $0.path == "Package.swift" })
        let manifest = Manifest(text: package.lines.joined(separator: "\n"))

        #expect(manifest.dependencies.count > 15)
        #expect(manifest.dependencies["NVMeDriver"]?.contains("NVMeSpec") == true)
        let violations = Rules.dependencyViolations(manifest)
        #expect(violations.isEmpty, "\n\(violations.joined(separator: "\n"))")
    }

    @Test("the top level holds what the design names and nothing else")
    func topLevel() throws {
        let allowed: Set = [
            "Package.swift", "Sources", "Tests", "Proto", "Units", "README.md", "Makefile",
            "Package.resolved", "LICENSE",
        ]
        let surplus = try SourceTree.topLevelNames().filter { !$0.hasPrefix(".") }
            .subtracting(allowed)
        #expect(surplus.isEmpty, "\(surplus.sorted()) may not lie at the top level")
    }

    @Test("the generated messages are those of Proto")
    func protos() throws {
        let check = try SourceTree.run(".ci/protos", ["--check"])
        #expect(check.status == 0, "\(check.output)")
    }
}
