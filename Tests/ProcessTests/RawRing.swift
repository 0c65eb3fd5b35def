// SPDX-License-Identifier: Apache-2.0
// A ring of a real worker, used by a client that keeps no rules: raw words in raw memory.

import CMemory
import CRing
import Glibc
import Linux
import NVMeClient
import TestSupport
import Wire

/// A session with registered memory and one ring, all of it raw.
@safe
final class RawRing {
    static let regionByteCount = 1 << 20
    let connection: RawConnection<SessionProtocol>
    let region: OwnedFD
    private(set) var memory: OwnedFD
    private(set) var kick: OwnedFD
    private(set) var wake: OwnedFD
    private var mapping: Mapping
    private(set) var base: UnsafeMutableRawPointer
    let entries: UInt32
    var tail: UInt32 = 0
    var head: UInt32 = 0

    /// Opens `disk` for writing, registers region 0, and opens ring 0.
    init(_ service: RunningService, _ disk: String = "disk-a", entries: UInt32 = 64) throws {
        connection = try service.rawSession(disk)
        region = try MemFD.create(name: "raw-region", byteCount: Self.regionByteCount)
        try connection.channel.send(
            request: .registerMemory(
                regionID: 0, byteCount: UInt64(Self.regionByteCount), readOnly: false),
            fds: [region.raw])
        guard connection.answer() == .answered else { throw SetUpError("no region") }
        var fds = try connection.openRing(0, entries)
        guard let memory = fds.take(0), let kick = fds.take(1), let wake = fds.take(2) else {
            throw SetUpError("a ring has three descriptors")
        }
        mapping = try Mapping(memory, byteCount: try MemFD.byteCount(of: memory))
        unsafe base = mapping.base
        self.memory = memory
        self.kick = kick
        self.wake = wake
        self.entries = entries
    }

    /// Goes on with another ring.
    func adopt(
        memory: consuming OwnedFD, kick: consuming OwnedFD, wake: consuming OwnedFD
    ) throws {
        mapping = try Mapping(memory, byteCount: try MemFD.byteCount(of: memory))
        unsafe base = mapping.base
        self.memory = memory
        self.kick = kick
        self.wake = wake
        tail = 0
        head = 0
    }

    func word<Offset: BinaryInteger>(_ offset: Offset) -> UInt32 {
        unsafe nv_load_acquire32(base + Int(offset))
    }

    func set<Offset: BinaryInteger>(_ offset: Offset, _ value: UInt32) {
        unsafe nv_store_seq32(base + Int(offset), value)
    }

    /// Writes an entry without publishing it: words 0 to 4 of it, and one more.
    func write(
        _ head: UInt64, lba: UInt64 = 0, tag: UInt64 = 0, place: UInt64 = 0, offset: UInt64 = 0,
        reserved: UInt64 = 0
    ) {
        let entry =
            unsafe base + Int(word(NV_RING_OFFSET_SUBMISSION_OFFSET))
            + Int(tail & (entries - 1)) * 64
        for (index, value) in [head, lba, tag, place, offset, reserved, 0, 0].enumerated() {
            unsafe nv_store64(entry + index * 8, value)
        }
        tail &+= 1
    }

    /// A good read of 4 KiB into the place of its tag.
    func writeRead(_ tag: UInt64) {
        write(2 | 8 << 32, lba: tag % 1024 * 8, tag: tag, offset: tag % 256 * 4096)
    }

    func publish() {
        set(NV_RING_OFFSET_SUBMISSION_TAIL, tail)
        signal()
    }

    /// Kicks whether it is asked for or not.
    func signal() { _ = try? checked("kick", nv_signal(kick.raw)) }

    private func nv_signal(_ fd: CInt) -> CInt {
        var one: UInt64 = 1
        return unsafe Glibc.write(fd, &one, 8) == 8 ? 0 : -errno
    }

    /// Waits until so many completions are published, 60 s at most.
    func waitForCompletions(_ count: UInt32) throws {
        let deadline = Deadline.after(milliseconds: 60_000)
        while word(NV_RING_OFFSET_COMPLETION_TAIL) &- head < count {
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw SetUpError("\(count) completions did not come within 60 s")
            }
            sched_yield()
        }
    }

    /// Takes all completions: their tags.
    func reap() -> [UInt64] {
        var tags: [UInt64] = []
        while head != word(NV_RING_OFFSET_COMPLETION_TAIL) {
            let count = word(NV_RING_OFFSET_COMPLETION_ENTRIES)
            let entry =
                unsafe base + Int(word(NV_RING_OFFSET_COMPLETION_OFFSET))
                + Int(head & (count - 1)) * 16
            tags.append(unsafe nv_load64(entry))
            head &+= 1
        }
        set(NV_RING_OFFSET_COMPLETION_HEAD, head)
        return tags
    }
}

extension RawConnection where P == SessionProtocol {
    /// Asks for a ring and takes its descriptors; throws what was answered instead.
    func openRing(_ id: UInt32, _ entries: UInt32) throws -> ReceivedFDs {
        try channel.send(
            request: .openRing(
                ringID: id, submissionEntryCount: entries, completionEntryCount: entries))
        let received = try channel.receive(
            deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
        guard case .message(var message) = consume received else {
            throw SetUpError("ring \(id): no answer")
        }
        if case .failure(let error) = message.envelope.content { throw error }
        guard case .reply(.ringOpened(id, _)) = message.envelope.content else {
            throw SetUpError("ring \(id) was answered with \(message.envelope.content)")
        }
        return message.fds.takeAll()
    }

    /// Waits for the end of the session, past everything else, or only until a reply when that is
    /// asked for; nil when it closed without a reason, or was replied to.
    func waitForEnd(orReply: Bool = false) throws -> WireError? {
        while true {
            let received = try channel.receive(
                deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
            switch consume received {
            case .message(let message):
                if case .event(.ended(let reason)) = message.envelope.content { return reason }
                if orReply, case .reply = message.envelope.content { return nil }
            case .closed: return nil
            case .nothing: continue
            case .rejected: throw SetUpError("a message cannot be read")
            }
        }
    }
}

/// What a worker holds for its clients, as the kernel and `inspect` see it.
struct Holdings: Equatable, CustomStringConvertible {
    var descriptors: Int
    var mappings: Int
    var rings: Int
    var regions: String
    var sessions: Int

    init(_ service: RunningService, _ device: String = "a") throws {
        let backend = try service.connect()
        let pid = try service.workerPID(device)
        let entries = try backend.inspect("device/\(device)/")
        descriptors = Processes.descriptorCount(of: pid)
        mappings = Processes.mappingCount(of: pid, containing: "/memfd:")
        rings = entries.count { $0.path.hasSuffix("/submission_entries") }
        regions = entries.first { $0.path.hasSuffix("/memory/regions") }?.value ?? ""
        sessions = entries.count { $0.path.hasSuffix("/regions") }
    }

    var description: String {
        "\(descriptors) descriptors, \(mappings) mappings of memory files, \(rings) rings, "
            + "\(regions) regions, \(sessions) sessions"
    }

    /// The holdings when they are no more than `before`, or the last of many looks: each look is a
    /// turn of the worker's loop, in which it sees who went.
    static func settled(_ service: RunningService, _ before: Holdings) throws -> Holdings {
        var now = try Holdings(service)
        for _ in 0..<500 where now != before { now = try Holdings(service) }
        return now
    }
}

extension Processes {
    /// How many mappings of a process have a text in their line of /proc/PID/maps.
    static func mappingCount(of pid: Int32, containing text: String) -> Int {
        let maps = String(
            decoding: (try? Files.read("/proc/\(pid)/maps", limit: 1 << 22)) ?? [], as: UTF8.self)
        return maps.split(separator: "\n").count { $0.contains(text) }
    }
}
