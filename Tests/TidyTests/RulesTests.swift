// SPDX-License-Identifier: Apache-2.0
// The rules themselves: each finds what was planted, and only that.

import Testing

@Suite("The rules find what they look for")
struct RulesTests {
    private func file(_ text: String, path: String = "Sources/Linux/Planted.swift") -> SourceFile {
        SourceFile(path: path, text: text)
    }

    private func function(bodyLineCount: Int) -> String {
        let body = [String](repeating: "        work()", count: bodyLineCount)
        return (["    func long(", "        a: Int", "    ) {"] + body + ["    }"])
            .joined(separator: "\n")
    }

    @Test("a missing or misplaced license")
    func license() {
        #expect(Rules.license(file("import Glibc")).count == 1)
        #expect(Rules.license(file("// SPDX-License-Identifier: Apache-2.0")).isEmpty)
        #expect(Rules.license(file("#!/bin/bash\n# SPDX-License-Identifier: Apache-2.0")).isEmpty)
        #expect(Rules.opening(file("// SPDX\nimport Glibc")).count == 1)
    }

    @Test("a function of more than 70 lines, not one of exactly 70")
    func functions() {
        #expect(Rules.longSwiftFunctions(file(function(bodyLineCount: 67))).count == 1)
        #expect(Rules.longSwiftFunctions(file(function(bodyLineCount: 66))).isEmpty)
        let requirement = "protocol P {\n    func a()\n}\n" + function(bodyLineCount: 3)
        #expect(Rules.longSwiftFunctions(file(requirement)).isEmpty)
    }

    @Test("a function of C of more than 70 lines")
    func cFunctions() {
        let body = String(repeating: "    x++;\n", count: 69)
        let path = "Sources/CLinux/Planted.c"
        #expect(Rules.longCFunctions(file("int f(void) {\n\(body)}\n", path: path)).count == 1)
        #expect(Rules.longCFunctions(file("int f(void) {\n    x++;\n}\n", path: path)).isEmpty)
    }

    @Test("waits, traps and imports in code, but not in comments and text")
    func code() {
        let waits = """
            try await Task.sleep(for: .seconds(1))
            usleep(5)
            sleep(1)
            try await loop.sleep(until: then)
            // sleep(1)
            let text = "sleep(1)"
            func sleep(until then: Int) {}
            """
        #expect(
            Rules.code(file(waits), matching: Forbidden.waits, "").map(\.line) == [1, 2, 3])
        let traps = "let a = try! b()\nlet c = d as! E\nfatalError(\"no\")\ntry? f() // try!"
        #expect(
            Rules.code(file(traps), matching: Forbidden.traps, "").map(\.line) == [1, 2, 3])
        let imports = "import Glibc\ninternal import Foundation\nimport FoundationEssentials"
        #expect(
            Rules.code(file(imports), matching: Forbidden.foundation, "").map(\.line) == [2, 3])
    }

    @Test("columns and lines above the limit")
    func sizes() {
        let wide = String(repeating: "x", count: 101)
        let row = "/// | \(wide) |"
        #expect(Rules.longLines(file("\(row)\n\(wide)"), limit: 100).map(\.line) == [2])
        #expect(Rules.longFile(file(String(repeating: "\n", count: 700))).count == 1)
    }

    @Test("a dependency that points up, sideways, or out of a pure module")
    func dependencies() {
        let manifest = Manifest(
            text: """
                module("Linux", ["CLinux"]),
                module("NVMeSpec"),
                module("DiskConfig", ["Linux"]),
                module(
                    "Wire",
                    ["CWire", "Worker"]),
                program("nvmed", ["Supervisor", .product(name: "ArgumentParser")]),
                """)

        #expect(manifest.dependencies["Linux"] == ["CLinux"])
        #expect(manifest.dependencies["NVMeSpec"] == [])
        #expect(
            Rules.dependencyViolations(manifest) == [
                "DiskConfig may depend on nothing",
                "Wire may not depend on Worker: same floor or above",
                "nvmed may not use ArgumentParser",
            ])
    }
}
