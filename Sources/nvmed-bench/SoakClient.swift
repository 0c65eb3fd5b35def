// SPDX-License-Identifier: Apache-2.0
// A client of the soak and of the crash matrix: verified overlapping requests until it is told to
// stop, or killed.
//
// It obeys and reports through its model's file. Whatever goes wrong is counted there, and it goes
// on: the program that started it says in the end what was allowed.

import Glibc
import Linux
import NVMeClient
import Wire

/// How a client is to behave.
struct SoakJob {
    var socket: String
    var disk: String
    var model: String
    /// `ring`, `inline` or `registered`.
    var way: String
    var depth: Int
    var seed: UInt64
    var firstBlock: UInt64
    var blockCount: Int
    /// Bytes of the largest request.
    var byteCountMax: Int
    /// Always the largest.
    var isAlwaysLargest: Bool
    var operations: [SoakOperation]
    /// Requests between two openings and closings of something; 0: never.
    var exerciseInterval: UInt64
    /// How long a request may take before it counts as lost.
    var limitNanoseconds: UInt64
    /// The service may be stopped and started: a session's end is no error, and what had no answer
    /// is done again in the next.
    var repeats: Bool
    /// How long the service may be away.
    var patienceMilliseconds: UInt64
}

/// A request in flight.
private struct SoakRequest {
    var operation: SoakOperation
    var blocks: Range<Int>
    var sequence: UInt64
    var begin: UInt64
    var submittedNanoseconds: UInt64
    var slot: Int
    var offset: Int
    var list: Int?
}

/// The client.
@safe
final class SoakClient {
    /// Beside its data, a slot has room for a segment list and for an odd offset.
    private static let slotExtraByteCount = 8192
    /// Workers that may die one after another before the client gives up.
    private static let recoveryLimit = 100
    private let job: SoakJob
    private let model: SoakModel
    private let backend: NVMeBackend
    private let buffer: IOBuffer
    private let slotByteCount: Int
    private var port: any SoakPort
    private var random: UInt64
    private var inFlight: [UInt64: SoakRequest] = [:]
    /// Without an answer from a session that ended; to be done again, in this order.
    private var unanswered: [SoakRequest] = []
    private var freeSlots: [Int]
    private var nextTag: UInt64 = 1
    private var sinceExercise: UInt64 = 0
    private var turn: UInt64 = 0

    init(_ job: SoakJob) throws {
        self.job = job
        random = job.seed | 1
        backend = try NVMeBackend.connect(job.socket)
        let disk = try Self.open(backend, job)
        let slot = (job.byteCountMax + Self.slotExtraByteCount + 4095) & ~4095
        slotByteCount = slot
        buffer = try IOBuffer(byteCount: slot * job.depth)
        freeSlots = Array((0..<job.depth).reversed())
        port = try Self.port(disk, job, buffer)
        model = try SoakModel(
            path: job.model, firstBlock: job.firstBlock, blockCount: job.blockCount,
            blockByteCount: disk.blockByteCount)
    }

    private static func open(_ backend: NVMeBackend, _ job: SoakJob) throws -> Disk {
        let deadline = Deadline.after(milliseconds: job.patienceMilliseconds)
        while true {
            do throws(ClientError) {
                return try backend.openDisk(job.disk, deadlineNanoseconds: deadline)
            } catch {
                // The predecessor's session is still held, or the supervisor starts again.
                let isGone = if case .failed = error { false } else { true }
                guard error.isRetriable || isGone, MonotonicClock.nowNanoseconds < deadline else {
                    throw error
                }
                if isGone { try? backend.reconnect() }
                _ = poll(nil, 0, 1)
            }
        }
    }

    private static func port(_ disk: Disk, _ job: SoakJob, _ buffer: IOBuffer) throws
        -> any SoakPort
    {
        guard job.way == "ring" else {
            return try MessagePort(disk, buffer, registered: job.way == "registered")
        }
        var entries: UInt32 = 2
        while entries < job.depth { entries *= 2 }
        return try RingSoakPort(disk, buffer, entries: entries)
    }

    // MARK: The loop

    /// Runs until it is told to stop.
    func run() throws {
        do { try startAgain() } catch { try recover(error) }
        model[.state] = 1
        while true {
            let command = model[.command]
            if command == 0 {
                if model[.state] != 1 { model[.state] = 1 }
                try fill()
            } else if !unanswered.isEmpty {
                try fill()
            } else if inFlight.isEmpty {
                if command == 2 { break }
                model[.state] = 2
            }
            try step()
        }
        try verifyAll()
        model[.state] = 3
        port.disk.close()
    }

    /// Completions, time limits, and what is opened and closed on the way.
    private func step() throws {
        do {
            port.publish()
            let deadline = MonotonicClock.nowNanoseconds &+ 20_000_000
            if inFlight.isEmpty, model[.command] != 0 {
                _ = poll(nil, 0, 1)
            } else {
                try port.complete(deadlineNanoseconds: deadline) { finish($0, $1) }
            }
            hearEvents()
            if job.exerciseInterval > 0, sinceExercise >= job.exerciseInterval { try exercise() }
        } catch {
            try recover(error)
        }
        let now = MonotonicClock.nowNanoseconds
        for (tag, request) in inFlight
        where now &- request.submittedNanoseconds > job.limitNanoseconds {
            model.report(
                .lost,
                "\(request.operation) \(tag) of blocks \(request.blocks) has no completion after "
                    + "\(job.limitNanoseconds / 1_000_000_000) s")
            die("a request was lost")
        }
    }

    private func hearEvents() {
        for event in port.disk.takeEvents() {
            switch event {
            case .stalled: model[.stalled] &+= 1
            case .resumed: model[.resumed] &+= 1
            default: break
            }
        }
        model[.duplicateReplies] = port.disk.ignoredReplies
    }

    private func exercise() throws {
        sinceExercise = 0
        turn &+= 1
        model[.controlOperations] &+= 1
        if turn % 5 == 0 {
            // With nothing in flight: a new session.
            while !inFlight.isEmpty {
                try port.complete(
                    deadlineNanoseconds: MonotonicClock.nowNanoseconds &+ job.limitNanoseconds
                ) { finish($0, $1) }
            }
            port.disk.close()
            port = try Self.port(Self.open(backend, job), job, buffer)
            return
        }
        try port.exercise(turn, drained: inFlight.isEmpty) { finish($0, $1) }
        guard port.takeUntaken() else { return }
        for request in inFlight.values {
            if request.operation.changes {
                model.withdraw(request.blocks, sequence: request.sequence)
            }
            if request.operation == .write { model[.bytesIssued] &-= byteCount(request) }
            freeSlots.append(request.slot)
        }
        inFlight = [:]
    }

    /// The session is over, which no relay should show: counted, and opened again.
    private func recover(_ error: any Error) throws {
        var error = error
        let end = Deadline.after(milliseconds: job.patienceMilliseconds)
        for attempt in 0..<Self.recoveryLimit * 100 {
            // A device that is brought up again by itself says that it has failed.
            guard attempt < Self.recoveryLimit || job.repeats,
                attempt == 0 || MonotonicClock.nowNanoseconds < end
            else { break }
            if attempt > 0, job.repeats { _ = poll(nil, 0, 20) }
            giveUpSession(error)
            do {
                try port.disk.reopen(
                    deadlineNanoseconds: Deadline.after(milliseconds: job.patienceMilliseconds))
                model[.reopened] &+= 1
                try port.reopened()
                return try startAgain()
            } catch let next { error = next }
        }
        throw error
    }

    private func giveUpSession(_ error: any Error) {
        guard job.repeats else {
            model.report(
                .errors, "the session ended: \(error)", count: UInt64(max(1, inFlight.count)))
            for request in inFlight.values { freeSlots.append(request.slot) }
            inFlight = [:]
            return
        }
        model[.ended] &+= 1
        for tag in inFlight.keys.sorted() {
            if let request = inFlight[tag] { unanswered.append(request) }
        }
        inFlight = [:]
    }

    /// What a predecessor began is over when a request that came after it is done.
    ///
    /// What is to be repeated may show from now on, or not, until it is done.
    private func startAgain() throws {
        try port.disk.flush(
            deadlineNanoseconds: Deadline.after(milliseconds: job.patienceMilliseconds))
        if unanswered.isEmpty { model.settle() }
        try verifyAll()
    }

    // MARK: Down

    private func next(_ bound: Int) -> Int {
        random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return Int((random >> 33) % UInt64(max(1, bound)))
    }

    private func fill() throws {
        do {
            while let request = unanswered.first {
                guard try repeatOne(request) else { return }
                unanswered.removeFirst()
            }
            while model[.command] == 0, inFlight.count < job.depth, let slot = freeSlots.last {
                guard try submitOne(slot) else { return }
            }
        } catch { try recover(error) }
    }

    private func submitOne(_ slot: Int) throws -> Bool {
        var operation = job.operations[next(job.operations.count)]
        let most = min(job.byteCountMax, port.byteCountMax) / model.blockByteCount
        // Most requests are small.
        let limit = job.isAlwaysLargest ? most : min(most, [2, 8, 16, most][next(4)])
        let count = min(job.isAlwaysLargest ? limit : 1 + next(limit), model.blockCount)
        let first = next(model.blockCount - count + 1)
        let blocks = first..<first + count
        let oldest = oldestRead()
        if operation.changes, !model.hasRoom(blocks, oldestRead: oldest) { operation = .read }
        var offset = slot * slotByteCount + 4096
        var list: Int?
        let shape = next(10)
        if shape == 0 { offset += 1 + next(4000) }
        if shape == 1, job.way == "ring", operation == .read || operation == .write {
            list = slot * slotByteCount
        }
        var request = SoakRequest(
            operation: operation, blocks: blocks, sequence: 0, begin: 0,
            submittedNanoseconds: 0, slot: slot, offset: offset, list: list)
        prepare(&request)
        request.submittedNanoseconds = MonotonicClock.nowNanoseconds
        let taken = try port.submit(
            operation, lba: job.firstBlock &+ UInt64(first), blockCount: UInt32(count),
            data: SoakData(offset: offset, listOffset: list), tag: nextTag)
        guard taken else {
            if operation.changes { model.withdraw(blocks, sequence: request.sequence) }
            return false
        }
        freeSlots.removeLast()
        inFlight[nextTag] = request
        nextTag &+= 1
        return true
    }

    /// Submits again what had no answer: the same write, or a read that begins now.
    private func repeatOne(_ old: SoakRequest) throws -> Bool {
        var request = old
        if request.operation == .read { prepare(&request) }
        if request.operation == .write {
            model[.bytesIssued] &+= byteCount(request)
            // `verifyAll` may have used its place.
            for block in request.blocks {
                unsafe model.fill(block, sequence: request.sequence, at: place(block, request))
            }
        }
        request.submittedNanoseconds = MonotonicClock.nowNanoseconds
        let taken = try port.submit(
            request.operation, lba: job.firstBlock &+ UInt64(request.blocks.lowerBound),
            blockCount: UInt32(request.blocks.count),
            data: SoakData(offset: request.offset, listOffset: request.list), tag: nextTag)
        guard taken else { return false }
        inFlight[nextTag] = request
        nextTag &+= 1
        model[.repeated] &+= 1
        return true
    }

    /// The model knows of a write before the disk does.
    private func prepare(_ request: inout SoakRequest) {
        if request.operation.changes {
            request.sequence = model.takeSequence()
            model.begin(
                request.blocks, sequence: request.sequence, isZero: request.operation != .write)
        }
        request.begin = model.tick()
        switch request.operation {
        case .write:
            model[.bytesIssued] &+= byteCount(request)
            for block in request.blocks {
                unsafe model.fill(block, sequence: request.sequence, at: place(block, request))
            }
        case .read:
            for block in request.blocks { unsafe model.spoil(at: place(block, request)) }
        default: break
        }
    }

    private func place(_ block: Int, _ request: SoakRequest) -> UnsafeMutableRawPointer {
        guard let base = unsafe buffer.bytes.baseAddress else { die("a buffer without memory") }
        return unsafe base + request.offset
            + (block - request.blocks.lowerBound) * model.blockByteCount
    }

    private func byteCount(_ request: SoakRequest) -> UInt64 {
        UInt64(request.blocks.count * model.blockByteCount)
    }

    private func oldestRead() -> UInt64 {
        var oldest = UInt64.max
        for request in inFlight.values where request.operation == .read {
            oldest = min(oldest, request.begin)
        }
        return oldest
    }

    // MARK: Up

    private func finish(_ tag: UInt64, _ error: WireError?) {
        guard let request = inFlight[tag] else {
            // A reply that came twice is dropped by the library; a ring's must not come twice.
            model.report(
                .doubled, "the completion of request \(tag) came and nothing waited for it")
            return
        }
        let now = MonotonicClock.nowNanoseconds
        note(request, now)
        // While it is still in flight, its own begin counts among the oldest.
        if let error {
            fail(request, tag, error)
        } else if request.operation == .read {
            verify(request)
        } else if request.operation.changes {
            model.end(request.blocks, sequence: request.sequence, isUncertain: false)
            if request.operation == .write { model[.bytesAcknowledged] &+= byteCount(request) }
        }
        inFlight[tag] = nil
        if unanswered.last?.slot != request.slot { freeSlots.append(request.slot) }
    }

    private func note(_ request: SoakRequest, _ now: UInt64) {
        let kill = model[.killIndex]
        if kill != model[.seenKill], request.submittedNanoseconds > model[.killTime] {
            model[.pauseNanoseconds] = now &- model[.killTime]
            model[.seenKill] = kill
        }
        let age = now &- request.submittedNanoseconds
        if age > model[.longestNanoseconds] { model[.longestNanoseconds] = age }
        model[.requests] &+= 1
        sinceExercise &+= 1
    }

    private func fail(_ request: SoakRequest, _ tag: UInt64, _ error: WireError) {
        if job.repeats, port.disk.ended != nil || Self.isEnd(error.code) {
            // The session's end follows, if it is not over yet.
            unanswered.append(request)
            return
        }
        model.report(.errors, "\(request.operation) \(tag) of blocks \(request.blocks): \(error)")
        // With the session's end it may still happen: then `settle` closes it.
        guard request.operation.changes, port.disk.ended == nil else { return }
        model.end(request.blocks, sequence: request.sequence, isUncertain: true)
    }

    /// What a request is answered with when its session is about to end.
    private static func isEnd(_ code: ErrorCode) -> Bool {
        code == .outcomeUnknown || code == .shuttingDown || code == .workerRestarted
    }

    private func verify(_ request: SoakRequest) {
        let oldest = oldestRead()
        for block in request.blocks {
            let verdict = unsafe model.check(
                block, at: place(block, request), begin: request.begin, oldestRead: oldest)
            switch verdict {
            case .allowed: continue
            case .stale(let text): model.report(.stale, text)
            case .corrupt(let text): model.report(.corrupt, text)
            }
        }
    }

    /// Reads and checks every block, with nothing else in flight.
    private func verifyAll() throws {
        let step = max(1, min(job.byteCountMax, port.byteCountMax) / model.blockByteCount)
        for first in stride(from: 0, to: model.blockCount, by: step) {
            let blocks = first..<min(first + step, model.blockCount)
            var request = SoakRequest(
                operation: .read, blocks: blocks, sequence: 0, begin: 0, submittedNanoseconds: 0,
                slot: 0, offset: 4096)
            prepare(&request)
            try port.disk.read(
                into: buffer, bufferOffset: request.offset,
                byteOffset: (job.firstBlock &+ UInt64(first)) &* UInt64(model.blockByteCount),
                byteCount: Int(byteCount(request)),
                deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
            verify(request)
        }
    }
}

/// The client of the command line's options.
func runSoakClient() throws {
    let names = option("operations", "read,write,flush,zeroes,deallocate,verify").split(
        separator: ",")
    let operations = names.map { name in
        guard let operation = SoakOperation.allCases.first(where: { "\($0)" == name }) else {
            die("--operations: there is no \(name)")
        }
        return operation
    }
    let client = try SoakClient(
        SoakJob(
            socket: option("socket", ""), disk: option("disk", ""), model: option("model", ""),
            way: option("way", "ring"), depth: number("depth", 16),
            seed: UInt64(number("seed", 1)), firstBlock: UInt64(option("first", "0")) ?? 0,
            blockCount: number("blocks", 1024), byteCountMax: number("bytes", 65536),
            isAlwaysLargest: option("sizes", "mixed") == "largest", operations: operations,
            exerciseInterval: UInt64(option("exercise", "0")) ?? 0,
            limitNanoseconds: UInt64(number("limit", 30)) * 1_000_000_000,
            repeats: option("repeat", "no") == "yes",
            patienceMilliseconds: UInt64(number("patience", 60)) * 1000))
    try client.run()
}
