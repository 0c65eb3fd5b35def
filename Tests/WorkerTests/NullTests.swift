// SPDX-License-Identifier: Apache-2.0
// A worker whose device is in its own process.

import Glibc
import Linux
import Testing
import Wire

extension WorkerProcessTests {
    @Suite("A worker on the null device")
    struct Null {
        private static func rig() throws -> Rig {
            let rig = try Rig()
            rig.config = DeviceConfig(name: rig.name, transport: .null)
            rig.config.nullByteCount = 64 << 20
            rig.config.nullBlockByteCount = 4096
            try rig.startWorker()
            try rig.notify.wait(for: "READY=1")
            return rig
        }

        private static func useEverything(_ client: Client) throws {
            for index in 0..<200 as Range<UInt64> {
                try client.send(
                    .write(lba: index, blockCount: 1, fua: false, location: .inline),
                    payload: pattern(4096, seed: index))
            }
            #expect(try client.answer(to: 200).reply == .done)
            #expect(try client.read(0, 16).count == 65536)
            #expect(try client.ask(.flush) == .done)
            let memory = try SharedMemory(byteCount: 8 << 20)
            try client.register(1, memory)
            let whole = DataLocation.region(id: 1, byteOffset: 0)
            #expect(
                try client.ask(.write(lba: 0, blockCount: 2048, fua: false, location: whole))
                    == .done)
        }

        @Test("opens, does every kind of I/O, and is back after it was killed")
        func comesBack() throws {
            let rig = try Self.rig()
            let supervisor = try rig.connect()
            guard case .deviceReady(let ready) = try supervisor.ask(.loadDriver(rig.config)) else {
                throw RigError("the device is not ready")
            }
            #expect(ready.namespaces.first?.blockCount == 16384)
            #expect(ready.namespaces.first?.blockByteCount == 4096)
            try Self.useEverything(try supervisor.open())

            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            try rig.startWorker()
            let successor = try rig.connect()

            #expect(try successor.device().config == rig.config)
            #expect(try successor.device().ready?.generation == 2)
            try Self.useEverything(try successor.open())
        }

        @Test("leaves in order")
        func leaves() throws {
            let rig = try Self.rig()
            let supervisor = try rig.connect()
            _ = try supervisor.ask(.loadDriver(rig.config))
            try Self.useEverything(try supervisor.open())

            #expect(try supervisor.ask(.shutdown(doNotReset: false)) == .done)
            #expect(try #require(rig.worker).wait() == 0)
        }
    }
}
