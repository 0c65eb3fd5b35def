// SPDX-License-Identifier: Apache-2.0
// The descriptors one unit has put aside for its next process.

internal import CLinux
internal import Linux
internal import Systemd

/// The descriptors of one unit, in the order they came.
@Control
final class DescriptorStore {
    /// What became of a descriptor that was offered.
    enum Outcome { case stored, duplicate, full }

    private final class Entry {
        let name: String
        let fd: OwnedFD
        let identity: FileIdentity?
        var source: DescriptorSource?
        init(name: String, identity: FileIdentity?, fd: consuming OwnedFD) {
            self.name = name
            self.identity = identity
            self.fd = fd
        }
    }

    private var entries: [Entry] = []
    private let limit: Int

    init(limit: Int) { self.limit = limit }

    var count: Int { entries.count }
    var names: [String] { entries.map(\.name) }
    /// The numbers, for the start of a process; they stay owned here.
    var rawFDs: [CInt] { entries.map { $0.fd.raw } }

    /// Keeps a descriptor, unless it is the same open file as one that is kept already.
    ///
    /// With `poll` it is dropped at a hang-up or error; a file that cannot be polled is just kept.
    func add(_ name: String?, _ fd: consuming OwnedFD, poll: Bool) -> Outcome {
        let raw = fd.raw
        // Looked at first, because a store may have thousands.
        let identity = FileIdentity(raw)
        // Where kcmp is forbidden a duplicate is kept: it costs a place, nothing else.
        let isKnown = entries.contains {
            $0.identity == identity && nv_same_open_file($0.fd.raw, raw) == 1
        }
        if isKnown { return .duplicate }
        guard entries.count < limit else { return .full }
        let valid = name.flatMap { FDName.isValid($0) ? $0 : nil } ?? "stored"
        let entry = Entry(name: valid, identity: identity, fd: fd)
        if poll {
            entry.source = try? EventLoop.current.watch(entry.fd, []) { [weak self, weak entry] _ in
                guard let self, let entry else { return }
                drop { $0 === entry }
            }
        }
        entries.append(entry)
        return .stored
    }

    /// Closes all that have this name.
    func remove(_ name: String) { drop { $0.name == name } }

    /// Closes everything.
    func removeAll() { drop { _ in true } }

    private func drop(_ matches: (Entry) -> Bool) {
        for entry in entries where matches(entry) {
            entry.source?.cancel()
            entry.source = nil
        }
        entries.removeAll(where: matches)
    }
}
