// SPDX-License-Identifier: Apache-2.0
// Everything a client or a caller can get wrong, against a real worker: a clear error, and nobody
// else notices.

import CLinux
import Linux
import Testing
import Wire

/// A request that must be refused, with the code and the field of the refusal.
struct BadRequest: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let request: SessionRequest
    var payloadByteCount = 0
    let code: ErrorCode
    let field: String
}

private func read(_ lba: UInt64, _ blocks: UInt32, _ at: DataLocation = .inline) -> SessionRequest {
    .read(lba: lba, blockCount: blocks, location: at)
}

private func write(_ lba: UInt64, _ blocks: UInt32, _ at: DataLocation = .inline) -> SessionRequest
{
    .write(lba: lba, blockCount: blocks, fua: false, location: at)
}

/// On a disk of 32768 blocks of 512 bytes, with a region 1 of 64 KiB and a read-only region 2 of 4
/// KiB.
private let badRequests = [
    BadRequest(
        testDescription: "a read that begins past the end", request: read(32768, 1),
        code: .outOfRange, field: "read.lba"),
    BadRequest(
        testDescription: "a read that ends past the end", request: read(32767, 2),
        code: .outOfRange, field: "read.block_count"),
    BadRequest(
        testDescription: "a read that wraps around", request: read(.max, 2), code: .outOfRange,
        field: "read.lba"),
    BadRequest(
        testDescription: "a read of nothing", request: read(0, 0), code: .invalidArgument,
        field: "read.block_count"),
    BadRequest(
        testDescription: "an inline read above 128 KiB", request: read(0, 257),
        code: .invalidArgument, field: "read.block_count"),
    BadRequest(
        testDescription: "a read with a payload", request: read(0, 1), payloadByteCount: 512,
        code: .invalidArgument, field: "payload"),
    BadRequest(
        testDescription: "a write that is no multiple of the block", request: write(0, 1),
        payloadByteCount: 511, code: .invalidArgument, field: "payload"),
    BadRequest(
        testDescription: "a write with too much data", request: write(0, 1),
        payloadByteCount: 1024, code: .invalidArgument, field: "payload"),
    BadRequest(
        testDescription: "a write without data", request: write(0, 1), code: .invalidArgument,
        field: "payload"),
    BadRequest(
        testDescription: "a write of region and payload",
        request: write(0, 1, .region(id: 1, byteOffset: 0)), payloadByteCount: 512,
        code: .invalidArgument, field: "payload"),
    BadRequest(
        testDescription: "a write from a region nobody registered",
        request: write(0, 1, .region(id: 9, byteOffset: 0)), code: .notFound,
        field: "write.region_id"),
    BadRequest(
        testDescription: "a read past the end of its region",
        request: read(0, 8, .region(id: 1, byteOffset: 65536 - 4095)), code: .invalidArgument,
        field: "read.region_offset"),
    BadRequest(
        testDescription: "a read at an offset that wraps",
        request: read(0, 1, .region(id: 1, byteOffset: .max)), code: .invalidArgument,
        field: "read.region_offset"),
    BadRequest(
        testDescription: "a read into a read-only region",
        request: read(0, 1, .region(id: 2, byteOffset: 0)), code: .invalidArgument,
        field: "read.region_id"),
    BadRequest(
        testDescription: "an unmap past the end",
        request: .unmap([
            BlockRange(lba: 0, blockCount: 8), BlockRange(lba: 32760, blockCount: 9),
        ]), code: .outOfRange, field: "unmap.ranges.block_count"),
    BadRequest(
        testDescription: "zeroes that wrap around",
        request: .writeZeroes(
            BlockRange(lba: 1, blockCount: .max), deallocate: false, fua: false),
        code: .outOfRange, field: "write_zeroes.block_count"),
    BadRequest(
        testDescription: "a verify of nothing",
        request: .verify(BlockRange(lba: 0, blockCount: 0)), code: .invalidArgument,
        field: "verify.block_count"),
    BadRequest(
        testDescription: "the end of a region nobody registered",
        request: .unregisterMemory(regionID: 9), code: .notFound,
        field: "unregister_memory.region_id"),
    BadRequest(
        testDescription: "cancelling a request of the future",
        request: .cancel(requestID: .max), code: .invalidArgument,
        field: "cancel.target_request_id"),
]

extension WorkerProcessTests {
    @Suite("Bad input to a worker process")
    struct BadInput {
        @Test("each bad request is refused with its code and field, and the session lives on")
        func requests() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            let memory = try SharedMemory(byteCount: 65536)
            try client.register(1, memory)
            try client.register(2, try SharedMemory(byteCount: 4096), readOnly: true)

            for bad in badRequests {
                let error = try client.refusal(
                    bad.request, payload: [UInt8](repeating: 0, count: bad.payloadByteCount))
                #expect(error.code == bad.code, "\(bad.testDescription): \(error)")
                #expect(error.field == bad.field, "\(bad.testDescription): \(error)")
                #expect(error.device == "dev0")
            }

            #expect(try client.read(0, 1) == [UInt8](repeating: 0, count: 512))
        }

        @Test("a read-only session cannot change anything")
        func readOnly() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open(.readOnly)
            let range = BlockRange(lba: 0, blockCount: 1)

            let codes = [
                try client.refusal(write(0, 1), payload: pattern(512, seed: 1)).code,
                try client.refusal(.unmap([range])).code,
                try client.refusal(.writeZeroes(range, deallocate: false, fua: false)).code,
            ]

            #expect(codes == [.readOnly, .readOnly, .readOnly])
            #expect(try client.ask(.flush) == .done)
        }

        @Test("only sealed ordinary memory files can be registered")
        func memory() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            func refusal(_ fd: borrowing OwnedFD, _ count: UInt64) throws -> WireError {
                try client.refusal(
                    .registerMemory(regionID: 1, byteCount: count, readOnly: false),
                    fds: [fd.raw])
            }
            let unsealed = try MemFD.create(name: "t", byteCount: 8192, seals: [])
            let shrinkable = try MemFD.create(name: "t", byteCount: 8192, seals: .grow)
            let sealed = try MemFD.create(name: "t", byteCount: 8192)
            let file = try OwnedFD.open("/proc/self/exe", flags: 0)
            let event = try EventFD()

            #expect(try refusal(unsealed, 8192).field == "register_memory.fd")
            #expect(try refusal(shrinkable, 8192).field == "register_memory.fd")
            #expect(try refusal(file, 4096).field == "register_memory.fd")
            #expect(try refusal(event.fd, 4096).field == "register_memory.fd")
            #expect(try refusal(sealed, 12288).field == "register_memory.byte_count")
            #expect(try refusal(sealed, 100).field == "register_memory.byte_count")
            #expect(try refusal(sealed, 0).field == "register_memory.byte_count")
            #expect(try refusal(sealed, 1 << 40).code == .resourceExhausted)
        }

        @Test("a session has at most 64 regions, and gets none twice")
        func regionLimits() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            let memory = try SharedMemory(byteCount: 4096)
            for id in 0..<64 { try client.register(UInt64(id), memory) }

            let again = try client.refusal(
                .registerMemory(regionID: 3, byteCount: 4096, readOnly: false),
                fds: [memory.fd.raw])
            let more = try client.refusal(
                .registerMemory(regionID: 64, byteCount: 4096, readOnly: false),
                fds: [memory.fd.raw])

            #expect(again.code == .alreadyExists)
            #expect(more.code == .resourceExhausted)
        }

        @Test("memory with holes punched into it harms only its owner's data")
        func holes() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open()
            let memory = try SharedMemory(byteCount: 1 << 20)
            try client.register(1, memory)
            memory.fill(pattern(65536, seed: 6), at: 0)

            let punched = nv_punch_hole(memory.fd.raw, 0, 1 << 20)
            let reply = try client.ask(write(0, 128, .region(id: 1, byteOffset: 0)))

            #expect(punched == 0)
            #expect(reply == .done)
            #expect(try client.read(0, 128) == [UInt8](repeating: 0, count: 65536))
            #expect(try supervisor.device().state == .ready)
        }

        @Test("a request whose deadline has passed does not reach the device")
        func deadline() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            try client.write(0, pattern(512, seed: 7))

            let error = try client.refusal(write(0, 1), payload: pattern(512, seed: 8), deadline: 1)

            #expect(error.code == .deadlineExceeded)
            #expect(try client.read(0, 1) == pattern(512, seed: 7))
        }

        @Test("a request id that does not rise ends the session, and only that one")
        func repeatedID() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open(.readOnly)
            let other = try supervisor.open(.readOnly)
            _ = try client.ask(.flush)

            try client.channel.send(Envelope(requestID: 1, content: .request(.flush)))
            let reason = try client.reason()

            #expect(reason.field == "request_id")
            #expect(try supervisor.sessionEnd().id == client.id)
            #expect(try other.read(0, 1).count == 512)
        }

        @Test("random bytes end the session that sent them, and only that one")
        func randomBytes() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let other = try supervisor.open(.readOnly)
            for seed in 0..<50 as Range<UInt64> {
                let client = try supervisor.open(.readOnly)
                let bytes = pattern(Int(seed * 97 + 1), seed: seed)
                _ = try unsafe bytes.withUnsafeBytes {
                    try unsafe UnixSocket.send(client.channel.fd, $0)
                }
                client.channel.shutdown()
                _ = try supervisor.sessionEnd()
            }

            #expect(try other.read(0, 1).count == 512)
            #expect(try supervisor.device().state == .ready)
        }

        @Test("a message above the limit and surplus descriptors are refused")
        func oversize() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open(.readOnly)
            let surplus = try supervisor.open(.readOnly)
            let memory = try SharedMemory(byteCount: 4096)

            let bytes = [UInt8](repeating: 0x0A, count: WireLimits.messageByteCount + 1)
            _ = try unsafe bytes.withUnsafeBytes {
                try unsafe UnixSocket.send(client.channel.fd, $0)
            }
            let reason = try client.reason()
            let error = try surplus.refusal(.flush, fds: [memory.fd.raw])

            #expect(reason.code == .malformedMessage)
            #expect(error.code == .fdMismatch)
            #expect(try surplus.ask(.flush) == .done)
        }

        @Test("namespaces that cannot be opened are refused with the field")
        func namespaces() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let errors = try [0, UInt32.max, 2].map {
                try supervisor.refusal(.openSession(supervisor.opening(nsid: $0)))
            }

            #expect(errors.map(\.code) == [.invalidArgument, .invalidArgument, .notFound])
            #expect(errors.map(\.field) == Array(repeating: "open_session.nsid", count: 3))
        }

        @Test("writers exclude each other unless all of them share")
        func exclusive() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            func refused(_ shared: Bool) throws -> ErrorCode {
                try supervisor.refusal(.openSession(supervisor.opening(shared: shared))).code
            }
            let first = try supervisor.open()
            let reader = try supervisor.open(.readOnly)
            #expect(try refused(false) == .busy)
            #expect(try refused(true) == .busy)
            first.channel.shutdown()
            _ = try supervisor.sessionEnd()

            let shared = try supervisor.open(shared: true)
            let second = try supervisor.open(shared: true)
            #expect(try refused(false) == .busy)

            try shared.write(0, pattern(512, seed: 9))
            #expect(try second.read(0, 1) == reader.read(0, 1))
        }

        @Test("there are at most 256 sessions, and a revoked one makes room")
        func sessions() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            var clients: [Client] = []
            for _ in 0..<256 { clients.append(try supervisor.open(.readOnly)) }

            let error = try supervisor.refusal(.openSession(supervisor.opening(.readOnly)))
            _ = try supervisor.ask(.closeSession(sessionID: clients[7].id, reason: "tests"))
            let reason = try clients[7].reason()
            let next = try supervisor.open(.readOnly)

            #expect(error.code == .resourceExhausted)
            #expect(reason.code == .sessionRevoked)
            #expect(reason.message.contains("tests"))
            #expect(try next.read(0, 1).count == 512)
            #expect(try clients[255].read(0, 1).count == 512)
        }

        @Test("a client that does not read loses its session, delays nobody, and can read why")
        func unreading() throws {
            let rig = try Rig()
            rig.workerEnvironment = ["NVMED_CLIENT_STALL_MS=300"]
            let supervisor = try rig.startLoaded()
            let lazy = try supervisor.open(.readOnly)
            let other = try supervisor.open(.readOnly)
            for _ in 0..<300 {
                try lazy.send(read(0, 256))
            }

            #expect(try other.read(0, 1).count == 512)
            let end = try supervisor.sessionEnd()

            #expect(end.id == lazy.id)
            #expect(end.reason.code == .resourceExhausted)
            // Behind the replies that filled its socket.
            #expect(try lazy.reason() == end.reason)
            #expect(try other.read(0, 1).count == 512)
        }

        /// How much memory the device reaches, in its own words.
        private func dmaRegions(_ rig: Rig) throws -> String {
            let fields = try rig.control("stats").split(separator: ",")
            return String(fields.first { $0.contains("dmaRegions") } ?? "missing")
        }

        @Test("what sessions used is given back: descriptors, memory, mappings of the device")
        func baseline() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let pid = try #require(rig.worker).pid
            func round() throws {
                let client = try supervisor.open()
                let memory = try SharedMemory(byteCount: 8 << 20)
                try client.register(1, memory)
                _ = try client.ask(
                    .read(lba: 0, blockCount: 16384, location: .region(id: 1, byteOffset: 0)))
                for bad in badRequests { _ = try? client.refusal(bad.request) }
                try client.send(read(0, 256))
                client.channel.shutdown()
                _ = try supervisor.sessionEnd()
                // Its last command is still with the device, and its memory with it.
                try supervisor.wait(until: "memory/registered_bytes", is: "0")
            }
            for _ in 0..<10 { try round() }
            let fds = openFDCount(pid)
            let kibibytes = try statusKiB(pid, "RssAnon")
            let regions = try dmaRegions(rig)

            for _ in 0..<50 { try round() }

            #expect(openFDCount(pid) == fds)
            #expect(kibibytes > 0)
            #expect(try statusKiB(pid, "RssAnon") < kibibytes + 2048)
            let regionsAfter = try dmaRegions(rig)
            #expect(regionsAfter == regions)
            #expect(try supervisor.inspect("memory/registered_bytes") == "0")
            #expect(try supervisor.inspect("counters/requests_in_flight") == "0")
        }
    }
}
