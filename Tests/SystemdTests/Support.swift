// SPDX-License-Identifier: Apache-2.0
// What the tests of this module share: the loop on a thread of its own, and the probe program.

import CLinux
import Glibc
import Linux
import Systemd
import TestSupport

/// Runs a test's body as control code.
func onLoop<Value: Sendable>(_ body: @escaping @Control (EventLoop) async throws -> Value)
    async throws -> Value
{
    EventLoop.startOnOwnThread()
    let loop = EventLoop.current
    return try await LoopTurn.run { try await loop.task { try await body(loop) }.value }
}

/// Waits for ever, whatever happens to the task.
func forever() async {
    await unsafe withUnsafeContinuation { (_: UnsafeContinuation<Void, Never>) in }
}

/// The directory of the test binary, where SwiftPM puts the probe too.
func probePath() -> String {
    var buffer = [UInt8](repeating: 0, count: 4096)
    let count = unsafe buffer.withUnsafeMutableBytes { bytes in
        guard let base = bytes.baseAddress else { return 0 }
        return unsafe readlink(
            "/proc/self/exe", base.assumingMemoryBound(to: CChar.self), bytes.count)
    }
    let path = String(decoding: buffer[0..<max(count, 0)], as: UTF8.self)
    let parts = path.split(separator: "/", omittingEmptySubsequences: false).dropLast()
    return parts.joined(separator: "/") + "/ServiceProbe"
}

/// A child process whose output can be read.
struct Child: ~Copyable {
    let process: SpawnedProcess
    let output: OwnedFD
    var pid: Int32 { process.pid }

    /// Starts the probe with `fds` as its descriptors 3, 4, 5….
    init(_ arguments: [String], environment: [String] = [], fds: [CInt] = []) throws {
        var ends: [CInt] = [-1, -1]
        try checked("pipe", unsafe pipe(&ends))
        let read = OwnedFD(adopting: ends[0])
        let write = OwnedFD(adopting: ends[1])
        try checked("cloexec", nv_set_cloexec(read.raw, 1))
        try checked("cloexec", nv_set_cloexec(write.raw, 1))
        var spawn = Spawn(
            probePath(), arguments, environment: ["SWIFT_BACKTRACE=enable=no"] + environment)
        spawn.output = write.raw
        // The thread that starts it may end before the test does.
        spawn.diesWithParent = false
        process = try spawn.start(fds: fds)
        output = read
    }

    /// Everything it printed until it closed its output, and its exit code (128+signal).
    consuming func finish() -> (text: String, code: Int32) {
        var text: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = unsafe read(output.raw, &buffer, buffer.count)
            if count <= 0 { break }
            text += buffer[0..<count]
        }
        var status: CInt = 0
        _ = unsafe waitpid(pid, &status, 0)
        let code = status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f)
        return (String(decoding: text, as: UTF8.self), code)
    }
}
