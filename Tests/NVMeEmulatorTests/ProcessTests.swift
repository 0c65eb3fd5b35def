// SPDX-License-Identifier: Apache-2.0
// nvmed-emulator as a process: start, notification, socket activation, control, orderly end, bad
// arguments.

import CLinux
import Foundation
import Glibc
import Linux
import Testing

@testable import NVMeEmulator

@Suite("The emulator as a process")
struct ProcessTests {
    /// A started emulator with a directory of its own.
    private final class Program {
        let directory: String
        let output: OwnedFD
        let process: SpawnedProcess

        init(_ arguments: [String], environment: [String] = [], fds: [CInt] = []) throws {
            directory =
                FileManager.default.temporaryDirectory.path
                + "/nve-\(UUID().uuidString.prefix(8))"
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true)
            output = try MemFD.create(name: "output", byteCount: 0, seals: [])
            let directory = directory
            var spawn = Spawn(
                try Self.path(),
                arguments.map { $0.replacing("@", with: directory) },
                environment: ["SWIFT_BACKTRACE=enable=no"]
                    + environment.map { $0.replacing("@", with: directory) })
            spawn.output = output.raw
            process = try spawn.start(fds: fds)
        }

        deinit {
            try? process.signal(SIGKILL)
            var status: CInt = 0
            _ = unsafe waitpid(process.pid, &status, 0)
            try? FileManager.default.removeItem(atPath: directory)
        }

        /// The products lie beside the test's own program.
        private static func path() throws -> String {
            let test = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
            return URL(fileURLWithPath: test).deletingLastPathComponent()
                .appending(path: "nvmed-emulator").path
        }

        /// Waits for the end and returns the exit status.
        func exitStatus() throws -> CInt {
            guard try process.pidfd.waitReadable(timeoutMilliseconds: 60_000) else { return -1 }
            var status: CInt = 0
            _ = unsafe waitpid(process.pid, &status, 0)
            return status & 0x7F == 0 ? status >> 8 & 0xFF : -(status & 0x7F)
        }

        /// Everything written so far.
        func text() throws -> String {
            var bytes = [UInt8](repeating: 0, count: try MemFD.byteCount(of: output))
            let count = unsafe bytes.withUnsafeMutableBytes { buffer -> Int in
                guard let base = buffer.baseAddress else { return 0 }
                return unsafe nv_pread(output.raw, base, buffer.count, 0)
            }
            return String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
        }
    }

    /// A started program that has said READY=1.
    private func ready(_ arguments: String...) throws -> Program {
        let notify =
            "\(FileManager.default.temporaryDirectory.path)/nvn-\(UUID().uuidString.prefix(8))"
        let socket = try UnixSocket.bindDatagram(notify)
        defer { _ = unsafe unlink(notify) }
        let program = try Program(
            ["--socket", "@/s", "--control", "@/c", "--namespace", "memory=1M"] + arguments,
            environment: ["NOTIFY_SOCKET=\(notify)"])
        #expect(try socket.waitReadable(timeoutMilliseconds: 60_000))
        return program
    }

    /// Sends the bytes as one message.
    private func send(_ raw: CInt, _ bytes: [UInt8]) {
        _ = unsafe bytes.withUnsafeBytes {
            unsafe nv_send_message(raw, $0.baseAddress, $0.count, nil, 0, nil, 0, 0)
        }
    }

    private func control(_ program: Program, _ line: String) throws -> String {
        let socket = try UnixSocket.connect("\(program.directory)/c", kind: .sequencedPacket)
        let raw = socket.raw
        send(raw, Array(line.utf8))
        #expect(try socket.waitReadable(timeoutMilliseconds: 60_000))
        var buffer = [UInt8](repeating: 0, count: 65536)
        let count = unsafe buffer.withUnsafeMutableBytes { bytes -> Int in
            guard let base = bytes.baseAddress else { return 0 }
            return unsafe nv_read(raw, base, bytes.count)
        }
        extendLifetime(socket)
        return String(decoding: buffer[0..<max(0, count)], as: UTF8.self)
    }

    /// Negotiates the version over a new connection, which it returns.
    private func connect(_ path: String) throws -> OwnedFD {
        let socket = try UnixSocket.connect(path, kind: .stream)
        send(socket.raw, RawClient.message(1, [0, 0, 1, 0]))
        return socket
    }

    @Test("it says READY=1, serves clients one after the other, and ends on SIGTERM")
    func life() throws {
        let program = try ready("--stats")
        do {
            let first = try connect("\(program.directory)/s")
            #expect(try first.waitReadable(timeoutMilliseconds: 60_000))
            let second = try connect("\(program.directory)/s")
            #expect(try control(program, "stats").contains("\"connections\":1"))
            UnixSocket.shutdown(first)
            #expect(try second.waitReadable(timeoutMilliseconds: 60_000))
            #expect(try control(program, "stats").contains("\"connections\":2"))
        }
        try program.process.signal(SIGTERM)

        #expect(try program.exitStatus() == 0)
        #expect(try program.text().contains("NVMED0001 ready at"))
        #expect(try program.text().contains("\"connections\":2"))
        #expect(!FileManager.default.fileExists(atPath: "\(program.directory)/s"))
    }

    /// Looks again and again, for at most a minute.
    private func wait(_ condition: () throws -> Bool) throws {
        let deadline = MonotonicClock.nowNanoseconds + 60_000_000_000
        while try !condition() {
            guard MonotonicClock.nowNanoseconds < deadline else {
                Issue.record("it has not come true within a minute")
                return
            }
            sched_yield()
        }
    }

    /// Sends a command and waits for the answer to it, whose error it returns.
    private func request(
        _ socket: borrowing OwnedFD, _ command: UInt16, _ body: [UInt8], fds: [CInt] = []
    ) throws -> UInt32? {
        let bytes = RawClient.message(command, body)
        _ = unsafe bytes.withUnsafeBytes {
            unsafe nv_send_message(
                socket.raw, $0.baseAddress, $0.count, nil, 0, fds, CInt(fds.count), 0)
        }
        guard try socket.waitReadable(timeoutMilliseconds: 60_000) else { return nil }
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = unsafe read(socket.raw, &buffer, buffer.count)
        return MessageHeader(ByteReader(buffer[0..<max(0, count)]))?.error
    }

    @Test(
        "with --keep a command completes though its client has gone, and the next client is none the wiser"
    )
    func keep() throws {
        let program = try ready("--keep", "--fault", "command:delay=600000,opcode=6")
        let file = try MemFD.create(name: "dma", byteCount: 65536)
        let memory = try Mapping(file, byteCount: 65536)
        let window = unsafe MemoryWindow(base: memory.base, byteCount: 65536)
        do {
            let first = try connect("\(program.directory)/s")
            #expect(try first.waitReadable(timeoutMilliseconds: 60_000))
            var answer = [UInt8](repeating: 0, count: 4096)
            _ = unsafe read(first.raw, &answer, answer.count)
            #expect(
                try request(first, 2, RawClient.map(0x10_0000, 65536), fds: [file.raw]) == 0)
            let registers: [(UInt64, [UInt8])] = [
                (0x24, [0x0F, 0, 0x0F, 0]), (0x28, [0, 0, 0x10, 0, 0, 0, 0, 0]),
                (0x30, [0, 0x10, 0x10, 0, 0, 0, 0, 0]), (0x14, [0x01, 0x00, 0x46, 0x00]),
            ]
            for (offset, value) in registers {
                let body = RawClient.access(offset, 0, UInt32(value.count)) + value
                #expect(try request(first, 10, body) == 0)
            }
            window.store64(0, 0x0042_0006)  // Identify with id 42h
            window.store64(24, 0x10_2000)  // PRP1
            window.store64(40, 1)  // CNS 1: the controller
            #expect(
                try request(first, 10, RawClient.access(0x1000, 0, 4) + [1, 0, 0, 0]) == 0)
            try wait { try control(program, "stats").contains("\"heldCommands\":1") }
        }
        #expect(try control(program, "release") == "ok 1")
        try wait { window.load64(0x1008) != 0 }
        #expect(window.load64(0x1008) >> 32 & 0xFFFF_FFFF == 0x1_0042)  // phase, success, id
        #expect(window.load64(0x2000) & 0xFFFF == 0x1234)
        let second = try connect("\(program.directory)/s")
        #expect(try second.waitReadable(timeoutMilliseconds: 60_000))
        let stats = try control(program, "stats")
        extendLifetime(memory)

        #expect(stats.contains("\"ready\":true"))
        #expect(stats.contains("\"connections\":2"))
        #expect(stats.contains("\"controllerResets\":0"))
    }

    @Test("it takes a listening socket as LISTEN_FDS=1")
    func socketActivation() throws {
        let path =
            "\(FileManager.default.temporaryDirectory.path)/nvl-\(UUID().uuidString.prefix(8))"
        let listener = try UnixSocket.listen(path, kind: .stream, mode: 0o600)
        defer { _ = unsafe unlink(path) }
        let program = try Program(
            ["--namespace", "memory=1M"], environment: ["LISTEN_FDS=1", "LISTEN_PID="],
            fds: [listener.raw])
        let client = try connect(path)

        #expect(try client.waitReadable(timeoutMilliseconds: 60_000))
        try program.process.signal(SIGTERM)
        #expect(try program.exitStatus() == 0)
    }

    @Test("a file behind a namespace is made sparse and keeps its size")
    func fileNamespace() throws {
        let program = try ready("--namespace", "file=@/disk,size=1G,block=4096")
        var status = stat()
        #expect(unsafe stat("\(program.directory)/disk", &status) == 0)

        #expect(status.st_size == 1 << 30)
        #expect(status.st_blocks < 1024)
    }

    @Test("--help shows the vocabulary of faults, --version a commit")
    func help() throws {
        let help = try Program(["--help"])
        #expect(try help.exitStatus() == 0)
        #expect(try help.text().contains("fatal-at-enable"))
        let version = try Program(["--version"])
        #expect(try version.exitStatus() == 0)
        #expect(try version.text().hasPrefix("nvmed-emulator "))
    }

    @Test(
        "arguments that make no sense end it with status 2 and a reason",
        arguments: [
            [], ["--socket"], ["--colour", "red"], ["--socket", "@/s", "--queues", "many"],
            ["--socket", "@/s", "--queues", "0"], ["--socket", "@/s", "--namespace", "memory=x"],
            ["--socket", "@/s", "--fault", "sing"], ["--socket", "@/s", "--doorbells", "gold"],
            ["--socket", "@/s", "--socket-mode", "9"],
        ])
    func badArguments(arguments: [String]) throws {
        let program = try Program(arguments)
        #expect(try program.exitStatus() == 2)
        #expect(try program.text().hasPrefix("nvmed-emulator: "))
    }
}
