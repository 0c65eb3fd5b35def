// SPDX-License-Identifier: Apache-2.0
// The state area: its memory file, its header, and who may write it.

internal import CLinux
internal import CMemory
public import Linux

/// What is wrong with a state area that was found.
public enum StateAreaError: Error, Sendable, Equatable, CustomStringConvertible {
    /// A system call failed.
    case system(SystemCallError)
    /// The header is not one of ours, or damaged.
    case damaged(field: String)
    /// Another version of the program wrote it.
    case version(UInt32)
    /// Another process holds it.
    case held(pid: Int32)

    /// The error in words.
    public var description: String {
        switch self {
        case .system(let error): error.description
        case .damaged(let field): "the state area is damaged: \(field)"
        case .version(let version): "the state area has version \(version)"
        case .held(let pid): "the state area is held by process \(pid)"
        }
    }
}

/// The memory file that outlives a worker. Never mapped for the device.
@safe
public struct StateArea: ~Copyable {
    /// The memory file. The lock belongs to the file and this process: closing any other descriptor
    /// of it drops the lock.
    public let fd: OwnedFD
    /// Where things are.
    public let layout: StateLayout
    /// How many workers have held this area, this one included.
    public private(set) var generation: UInt64
    /// How many times the device was started afresh, this time included.
    public private(set) var epoch: UInt32
    /// Starts in a row that completed no command, this one included; 0 after one that did.
    public private(set) var fruitlessStarts: UInt32 = 0
    /// How often those reached the limit, without a command completed since.
    public private(set) var giveUps: UInt32 = 0
    /// When they began, or when they were given up: CLOCK_MONOTONIC, which outlives processes.
    public private(set) var fruitlessSinceNanoseconds: UInt64 = 0
    private let memory: Mapping

    /// Makes an empty area and locks it.
    public static func create(layout: StateLayout) throws(StateAreaError) -> StateArea {
        let fd = try Self.file(layout)
        let memory = try Self.map(fd, layout.byteCount)
        try Self.lock(fd)
        var area = StateArea(fd: fd, memory: memory, layout: layout, generation: 1, epoch: 0)
        area.writeHeader()
        return area
    }

    /// Takes over an area that was found: lock, check, raise the generation.
    public static func adopt(_ fd: consuming OwnedFD) throws(StateAreaError) -> StateArea {
        try Self.lock(fd)
        let size = try Self.byteCount(fd)
        guard size >= StateLayout.queuesOffset else { throw .damaged(field: "size \(size)") }
        let memory = try Self.map(fd, size)
        let header = unsafe memory.base
        guard unsafe nv_load64(header) == StateLayout.magic else { throw .damaged(field: "magic") }
        let version = unsafe nv_load32(header + 8)
        guard version == StateLayout.version else { throw .version(version) }
        guard unsafe nv_load64(header + 56) == UInt64(Self.headerCRC(header)) else {
            throw .damaged(field: "header checksum")
        }
        let queues = unsafe Int(nv_load32(header + 32))
        let slots = unsafe Int(nv_load32(header + 36))
        guard queues >= 1, queues <= 1024, slots >= 1, slots <= 1024 else {
            throw .damaged(field: "\(queues) queues of \(slots) slots")
        }
        let layout = StateLayout(queueCount: queues, slotsPerQueue: slots)
        guard size >= layout.byteCount else { throw .damaged(field: "size \(size)") }
        let generation = unsafe nv_load64(header + 16)
        let epoch = unsafe nv_load32(header + 24)
        var area = StateArea(
            fd: fd, memory: memory, layout: layout, generation: generation &+ 1, epoch: epoch)
        area.fruitlessStarts = unsafe nv_load32(area.memory.base + 12)
        area.giveUps = unsafe nv_load32(area.memory.base + 28)
        area.fruitlessSinceNanoseconds = unsafe nv_load64(area.memory.base + 48)
        area.writeHeader()
        return area
    }

    private init(
        fd: consuming OwnedFD, memory: consuming Mapping, layout: StateLayout, generation: UInt64,
        epoch: UInt32
    ) {
        self.fd = fd
        self.memory = memory
        self.layout = layout
        self.generation = generation
        self.epoch = epoch
    }

    /// A new device epoch: nothing that was in flight before counts any more. Written before the
    /// controller is reset.
    public mutating func beginEpoch() {
        epoch &+= 1
        writeHeader()
    }

    /// Counts a start that takes over from a predecessor; those before `window` ago do not count.
    public mutating func countStart(nowNanoseconds: UInt64, windowNanoseconds: UInt64) {
        let passed = nowNanoseconds &- fruitlessSinceNanoseconds
        if fruitlessStarts == 0 || passed > windowNanoseconds {
            fruitlessStarts = 0
            fruitlessSinceNanoseconds = nowNanoseconds
        }
        if fruitlessStarts < .max { fruitlessStarts += 1 }
        writeHeader()
    }

    /// Notes that the starts have reached their limit.
    public mutating func giveUp(nowNanoseconds: UInt64) {
        if giveUps < .max { giveUps += 1 }
        fruitlessSinceNanoseconds = nowNanoseconds
        writeHeader()
    }

    /// Notes that this start was worth it: a command was completed, or the worker left unharmed.
    public mutating func forgetStarts() {
        (fruitlessStarts, giveUps, fruitlessSinceNanoseconds) = (0, 0, 0)
        writeHeader()
    }

    /// The device configuration that a predecessor got from the supervisor; nil when there is none
    /// or it is damaged.
    public func configuration() -> [UInt8]? {
        let header = unsafe memory.base
        let count = unsafe Int(nv_load32(header + 40))
        guard count > 0, count <= StateLayout.configurationByteCount else { return nil }
        let start = unsafe header + StateLayout.configurationOffset
        let bytes = unsafe [UInt8](UnsafeRawBufferPointer(start: start, count: count))
        guard unsafe nv_load32(header + 44) == Self.crc(bytes) else { return nil }
        return bytes
    }

    /// Keeps the device configuration for a successor; false when it is too long.
    public mutating func setConfiguration(_ bytes: [UInt8]) -> Bool {
        guard bytes.count <= StateLayout.configurationByteCount else { return false }
        let header = unsafe memory.base
        unsafe nv_store32(header + 40, 0)
        writeHeader()
        let start = unsafe header + StateLayout.configurationOffset
        for (index, byte) in bytes.enumerated() { unsafe nv_store8(start + index, byte) }
        unsafe nv_store32(header + 44, Self.crc(bytes))
        unsafe nv_store32(header + 40, UInt32(bytes.count))
        writeHeader()
        return true
    }

    /// The record of a session slot: {session id, highest request id taken}, for a successor.
    public func setSession(_ slot: Int, id: UInt64, highestRequestID: UInt64) {
        guard slot >= 0, slot < StateLayout.sessionCapacity else { return }
        let record = unsafe address(StateLayout.sessionsOffset + slot * 64)
        let key = Checksum.key(Checksum.sessionKind, queue: UInt32(slot), epoch: 0)
        var crc = nv_crc32c_64(key, id)
        crc = nv_crc32c_64(crc, highestRequestID)
        unsafe nv_store64(record, id)
        unsafe nv_store64(record + 8, highestRequestID)
        unsafe nv_store64(record + 16, UInt64(crc))
    }

    /// The record of a session slot; nil when it is empty or damaged.
    public func session(_ slot: Int) -> (id: UInt64, highestRequestID: UInt64)? {
        guard slot >= 0, slot < StateLayout.sessionCapacity else { return nil }
        let record = unsafe address(StateLayout.sessionsOffset + slot * 64)
        let id = unsafe nv_load64(record)
        let highest = unsafe nv_load64(record + 8)
        let key = Checksum.key(Checksum.sessionKind, queue: UInt32(slot), epoch: 0)
        guard id != 0,
            unsafe nv_load64(record + 16) == UInt64(nv_crc32c_64(nv_crc32c_64(key, id), highest))
        else { return nil }
        return (id, highest)
    }

    func address(_ offset: Int) -> UnsafeMutableRawPointer {
        unsafe memory.base + offset
    }

    private mutating func writeHeader() {
        let header = unsafe memory.base
        unsafe nv_store64(header, StateLayout.magic)
        unsafe nv_store32(header + 8, StateLayout.version)
        unsafe nv_store32(header + 12, fruitlessStarts)
        unsafe nv_store64(header + 16, generation)
        unsafe nv_store32(header + 24, epoch)
        unsafe nv_store32(header + 28, giveUps)
        unsafe nv_store32(header + 32, UInt32(layout.queueCount))
        unsafe nv_store32(header + 36, UInt32(layout.slotsPerQueue))
        unsafe nv_store64(header + 48, fruitlessSinceNanoseconds)
        nv_dma_wmb()
        unsafe nv_store64(header + 56, UInt64(Self.headerCRC(header)))
    }

    private static func headerCRC(_ header: UnsafeMutableRawPointer) -> UInt32 {
        var crc = Checksum.headerKind
        for word in 0..<7 { crc = nv_crc32c_64(crc, unsafe nv_load64(header + word * 8)) }
        return crc
    }

    private static func crc(_ bytes: [UInt8]) -> UInt32 {
        var crc = Checksum.headerKind ^ UInt32(truncatingIfNeeded: bytes.count)
        for byte in bytes { crc = nv_crc32c_64(crc, UInt64(byte)) }
        return crc
    }

    private static func lock(_ fd: borrowing OwnedFD) throws(StateAreaError) {
        var holder: Int32 = 0
        let result = unsafe nv_lock_exclusive(fd.raw, &holder)
        if result == -Errno.again { throw .held(pid: holder) }
        guard result == 0 else { throw .system(SystemCallError("F_SETLK", errno: -result)) }
    }

    private static func file(_ layout: StateLayout) throws(StateAreaError) -> OwnedFD {
        do throws(SystemCallError) {
            return try MemFD.create(name: "nvmed-state", byteCount: layout.byteCount)
        } catch { throw .system(error) }
    }

    private static func map(
        _ fd: borrowing OwnedFD, _ byteCount: Int
    ) throws(StateAreaError) -> Mapping {
        do throws(SystemCallError) {
            return try Mapping(fd, byteCount: byteCount)
        } catch { throw .system(error) }
    }

    private static func byteCount(_ fd: borrowing OwnedFD) throws(StateAreaError) -> Int {
        do throws(SystemCallError) {
            return try MemFD.byteCount(of: fd)
        } catch { throw .system(error) }
    }
}
