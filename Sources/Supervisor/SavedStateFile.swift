// SPDX-License-Identifier: Apache-2.0
// The file that outlives a full stop: `servicing.state` in the state directory.

internal import Linux
internal import SavedState
internal import Systemd
internal import Wire

/// What tells this start of this machine from others.
struct HostIdentity: Sendable, Equatable {
    /// /etc/machine-id; empty: unknown.
    var machineID: String
    /// Which boot; empty: unknown.
    var bootID: String

    /// The machine this runs on, in its present boot.
    static var current: HostIdentity {
        HostIdentity(
            machineID: line("/etc/machine-id"), bootID: line("/proc/sys/kernel/random/boot_id"))
    }

    private static func line(_ path: String) -> String {
        guard let bytes = try? Files.read(path, limit: 128) else { return "" }
        return String(decoding: bytes.prefix { $0 > 0x20 && $0 < 0x7F }, as: UTF8.self)
    }

    /// Why what was saved there cannot be of use here; nil: it can.
    func obstacle(_ host: SavedHost) -> String? {
        if host.machineID != machineID {
            return "it was saved on another machine (\(host.machineID))"
        }
        if host.bootID != bootID {
            return "the machine was started anew since it was saved"
        }
        return nil
    }
}

/// Why saved state cannot be read or written.
enum SavedFileError: Error, Sendable, CustomStringConvertible {
    case system(SystemCallError)
    case state(SavedStateError)
    case tooLarge(byteCount: Int)

    var description: String {
        switch self {
        case .system(let error): "\(error)"
        case .state(let error): "\(error)"
        case .tooLarge(let byteCount): "it has more than \(byteCount) bytes"
        }
    }
}

/// The saved state in its directory. What may sleep in the disk runs in a thread, one at a time.
@Control
final class SavedStateFile {
    /// Where what outlives a full stop is.
    nonisolated let directory: String
    /// Where it is.
    nonisolated let path: String
    private nonisolated var prepared: String { path + ".new" }
    /// Where one is kept that could not be read, for a version that can.
    nonisolated var refused: String { path + ".refused" }

    /// The file in a directory, which is made when it is first needed.
    nonisolated init(directory: String) {
        self.directory = directory
        path = "\(directory)/servicing.state"
    }

    /// Whether there is one.
    var exists: Bool { Files.exists(path) }

    /// Reads it; nil: there is none.
    func read() async throws(SavedFileError) -> SavedFile? {
        let path = path
        let bytes: [UInt8]
        do throws(SystemCallError) {
            bytes = try await inBackground { () throws(SystemCallError) in
                try Files.read(path, limit: SavedLimits.fileByteCount)
            }
        } catch {
            if error.errno == Errno.noEntry { return nil }
            throw .system(error)
        }
        guard bytes.count <= SavedLimits.fileByteCount else {
            throw .tooLarge(byteCount: SavedLimits.fileByteCount)
        }
        do throws(SavedStateError) {
            return try SavedState.decode(bytes)
        } catch { throw .state(error) }
    }

    /// Writes the file beside its place.
    func prepare(_ bytes: [UInt8]) async throws(SystemCallError) {
        let (path, prepared) = (path, prepared)
        try await inBackground { () throws(SystemCallError) in
            let end = path.lastIndex(of: "/") ?? path.startIndex
            try DurableFile.makeDirectory(String(path[..<end]))
            try DurableFile.prepare(prepared, bytes)
        }
    }

    /// Puts what was prepared into its place: the commit point.
    func commit() async throws(SystemCallError) {
        let (path, prepared) = (path, prepared)
        try await inBackground { () throws(SystemCallError) in
            try DurableFile.replace(path, by: prepared)
        }
    }

    /// Removes it, and what was prepared.
    func remove() async throws(SystemCallError) {
        let (path, prepared) = (path, prepared)
        try await inBackground { () throws(SystemCallError) in
            Program.removeFile(prepared)
            guard Files.exists(path) else { return }
            try DurableFile.remove(path)
        }
    }

    /// Puts it aside: it is not read again.
    func setAside() async throws(SystemCallError) {
        let (path, refused) = (path, refused)
        try await inBackground { () throws(SystemCallError) in
            try DurableFile.replace(refused, by: path)
        }
    }

    private func inBackground<Value: Sendable>(
        _ body: @escaping @Sendable () throws(SystemCallError) -> Value
    ) async throws(SystemCallError) -> Value {
        try await Supervisor.inBackground(path, body)
    }
}

/// Runs what may sleep in the disk in a thread.
@Control
func inBackground<Value: Sendable>(
    _ path: String, _ body: @escaping @Sendable () throws(SystemCallError) -> Value
) async throws(SystemCallError) -> Value {
    let done = OneShot<Result<Value, SystemCallError>>()
    try BackgroundThread.start {
        let result: Result<Value, SystemCallError>
        do throws(SystemCallError) { result = .success(try body()) } catch {
            result = .failure(error)
        }
        EventLoop.current.perform { done.succeed(result) }
    }
    do {
        return try await done.value().get()
    } catch let error as SystemCallError {
        throw error
    } catch {
        // Nobody waits; what the thread has begun it ends.
        throw SystemCallError(path, errno: Errno.again)
    }
}
