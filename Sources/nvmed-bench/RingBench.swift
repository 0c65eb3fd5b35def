// SPDX-License-Identifier: Apache-2.0
// Rings as a relay uses them: random 4 KiB reads in registered memory, by the batch face.

import CLinux
import Glibc
import Linux
import NVMeClient
import Wire

/// What a run is to be like.
struct RingJob {
    var socket: String
    var disk: String
    var depth: Int
    /// Ends after so long, or after `count` requests when that is not 0.
    var seconds: Double
    var count: Int
    /// The processor of the client's thread; nil: wherever it runs.
    var cpu: Int?
    var spinNanoseconds: UInt64
    /// Afterwards the ring is left idle for so long, and what wakes up is counted.
    var idleSeconds: Int
}

/// Runs the job and prints its figures, then how it was run.
func runRing(_ job: RingJob) throws {
    if let cpu = job.cpu { try checked("sched_setaffinity", nv_set_affinity(Int32(cpu))) }
    let backend = try NVMeBackend.connect(job.socket)
    let disk = try backend.openDisk(job.disk)
    let worker = try? backend.device(disk.info.device).workerPID
    var run = try RingRun(disk, job)
    let before = Usage.now(worker: worker)
    print("running pid=\(getpid()) worker=\(worker ?? 0)")
    _ = fflush(nil)
    try run.run(job)
    let after = Usage.now(worker: worker)
    var result = run.result
    show(result.driver())
    print(
        "ios=\(result.count) kicks=\(run.ring.kickCount) sleeps=\(run.ring.sleepCount) "
            + "client_cpu_ps_per_io=\(after.client.perIO(before.client, result.count)) "
            + "worker_cpu_ps_per_io=\(after.worker.perIO(before.worker, result.count))")
    print(
        "spin_ns=\(job.spinNanoseconds) client_cpu=\(job.cpu.map { "\($0)" } ?? "any")"
            + " topology: \(Topology.text(worker: worker))")
    if job.idleSeconds > 0 { try run.idle(job.idleSeconds, worker: worker) }
    disk.close()
}

extension UInt64 {
    /// Picoseconds of each of `count` since `earlier`, both in nanoseconds.
    fileprivate func perIO(_ earlier: UInt64, _ count: Int) -> UInt64 {
        count == 0 ? 0 : (self &- earlier) &* 1000 / UInt64(count)
    }
}

/// A ring with as many requests in flight as the depth says.
private struct RingRun {
    let disk: Disk
    let ring: DiskRing
    private(set) var result = RingResult()
    private let buffer: IOBuffer
    private let region: UInt32
    private let blocksPerIO: UInt64
    private let places: UInt64
    private var random: UInt64 = 0x1234_5678

    init(_ disk: Disk, _ job: RingJob) throws {
        self.disk = disk
        buffer = try IOBuffer(byteCount: job.depth * 4096)
        region = try disk.registerMemory(buffer)
        var options = RingOptions()
        options.spinNanosecondsMax = job.spinNanoseconds
        var entries: UInt32 = 2
        while entries < job.depth { entries *= 2 }
        ring = try disk.openRing(entries: entries, options: options)
        blocksPerIO = UInt64(max(1, 4096 / disk.blockByteCount))
        places = max(disk.info.blockCount / blocksPerIO, 1)
    }

    private mutating func prepare(_ slot: UInt64) {
        random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        // The upper half scaled to the disk: no division.
        let place = (random >> 32) &* places >> 32
        let taken = ring.prepareRead(
            lba: place &* blocksPerIO, blockCount: UInt32(truncatingIfNeeded: blocksPerIO),
            data: .region(region, offset: slot &* 4096), tag: slot)
        guard taken else { die("the ring is full") }
    }

    /// Keeps `depth` requests in flight until the time is over.
    mutating func run(_ job: RingJob) throws {
        let room = UnsafeMutableBufferPointer<RingCompletion>.allocate(capacity: job.depth)
        defer { unsafe room.deallocate() }
        unsafe room.initialize(repeating: RingCompletion())
        var started = [UInt64](repeating: 0, count: job.depth)
        let begin = MonotonicClock.nowNanoseconds
        let end = begin + UInt64(job.seconds * 1e9)
        var now = begin
        var left = job.count == 0 ? Int.max : job.count
        for slot in 0..<job.depth where left > 0 {
            prepare(UInt64(slot))
            started[slot] = now
            left -= 1
        }
        var inFlight = job.count == 0 ? job.depth : min(job.depth, job.count)
        ring.submit()
        while inFlight > 0 {
            let count = unsafe ring.reap(into: room)
            if count == 0 {
                _ = try ring.wait()
                continue
            }
            // A batch shares one time stamp, and gives one latency: that of its first.
            now = MonotonicClock.nowNanoseconds
            result.latencies.add(now &- started[Int(unsafe room[0].tag)])
            for index in 0..<count {
                let completion = unsafe room[index]
                guard completion.isDone else { die("\(String(describing: completion.error()))") }
                guard now < end, left > 0 else {
                    inFlight -= 1
                    continue
                }
                left -= 1
                started[Int(completion.tag)] = now
                prepare(completion.tag)
            }
            ring.submit()
            result.count += count
        }
        result.nanoseconds = MonotonicClock.nowNanoseconds - begin
    }

    /// Waits without a request, and says what woke up.
    func idle(_ seconds: Int, worker: Int32?) throws {
        // The last request's spinning ends first.
        _ = try ring.wait(deadlineNanoseconds: MonotonicClock.nowNanoseconds + 1_000_000_000)
        let before = Usage.now(worker: worker)
        let switches = Usage.switches(of: worker)
        let time = UInt64(seconds) * 1_000_000_000
        _ = try ring.wait(deadlineNanoseconds: MonotonicClock.nowNanoseconds + time)
        let after = Usage.now(worker: worker)
        var woken: [String] = []
        var sum: UInt64 = 0
        for (thread, count) in Usage.switches(of: worker).sorted(by: { $0.key < $1.key }) {
            woken.append("\(thread): \(count &- (switches[thread] ?? 0))")
            sum += count &- (switches[thread] ?? 0)
        }
        print(
            "idle_seconds=\(seconds) idle_client_cpu_ns=\(after.client - before.client) "
                + "idle_worker_cpu_ns=\(after.worker - before.worker) idle_worker_wakeups=\(sum)")
        print("wake-ups of worker threads: \(woken.joined(separator: ", "))")
    }
}

/// What a run gave.
private struct RingResult {
    var latencies = Latencies(capacity: 1 << 20)
    var count = 0
    var nanoseconds: UInt64 = 1

    mutating func driver() -> DriverResult {
        DriverResult(
            p50Nanoseconds: latencies.percentile(0.5), p99Nanoseconds: latencies.percentile(0.99),
            iops: Double(count) * 1e9 / Double(nanoseconds))
    }
}

/// What /proc says of this process and a worker.
struct Usage {
    /// Processor time of all threads, in nanoseconds.
    var client: UInt64
    var worker: UInt64

    static func now(worker: Int32?) -> Usage {
        Usage(client: cpu(of: getpid()), worker: worker.map(cpu) ?? 0)
    }

    private static func cpu(of pid: Int32) -> UInt64 {
        var sum: UInt64 = 0
        for thread in threads(of: pid) {
            let fields = Topology.read("/proc/\(pid)/task/\(thread)/schedstat").split(
                separator: " ")
            sum += fields.first.flatMap { UInt64($0) } ?? 0
        }
        return sum
    }

    private static func threads(of pid: Int32) -> [String] {
        (try? Files.list("/proc/\(pid)/task", limit: 10_000)) ?? []
    }

    /// Voluntary context switches by thread: how often each went to sleep.
    static func switches(of pid: Int32?) -> [String: UInt64] {
        guard let pid else { return [:] }
        var counts: [String: UInt64] = [:]
        for thread in threads(of: pid) {
            let status = Topology.read("/proc/\(pid)/task/\(thread)/status")
            let value = Topology.field("voluntary_ctxt_switches", status).flatMap { UInt64($0) }
            counts["\(Topology.field("Name", status) ?? "?").\(thread)"] = value ?? 0
        }
        return counts
    }
}

/// Where threads run.
enum Topology {
    /// The processors that share a core, and where each thread of the worker may run.
    static func text(worker: Int32?) -> String {
        var parts: [String] = []
        let online = read("/sys/devices/system/cpu/online")
        parts.append("online \(online)")
        for cpu in 0..<8 {
            let siblings = read("/sys/devices/system/cpu/cpu\(cpu)/topology/thread_siblings_list")
            if !siblings.isEmpty { parts.append("cpu\(cpu) shares a core with \(siblings)") }
        }
        for pid in worker.map({ [$0] }) ?? [] {
            for thread in (try? Files.list("/proc/\(pid)/task", limit: 64)) ?? [] {
                let status = read("/proc/\(pid)/task/\(thread)/status")
                let processors = field("Cpus_allowed_list", status) ?? "?"
                parts.append("\(field("Name", status) ?? "?") on \(processors)")
            }
        }
        return parts.joined(separator: ", ")
    }

    static func read(_ path: String) -> String {
        let bytes = (try? Files.read(path, limit: 1 << 16)) ?? []
        return String(decoding: bytes.last == 10 ? bytes.dropLast() : bytes[...], as: UTF8.self)
    }

    static func field(_ name: String, _ text: String) -> String? {
        for line in text.split(separator: "\n") where line.hasPrefix(name + ":") {
            return line.split(separator: "\t", maxSplits: 1).last.map(String.init)
        }
        return nil
    }
}
