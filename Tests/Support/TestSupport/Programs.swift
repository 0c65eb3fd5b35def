// SPDX-License-Identifier: Apache-2.0
// The real programs, started by tests.

import Glibc
public import Linux

/// Where the programs under test are.
public enum Programs {
    /// The directory with `nvmed`, `nvmed-worker` and the others: `NVMED_BIN_DIR`, or
    /// `.build/release` of this checkout.
    public static let directory: String = {
        if let named = unsafe getenv("NVMED_BIN_DIR") { return unsafe String(cString: named) }
        let source = #filePath
        let root = source.components(droppingLast: 4)
        return root + "/.build/release"
    }()

    /// The path of one of them.
    public static func path(_ name: String) -> String { directory + "/" + name }

    /// A program of the package beside the running test binary.
    public static func beside(_ name: String) -> String {
        let own = Files.target(ofLink: "/proc/self/exe") ?? ""
        return own.components(droppingLast: 1) + "/" + name
    }

    private static let searchPath =
        unsafe getenv("PATH").map { unsafe String(cString: $0) } ?? "/usr/bin:/bin"

    /// The environment that programs under test get, and `more`.
    public static func environment(_ more: [String] = []) -> [String] {
        ["SWIFT_BACKTRACE=enable=no", "PATH=/usr/bin:/bin"] + more
    }
}

extension String {
    fileprivate func components(droppingLast count: Int) -> String {
        split(separator: "/", omittingEmptySubsequences: false).dropLast(count)
            .joined(separator: "/")
    }
}

/// A private directory with a short name, removed with everything in it.
public final class TemporaryDirectory: Sendable {
    /// Its path.
    public let path: String

    /// Makes one; in `/dev/shm` it is one of memory.
    public init(in parent: String = "/tmp") throws(SystemCallError) {
        var template = Array("\(parent)/nvt.XXXXXX".utf8CString)
        guard unsafe mkdtemp(&template) != nil else {
            throw SystemCallError("mkdtemp", errno: errno)
        }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { Self.remove(path) }

    private static func remove(_ path: String) {
        if let stream = unsafe opendir(path) {
            while let entry = unsafe readdir(stream) {
                let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) {
                    unsafe String(cString: UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self))
                }
                guard name != ".", name != ".." else { continue }
                if unsafe entry.pointee.d_type == 4 {
                    remove(path + "/" + name)
                } else {
                    _ = unsafe unlink(path + "/" + name)
                }
            }
            _ = unsafe closedir(stream)
        }
        _ = unsafe rmdir(path)
    }
}

/// Files that a test makes.
public enum TestFiles {
    /// Writes or replaces a file; directories that its path names and that are missing are made.
    public static func write(_ text: String, to path: String) throws(SystemCallError) {
        var directory = ""
        for part in path.split(separator: "/").dropLast() {
            directory += "/\(part)"
            // One that cannot be made shows when the file is opened.
            _ = unsafe mkdir(directory, 0o755)
        }
        let fd = try OwnedFD.open(path, flags: O_WRONLY | O_CREAT | O_TRUNC)
        let bytes = Array(text.utf8)
        let count = unsafe Glibc.write(fd.raw, bytes, bytes.count)
        guard count == bytes.count else { throw SystemCallError("write \(path)", errno: errno) }
    }
}

/// A running `nvmed-emulator`, ended with its owner.
public final class EmulatorProcess: Sendable {
    /// The vfio-user socket.
    public let socket: String
    /// The control socket.
    public let control: String
    /// Its process.
    public var pid: Int32 { process.pid }
    private let process: SpawnedProcess
    private let directory: TemporaryDirectory

    /// Starts an emulator with these arguments beside its sockets. A client may connect at once:
    /// the socket listens already.
    public init(_ arguments: [String]) throws(SystemCallError) {
        directory = try TemporaryDirectory()
        socket = directory.path + "/v"
        control = directory.path + "/c"
        let listener = try UnixSocket.listen(socket, kind: .stream, mode: 0o600)
        var program = Spawn(
            Programs.path("nvmed-emulator"), arguments + ["--control", control],
            environment: Programs.environment(["LISTEN_FDS=1", "LISTEN_PID="]))
        program.diesWithParent = false
        process = try program.start(fds: [listener.raw])
    }

    deinit {
        try? process.signal(SIGKILL)
        var status: CInt = 0
        _ = unsafe waitpid(process.pid, &status, 0)
    }

    /// Sends a command to the control socket and returns the answer. The emulator must have been
    /// connected to.
    public func command(_ text: String) throws(SystemCallError) -> String {
        let fd = try UnixSocket.connect(control, kind: .sequencedPacket)
        let request = Array(text.utf8)
        try unsafe request.withUnsafeBufferPointer { bytes throws(SystemCallError) in
            _ = try unsafe UnixSocket.send(fd, UnsafeRawBufferPointer(bytes))
        }
        let room = try Mapping(anonymous: 1 << 18)
        let buffer = unsafe UnsafeMutableRawBufferPointer(start: room.base, count: room.byteCount)
        guard let message = try unsafe UnixSocket.receive(fd, into: buffer) else { return "" }
        return unsafe String(decoding: buffer[0..<message.byteCount], as: UTF8.self)
    }
}

extension Programs {
    /// The top of this checkout.
    public static let root = #filePath.components(droppingLast: 4)

    /// Runs a program to its end and returns its exit code (128 and the signal when one ended it)
    /// and what it printed.
    public static func run(
        _ path: String, _ arguments: [String]
    ) throws(SystemCallError) -> (status: CInt, output: String) {
        let output = try MemFD.create(name: "output", byteCount: 0, seals: [])
        var program = Spawn(path, arguments, environment: environment())
        program.output = output.raw
        program.diesWithParent = false
        let process = try program.start()
        var status: CInt = 0
        while unsafe waitpid(process.pid, &status, 0) < 0 && errno == EINTR {}
        var text: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = unsafe pread(output.raw, &chunk, chunk.count, off_t(text.count))
            guard count > 0 else { break }
            text += chunk[0..<count]
        }
        let code = status & 0x7F == 0 ? (status >> 8) & 0xFF : 128 + (status & 0x7F)
        return (code, String(decoding: text, as: UTF8.self))
    }
}
