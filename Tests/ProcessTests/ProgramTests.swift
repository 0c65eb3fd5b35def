// SPDX-License-Identifier: Apache-2.0
// The command line of nvmed.

import Glibc
import Linux
import NVMeClient
import TestSupport
import Testing

extension ProcessTests {
    @Suite("nvmed's command line", .timeLimit(.minutes(5)))
    struct ProgramTests {
        private static func nvmed(_ arguments: [String]) throws -> (text: String, code: Int32) {
            try Output.of(Programs.path("nvmed"), arguments)
        }

        @Test("help and version are told, and succeed")
        func told() throws {
            let help = try Self.nvmed(["--help"])
            let version = try Self.nvmed(["--version"])

            #expect(help.code == 0)
            #expect(help.text.contains("--standalone"))
            #expect(version.code == 0)
            #expect(version.text.hasPrefix("nvmed "))
        }

        @Test(
            "arguments that make no sense end it with status 2 and the usage",
            arguments: [["--nonsense"], ["--config"], ["extra"], ["--socket", ""]])
        func nonsense(_ arguments: [String]) throws {
            let (text, code) = try Self.nvmed(arguments)

            #expect(code == 2)
            #expect(text.contains("usage: nvmed"))
        }

        @Test("each mistake in the configuration is told with file, line and key")
        func checks() throws {
            let directory = try TemporaryDirectory()
            let files = [
                "good.device": "[Device]\nTransport=null\n",
                "good.disk": "[Disk]\nDevice=good\nNamespace=1\n",
                "a.device": "[Device]\nTransport=carrier-pigeon\n",
                "b.disk": "[Disk]\nDevice=good\nNamespace=0\n",
                "c.disk": "[Disk]\nDevice=good\nNamespace=1\nUser=nobody-has-this-name\n",
                "d.disk": "[Disk]\nDevice=good\nNamespace=1\nShared=perhaps\n",
            ]
            for (name, text) in files {
                try TestFiles.write(text, to: "\(directory.path)/\(name)")
            }

            let (text, code) = try Self.nvmed(["--check-config", "--config", directory.path])

            #expect(code == 1)
            for place in [
                "a.device:2: error: Transport=", "b.disk:3: error: Namespace=",
                "c.disk:4: error: User=", "d.disk:4: error: Shared=",
            ] {
                #expect(text.contains(place), "\(text)")
            }
            #expect(!text.contains("good.d"))
        }

        @Test("a configuration without mistakes passes")
        func passes() throws {
            let directory = try TemporaryDirectory()
            try TestFiles.write(
                "[Device]\nTransport=null\n", to: "\(directory.path)/a.device")

            let (text, code) = try Self.nvmed(["--check-config", "--config", directory.path])

            #expect(code == 0)
            #expect(text == "nvmed: 1 devices, 0 disks, 0 warnings\n")
        }

        @Test("a second manager in the same directory is refused with the first one's pid")
        func second() throws {
            let service = try RunningService()

            let (text, code) = try Self.nvmed([
                "--standalone", "--config", service.configuration, "--runtime",
                service.directory.path + "/run",
            ])

            #expect(code == 1)
            #expect(text.contains("in use by pid \(service.manager.pid)"))
            _ = try service.connect().listDisks()
        }
    }
}
