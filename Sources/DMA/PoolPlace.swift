// SPDX-License-Identifier: Apache-2.0
// What the memory of a pool lies in, as configured, and what can be wrong with that.

public import Linux

/// What kind of memory a pool lies in.
public enum PoolMedium: String, Sendable, Equatable, CaseIterable {
    /// A sealed memory file, which lives as long as a descriptor of it.
    case memory = "memfd"
    /// A file of huge pages (hugetlbfs): it outlives all processes.
    case hugePages = "hugetlb"
    /// A file of a tmpfs: it outlives all processes.
    case file = "file"
    /// A DAX device (reserved memory): it outlives the kernel too, when the firmware leaves it
    /// alone.
    case deviceMemory = "dax"

    /// Whether it is found again when no descriptor of it is left.
    public var outlivesProcesses: Bool { self != .memory }
}

/// Where a pool lies.
public struct PoolPlace: Sendable, Equatable, CustomStringConvertible {
    /// In what.
    public var medium: PoolMedium
    /// The file or the device's node, an absolute path; empty for a memory file.
    public var path: String

    /// A place; `path` is not looked at for a memory file.
    public init(_ medium: PoolMedium, path: String = "") {
        self.medium = medium
        self.path = medium == .memory ? "" : path
    }

    /// A sealed memory file.
    public static let memory = PoolPlace(.memory)

    /// The place for messages.
    public var description: String {
        medium == .memory ? medium.rawValue : "\(medium.rawValue) \(path)"
    }
}

/// Why a pool's memory cannot be had. Each says what to do about it.
public enum PoolFileError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The configured path is not one.
    case badPath(String)
    /// There is no such file: nothing was kept there.
    case missing(path: String)
    /// It is something else than was configured.
    case wrongKind(path: String, wanted: String)
    /// Somebody else could have put it there, or can change it.
    case unsafe(path: String, reason: String)
    /// Another worker has it.
    case inUse(path: String)
    /// It has another size than what was kept there.
    case wrongSize(path: String, byteCount: Int, wanted: Int)
    /// There is not enough memory of that kind.
    case noMemory(place: PoolPlace, byteCount: Int, pageByteCount: Int)
    /// Whoever opens it for this process refused, in these words.
    case refused(String)
    /// A system call failed.
    case system(place: PoolPlace, SystemCallError)

    /// The error in words, with what to do.
    public var description: String {
        switch self {
        case .badPath(let path):
            "PoolPath=\(path) is no absolute path of a file; give one, as in "
                + "PoolPath=/dev/hugepages/nvmed/NAME.pool"
        case .missing(let path): "there is no pool at \(path): nothing was kept there"
        case .wrongKind(let path, let wanted):
            "\(path) is not \(wanted); correct Pool= or PoolPath="
        case .unsafe(let path, let reason):
            "\(path) is not safe to use: \(reason); make it root's (or the user's of a worker that "
                + "has no opener), without permissions for others, and not a link"
        case .inUse(let path):
            "\(path) is in use by another worker; each device needs a PoolPath= of its own"
        case .wrongSize(let path, let byteCount, let wanted):
            "the pool at \(path) has \(byteCount) bytes, not \(wanted)"
        case .noMemory(let place, let byteCount, let page): Self.noMemory(place, byteCount, page)
        case .refused(let words): words
        case .system(let place, let error): "the pool in \(place): \(error)"
        }
    }

    private static func noMemory(_ place: PoolPlace, _ byteCount: Int, _ page: Int) -> String {
        let count = (byteCount + max(page, 1) - 1) / max(page, 1)
        return switch place.medium {
        case .hugePages:
            "\(count) huge pages of \(page >> 10) KiB are needed at \(place.path) and not free; "
                + "raise vm.nr_hugepages, or the size of that hugetlbfs"
        case .deviceMemory:
            "\(byteCount) bytes are needed, and \(place.path) is smaller; reserve more memory "
                + "(memmap= or the device tree), or ask for fewer queues or a smaller pool"
        case .memory, .file:
            "\(byteCount) bytes of memory are needed for the pool in \(place) and not there; "
                + "raise the size of that tmpfs, or ask for fewer queues or a smaller pool"
        }
    }
}
