// SPDX-License-Identifier: Apache-2.0
// .ci/bootstrap on machines that lack things: a PATH of our own, in which apt-get is a script that
// writes down what it was asked and "installs" the program.

import Foundation
import Testing

@Suite("Installing what is missing")
struct BootstrapTests {
    /// A machine: a directory that is all of PATH.
    private final class Machine {
        let directory: URL

        /// Has what every Debian has, and the given scripts.
        init(_ scripts: [String: String]) throws {
            directory = FileManager.default.temporaryDirectory
                .appending(path: "nv-machine-\(UUID().uuidString.prefix(8))")
            try FileManager.default.createDirectory(
                at: directory, withIntermediateDirectories: true)
            for name in ["bash", "dirname", "sed", "sort", "head", "env", "chmod", "cat"] {
                let link = directory.appending(path: name)
                let real = ["/usr/bin/", "/bin/"].map { $0 + name }
                    .first { FileManager.default.fileExists(atPath: $0) }
                try FileManager.default.createSymbolicLink(
                    atPath: link.path, withDestinationPath: try #require(real))
            }
            let installed = [
                "pkg-config", "git", "objdump", "valgrind", "strace", "python3", "protoc",
                "systemd-analyze", "dbus-daemon", "dpkg-shlibdeps",
            ]
            for name in installed { try add(name, "exit 0") }
            for (name, body) in scripts { try add(name, body) }
        }

        deinit { try? FileManager.default.removeItem(at: directory) }

        func add(_ name: String, _ body: String) throws {
            let file = directory.appending(path: name)
            try "#!/bin/bash\n\(body)\n".write(to: file, atomically: true, encoding: .utf8)
            try FileManager.default.setAttributes(
                [.posixPermissions: 0o755], ofItemAtPath: file.path)
        }

        func bootstrap(_ level: String) throws -> (status: Int32, output: String) {
            try SourceTree.run(".ci/bootstrap", [level], path: directory.path)
        }

        func log() -> String {
            let file = directory.appending(path: "log")
            return (try? String(contentsOf: file, encoding: .utf8)) ?? ""
        }
    }

    private let swift63 = "echo 'Swift version 6.3.1 (swift-6.3.1-RELEASE)'"
    /// Writes down its arguments; an install makes protoc-c appear.
    private let aptGet = """
        here=$(dirname "$0")
        echo "apt-get $*" >>"$here/log"
        case "$*" in
            *install*) printf '#!/bin/bash\\n' >"$here/protoc-c"; chmod +x "$here/protoc-c" ;;
        esac
        """

    @Test("where nothing is missing, nothing is installed and nothing is said")
    func complete() throws {
        let machine = try Machine(["swift": swift63, "protoc-c": "exit 0", "apt-get": aptGet])

        let result = try machine.bootstrap("test")

        #expect(result.status == 0)
        #expect(result.output == "")
        #expect(machine.log() == "")
    }

    @Test("without Swift, or with an old one, it says what to do")
    func swift() throws {
        let without = try Machine([:]).bootstrap("run")
        let old = try Machine(["swift": "echo 'Swift version 6.1.2'"]).bootstrap("run")

        #expect(without.status == 1)
        #expect(without.output.contains("Install Swift 6.3 or newer"))
        #expect(old.status == 1)
        #expect(old.output.contains("Swift 6.1 is too old"))
    }

    @Test("root installs the missing package, after fetching lists that are not there")
    func root() throws {
        let machine = try Machine([
            "swift": swift63, "id": "echo 0", "apt-get": aptGet, "apt-cache": "exit 100",
        ])

        let result = try machine.bootstrap("test")

        #expect(result.status == 0, "\(result.output)")
        #expect(result.output.contains("protobuf-c-compiler is missing: regenerates"))
        #expect(
            machine.log() == """
                apt-get -qq update
                apt-get -qq install --yes --no-install-recommends protobuf-c-compiler

                """)
    }

    @Test("an ordinary user is asked for sudo only for what is missing")
    func user() throws {
        let machine = try Machine([
            "swift": swift63, "id": "echo 1000", "apt-get": aptGet, "apt-cache": "exit 0",
            "sudo": "echo \"sudo $1\" >>\"$(dirname \"$0\")/log\"; exec \"$@\"",
        ])

        let result = try machine.bootstrap("test")

        #expect(result.status == 0, "\(result.output)")
        #expect(result.output.contains("sudo may ask for your password"))
        #expect(
            machine.log() == """
                sudo env
                apt-get -qq install --yes --no-install-recommends protobuf-c-compiler

                """)
        #expect(try machine.bootstrap("test").output == "")
    }

    @Test("what only the tests need is not asked of somebody who wants to run")
    func levels() throws {
        let machine = try Machine(["swift": swift63, "id": "echo 1000"])

        #expect(try machine.bootstrap("run").status == 0)
    }

    @Test("without root and without sudo it names the command for an administrator")
    func noSudo() throws {
        let machine = try Machine(["swift": swift63, "id": "echo 1000", "apt-get": aptGet])

        let result = try machine.bootstrap("test")

        #expect(result.status == 1)
        #expect(result.output.contains("As root, run: apt-get install protobuf-c-compiler"))
        #expect(machine.log() == "")
    }

    @Test("an installation that fails is an error")
    func failure() throws {
        let machine = try Machine([
            "swift": swift63, "id": "echo 0", "apt-get": "exit 100", "apt-cache": "exit 0",
        ])

        let result = try machine.bootstrap("test")

        #expect(result.status != 0)
        #expect(result.output.contains("apt-get could not install protobuf-c-compiler"))
    }
}
