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
    /// Saved state has values from which none can be made.
    case unusable(String)

    /// The error in words.
    public var description: String {
        switch self {
        case .system(let error): error.description
        case .damaged(let field): "the state area is damaged: \(field)"
        case .version(let version): "the state area has version \(version)"
        case .held(let pid): "the state area is held by process \(pid)"
        case .unusable(let why): "no state area can be made of it: \(why)"
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
    /// The epoch before a reset whose requests have not all been given out again; 0: none.
    public private(set) var salvageEpoch: UInt32 = 0
    /// Starts in a row that completed no command, this one included; 0 after one that did.
    public private(set) var fruitlessStarts: UInt32 = 0
    /// How often those reached the limit, without a command completed since.
    public private(set) var giveUps: UInt32 = 0
    /// When they began, or when they were given up: CLOCK_MONOTONIC, which outlives processes.
    public private(set) var fruitlessSinceNanoseconds: UInt64 = 0
    /// How often a worker has given the controller up while it lived, in a row.
    public private(set) var failures: UInt32 = 0
    /// When those began: CLOCK_MONOTONIC.
    private var failuresSinceNanoseconds: UInt64 = 0
    /// The function has to be reset before anybody uses the controller again.
    public private(set) var functionResetIsDue = false
    /// Since when the sessions have not been served; 0: they are. CLOCK_MONOTONIC.
    public private(set) var stalledSinceNanoseconds: UInt64 = 0
    private var lastNumber: UInt64 = 0
    private let memory: Mapping

    /// Makes an empty area and locks it.
    public static func create(layout: StateLayout) throws(StateAreaError) -> StateArea {
        let fd = try Self.file(layout)
        let memory = try Self.map(fd, layout.byteCount)
        try Self.lock(fd)
        var area = StateArea(fd: fd, memory: memory, layout: layout, generation: 1, epoch: 0)
        area.writeNumbers()
        area.writeHeader()
        return area
    }

    /// Takes over an area that was found: lock, check, raise the generation.
    public static func adopt(_ fd: consuming OwnedFD) throws(StateAreaError) -> StateArea {
        try Self.lock(fd)
        CrashPoint.hit(.adoptFenced)
        let size = try Self.byteCount(fd)
        guard size >= StateLayout.queuesOffset else { throw .damaged(field: "size \(size)") }
        let memory = try Self.map(fd, size)
        let start = unsafe memory.base
        guard unsafe nv_load64(start) == StateLayout.magic else { throw .damaged(field: "magic") }
        let version = unsafe nv_load32(start + 8)
        guard version == StateLayout.version else { throw .version(version) }
        guard unsafe nv_load64(start + 24) == UInt64(Self.numbersCRC(start)) else {
            throw .damaged(field: "checksum of the layout")
        }
        let queues = unsafe Int(nv_load32(start + 16))
        let slots = unsafe Int(nv_load32(start + 20))
        guard queues >= 1, queues <= 1024, slots >= 1, slots <= 1024 else {
            throw .damaged(field: "\(queues) queues of \(slots) slots")
        }
        let layout = StateLayout(queueCount: queues, slotsPerQueue: slots)
        guard size == layout.byteCount else { throw .damaged(field: "size \(size)") }
        guard let words = unsafe Self.header(start).words else { throw .damaged(field: "header") }
        var area = StateArea(
            fd: fd, memory: memory, layout: layout, generation: words[0] &+ 1,
            epoch: UInt32(truncatingIfNeeded: words[1]))
        area.salvageEpoch = UInt32(truncatingIfNeeded: words[1] >> 32)
        area.fruitlessStarts = UInt32(truncatingIfNeeded: words[2])
        area.giveUps = UInt32(truncatingIfNeeded: words[2] >> 32)
        area.fruitlessSinceNanoseconds = words[3]
        area.lastNumber = words[4]
        area.stalledSinceNanoseconds = words[5]
        area.failures = UInt32(truncatingIfNeeded: words[6])
        area.functionResetIsDue = words[6] >> 32 & 1 != 0
        area.failuresSinceNanoseconds = words[7]
        area.writeHeader()
        CrashPoint.hit(.adoptGenerationRaised)
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

    // MARK: The header

    /// A new device epoch: nothing that was in flight before counts any more. Written before the
    /// controller is reset. With `salvaging` the bank of the epoch before has requests that are to
    /// be given out again.
    public mutating func beginEpoch(salvaging: Bool = false) {
        salvageEpoch = salvaging ? epoch : 0
        // 0 is no epoch.
        epoch = max(epoch &+ 1, 1)
        writeHeader()
    }

    /// Everything of the epoch before was given out again, or has ended.
    public mutating func endSalvage() {
        salvageEpoch = 0
        writeHeader()
    }

    /// A number that no descriptor of this device had before, for its name in the fd store.
    public mutating func nextNumber() -> UInt64 {
        lastNumber &+= 1
        writeHeader()
        return lastNumber
    }

    /// The highest number that `nextNumber` gave.
    var highestNumber: UInt64 { lastNumber }

    /// The header of an area that is made of saved state.
    mutating func restoreHeader(generation: UInt64, epoch: UInt32, lastNumber: UInt64) {
        self.generation = generation
        self.epoch = epoch
        self.lastNumber = lastNumber
        writeHeader()
    }

    /// Notes since when the sessions are not served, or that they are again (0).
    public mutating func setStalled(sinceNanoseconds: UInt64) {
        stalledSinceNanoseconds = sinceNanoseconds
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

    /// Counts a failure that a living worker noticed, after which a successor is to reset the
    /// controller; those that began before `window` ago do not count.
    public mutating func countFailure(nowNanoseconds: UInt64, windowNanoseconds: UInt64) {
        if failures == 0 || nowNanoseconds &- failuresSinceNanoseconds > windowNanoseconds {
            (failures, failuresSinceNanoseconds) = (0, nowNanoseconds)
        }
        if failures < .max { failures += 1 }
        writeHeader()
    }

    /// Notes that the function has to be reset, or that it was.
    public mutating func setFunctionReset(isDue: Bool) {
        guard isDue != functionResetIsDue else { return }
        functionResetIsDue = isDue
        writeHeader()
    }

    /// Whether a data thread of the predecessor has taken an answer of the device: it may have died
    /// before its control thread heard of that.
    public var predecessorWasFruitful: Bool {
        let predecessor = UInt32(truncatingIfNeeded: generation &- 1)
        return (1..<layout.queueCount).contains { queue in
            let word = unsafe nv_load64(address(layout.queueIndexOffset(queue)) + 32)
            return SealedWord.open(word, key: Self.fruitKey(queue)) == predecessor
        }
    }

    /// The key of a data thread's mark, in the index line of its queue.
    static func fruitKey(_ queue: Int) -> UInt32 {
        Checksum.key(Checksum.fruitKind, queue: UInt32(truncatingIfNeeded: queue), epoch: 0)
    }

    // MARK: The configuration

    /// The device configuration that a predecessor got from the supervisor; nil when there is none
    /// or it is damaged.
    public func configuration() -> [UInt8]? {
        guard let words = configurationRecord.words, words[0] < 2,
            words[1] <= UInt64(StateLayout.configurationByteCount), words[1] > 0
        else { return nil }
        let start = unsafe configurationHalf(words[0])
        let bytes = unsafe [UInt8](UnsafeRawBufferPointer(start: start, count: Int(words[1])))
        return UInt64(Self.crc(bytes, Checksum.configurationKind)) == words[2] ? bytes : nil
    }

    /// Keeps the device configuration for a successor; false when it is too long.
    public mutating func setConfiguration(_ bytes: [UInt8]) -> Bool {
        guard bytes.count <= StateLayout.configurationByteCount else { return false }
        let half = (configurationRecord.words?.first ?? 1) ^ 1
        let start = unsafe configurationHalf(half)
        for (index, byte) in bytes.enumerated() { unsafe nv_store8(start + index, byte) }
        configurationRecord.write([
            half, UInt64(bytes.count), UInt64(Self.crc(bytes, Checksum.configurationKind)),
        ])
        return true
    }

    private var configurationRecord: TwinRecord {
        unsafe TwinRecord(
            base: address(StateLayout.configurationRecordOffset), wordCount: 3,
            key: Checksum.configurationKind)
    }

    private func configurationHalf(_ half: UInt64) -> UnsafeMutableRawPointer {
        unsafe address(
            StateLayout.configurationOffset
                + Int(half & 1) * StateLayout.configurationByteCount)
    }

    // MARK: Places

    func address(_ offset: Int) -> UnsafeMutableRawPointer {
        unsafe memory.base + offset
    }

    /// The slots of a queue in this epoch.
    func slots(_ queue: Int) -> UnsafeMutableRawPointer {
        unsafe address(layout.slotsOffset(queue, epoch: epoch))
    }

    /// The request records of a queue in this epoch.
    func requests(_ queue: Int) -> UnsafeMutableRawPointer {
        unsafe address(layout.requestsOffset(queue, epoch: epoch))
    }

    /// The segment lists of a queue's requests in this epoch.
    func segmentLists(_ queue: Int) -> UnsafeMutableRawPointer {
        unsafe address(layout.segmentListsOffset(queue, epoch: epoch))
    }

    private static func header(_ start: UnsafeMutableRawPointer) -> TwinRecord {
        unsafe TwinRecord(
            base: start + StateLayout.headerOffset, wordCount: StateLayout.headerWords,
            key: Checksum.headerKind)
    }

    private mutating func writeHeader() {
        unsafe Self.header(memory.base).write([
            generation, UInt64(epoch) | UInt64(salvageEpoch) << 32,
            UInt64(fruitlessStarts) | UInt64(giveUps) << 32, fruitlessSinceNanoseconds,
            lastNumber, stalledSinceNanoseconds,
            UInt64(failures) | (functionResetIsDue ? 1 : 0) << 32, failuresSinceNanoseconds,
        ])
    }

    private func writeNumbers() {
        let start = unsafe memory.base
        unsafe nv_store64(start, StateLayout.magic)
        unsafe nv_store64(start + 8, UInt64(StateLayout.version))
        unsafe nv_store32(start + 16, UInt32(clamping: layout.queueCount))
        unsafe nv_store32(start + 20, UInt32(clamping: layout.slotsPerQueue))
        unsafe nv_store64(start + 24, UInt64(Self.numbersCRC(start)))
    }

    private static func numbersCRC(_ start: UnsafeMutableRawPointer) -> UInt32 {
        var crc = Checksum.headerKind
        for word in 0..<3 { crc = nv_crc32c_64(crc, unsafe nv_load64(start + word * 8)) }
        return crc
    }

    static func crc(_ bytes: [UInt8], _ kind: UInt32) -> UInt32 {
        var crc = kind ^ UInt32(truncatingIfNeeded: bytes.count)
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
