// SPDX-License-Identifier: Apache-2.0
// nvmectl bench: how fast a disk is through a session.

import ArgumentParser
import Linux
import NVMeClient
import Wire

struct BenchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench", abstract: "Measures a disk: random or sequential reads or writes.")

    enum Operation: String, ExpressibleByArgument, CaseIterable {
        case read, write
    }

    @Argument(help: "The configured name of the disk.") var disk: String
    @Option(help: "read or write.") var operation: Operation = .read
    @Option(parsing: .unconditional, help: "Requests in flight, 1 to \(Disk.windowCount).")
    var queueDepth = 1
    @Option(help: "Bytes of a request: with K, M, or b for blocks.")
    var size = Size(byteCount: 4096, written: "4K")
    @Option(parsing: .unconditional, help: "How long to measure, 1 to \(Self.secondsMax).")
    var seconds = 5
    @Option(help: "Determines the order of the blocks.") var seed: UInt64 = 1
    @Flag(help: "Go from the beginning to the end.") var sequential = false
    @Flag(help: "Move data through registered memory instead of messages.") var direct = false
    @Flag(help: "Use a ring in shared memory instead of messages.") var ring = false
    @Flag(help: "Writing destroys the data of the disk: say that you want it.")
    var destroyData = false
    @OptionGroup var global: GlobalOptions

    /// A day: longer measurements are mistakes.
    static let secondsMax = 86400

    func validate() throws {
        guard (1...Self.secondsMax).contains(seconds) else {
            throw ValidationError("--seconds is from 1 to \(Self.secondsMax).")
        }
        guard (1...Disk.windowCount).contains(queueDepth) else {
            throw ValidationError("--queue-depth is from 1 to \(Disk.windowCount).")
        }
        guard operation == .read || destroyData else {
            throw ValidationError("Writing destroys the data of the disk; add --destroy-data.")
        }
    }

    func run() throws {
        try global.perform(.disk(disk)) {
            let open = try global.connect().openDisk(
                disk, access: operation == .read ? .readOnly : .readWrite,
                deadlineNanoseconds: global.deadline)
            defer { open.close() }
            guard let byteCount = size.byteCount(blockByteCount: open.blockByteCount),
                byteCount > 0, byteCount % UInt64(open.blockByteCount) == 0,
                byteCount <= min(1 << 30, open.byteCount)
            else {
                throw Failure(
                    .usage, .disk(disk),
                    "--size has to be a multiple of the block of "
                        + "\(open.blockByteCount) bytes and fit the disk", global.output,
                    code: "usage")
            }
            var load = try BenchLoad(self, open, requestByteCount: Int(byteCount))
            if ring { try load.runRing() } else { try load.run() }
            report(load)
        }
    }

    private func report(_ load: BenchLoad) {
        let seconds = Double(max(load.elapsedNanoseconds, 1)) / 1_000_000_000
        let iops = Double(load.completed) / seconds
        let rate = iops * Double(load.requestByteCount)
        let p50 = load.latencies.percentile(0.50)
        let p99 = load.latencies.percentile(0.99)
        global.show([
            (
                "bench",
                .object([
                    ("disk", .string(disk)), ("operation", .string(operation.rawValue)),
                    ("order", .string(sequential ? "sequential" : "random")),
                    ("data", .string(direct || ring ? "registered" : "inline")),
                    ("requests_by", .string(ring ? "ring" : "messages")),
                    ("request_bytes", .number(UInt64(load.requestByteCount))),
                    ("queue_depth", .number(UInt64(queueDepth))), ("seed", .number(seed)),
                    ("requests", .number(load.completed)),
                    ("elapsed_ns", .number(load.elapsedNanoseconds)),
                    ("iops", .number(UInt64(iops))),
                    ("bytes_per_second", .number(UInt64(rate))), ("p50_ns", .number(p50)),
                    ("p99_ns", .number(p99)), ("max_ns", .number(load.latencies.maximum)),
                ])
            )
        ]) {
            Text.list([
                ("requests", "\(load.completed) in \(Text.duration(load.elapsedNanoseconds))"),
                ("IOPS", "\(UInt64(iops))"), ("rate", "\(Text.size(UInt64(rate)))/s"),
                (
                    "latency",
                    "p50 \(Text.duration(p50)), p99 \(Text.duration(p99)), "
                        + "max \(Text.duration(load.latencies.maximum))"
                ),
            ])
        }
    }
}

/// The load: keeps a number of requests in flight until the time is over.
struct BenchLoad {
    let requestByteCount: Int
    private(set) var completed: UInt64 = 0
    private(set) var elapsedNanoseconds: UInt64 = 0
    private(set) var latencies = LatencyHistogram()

    private let disk: Disk
    private let options: BenchCommand
    private let buffer: IOBuffer
    private let blockCount: UInt32
    private var region: UInt32 = 0
    private let placeCount: UInt64
    private var random: UInt64
    private var next: UInt64 = 0
    private var started: [UInt64: (slot: Int, at: UInt64)] = [:]

    init(_ options: BenchCommand, _ disk: Disk, requestByteCount: Int) throws {
        self.options = options
        self.disk = disk
        self.requestByteCount = requestByteCount
        blockCount = UInt32(clamping: requestByteCount / disk.blockByteCount)
        placeCount = max(disk.byteCount / UInt64(requestByteCount), 1)
        random = options.seed
        buffer = try IOBuffer(byteCount: requestByteCount * options.queueDepth)
        DataPattern(seed: options.seed).fill(
            buffer, offset: 0, count: buffer.byteCount, diskByteOffset: 0)
        if options.direct || options.ring {
            region = try disk.registerMemory(buffer, deadlineNanoseconds: options.global.deadline)
        }
    }

    /// A place from 0 up to the number of places (SplitMix64).
    private mutating func place() -> UInt64 {
        if options.sequential {
            defer { next += 1 }
            return next % placeCount
        }
        random &+= 0x9E37_79B9_7F4A_7C15
        var mixed = random
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return (mixed ^ (mixed >> 31)) % placeCount
    }

    /// The same through a ring.
    mutating func runRing() throws(ClientError) {
        let entries = UInt32(options.queueDepth - 1).leadingZeroBitCount
        let ring = try disk.openRing(entries: max(2, 1 << UInt32(32 - entries)))
        var done = [RingCompletion](repeating: RingCompletion(), count: options.queueDepth)
        var times = [UInt64](repeating: 0, count: options.queueDepth)
        let begin = MonotonicClock.nowNanoseconds
        let end = begin &+ UInt64(clamping: options.seconds) * 1_000_000_000
        var inFlight = options.queueDepth
        for slot in 0..<options.queueDepth {
            times[slot] = begin
            prepare(ring, slot)
        }
        ring.submit()
        while inFlight > 0 {
            let count = ring.reap(into: &done)
            if count == 0 {
                _ = try ring.wait(
                    deadlineNanoseconds: Deadline.after(
                        milliseconds: UInt64(clamping: options.global.timeout) * 1000))
                continue
            }
            // One look at the clock for all that came together: it costs more than a request.
            let now = MonotonicClock.nowNanoseconds
            for completion in done[..<count] {
                if let error = completion.error(disk: disk.name) { throw .failed(error) }
                let slot = Int(clamping: completion.tag) % options.queueDepth
                latencies.add(now &- times[slot])
                completed += 1
                guard now < end else {
                    inFlight -= 1
                    continue
                }
                times[slot] = now
                prepare(ring, slot)
            }
            ring.submit()
        }
        elapsedNanoseconds = MonotonicClock.nowNanoseconds &- begin
    }

    private mutating func prepare(_ ring: DiskRing, _ slot: Int) {
        let lba = place() * UInt64(blockCount)
        let data = RingData.region(region, offset: UInt64(slot * requestByteCount))
        // There is always room: as many are prepared as were reaped.
        _ =
            options.operation == .read
            ? ring.prepareRead(lba: lba, blockCount: blockCount, data: data, tag: UInt64(slot))
            : ring.prepareWrite(lba: lba, blockCount: blockCount, data: data, tag: UInt64(slot))
    }

    private mutating func start(_ slot: Int) throws(ClientError) {
        let lba = place() * UInt64(blockCount)
        let offset = slot * requestByteCount
        let at = MonotonicClock.nowNanoseconds
        let id = try disk.submit(
            options.operation == .read
                ? .read(lba: lba, blockCount: blockCount, into: buffer, bufferOffset: offset)
                : .write(
                    lba: lba, blockCount: blockCount, from: buffer, bufferOffset: offset,
                    fua: false))
        started[id] = (slot, at)
    }

    /// Runs until the time is over and everything has come back.
    mutating func run() throws(ClientError) {
        let begin = MonotonicClock.nowNanoseconds
        let end = begin &+ UInt64(clamping: options.seconds) * 1_000_000_000
        for slot in 0..<options.queueDepth { try start(slot) }
        while let completion = try disk.nextCompletion(
            deadlineNanoseconds: Deadline.after(
                milliseconds: UInt64(clamping: options.global.timeout) * 1000))
        {
            if let error = completion.error { throw .failed(error) }
            let now = MonotonicClock.nowNanoseconds
            guard let (slot, at) = started.removeValue(forKey: completion.id) else { continue }
            latencies.add(now &- at)
            completed += 1
            if now < end { try start(slot) }
        }
        elapsedNanoseconds = MonotonicClock.nowNanoseconds &- begin
    }
}

/// Latencies in buckets of at most 1/16 of their value.
struct LatencyHistogram {
    private var buckets = [UInt64](repeating: 0, count: 64 * 16)
    private var count: UInt64 = 0
    /// The largest value.
    private(set) var maximum: UInt64 = 0

    mutating func add(_ nanoseconds: UInt64) {
        buckets[Self.bucket(nanoseconds)] += 1
        count += 1
        maximum = max(maximum, nanoseconds)
    }

    private static func bucket(_ value: UInt64) -> Int {
        guard value >= 16 else { return Int(value) }
        let exponent = 63 - value.leadingZeroBitCount
        return (exponent - 3) * 16 + Int((value >> (UInt64(exponent) - 4)) & 15)
    }

    private static func value(_ bucket: Int) -> UInt64 {
        guard bucket >= 16 else { return UInt64(bucket) }
        let exponent = UInt64(bucket / 16 + 3)
        return (UInt64(bucket % 16) | 16) << (exponent - 4)
    }

    /// The value below which the given part of all values lies, rounded down to its bucket.
    func percentile(_ part: Double) -> UInt64 {
        let wanted = UInt64((Double(count) * part).rounded(.up))
        var seen: UInt64 = 0
        for (index, bucket) in buckets.enumerated() {
            seen += bucket
            if seen >= wanted, seen > 0 { return Self.value(index) }
        }
        return maximum
    }
}
