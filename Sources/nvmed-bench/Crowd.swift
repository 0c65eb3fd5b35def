// SPDX-License-Identifier: Apache-2.0
// Many sessions with memory and rings of one disk, all in use: what a worker has to keep and a
// successor to find. The guest's test of a restart with thousands of stored descriptors runs it.

import Glibc
import Linux
import NVMeClient
import Wire

/// How many of what.
struct CrowdJob {
    var socket: String
    var disk: String
    /// Sessions; regions and rings are shared out evenly, so that each session has no fewer regions
    /// than rings.
    var sessions: Int
    var regions: Int
    var rings: Int
    /// Ends when this file exists.
    var stop: String
}

/// A ring and the place on the disk that only it uses.
private struct CrowdRing {
    var ring: DiskRing
    var session: Int
    /// Which of its session's rings it is.
    var index: Int
    var diskByteOffset: UInt64
}

/// The crowd. Each round writes a pattern of that round through every ring at once, reads it back
/// through every ring at once, and compares.
final class Crowd {
    private static let pieceByteCount = 4096
    /// A ring has one request at a time.
    private static let ringEntries: UInt32 = 2
    /// Emulated processors that wait for each other.
    private static let patienceMilliseconds: UInt64 = 120_000
    private let job: CrowdJob
    private let backend: NVMeBackend
    private var disks: [Disk] = []
    private var buffers: [[IOBuffer]] = []
    private var rings: [CrowdRing] = []
    private var room = [RingCompletion](repeating: RingCompletion(), count: 2)
    private var lastCompletion: UInt64 = 0
    private var longestNanoseconds: UInt64 = 0
    private var stalled = 0
    private var resumed = 0

    init(_ job: CrowdJob) throws {
        self.job = job
        backend = try NVMeBackend.connect(job.socket)
    }

    private var deadline: UInt64 { Deadline.after(milliseconds: Self.patienceMilliseconds) }

    /// A part of what is shared out evenly.
    private func share(_ all: Int, _ session: Int) -> Int {
        all / job.sessions + (session < all % job.sessions ? 1 : 0)
    }

    private func open() throws {
        for session in 0..<job.sessions {
            let disk = try backend.openDisk(job.disk, deadlineNanoseconds: deadline)
            disks.append(disk)
            var own: [IOBuffer] = []
            for _ in 0..<share(job.regions, session) {
                let buffer = try IOBuffer(byteCount: 2 * Self.pieceByteCount)
                try disk.registerMemory(buffer, deadlineNanoseconds: deadline)
                own.append(buffer)
            }
            buffers.append(own)
            var options = RingOptions()
            options.spinNanosecondsMax = 0
            for index in 0..<share(job.rings, session) {
                let ring = try disk.openRing(
                    entries: Self.ringEntries, options: options, deadlineNanoseconds: deadline)
                let place = UInt64(rings.count * Self.pieceByteCount)
                rings.append(
                    CrowdRing(ring: ring, session: session, index: index, diskByteOffset: place))
            }
        }
    }

    /// The memory that a ring uses in a round: another one each time, and never another ring's.
    private func buffer(_ ring: CrowdRing, _ round: UInt64) -> (IOBuffer, UInt32) {
        let own = buffers[ring.session]
        let buffer = own[(ring.index + Int(round % UInt64(own.count))) % own.count]
        guard let region = disks[ring.session].regionID(of: buffer) else {
            die("memory of session \(ring.session) is not registered")
        }
        return (buffer, region)
    }

    private func round(_ number: UInt64) throws {
        let pattern = DataPattern(seed: number)
        let size = Self.pieceByteCount
        for one in rings {
            let (buffer, region) = buffer(one, number)
            pattern.fill(buffer, offset: 0, count: size, diskByteOffset: one.diskByteOffset)
            pattern.fill(buffer, offset: size, count: size, diskByteOffset: 0)
            let (lba, count) = blocks(one)
            submit(
                one,
                one.ring.prepareWrite(
                    lba: lba, blockCount: count, data: .region(region, offset: 0), tag: number))
        }
        for one in rings { try complete(one, number, "write") }
        for one in rings {
            let (_, region) = buffer(one, number)
            let (lba, count) = blocks(one)
            let data = RingData.region(region, offset: UInt64(size))
            submit(
                one, one.ring.prepareRead(lba: lba, blockCount: count, data: data, tag: number))
        }
        for one in rings {
            try complete(one, number, "read")
            let (buffer, _) = buffer(one, number)
            let place = one.diskByteOffset
            if let byte = pattern.firstMismatch(
                buffer, offset: size, count: size, diskByteOffset: place)
            {
                die("round \(number), session \(one.session): byte \(byte) of the disk differs")
            }
        }
        for disk in disks { hear(disk) }
    }

    private func blocks(_ one: CrowdRing) -> (lba: UInt64, count: UInt32) {
        let block = disks[one.session].blockByteCount
        return (one.diskByteOffset / UInt64(block), UInt32(Self.pieceByteCount / block))
    }

    private func submit(_ one: CrowdRing, _ hasRoom: Bool) {
        guard hasRoom else { die("a ring of session \(one.session) is full without a request") }
        one.ring.submit()
    }

    private func complete(_ one: CrowdRing, _ tag: UInt64, _ what: String) throws {
        let end = deadline
        var count = one.ring.reap(into: &room)
        while count == 0 {
            guard MonotonicClock.nowNanoseconds < end else {
                die("round \(tag), session \(one.session): the \(what) has no answer")
            }
            _ = try one.ring.wait(deadlineNanoseconds: end)
            count = one.ring.reap(into: &room)
        }
        guard count == 1, room[0].tag == tag, room[0].code == 0 else {
            die("round \(tag), session \(one.session): the \(what) ended with \(room[0..<count])")
        }
        let now = MonotonicClock.nowNanoseconds
        if lastCompletion > 0 { longestNanoseconds = max(longestNanoseconds, now - lastCompletion) }
        lastCompletion = now
    }

    private func hear(_ disk: Disk) {
        for event in disk.takeEvents() {
            switch event {
            case .stalled: stalled += 1
            case .resumed: resumed += 1
            default: break
            }
        }
    }

    /// Opens all, goes round until it is told to stop, and tells how it was.
    func run() throws {
        let start = MonotonicClock.nowNanoseconds
        try open()
        let took = (MonotonicClock.nowNanoseconds - start) / 1_000_000
        tell(
            "open sessions=\(disks.count) regions=\(buffers.reduce(0) { $0 + $1.count }) "
                + "rings=\(rings.count) milliseconds=\(took)")
        var number: UInt64 = 0
        while unsafe access(job.stop, F_OK) != 0 {
            number += 1
            try round(number)
            tell("round \(number)")
        }
        tell(
            "{\"rounds\": \(number), \"longest_ms\": \(longestNanoseconds / 1_000_000), "
                + "\"stalled\": \(stalled), \"resumed\": \(resumed)}")
        for disk in disks { disk.close() }
    }

    private func tell(_ text: String) {
        print(text)
        _ = fflush(nil)
    }
}

/// The crowd of the command line's options.
func runCrowd() throws {
    let job = CrowdJob(
        socket: option("socket", ""), disk: option("disk", ""), sessions: number("sessions", 16),
        regions: number("regions", 64), rings: number("rings", 32), stop: option("stop", ""))
    // The session that has the most rings has no fewer regions.
    guard (job.rings + job.sessions - 1) / job.sessions <= job.regions / job.sessions else {
        die("--regions: each session needs as many regions as rings")
    }
    try Crowd(job).run()
}
