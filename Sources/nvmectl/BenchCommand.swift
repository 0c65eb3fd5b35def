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
        /// Both, in turn at random; what is read has to be what was written last.
        case verify
    }

    @Argument(help: "The configured name of the disk.") var disk: String
    @Option(help: "read, write, or verify: writes and reads that compare what was written last.")
    var operation: Operation = .read
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
        guard operation != .verify || !sequential else {
            throw ValidationError("--sequential is for read and write.")
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
            let pauses = Pauses(open, global)
            var load = try BenchLoad(self, open, requestByteCount: Int(byteCount))
            do throws(BenchError) {
                if ring { try load.runRing() } else { try load.run() }
            } catch {
                switch error {
                case .client(let error): throw error
                case .mismatch(let place): throw mismatch(place)
                }
            }
            report(load, pauses)
        }
    }

    private func mismatch(_ place: UInt64) -> Failure {
        Failure(
            .dataMismatch, .disk(disk), "at byte \(place) is not what was written last",
            global.output, code: "data-mismatch",
            hint: "Look: nvmectl io read \(disk) --offset \(place / 512 * 512) --length 4K --hex")
    }

    private func report(_ load: BenchLoad, _ pauses: Pauses) {
        let seconds = Double(max(load.elapsedNanoseconds, 1)) / 1_000_000_000
        let iops = Double(load.completed) / seconds
        let rate = iops * Double(load.requestByteCount)
        let p50 = load.latencies.percentile(0.50)
        let p99 = load.latencies.percentile(0.99)
        global.show([
            (
                "bench",
                .object(
                    [
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
                        ("longest_pause_ns", .number(load.longestPauseNanoseconds)),
                        ("written", load.model.map { .number($0.written) } ?? .null),
                        ("verified", load.model.map { .number($0.verified) } ?? .null),
                    ] + pauses.json)
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
                (
                    "longest pause",
                    "\(Text.duration(load.longestPauseNanoseconds)) without a completion"
                        + pauses.text
                ),
                (
                    "verified",
                    load.model.map {
                        "\($0.verified) reads, all as written last; \($0.written) writes"
                    } ?? ""
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
    /// The longest time without any completion while requests were in flight.
    private(set) var longestPauseNanoseconds: UInt64 = 0
    private(set) var model: BenchModel?

    private let disk: Disk
    private let options: BenchCommand
    private let buffer: IOBuffer
    private let blockCount: UInt32
    private var region: UInt32 = 0
    private let placeCount: UInt64
    private var random: UInt64
    private var next: UInt64 = 0
    private var tasks: [BenchTask]
    private var times: [UInt64]
    private var slots: [UInt64: Int] = [:]
    private var begin: UInt64 = 0
    private var end: UInt64 = 0
    private var lastCompletion: UInt64 = 0

    init(_ options: BenchCommand, _ disk: Disk, requestByteCount: Int) throws {
        self.options = options
        self.disk = disk
        self.requestByteCount = requestByteCount
        blockCount = UInt32(clamping: requestByteCount / disk.blockByteCount)
        placeCount = max(disk.byteCount / UInt64(requestByteCount), 1)
        random = options.seed
        tasks = Array(repeating: BenchTask(place: 0, isWrite: false), count: options.queueDepth)
        times = Array(repeating: 0, count: options.queueDepth)
        buffer = try IOBuffer(byteCount: requestByteCount * options.queueDepth)
        DataPattern(seed: options.seed).fill(
            buffer, offset: 0, count: buffer.byteCount, diskByteOffset: 0)
        if options.operation == .verify {
            model = BenchModel(
                seed: options.seed, byteCount: requestByteCount, placeCount: placeCount,
                slotCount: options.queueDepth)
            guard model != nil else {
                throw Failure(
                    .usage, .disk(options.disk), "the disk has no room for so many requests",
                    options.global.output, code: "usage")
            }
        }
        if options.direct || options.ring {
            region = try disk.registerMemory(buffer, deadlineNanoseconds: options.global.deadline)
        }
    }

    private var deadline: UInt64 {
        Deadline.after(milliseconds: UInt64(clamping: options.global.timeout) * 1000)
    }

    /// Something between 0 and 2^64 (SplitMix64).
    private mutating func draw() -> UInt64 {
        random &+= 0x9E37_79B9_7F4A_7C15
        var mixed = random
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }

    /// What a slot does next, with its data in place; false: nothing more.
    private mutating func choose(_ slot: Int, _ now: UInt64) -> Bool {
        if model != nil {
            let drawn = draw()
            guard let task = now < end ? model?.next(slot, drawn) : model?.last(slot) else {
                return false
            }
            tasks[slot] = task
            model?.prepare(task, buffer, offset: slot * requestByteCount)
        } else {
            guard now < end else { return false }
            tasks[slot] = BenchTask(
                place: options.sequential ? next % placeCount : draw() % placeCount,
                isWrite: options.operation == .write)
            next &+= 1
        }
        times[slot] = now
        return true
    }

    private mutating func start() {
        begin = MonotonicClock.nowNanoseconds
        end = begin &+ UInt64(clamping: options.seconds) * 1_000_000_000
        lastCompletion = begin
    }

    /// Requests came back.
    private mutating func hear(_ now: UInt64) {
        longestPauseNanoseconds = max(longestPauseNanoseconds, now &- lastCompletion)
        lastCompletion = now
    }

    /// A slot's request is done: its data is looked at.
    private mutating func finish(_ slot: Int, _ now: UInt64) throws(BenchError) {
        latencies.add(now &- times[slot])
        completed += 1
        if let place = model?.mismatch(tasks[slot], buffer, offset: slot * requestByteCount) {
            throw .mismatch(byteOffset: place)
        }
    }

    /// Through a ring, until the time is over and everything has come back.
    mutating func runRing() throws(BenchError) {
        let entries = UInt32(options.queueDepth - 1).leadingZeroBitCount
        let ring = try BenchError.wrap { () throws(ClientError) in
            try disk.openRing(
                entries: max(2, 1 << UInt32(32 - entries)),
                deadlineNanoseconds: options.global.deadline)
        }
        var done = [RingCompletion](repeating: RingCompletion(), count: options.queueDepth)
        start()
        var inFlight = options.queueDepth
        for slot in 0..<options.queueDepth where choose(slot, begin) { prepare(ring, slot) }
        ring.submit()
        while inFlight > 0 {
            let count = ring.reap(into: &done)
            if count == 0 {
                let woken = try BenchError.wrap { () throws(ClientError) in
                    try ring.wait(deadlineNanoseconds: deadline)
                }
                if woken == .timedOut { throw .client(.timedOut) }
                continue
            }
            // One look at the clock for all that came together: it costs more than a request.
            let now = MonotonicClock.nowNanoseconds
            hear(now)
            for completion in done[..<count] {
                if let error = completion.error(disk: disk.name) { throw .client(.failed(error)) }
                let slot = Int(clamping: completion.tag) % options.queueDepth
                try finish(slot, now)
                if choose(slot, now) { prepare(ring, slot) } else { inFlight -= 1 }
            }
            ring.submit()
        }
        elapsedNanoseconds = MonotonicClock.nowNanoseconds &- begin
    }

    private mutating func prepare(_ ring: DiskRing, _ slot: Int) {
        let lba = tasks[slot].place * UInt64(blockCount)
        let data = RingData.region(region, offset: UInt64(slot * requestByteCount))
        // There is always room: as many are prepared as were reaped.
        _ =
            tasks[slot].isWrite
            ? ring.prepareWrite(lba: lba, blockCount: blockCount, data: data, tag: UInt64(slot))
            : ring.prepareRead(lba: lba, blockCount: blockCount, data: data, tag: UInt64(slot))
    }

    private mutating func submit(_ slot: Int) throws(ClientError) {
        let lba = tasks[slot].place * UInt64(blockCount)
        let offset = slot * requestByteCount
        let id = try disk.submit(
            tasks[slot].isWrite
                ? .write(
                    lba: lba, blockCount: blockCount, from: buffer, bufferOffset: offset,
                    fua: false)
                : .read(lba: lba, blockCount: blockCount, into: buffer, bufferOffset: offset))
        slots[id] = slot
    }

    /// Through messages, until the time is over and everything has come back.
    mutating func run() throws(BenchError) {
        start()
        for slot in 0..<options.queueDepth where choose(slot, begin) {
            do throws(ClientError) { try submit(slot) } catch { throw .client(error) }
        }
        while let completion = try BenchError.wrap({ () throws(ClientError) in
            try disk.nextCompletion(deadlineNanoseconds: deadline)
        }) {
            if let error = completion.error { throw .client(.failed(error)) }
            let now = MonotonicClock.nowNanoseconds
            guard let slot = slots.removeValue(forKey: completion.id) else { continue }
            hear(now)
            try finish(slot, now)
            guard choose(slot, now) else { continue }
            do throws(ClientError) { try submit(slot) } catch { throw .client(error) }
        }
        elapsedNanoseconds = MonotonicClock.nowNanoseconds &- begin
    }
}

/// Why a measurement ended early.
enum BenchError: Error {
    case client(ClientError)
    /// The disk does not contain what was written to it.
    case mismatch(byteOffset: UInt64)

    static func wrap<Value>(
        _ body: () throws(ClientError) -> Value
    ) throws(BenchError) -> Value {
        do throws(ClientError) { return try body() } catch { throw .client(error) }
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
