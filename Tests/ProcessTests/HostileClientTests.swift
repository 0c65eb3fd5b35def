// SPDX-License-Identifier: Apache-2.0
// Clients that break every rule: each gets a clear error or loses its connection; nobody else
// notices, and nothing is left of them.

import Glibc
import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

extension ProcessTests {
    @Suite("Hostile clients", .timeLimit(.minutes(5)))
    struct HostileClientTests {
        @Test("each kind of bad message to the supervisor has its own answer")
        func badMessages() throws {
            let service = try RunningService()
            let null = try OwnedFD.open("/dev/null", flags: O_RDONLY)
            let list = Bytes.listDevices

            let connection = try service.rawConnection()
            #expect(
                connection.ask(Bytes.envelope(1, list, version: 2))
                    == .failed(.unsupportedVersion, field: "version"))
            #expect(
                connection.ask(Bytes.envelope(2, Bytes.unknownBody))
                    == .failed(.unknownMessage, field: "body"))
            #expect(
                connection.ask(Bytes.envelope(3, list), fds: [null.raw])
                    == .failed(.fdMismatch, field: "fd_count"))
            #expect(
                connection.ask(Bytes.envelope(4, Bytes.oneFD + list))
                    == .failed(.fdMismatch, field: "fd_count"))
            #expect(
                connection.ask(Bytes.envelope(5, Bytes.oneFD + list), fds: [null.raw])
                    == .failed(.fdMismatch, field: "fd_count"))
            #expect(
                connection.ask(Bytes.envelope(0, list))
                    == .failed(.invalidArgument, field: "request_id"))
            #expect(connection.ask(Bytes.envelope(9, list)) == .answered)
            #expect(
                connection.ask(Bytes.envelope(9, list))
                    == .failed(.invalidArgument, field: "request_id"))
            #expect(connection.ask(Bytes.envelope(10, list)) == .answered)
        }

        @Test(
            "what is no message at all is answered and ends the connection",
            arguments: [
                [0x08],  // A tag without its value.
                [0x08, 0x01, 0x10, 0x01, 0xa2, 0x01, 0x7f],  // A body cut short.
                [UInt8](repeating: 0xff, count: 64),  // An endless number.
                [UInt8](repeating: 0x0a, count: 150_000),  // Larger than a message may be.
            ])
        func noMessages(_ bytes: [UInt8]) throws {
            let service = try RunningService()
            let connection = try service.rawConnection()

            let answer = connection.ask(bytes)
            let then = connection.answer()

            #expect(answer == .failed(.malformedMessage, field: nil))
            #expect(then == .closed)
            _ = try service.connect().openDisk("disk-a")
        }

        @Test("names that are empty, too long, not UTF-8 or contain NUL are refused")
        func badNames() throws {
            let service = try RunningService()
            let connection = try service.rawConnection()
            let names: [[UInt8]] = [
                [], [UInt8](repeating: 0x61, count: 256), [0xc3, 0x28], [0x61, 0x00, 0x62],
            ]
            for (index, name) in names.enumerated() {
                let length =
                    [UInt8(name.count & 0x7f | (name.count > 127 ? 0x80 : 0))]
                    + (name.count > 127 ? [UInt8(name.count >> 7)] : [])
                let field = [0x0a] + length + name
                let outer =
                    [UInt8(field.count & 0x7f | (field.count > 127 ? 0x80 : 0))]
                    + (field.count > 127 ? [UInt8(field.count >> 7)] : [])
                // open_disk (field 22) { name (1) }
                let bytes = Bytes.envelope(UInt8(index + 1), [0xb2, 0x01] + outer + field)
                #expect(
                    connection.ask(bytes) == .failed(.invalidArgument, field: "open_disk.name"))
            }
        }

        @Test("random bytes, from many connections, change nothing")
        func randomBytes() throws {
            let service = try RunningService()
            let disk = try service.connect().openDisk("disk-a")
            let buffer = try IOBuffer(byteCount: 4096)
            let pid = try service.supervisorPID()
            var random = SplitMix64(state: seed())
            for _ in 0..<200 {
                let connection = try service.rawConnection()
                let session = random.next() % 4 == 0 ? try service.rawSession("disk-b") : nil
                for _ in 0..<8 {
                    var bytes = (0..<Int(1 + random.next() % 200)).map { _ in
                        UInt8(truncatingIfNeeded: random.next())
                    }
                    // Half of them begin as a message does.
                    if random.next() % 2 == 0 { bytes = Bytes.envelope(1, bytes) }
                    connection.send(bytes)
                    session?.send(bytes)
                }
            }
            try disk.read(into: buffer, byteOffset: 0, byteCount: 4096)

            #expect(try service.supervisorPID() == pid)
            #expect(try service.connect().device("b").restarts == 0)
        }

        @Test("a client that stops reading loses its connection, the others nothing")
        func stopsReading() throws {
            let service = try RunningService()
            let connection = try service.rawConnection()
            var sent = 0
            for id in UInt64(1)...100_000 {
                guard
                    (try? connection.channel.send(request: .inspect(prefix: "", after: nil)))
                        != nil, !connection.channel.wantsWrite
                else { break }
                sent = Int(id)
            }
            let other = try service.connect()
            let supervisor = try service.supervisorPID()
            let waitedBefore = ProcessorWait.ofThisThread + ProcessorWait.of([supervisor])
            let begin = MonotonicClock.nowNanoseconds
            _ = try other.openDisk("disk-a")
            let taken = MonotonicClock.nowNanoseconds - begin
            // The worker was started by this open: all that it waited counts.
            let pids = [supervisor, try service.workerPID("a")]
            let waited = ProcessorWait.ofThisThread + ProcessorWait.of(pids) - waitedBefore
            let elapsed = Double(taken - min(taken, waited)) / 1e6

            // A hang-up is reported without the events that poll is asked for.
            let isOver = try Hangup.wait(connection.channel.fd, timeoutMilliseconds: 15_000)

            print("sent \(sent) requests; another open took \(elapsed) ms meanwhile")
            #expect(isOver)
            #expect(elapsed < 1000)
        }

        @Test("memory that is unsealed, shrunk or no memory file is not registered")
        func badMemory() throws {
            let service = try RunningService()
            let session = try service.rawSession("disk-a")
            let unsealed = try MemFD.create(name: "unsealed", byteCount: 65536, seals: [])
            let growable = try MemFD.create(name: "growable", byteCount: 65536, seals: [.shrink])
            let short = try MemFD.create(name: "short", byteCount: 4096)
            let null = try OwnedFD.open("/dev/null", flags: O_RDWR)
            let socket = try UnixSocket.pair()
            let good = try MemFD.create(name: "good", byteCount: 65536)

            for fd in [unsealed.raw, growable.raw, short.raw, null.raw, socket.first.raw] {
                try session.channel.send(
                    request: .registerMemory(regionID: 1, byteCount: 65536, readOnly: false),
                    fds: [fd])
                let answer = session.answer()
                guard case .failed(let code, _) = answer else {
                    Issue.record("\(answer)")
                    continue
                }
                #expect(code == .invalidArgument)
            }
            try session.channel.send(
                request: .registerMemory(regionID: 1, byteCount: 65536, readOnly: false),
                fds: [good.raw])
            #expect(session.answer() == .answered)
        }

        @Test("a bad session loses itself alone")
        func badSession() throws {
            let service = try RunningService()
            let disk = try service.connect().openDisk("disk-b")
            let buffer = try IOBuffer(byteCount: 4096)
            let session = try service.rawSession("disk-a")

            #expect(session.ask([0x08]) == .failed(.malformedMessage, field: nil))
            try disk.read(into: buffer, byteOffset: 0, byteCount: 4096)
            let again = try service.connect()
            let reopened = try again.openDisk("disk-a", access: .readWrite)
            try reopened.read(into: buffer, byteOffset: 0, byteCount: 4096)
        }

        @Test("ranges that cannot be are refused, and the session lives on")
        func badRanges() throws {
            let service = try RunningService()
            let session = try service.rawSession("disk-a")
            let blocks = RunningService.diskByteCount / 512
            let requests: [(SessionRequest, ErrorCode)] = [
                (.read(lba: blocks, blockCount: 1, location: .inline), .outOfRange),
                (.read(lba: .max, blockCount: 2, location: .inline), .outOfRange),
                (.read(lba: 0, blockCount: 0, location: .inline), .invalidArgument),
                (
                    .read(lba: 0, blockCount: 8, location: .region(id: 9, byteOffset: 0)),
                    .notFound
                ),
                // A payload is missing.
                (
                    .write(lba: 0, blockCount: 1, fua: false, location: .inline),
                    .invalidArgument
                ),
                (.verify(BlockRange(lba: blocks - 1, blockCount: 2)), .outOfRange),
            ]
            for (request, code) in requests {
                try session.channel.send(request: request)
                guard case .failed(let found, _) = session.answer() else {
                    Issue.record("\(request) was answered")
                    continue
                }
                #expect(found == code, "\(request)")
            }
            try session.channel.send(request: .read(lba: 0, blockCount: 1, location: .inline))
            #expect(session.answer() == .answered)
        }

        @Test("a thousand clients at once are served, and leave nothing behind")
        func thousand() throws {
            Linux.Process.prepare(openFiles: 16384)
            let service = try RunningService()
            let first = try service.connect()
            _ = try first.openDisk("disk-a", access: .readOnly)
            let pids = [
                service.manager.pid, try service.supervisorPID(), try service.workerPID("a"),
            ]
            let before = pids.map(Processes.descriptorCount)
            do {
                let begin = MonotonicClock.nowNanoseconds
                let clients = try (0..<1000).map { _ in try service.connect() }
                var sessions: [Disk] = []
                for client in clients {
                    #expect(try client.listDisks().count == 2)
                }
                for client in clients.prefix(100) {
                    sessions.append(try client.openDisk("disk-a", access: .readOnly))
                }
                let elapsed = Double(MonotonicClock.nowNanoseconds - begin) / 1e6
                print("1000 clients and 100 sessions in \(elapsed) ms")
                #expect(sessions.count == 100)
            }
            // Each answer proves a turn of the loop, in which it sees who went.
            var after: [Int] = []
            for _ in 0..<1000 {
                _ = try first.inspect("device/a/")
                after = pids.map(Processes.descriptorCount)
                if zip(after, before).allSatisfy({ $0 <= $1 }) { break }
            }
            print("descriptors of manager, supervisor and worker: \(before), then \(after)")
            #expect(zip(after, before).allSatisfy { $0 <= $1 })
        }
    }
}

/// Waiting for the other end to go, whatever is left to read.
enum Hangup {
    static func wait(_ fd: borrowing OwnedFD, timeoutMilliseconds: Int32) throws -> Bool {
        var entry = pollfd(fd: fd.raw, events: 0, revents: 0)
        let count = unsafe poll(&entry, 1, timeoutMilliseconds)
        return count == 1 && entry.revents & Int16(POLLHUP) != 0
    }
}
