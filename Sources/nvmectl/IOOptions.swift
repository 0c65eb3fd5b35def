// SPDX-License-Identifier: Apache-2.0
// The options of the io commands: which disk, which part, which data.

import ArgumentParser
import Linux
import NVMeClient
import Wire

/// A part of a disk in bytes.
struct ByteRange {
    var byteOffset: UInt64
    var byteCount: Int
}

/// Which disk and which part of it.
struct IOOptions: ParsableArguments {
    @Argument(help: "The configured name of the disk.") var disk: String
    @Option(help: "Where to begin: bytes, or with K, M, G, T, or b for blocks.")
    var offset = Size(byteCount: 0, written: "0")
    @Option(help: "How much. (default: to the end of the disk)") var length: Size?
    @Flag(help: "Move data through registered memory instead of messages.") var direct = false
    @Flag(help: "Read and write through a ring in shared memory.") var ring = false
    @Flag(help: "Open the disk again if its session cannot be kept, and repeat what was in flight.")
    var reopen = false
    @OptionGroup var global: GlobalOptions

    /// Opens the disk and runs a job on the part; with `dryRun` only says which part.
    func withJob(
        _ verb: String, _ access: AccessMode, dryRun: Bool = false, _ work: (IOJob) throws -> Void
    ) throws {
        try global.perform(.disk(disk)) {
            let open = try global.connect().openDisk(
                disk, access: access, deadlineNanoseconds: global.deadline)
            defer { open.close() }
            let job = try IOJob(self, verb, open)
            guard dryRun else { return try work(job) }
            global.show([("dry_run", job.json)]) {
                "would \(verb) \(job.byteCount) bytes of disk \(disk) from byte \(job.byteOffset)"
            }
        }
    }
}

/// Says that a command without --length may destroy all data there is.
struct WholeDiskOptions: ParsableArguments {
    @Flag(help: "Take everything from --offset to the end of the disk.") var all = false

    /// What destroys data without asking for input needs to be told how much.
    func check(_ io: IOOptions, _ deed: String) throws {
        if all, io.length != nil {
            throw ValidationError("Give --length or --all, not both.")
        }
        guard all || io.length != nil else {
            throw ValidationError(
                "Without --length this would \(deed) everything from --offset to the end of the "
                    + "disk. Give --length, or --all if you want that.")
        }
    }
}

/// Which data, where it is not the standard input's.
struct PatternOptions: ParsableArguments {
    enum Kind: String, ExpressibleByArgument, CaseIterable {
        case random, zero
    }

    @Option(help: "random or zero, instead of the standard input.") var pattern: Kind?
    @Option(help: "Determines the random pattern.") var seed: UInt64 = 0

    /// Data that needs no input.
    enum Source {
        case random(DataPattern)
        case zero

        func fill(_ buffer: IOBuffer, _ range: ByteRange) {
            switch self {
            case .random(let pattern):
                pattern.fill(
                    buffer, offset: 0, count: range.byteCount, diskByteOffset: range.byteOffset)
            // The buffer begins as zeroes, and nobody else writes to it.
            case .zero: break
            }
        }

        func firstMismatch(_ buffer: IOBuffer, _ range: ByteRange) -> UInt64? {
            switch self {
            case .random(let pattern):
                return pattern.firstMismatch(
                    buffer, offset: 0, count: range.byteCount, diskByteOffset: range.byteOffset)
            case .zero:
                return buffer.firstNonzero(offset: 0, count: range.byteCount).map {
                    range.byteOffset + UInt64($0)
                }
            }
        }
    }

    var source: Source? {
        switch pattern {
        case .none: nil
        case .random: .random(DataPattern(seed: seed))
        case .zero: .zero
        }
    }
}
