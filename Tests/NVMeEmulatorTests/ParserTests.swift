// SPDX-License-Identifier: Apache-2.0
// Options, JSON and the control socket's words.

import Testing

@testable import NVMeEmulator

@Suite("Options, JSON, control words")
struct ParserTests {
    @Test("namespaces are described in words")
    func namespace() throws {
        let options = try NamespaceOptions(
            parsing: "file=/tmp/x,size=1G,block=4096,nsid=3,eui64=0011223344556677,readonly")

        #expect(options.backing == .file("/tmp/x"))
        #expect(options.byteCount == 1 << 30)
        #expect(options.blockByteCount == 4096)
        #expect(options.namespaceID == 3)
        #expect(options.eui64 == [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77])
        #expect(options.isReadOnly)
    }

    @Test(
        "namespaces that make no sense are refused",
        arguments: [
            "", "memory", "memory=", "memory=0", "memory=1X", "memory=513", "memory=-1",
            "memory=99999999999T", "memory=1M,block=1024", "memory=1M,nsid=0",
            "memory=1M,nguid=12", "memory=1M,uuid=zz", "memory=1M,colour=red", "block=512",
        ])
    func badNamespace(text: String) {
        #expect(throws: OptionError.self) { try NamespaceOptions(parsing: text) }
    }

    @Test("options out of range are refused")
    func badOptions() {
        func refuse(_ change: (inout EmulatorOptions) -> Void) -> Bool {
            var options = EmulatorOptions()
            change(&options)
            do throws(OptionError) {
                try options.validate()
                return false
            } catch {
                return true
            }
        }
        #expect(!refuse { _ in })
        #expect(refuse { $0.serial = "" })
        #expect(refuse { $0.serial = "a serial number that is far too long" })
        #expect(refuse { $0.ioQueueCount = 0 })
        #expect(refuse { $0.ioQueueCount = 512 })
        #expect(refuse { $0.vectorCount = 2049 })
        #expect(refuse { $0.maxQueueEntryCount = 1 })
        #expect(refuse { $0.mdts = 21 })
        #expect(refuse { $0.maxNamespaceCount = 0 })
    }

    @Test("JSON as clients send it is understood")
    func json() throws {
        let text = """
            { "capabilities" : {"max_msg_fds":8, "max_data_xfer_size": 1048576,
              "twin_socket":{"supported":true}, "x":[1,-2.5e3,null,"a\\"b"]} }
            """
        let value = try #require(JSONParser.parse(Array(text.utf8)))

        #expect(value["capabilities"]?["max_msg_fds"]?.unsigned == 8)
        #expect(value["capabilities"]?["twin_socket"]?["supported"]?.bool == true)
        #expect(
            value["capabilities"]?["x"]
                == .array([.number(1), .number(-2500), .null, .string("a\"b")]))
    }

    @Test(
        "what is no JSON is nil",
        arguments: [
            "", "{", "{\"a\"}", "{\"a\":}", "[1,]", "tru", "\"", "\"\\", "1 2", "{}x", "--",
            String(repeating: "[", count: 100_000),
            String(repeating: "1", count: 100), "{\"a\":1,}",
        ])
    func badJSON(text: String) {
        #expect(JSONParser.parse(Array(text.utf8)) == nil)
    }

    @Test("random bytes never trap the JSON reader", arguments: [11, 12, 13] as [UInt64])
    func randomJSON(seed: UInt64) {
        var random = Random(seed: seed)
        let alphabet = Array("{}[]\",:0123456789.eE+-truefalsn\\ ".utf8)
        for _ in 0..<2000 {
            let count = Int(random.next(below: 64))
            let text = (0..<count).map { _ in
                alphabet[Int(random.next(below: UInt64(alphabet.count)))]
            }
            _ = JSONParser.parse(text)
        }
        #expect(JSONParser.parse(Array("{}".utf8)) == .object([:]))
    }

    @Test("the control words change faults and namespaces and show statistics")
    func control() throws {
        var options = EmulatorOptions()
        options.namespaces = [try NamespaceOptions(parsing: "memory=1M")]
        let commands = ControlCommands(device: try ServedDevice(options: options))

        #expect(commands.execute("fault command:hang") == "ok")
        #expect(commands.execute("faults") == "ok\ncommand:hang acted 0")
        #expect(commands.execute("clear") == "ok")
        #expect(commands.execute("namespace add memory=2M,nsid=5") == "ok 5")
        #expect(commands.execute("namespace resize 5 4M") == "ok")
        #expect(commands.execute("namespace remove 5") == "ok")
        #expect(commands.execute("namespace remove 5").hasPrefix("error: "))
        #expect(commands.execute("namespace resize 1 513").hasPrefix("error: "))
        #expect(commands.execute("sing").hasPrefix("error: "))
        #expect(commands.execute("").hasPrefix("error: "))
        let statistics = JSONParser.parse(Array(commands.execute("stats").utf8))
        #expect(statistics?["version"]?.unsigned == 1)
        #expect(statistics?["controllerResets"]?.unsigned == 0)
    }
}
