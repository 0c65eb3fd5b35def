// SPDX-License-Identifier: Apache-2.0
// The disassembly gate (.ci/hotpath-calls) against a program whose calls are known.

import Foundation
import Testing

@Suite("The disassembly gate")
struct HotPathGateTests {
    private let source = """
        __attribute__((noinline)) int leaf(int a) {
            for (int i = 0; i < a; i++) a ^= i * 3;
            return a;
        }
        __attribute__((noinline)) int caller(int a) { return leaf(a) + 1; }
        __attribute__((noinline)) int tail(int a) { return leaf(a + 1); }
        __attribute__((noinline)) int pointer(int (*f)(int)) { return f(3) + 1; }
        int main(int c, char **v) { return caller(c) + tail(c) + pointer(leaf) + (v == 0); }
        """

    private func withProgram(_ body: (String) throws -> Void) throws {
        let directory = FileManager.default.temporaryDirectory
            .appending(path: "nv-gate-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: directory) }
        let code = directory.appending(path: "planted.c")
        let program = directory.appending(path: "planted")
        try source.write(to: code, atomically: true, encoding: .utf8)
        let compiled = try SourceTree.run("clang", ["-O2", "-o", program.path, code.path])
        try #require(compiled.status == 0, "\(compiled.output)")
        try body(program.path)
    }

    @Test("a function without calls passes")
    func clean() throws {
        try withProgram { program in
            let gate = try SourceTree.run(".ci/hotpath-calls", [program, "^leaf$"])
            #expect(gate.status == 0, "\(gate.output)")
        }
    }

    @Test("direct, tail and indirect calls fail, and are named")
    func calls() throws {
        try withProgram { program in
            let direct = try SourceTree.run(".ci/hotpath-calls", [program, "^caller$"])
            let tail = try SourceTree.run(".ci/hotpath-calls", [program, "^tail$"])
            let pointer = try SourceTree.run(".ci/hotpath-calls", [program, "^pointer$"])

            #expect(direct.status == 1)
            #expect(direct.output.contains("calls leaf"))
            #expect(tail.status == 1)
            #expect(tail.output.contains("jumps to leaf"))
            #expect(pointer.status == 1)
            #expect(pointer.output.contains("an address in a register"))
        }
    }

    @Test("a cold function on the list may be called")
    func allowed() throws {
        try withProgram { program in
            let gate = try SourceTree.run(
                ".ci/hotpath-calls", ["-allow", "^leaf$", program, "^caller$", "^tail$"])
            #expect(gate.status == 0, "\(gate.output)")
        }
    }

    @Test("a name that matches no function fails")
    func misspelt() throws {
        try withProgram { program in
            let gate = try SourceTree.run(".ci/hotpath-calls", [program, "^laef$"])
            #expect(gate.status == 1)
            #expect(gate.output.contains("no function matches"))
        }
    }
}
