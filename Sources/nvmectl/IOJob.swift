// SPDX-License-Identifier: Apache-2.0
// One io command at work: it goes through its part of the disk in chunks, with progress.

import Linux
import NVMeClient
import Wire

/// A part of a disk that is worked on.
final class IOJob {
    /// Bytes of a chunk: large enough to keep a device busy, small enough to show progress.
    static let chunkByteCount = 4 << 20

    let disk: Disk
    let byteOffset: UInt64
    private(set) var byteCount: UInt64
    private let options: IOOptions
    private let verb: String
    private let buffer: IOBuffer
    private let started = MonotonicClock.nowNanoseconds
    private var doneByteCount: UInt64 = 0
    private var reopened = 0
    private var progress: Progress
    private let pauses: Pauses
    /// With `--ring`: the ring, until its session ends.
    private var ring: RingJob?

    var blockByteCount: Int { disk.blockByteCount }
    private var deadline: UInt64 { options.global.deadline }

    init(_ options: IOOptions, _ verb: String, _ disk: Disk) throws {
        self.options = options
        self.verb = verb
        self.disk = disk
        pauses = Pauses(disk, options.global)
        buffer = try IOBuffer(byteCount: Self.chunkByteCount)
        let block = disk.blockByteCount
        guard let offset = options.offset.byteCount(blockByteCount: block) else {
            throw Self.usage(options, "--offset is more than 64 bits")
        }
        var length = disk.byteCount - min(offset, disk.byteCount)
        if let wanted = options.length {
            guard let bytes = wanted.byteCount(blockByteCount: block) else {
                throw Self.usage(options, "--length is more than 64 bits")
            }
            length = bytes
        }
        let unit = UInt64(block)
        guard offset % unit == 0, length % unit == 0 else {
            throw Self.usage(
                options, "--offset and --length have to be multiples of the block of \(block) bytes"
            )
        }
        guard offset <= disk.byteCount, length <= disk.byteCount - offset else {
            throw Self.usage(
                options,
                "the part reaches past the end of the disk, which has "
                    + "\(disk.byteCount) bytes")
        }
        byteOffset = offset
        byteCount = length
        progress = Progress(verb, isShown: options.global.output == .text)
        if options.direct { try disk.registerMemory(buffer, deadlineNanoseconds: deadline) }
    }

    private static func usage(_ options: IOOptions, _ message: String) -> Failure {
        Failure(.usage, .disk(options.disk), message, options.global.output, code: "usage")
    }

    // MARK: Chunks

    /// Does something with every chunk of the part.
    func each(_ body: (IOBuffer, ByteRange) throws -> Void) throws {
        try eachUntilEnd { buffer, range in
            try body(buffer, range)
            return range.byteCount
        }
    }

    /// Does something with chunks until the part ends or `body` did less than its chunk.
    func eachUntilEnd(_ body: (IOBuffer, ByteRange) throws -> Int) throws {
        var done: UInt64 = 0
        while done < byteCount {
            let count = Int(min(UInt64(Self.chunkByteCount), byteCount - done))
            let range = ByteRange(byteOffset: byteOffset + done, byteCount: count)
            let moved = try body(buffer, range)
            done += UInt64(moved)
            doneByteCount += UInt64(moved)
            progress.show(done, of: byteCount)
            if moved < count { break }
        }
        progress.finish()
    }

    /// The input has to end where the part does: what is missing or left over is an error, so that
    /// a cut image does not look whole. `--length` may take less than the input has.
    func checkInputEnd() throws {
        if options.length != nil, doneByteCount < byteCount {
            throw Failure(
                .failure, .disk(options.disk),
                "the input ended after \(doneByteCount) of \(byteCount) bytes",
                options.global.output, code: "input-too-short")
        }
        if options.length == nil, doneByteCount == byteCount,
            !(try StandardStream.input.read(byteCount: 1).isEmpty)
        {
            throw Failure(
                .failure, .disk(options.disk),
                "the input is longer than the disk, which ended after \(byteCount) bytes of it",
                options.global.output, code: "input-too-long")
        }
    }

    /// Does something with the disk; with `--reopen` again when its session could not be kept.
    private func persistently(_ work: () throws(ClientError) -> Void) throws(ClientError) {
        do throws(ClientError) { try work() } catch {
            guard options.reopen, error.isWorkerRestarted else { throw error }
            ring = nil
            try disk.reopen(deadlineNanoseconds: deadline)
            reopened += 1
            try persistently(work)
        }
    }

    func read(_ buffer: IOBuffer, _ range: ByteRange) throws(ClientError) {
        try persistently { () throws(ClientError) in
            if options.ring {
                return try throughRing(range, isWrite: false, fua: false)
            }
            try disk.read(
                into: buffer, byteOffset: range.byteOffset, byteCount: range.byteCount,
                deadlineNanoseconds: deadline)
        }
    }

    func write(_ buffer: IOBuffer, _ range: ByteRange, fua: Bool) throws(ClientError) {
        try persistently { () throws(ClientError) in
            if options.ring { return try throughRing(range, isWrite: true, fua: fua) }
            try disk.write(
                from: buffer, byteOffset: range.byteOffset, byteCount: range.byteCount, fua: fua,
                deadlineNanoseconds: deadline)
        }
    }

    private func throughRing(
        _ range: ByteRange, isWrite: Bool, fua: Bool
    ) throws(ClientError) {
        if ring == nil { ring = try RingJob(disk, buffer, deadline: deadline) }
        try ring?.move(range, isWrite: isWrite, fua: fua, deadline: deadline)
    }

    func verify(_ range: ByteRange) throws(ClientError) {
        try persistently { () throws(ClientError) in
            try disk.verify(
                byteOffset: range.byteOffset, byteCount: UInt64(range.byteCount),
                deadlineNanoseconds: deadline)
        }
    }

    func zero(_ range: ByteRange, deallocate: Bool) throws(ClientError) {
        try persistently { () throws(ClientError) in
            try disk.writeZeroes(
                byteOffset: range.byteOffset, byteCount: UInt64(range.byteCount),
                deallocate: deallocate, deadlineNanoseconds: deadline)
        }
    }

    func unmap(_ range: ByteRange) throws(ClientError) {
        try persistently { () throws(ClientError) in
            try disk.unmap(
                byteOffset: range.byteOffset, byteCount: UInt64(range.byteCount),
                deadlineNanoseconds: deadline)
        }
    }

    // MARK: Result

    /// The part, for JSON.
    var json: JSON {
        .object([
            ("disk", .string(options.disk)), ("offset", .number(byteOffset)),
            ("bytes", .number(byteCount)),
        ])
    }

    /// Says what was done and how fast.
    func report() {
        let nanoseconds = max(MonotonicClock.nowNanoseconds - started, 1)
        let perSecond = Double(doneByteCount) * 1_000_000_000 / Double(nanoseconds)
        let result: [(String, JSON)] =
            [
                ("disk", .string(options.disk)), ("offset", .number(byteOffset)),
                ("bytes", .number(doneByteCount)), ("elapsed_ns", .number(nanoseconds)),
                ("bytes_per_second", .number(UInt64(perSecond))),
                ("reopened", .number(UInt64(reopened))),
            ] + pauses.json
        options.global.show([(verb, .object(result))]) {
            "\(verb) \(options.disk): \(Text.size(doneByteCount)) in "
                + "\(Text.duration(nanoseconds)), \(Text.size(UInt64(perSecond)))/s"
                + (reopened > 0 ? ", reopened \(reopened) times" : "") + pauses.text
        }
    }
}

/// A bar on the standard error, when a person looks at it.
struct Progress {
    private let verb: String
    private let isShown: Bool
    private var shownAt: UInt64 = 0

    /// Nanoseconds between two pictures.
    private static let interval: UInt64 = 100_000_000

    init(_ verb: String, isShown: Bool) {
        self.verb = verb
        self.isShown = isShown && StandardStream.error.isTerminal
    }

    mutating func show(_ done: UInt64, of all: UInt64) {
        let now = MonotonicClock.nowNanoseconds
        guard isShown, now &- shownAt >= Self.interval else { return }
        shownAt = now
        let width = 30
        let filled = Int(Double(width) * Double(done) / Double(max(all, 1)))
        let bar =
            String(repeating: "#", count: min(filled, width))
            + String(repeating: ".", count: max(width - filled, 0))
        let text = "\r\(verb) [\(bar)] \(Text.size(done)) of \(Text.size(all))\u{1b}[K"
        try? StandardStream.error.write(text)
    }

    mutating func finish() {
        if isShown, shownAt > 0 { try? StandardStream.error.write("\r\u{1b}[K") }
        shownAt = 0
    }
}

/// Bytes as hexadecimal text.
enum Hexdump {
    /// Lines of 16 bytes with their place on the disk.
    static func text(_ bytes: [UInt8], at byteOffset: UInt64) -> String {
        var text = ""
        for start in stride(from: 0, to: bytes.count, by: 16) {
            let line = bytes[start..<min(start + 16, bytes.count)]
            let place = String(byteOffset + UInt64(start), radix: 16)
            text += String(repeating: "0", count: max(12 - place.count, 0)) + place + "  "
            text += line.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
            text += String(repeating: "   ", count: 16 - line.count) + "  "
            text += String(
                decoding: line.map { (32..<127).contains($0) ? $0 : UInt8(ascii: ".") },
                as: UTF8.self)
            text += "\n"
        }
        return text
    }
}
