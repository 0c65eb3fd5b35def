// SPDX-License-Identifier: Apache-2.0
// A process that is killed while it speaks with a real vfio-user server, and its successors, which
// go on with the same stream.

import Glibc
import Linux
import TestSupport
import Testing

@testable import VFIO

@Suite("A vfio-user client that is killed", .timeLimit(.minutes(5)))
struct KilledClientTests {
    /// One process of a chain, with what it told.
    private final class Generation {
        let process: SpawnedProcess
        let ours: OwnedFD
        var capabilities: UInt64 = 0
        var socket: OwnedFD?
        var log: OwnedFD?

        init(_ generation: Int, path: String?, _ inherited: [CInt]) throws {
            let pair = try UnixSocket.pair()
            var probe = Spawn(
                Programs.beside("ServiceProbe"),
                ["vfio-user", "\(generation)"] + (path.map { [$0] } ?? []),
                environment: Programs.environment())
            probe.diesWithParent = false
            let process = try probe.start(fds: [pair.second.raw] + inherited)
            let ours = try pair.first.duplicate()
            self.process = process
            self.ours = ours
        }

        /// Waits for the next message of the process; false when it ended.
        func hear() throws -> Bool {
            let room = try Mapping(anonymous: 4096)
            guard try ours.waitReadable(timeoutMilliseconds: 60_000),
                var message = try unsafe UnixSocket.receive(
                    ours, into: UnsafeMutableRawBufferPointer(start: room.base, count: 8)),
                message.byteCount > 0
            else { return false }
            if message.byteCount == 8 {
                capabilities = unsafe room.base.load(as: UInt64.self)
                socket = message.fds.take(0)
                log = message.fds.take(1)
            }
            return true
        }

        func kill() throws {
            try process.signal(SIGKILL)
            var status: Int32 = 0
            _ = unsafe waitpid(process.pid, &status, 0)
        }
    }

    @Test(
        "register reads and doorbells are cut off at any instant, and the next one is understood",
        arguments: [[], ["--reply-delay-ms", "1"]])
    func chain(_ options: [String]) throws {
        var random = SplitMix64(state: seed())
        let emulator = try EmulatorProcess(
            ["--namespace", "memory=4M", "--no-mmap"] + options)
        var generation = try Generation(1, path: emulator.socket, [])
        #expect(try generation.hear())
        let capabilities = generation.capabilities
        for number in 2...30 {
            // When: it is somewhere in its work, and dies.
            let messages = random.next() % 3
            for _ in 0..<messages { #expect(try generation.hear()) }
            var pause = timespec(tv_sec: 0, tv_nsec: Int(random.next() % 2_000_000))
            unsafe nanosleep(&pause, nil)
            try generation.kill()
            guard let socket = generation.socket.take(), let log = generation.log.take() else {
                Issue.record("generation \(number - 1) sent no descriptors")
                return
            }
            // Then
            generation = try Generation(number, path: nil, [socket.raw, log.raw])
            #expect(try generation.hear(), "generation \(number)")
            #expect(generation.capabilities == capabilities)
        }
        try generation.kill()
        #expect(try emulator.command("stats").contains("\"connections\":1"))
    }
}
