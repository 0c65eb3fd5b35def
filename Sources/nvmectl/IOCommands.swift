// SPDX-License-Identifier: Apache-2.0
// nvmectl io: data in and out of disks.

import ArgumentParser
import Linux
import NVMeClient
import Wire

struct IOCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "io", abstract: "Reads, writes and checks disks.",
        subcommands: [
            Read.self, Write.self, Verify.self, Zero.self, Unmap.self, Flush.self,
        ])

    struct Read: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Reads a disk to the standard output.",
            discussion: "With --output json the data is left out and the result is shown instead.")
        @OptionGroup var io: IOOptions
        @Flag(help: "Show hexadecimal text instead of bytes.") var hex = false

        func run() throws {
            let wantsData = io.global.output == .text
            guard !wantsData || hex || !StandardStream.output.isTerminal else {
                throw Failure(
                    .usage, .disk(io.disk), "data is not written to a terminal", io.global.output,
                    code: "usage", hint: "Redirect it, or use --hex.")
            }
            try io.withJob("read", .readOnly) { job in
                try job.each { buffer, range in
                    try job.read(buffer, range)
                    guard wantsData else { return }
                    let bytes = buffer.copyOut(count: range.byteCount)
                    if hex {
                        try StandardStream.output.write(Hexdump.text(bytes, at: range.byteOffset))
                    } else {
                        try StandardStream.output.write(bytes)
                    }
                }
                if !wantsData { job.report() }
            }
        }
    }

    struct Write: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Writes the standard input, or a pattern, to a disk.")
        @OptionGroup var io: IOOptions
        @OptionGroup var pattern: PatternOptions
        @Flag(help: "Make each write durable before it is answered.") var fua = false
        @Flag(help: "Fill the last block of the input with zeroes.") var pad = false
        @Flag(help: "Only say what would be written.") var dryRun = false
        @OptionGroup var whole: WholeDiskOptions

        func validate() throws {
            // Input has an end of its own.
            if pattern.source != nil { try whole.check(io, "overwrite") }
        }

        func run() throws {
            try io.withJob("write", .readWrite, dryRun: dryRun) { job in
                if let source = pattern.source {
                    try job.each { buffer, range in
                        source.fill(buffer, range)
                        try job.write(buffer, range, fua: fua)
                    }
                } else {
                    try writeInput(job)
                }
                job.report()
            }
        }

        private func writeInput(_ job: IOJob) throws {
            try job.eachUntilEnd { buffer, range in
                var bytes = try StandardStream.input.read(byteCount: range.byteCount)
                let surplus = bytes.count % job.blockByteCount
                guard surplus == 0 || pad else {
                    throw Failure(
                        .usage, .disk(io.disk),
                        "the input is no multiple of the block of \(job.blockByteCount) bytes",
                        io.global.output, code: "usage", hint: "Use --pad to fill it with zeroes.")
                }
                if surplus > 0 {
                    bytes += [UInt8](repeating: 0, count: job.blockByteCount - surplus)
                }
                guard !bytes.isEmpty else { return 0 }
                buffer.copyIn(bytes)
                let part = ByteRange(byteOffset: range.byteOffset, byteCount: bytes.count)
                try job.write(buffer, part, fua: fua)
                return bytes.count
            }
            try job.checkInputEnd()
        }
    }

    struct Verify: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Compares a disk with a pattern or the standard input.",
            discussion: "With --device the device checks its medium itself, without a transfer.")
        @OptionGroup var io: IOOptions
        @OptionGroup var pattern: PatternOptions
        @Flag(help: "Have the device check instead of reading.") var device = false
        @Option(parsing: .unconditional, help: "Do it so many times.") var `repeat` = 1

        func validate() throws {
            guard (1...Int(UInt32.max)).contains(`repeat`) else {
                throw ValidationError("--repeat is 1 or more.")
            }
            guard `repeat` == 1 || device || pattern.source != nil else {
                throw ValidationError(
                    "The standard input can be compared only once: leave out --repeat.")
            }
        }

        func run() throws {
            try io.withJob("verify", .readOnly) { job in
                for _ in 0..<`repeat` {
                    if device {
                        try job.each { _, range in try job.verify(range) }
                    } else if let source = pattern.source {
                        try job.each { buffer, range in
                            try job.read(buffer, range)
                            if let place = source.firstMismatch(buffer, range) {
                                throw mismatch(job, place)
                            }
                        }
                    } else {
                        try verifyInput(job)
                    }
                }
                job.report()
            }
        }

        private func verifyInput(_ job: IOJob) throws {
            let expected = try IOBuffer(byteCount: IOJob.chunkByteCount)
            try job.eachUntilEnd { buffer, range in
                let bytes = try StandardStream.input.read(byteCount: range.byteCount)
                guard !bytes.isEmpty else { return 0 }
                let block = job.blockByteCount
                let whole = (bytes.count + block - 1) / block * block
                let part = ByteRange(byteOffset: range.byteOffset, byteCount: whole)
                try job.read(buffer, part)
                expected.copyIn(bytes)
                if let place = buffer.firstDifference(
                    offset: 0, count: bytes.count, from: expected, otherOffset: 0)
                {
                    throw mismatch(job, range.byteOffset + UInt64(place))
                }
                return whole
            }
            try job.checkInputEnd()
        }

        private func mismatch(_ job: IOJob, _ byteOffset: UInt64) -> Failure {
            let block = UInt64(job.blockByteCount)
            return Failure(
                .dataMismatch, .disk(io.disk), "the data differs at byte \(byteOffset)",
                io.global.output, code: "data-mismatch",
                hint: "Look: nvmectl io read \(io.disk) --offset \(byteOffset / block * block) "
                    + "--length 1b --hex")
        }
    }

    struct Zero: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Makes a part of a disk read as zeroes, without a transfer.")
        @OptionGroup var io: IOOptions
        @Flag(help: "Let the device free the blocks.") var deallocate = false
        @Flag(help: "Only say what would be zeroed.") var dryRun = false
        @OptionGroup var whole: WholeDiskOptions

        func validate() throws { try whole.check(io, "zero") }

        func run() throws {
            try io.withJob("zero", .readWrite, dryRun: dryRun) { job in
                try job.each { _, range in try job.zero(range, deallocate: deallocate) }
                job.report()
            }
        }
    }

    struct Unmap: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Tells the device that a part of a disk is not needed. Its data is lost.")
        @OptionGroup var io: IOOptions
        @Flag(help: "Only say what would be unmapped.") var dryRun = false
        @OptionGroup var whole: WholeDiskOptions

        func validate() throws { try whole.check(io, "unmap") }

        func run() throws {
            try io.withJob("unmap", .readWrite, dryRun: dryRun) { job in
                try job.each { _, range in try job.unmap(range) }
                job.report()
            }
        }
    }

    struct Flush: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Makes everything written to a disk durable.")
        @Argument(help: "The configured name of the disk.") var disk: String
        @OptionGroup var global: GlobalOptions

        func run() throws {
            try global.perform(.disk(disk)) {
                let open = try global.connect().openDisk(
                    disk, deadlineNanoseconds: global.deadline)
                defer { open.close() }
                try open.flush(deadlineNanoseconds: global.deadline)
                global.show([("flush", .object([("disk", .string(disk))]))]) { "" }
            }
        }
    }
}
