// SPDX-License-Identifier: Apache-2.0
// Data through a real worker and a real emulator: what was written is what is read.

import Linux
import Testing
import Wire

/// Tests that run the real nvmed-worker and nvmed-emulator, one after the other: the machine may be
/// small.
@Suite("Worker processes", .serialized)
struct WorkerProcessTests {}

extension WorkerProcessTests {
    @Suite("Transfers through a worker process")
    struct Transfers {
        @Test("what is written inline is read back inline")
        func inline() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            let data = pattern(4096, seed: 1)

            try client.write(8, data)
            _ = try client.ask(.flush)

            #expect(try client.read(8, 8) == data)
            #expect(try client.read(0, 8) == [UInt8](repeating: 0, count: 4096))
        }

        @Test("the largest inline transfer goes through, on both block sizes")
        func largestInline() throws {
            let rig = try Rig(namespaces: ["memory=16M,block=512", "memory=16M,block=4096"])
            let supervisor = try rig.startLoaded()
            let data = pattern(WireLimits.payloadByteCount, seed: 2)
            let small = try supervisor.open(nsid: 1)
            let large = try supervisor.open(nsid: 2)

            try small.write(3, data, fua: true)
            try large.write(3, data)

            #expect(try small.read(3, 256) == data)
            #expect(try large.read(3, 32) == data)
        }

        @Test("registered memory of any alignment carries transfers larger than a command")
        func registered() throws {
            let rig = try Rig(arguments: ["--mdts", "5"])
            let client = try rig.startLoaded().open()
            let memory = try SharedMemory(byteCount: 4 << 20)
            let data = pattern(1 << 20, seed: 3)
            memory.fill(data, at: 1)
            try client.register(7, memory)

            let write = try client.ask(
                .write(
                    lba: 100, blockCount: 2048, fua: false,
                    location: .region(id: 7, byteOffset: 1)))
            let read = try client.ask(
                .read(lba: 100, blockCount: 2048, location: .region(id: 7, byteOffset: 2 << 20)))

            #expect(write == .done)
            #expect(read == .read)
            #expect(memory.contents(2 << 20, 1 << 20) == data)
            #expect(try client.read(100, 8) == Array(data[0..<4096]))
            #expect(try client.ask(.unregisterMemory(regionID: 7)) == .done)
        }

        @Test("zeroes, unmap, verify and compare do what they say")
        func others() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            let data = pattern(8192, seed: 4)
            try client.write(0, data)

            let compare = SessionRequest.compare(lba: 0, blockCount: 16, location: .inline)
            let same = try client.answer(to: client.send(compare, payload: data)).reply
            let different = try client.refusal(compare, payload: pattern(8192, seed: 5))
            let verified = try client.ask(.verify(BlockRange(lba: 0, blockCount: 32768)))
            let zeroed = try client.ask(
                .writeZeroes(BlockRange(lba: 0, blockCount: 8), deallocate: true, fua: false))
            let unmapped = try client.ask(
                .unmap((0..<256).map { BlockRange(lba: 1024 + $0 * 8, blockCount: 4) }))

            #expect(same == .done)
            #expect(different.code == .compareFailed)
            #expect(different.nvmeStatus.map { $0 & 0x7FF } == 0x285)
            #expect(verified == .done)
            #expect(zeroed == .done)
            #expect(unmapped == .done)
            #expect(try client.read(0, 16) == [UInt8](repeating: 0, count: 4096) + data[4096...])
        }

        @Test("many requests in flight are answered, each with its own data")
        func pipelined() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            let count: UInt64 = 600
            for index in 0..<count {
                try client.send(
                    .write(lba: index * 8, blockCount: 8, fua: false, location: .inline),
                    payload: pattern(4096, seed: 100 + index))
            }
            var done = 0
            while done < Int(count) {
                _ = try client.next()
                done += 1
            }

            for index in 0..<count {
                try client.send(.read(lba: index * 8, blockCount: 8, location: .inline))
            }
            var answers: [UInt64: [UInt8]] = [:]
            while answers.count < Int(count) {
                let message = try client.next()
                answers[message.envelope.requestID - count - 1] = message.payload
            }

            let wrong = answers.filter { $0.value != pattern(4096, seed: 100 + $0.key) }
            #expect(wrong.isEmpty)
        }

        @Test("the disk is described as the controller describes it")
        func diskInfo() throws {
            let rig = try Rig(
                namespaces: ["memory=8M,block=4096,nguid=000102030405060708090a0b0c0d0e0f"],
                arguments: ["--serial", "SN-17"])
            let client = try rig.startLoaded().open(.readOnly)
            let reply = try client.ask(.getDiskInfo)
            let info = client.info

            #expect(reply == .diskInfo(info))
            #expect(info.name == "disk1")
            #expect(info.device == "dev0")
            #expect(info.blockByteCount == 4096)
            #expect(info.blockCount == 2048)
            #expect(info.serial == "SN-17")
            #expect(info.identity.nguid == (0..<16).map { UInt8($0) })
            #expect(info.readOnly)
            #expect(!info.writeProtected)
            #expect(info.maxInlineByteCount == 131072)
            #expect(info.generation == 1)
        }
    }
}
