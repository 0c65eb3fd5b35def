// SPDX-License-Identifier: Apache-2.0
// Which devices an operator released, on the disk: a supervisor that comes back must not use them.

internal import Glibc
internal import Linux
internal import Systemd

/// A file `released.<device>` for each released device, with the reason in it.
struct ReleasedMarks: Sendable {
    private let directory: String
    /// More marks are not looked at in one reload; far more than there are devices.
    private static let marksRead = 65_536
    /// More of a reason is not read.
    private static let reasonByteCount = 4096

    /// The marks in a directory, which is made when it is first needed.
    init(directory: String) { self.directory = directory }

    private func path(_ device: String) -> String { "\(directory)/released.\(device)" }

    /// Why a device was released; nil: it was not. One whose mark cannot be read is released.
    func reason(_ device: String) -> String? {
        do throws(SystemCallError) {
            let bytes = try Files.read(path(device), limit: Self.reasonByteCount)
            return String(decoding: bytes.prefix(Self.reasonByteCount), as: UTF8.self)
        } catch {
            // No mark can have been made where none fits.
            let isMissing = [ENOENT, ENOTDIR, ENAMETOOLONG].contains(error.errno)
            return isMissing ? nil : "it may be released: \(error)"
        }
    }

    /// Marks a device. It is on the disk when this returns.
    @Control
    func set(_ device: String, _ reason: String) async throws(SystemCallError) {
        let (directory, path) = (directory, path(device))
        // No device's mark is called like this.
        let prepared = "\(directory)/releasing.\(device)"
        try await toTheEnd(path) { () throws(SystemCallError) in
            try DurableFile.makeDirectory(directory)
            try DurableFile.prepare(prepared, Array(reason.utf8))
            try DurableFile.replace(path, by: prepared)
        }
    }

    /// Removes the mark of a device, if there is one.
    @Control
    func remove(_ device: String) async throws(SystemCallError) {
        let path = path(device)
        guard Files.exists(path) else { return }
        try await toTheEnd(path) { () throws(SystemCallError) in try DurableFile.remove(path) }
    }

    /// The devices that have a mark.
    private var marked: [String] {
        let names = (try? Files.list(directory, limit: Self.marksRead)) ?? []
        return names.compactMap { $0.hasPrefix("released.") ? String($0.dropFirst(9)) : nil }
    }

    /// Removes the marks of devices that are not configured any more: one that is configured again
    /// is to be used.
    @Control
    func removeAll(except names: Set<String>) async throws(SystemCallError) {
        for device in marked where !names.contains(device) { try await remove(device) }
    }

    /// Also when nobody waits for it any more: the next one must not meet it at work.
    @Control
    private func toTheEnd(
        _ path: String, _ body: @escaping @Sendable () throws(SystemCallError) -> Void
    ) async throws(SystemCallError) {
        let task = EventLoop.current.task { () -> SystemCallError? in
            do throws(SystemCallError) {
                try await inBackground(path, body)
                return nil
            } catch { return error }
        }
        if let error = await task.value { throw error }
    }
}
