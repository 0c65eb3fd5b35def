// SPDX-License-Identifier: Apache-2.0
// The descriptors a service manager hands over at start (sd_listen_fds(3), systemd 252).

internal import CSystemd
internal import Glibc
public import Linux

/// A descriptor with the name it was handed over under.
@frozen
public struct NamedFD: ~Copyable, Sendable {
    /// The name: `FileDescriptorName=` of a socket, or what it was stored under.
    public let name: String
    /// The descriptor, close-on-exec.
    public let fd: OwnedFD

    /// Names a descriptor.
    public init(name: String, fd: consuming OwnedFD) {
        self.name = name
        self.fd = fd
    }

    /// Gives the descriptor up.
    public consuming func takeFD() -> OwnedFD { fd }
}

/// The descriptors that came with this process, in the manager's order. Those not taken are closed.
public struct ListenFDs: ~Copyable, Sendable {
    private struct Entry {
        let name: String
        var raw: CInt
    }

    private var entries: [Entry]

    /// Takes what LISTEN_FDS names, once: marks all of it close-on-exec and unsets the variables.
    ///
    /// Empty when the process was not started by a manager, or the variables are for another one.
    public static func receive() throws(SystemCallError) -> ListenFDs {
        var names: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
        let count = try checked("sd_listen_fds", unsafe sd_listen_fds_with_names(1, &names))
        var entries: [Entry] = []
        for index in 0..<max(count, 0) {
            var name = "unknown"
            if let text = unsafe names?[Int(index)] { name = unsafe String(cString: text) }
            // SD_LISTEN_FDS_START
            entries.append(Entry(name: name, raw: 3 + index))
        }
        if let names = unsafe names {
            for index in 0..<Int(max(count, 0)) { unsafe free(names[index]) }
            unsafe free(names)
        }
        return ListenFDs(entries: entries)
    }

    private init(entries: [Entry]) { self.entries = entries }

    /// Descriptors from elsewhere, whose owner this becomes, with their names.
    public init(adopting named: [(name: String, raw: CInt)]) {
        entries = named.map { Entry(name: $0.name, raw: $0.raw) }
    }

    deinit { for entry in entries where entry.raw >= 0 { _ = OwnedFD(adopting: entry.raw) } }

    /// The names of those not yet taken, in order.
    public var names: [String] { entries.filter { $0.raw >= 0 }.map(\.name) }

    /// Whether all have been taken.
    public var isEmpty: Bool { entries.allSatisfy { $0.raw < 0 } }

    /// Takes the first with this name, made non-blocking; nil when there is none left.
    public mutating func take(_ name: String) -> OwnedFD? {
        takeEntry { $0.name == name }?.takeFD()
    }

    /// Takes the first whose name begins with `prefix`; nil when there is none left.
    public mutating func take(prefix: String) -> NamedFD? {
        takeEntry { $0.name.hasPrefix(prefix) }
    }

    /// Takes the next one; nil when there is none left.
    public mutating func takeNext() -> NamedFD? { takeEntry { _ in true } }

    /// Takes all that are left, in order, as they are: an open file that others share, as clients
    /// do, keeps its mode.
    public mutating func takeRest(_ body: (consuming NamedFD) -> Void) {
        for index in entries.indices where entries[index].raw >= 0 {
            let fd = OwnedFD(adopting: entries[index].raw)
            entries[index].raw = -1
            body(NamedFD(name: entries[index].name, fd: fd))
        }
    }

    private mutating func takeEntry(_ matches: (Entry) -> Bool) -> NamedFD? {
        guard let index = entries.firstIndex(where: { $0.raw >= 0 && matches($0) })
        else { return nil }
        let entry = entries[index]
        entries[index].raw = -1
        let fd = OwnedFD(adopting: entry.raw)
        // systemd hands sockets over in blocking mode unless the unit says NonBlocking=, and an
        // accept in that mode would stop the whole event loop.
        try? fd.setNonblocking(true)
        return NamedFD(name: entry.name, fd: fd)
    }
}
