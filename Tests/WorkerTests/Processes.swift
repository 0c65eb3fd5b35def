// SPDX-License-Identifier: Apache-2.0
// The programs under test as child processes, with a small service manager around them.

import CLinux
import Glibc
import Linux
import Testing

/// What went wrong around a test.
struct RigError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// How long anything in a test may take: far more than it needs, far less than a hang.
let patienceMilliseconds: UInt64 = 20_000

/// The point in time at which a test gives up.
func patience(_ milliseconds: UInt64 = patienceMilliseconds) -> UInt64 {
    MonotonicClock.nowNanoseconds + milliseconds * 1_000_000
}

/// A program beside the test binary, or in NVMED_BIN_DIR.
func programPath(_ name: String) -> String {
    if let directory = Program.environment("NVMED_BIN_DIR"), isProgram("\(directory)/\(name)") {
        return "\(directory)/\(name)"
    }
    var buffer = [UInt8](repeating: 0, count: 4096)
    let count = unsafe buffer.withUnsafeMutableBytes { bytes -> Int in
        guard let base = bytes.baseAddress else { return 0 }
        return unsafe readlink(
            "/proc/self/exe", base.assumingMemoryBound(to: CChar.self), bytes.count)
    }
    let path = String(decoding: buffer[0..<max(count, 0)], as: UTF8.self)
    let directory = path.split(separator: "/", omittingEmptySubsequences: false).dropLast()
    return directory.joined(separator: "/") + "/" + name
}

private func isProgram(_ path: String) -> Bool { unsafe access(path, X_OK) == 0 }

/// How many descriptors a process has open.
func openFDCount(_ pid: Int32) -> Int {
    guard let directory = unsafe opendir("/proc/\(pid)/fd") else { return -1 }
    defer { unsafe closedir(directory) }
    var count = 0
    while unsafe readdir(directory) != nil { count += 1 }
    return count - 2
}

/// A line of /proc/PID/status in KiB, such as `RssAnon`: what a process has for itself. (The DMA
/// pool is shared memory, and its pages become resident as they are used.)
func statusKiB(_ pid: Int32, _ name: String) throws -> Int {
    let file = try OwnedFD.open("/proc/\(pid)/status", flags: O_RDONLY)
    var text = [UInt8](repeating: 0, count: 8192)
    let count = unsafe read(file.raw, &text, text.count)
    let lines = String(decoding: text[0..<max(0, count)], as: UTF8.self).split(separator: "\n")
    let fields = lines.first { $0.hasPrefix(name + ":") }?.split { $0 == " " || $0 == "\t" } ?? []
    return fields.dropFirst().first.flatMap { Int($0) } ?? -1
}

/// A child process; killed and reaped when it is let go of.
final class Child {
    private let process: SpawnedProcess
    private var ended: Int32?

    init(_ path: String, _ arguments: [String], environment: [String], fds: [CInt] = []) throws {
        var all = environment + ["SWIFT_BACKTRACE=enable=no", "PATH=/usr/bin:/bin"]
        all.append("NVMED_LOG_LEVEL=\(Program.environment("NVMED_LOG_LEVEL") ?? "emergency")")
        process = try Spawn(path, arguments, environment: all).start(fds: fds)
    }

    deinit {
        guard ended == nil else { return }
        try? process.signal(SIGKILL)
        _ = try? wait()
    }

    var pid: Int32 { process.pid }

    func signal(_ number: Int32) throws { try process.signal(number) }

    /// Waits for the end; the exit code, or minus the signal.
    @discardableResult
    func wait(_ milliseconds: UInt64 = patienceMilliseconds) throws -> Int32 {
        if let ended { return ended }
        guard try process.pidfd.waitReadable(timeoutMilliseconds: Int32(milliseconds)) else {
            throw RigError("process \(process.pid) has not ended in \(milliseconds) ms")
        }
        var status: Int32 = 0
        _ = unsafe waitpid(process.pid, &status, 0)
        let code = status & 0x7F == 0 ? (status >> 8) & 0xFF : -(status & 0x7F)
        ended = code
        return code
    }
}

/// A descriptor that can be stored in arrays.
final class HeldFD {
    let fd: OwnedFD
    init(_ fd: consuming OwnedFD) { self.fd = fd }
}

/// The manager's side of sd_notify, and its descriptor store.
final class NotifySocket {
    let path: String
    private let fd: OwnedFD
    private(set) var messages: [String] = []
    /// What is stored, in order.
    private var stored: [(name: String, held: HeldFD)] = []

    init(_ path: String) throws {
        self.path = path
        fd = try UnixSocket.bindDatagram(path)
    }

    var storedNames: [String] { stored.map(\.name) }
    var storedFDs: [CInt] { stored.map { $0.held.fd.raw } }

    /// Takes what waits.
    func pump() throws {
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 8)
        defer { unsafe memory.deallocate() }
        while true {
            guard var message = try unsafe UnixSocket.receive(fd, into: memory, nonblocking: true)
            else { return }
            let text = unsafe String(decoding: memory[0..<message.byteCount], as: UTF8.self)
            messages.append(text)
            let lines = text.split(separator: "\n").map(String.init)
            let name = lines.first { $0.hasPrefix("FDNAME=") }.map { String($0.dropFirst(7)) }
            if lines.contains("FDSTOREREMOVE=1") { stored.removeAll { $0.name == name } }
            if lines.contains("FDSTORE=1"), let name, let fd = message.fds.take(0) {
                stored.append((name, HeldFD(fd)))
            }
        }
    }

    /// Waits until a message contains a line.
    func wait(for line: String, _ milliseconds: UInt64 = patienceMilliseconds) throws {
        let deadline = patience(milliseconds)
        while true {
            try pump()
            if messages.contains(where: { $0.split(separator: "\n").contains { $0 == line } }) {
                return
            }
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw RigError("no \(line) in \(milliseconds) ms; came: \(messages)")
            }
            _ = try fd.waitReadable(timeoutMilliseconds: 100)
        }
    }

    func forget() { messages.removeAll() }

    /// Stores something on nobody's behalf.
    func store(_ name: String, _ fd: consuming OwnedFD) { stored.append((name, HeldFD(fd))) }

    /// Loses what is stored under a name.
    func remove(_ name: String) { stored.removeAll { $0.name == name } }

    /// A descriptor of what is stored under a name.
    func duplicate(_ name: String) throws -> OwnedFD {
        guard let held = stored.last(where: { $0.name == name })?.held else {
            throw RigError("nothing is stored as \(name)")
        }
        return try held.fd.duplicate()
    }
}
