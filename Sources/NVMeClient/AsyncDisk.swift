// SPDX-License-Identifier: Apache-2.0
// A ring for `async` code: any task on any executor awaits its request. The comfortable face.
//
//     let disk = try AsyncDisk(try backend.openDisk("vol0"), entries: 64)
//     try disk.registerMemory(buffer)
//     try await disk.read(lba: 0, blockCount: 8, into: buffer)
//
// Cancellation: a task that is cancelled while its request waits for room in the ring gets
// `cancelled` at once, and the request is not done. Once in the ring a request runs to its end, and
// the call returns only then, because the device uses the memory until then; also when its worker
// dies meanwhile, for the successor goes on with it.

public import Wire

/// A disk that is used through one ring by any number of tasks. It owns the disk.
public final class AsyncDisk: Sendable {
    let core: AsyncRingCore

    /// Opens a ring of `entries` (a power of two, 2 to 4096) on a disk, which nobody else may use
    /// from now on, and starts the thread that completes its requests.
    public init(
        _ disk: sending Disk, entries: UInt32 = 128, options: RingOptions = RingOptions()
    ) throws(ClientError) {
        core = try AsyncRingCore(disk, entries: entries, options: options)
        do throws(ClientError) { try core.start() } catch {
            core.stop()
            throw error
        }
    }

    deinit { core.stop() }

    // MARK: Requests

    /// Reads blocks into a registered buffer, from a byte offset of the buffer on.
    public func read(
        lba: UInt64, blockCount: UInt32, into buffer: IOBuffer, bufferOffset: Int = 0
    ) async throws(ClientError) {
        try await perform(
            RingEntry(
                opcode: RingOpcode.read, blockCount: blockCount, lba: lba, tag: 0,
                data: try core.data(buffer, bufferOffset, blockCount)), buffer)
    }

    /// Writes blocks from a registered buffer; with `fua` they are durable when it returns.
    public func write(
        lba: UInt64, blockCount: UInt32, from buffer: IOBuffer, bufferOffset: Int = 0,
        fua: Bool = false
    ) async throws(ClientError) {
        try await perform(
            RingEntry(
                opcode: RingOpcode.write, flags: fua ? 1 : 0, blockCount: blockCount, lba: lba,
                tag: 0, data: try core.data(buffer, bufferOffset, blockCount)), buffer)
    }

    /// Compares blocks with a registered buffer; throws `compareFailed` when they differ.
    public func compare(
        lba: UInt64, blockCount: UInt32, with buffer: IOBuffer, bufferOffset: Int = 0
    ) async throws(ClientError) {
        try await perform(
            RingEntry(
                opcode: RingOpcode.compare, blockCount: blockCount, lba: lba, tag: 0,
                data: try core.data(buffer, bufferOffset, blockCount)), buffer)
    }

    /// Makes every write that returned before durable.
    public func flush() async throws(ClientError) {
        try await perform(RingEntry(opcode: RingOpcode.flush, tag: 0))
    }

    /// Makes blocks read as zeroes; with `deallocate` the device may free them.
    public func writeZeroes(
        lba: UInt64, blockCount: UInt32, deallocate: Bool = false, fua: Bool = false
    ) async throws(ClientError) {
        try await perform(
            RingEntry(
                opcode: RingOpcode.writeZeroes, flags: (fua ? 1 : 0) | (deallocate ? 2 : 0),
                blockCount: blockCount, lba: lba, tag: 0))
    }

    /// Tells the device that blocks are not needed.
    public func deallocate(lba: UInt64, blockCount: UInt32) async throws(ClientError) {
        try await perform(
            RingEntry(opcode: RingOpcode.deallocate, blockCount: blockCount, lba: lba, tag: 0))
    }

    /// Has the device check blocks without a transfer.
    public func verify(lba: UInt64, blockCount: UInt32) async throws(ClientError) {
        try await perform(
            RingEntry(opcode: RingOpcode.verify, blockCount: blockCount, lba: lba, tag: 0))
    }

    private func perform(
        _ entry: RingEntry, _ buffer: IOBuffer? = nil
    ) async throws(ClientError) {
        let ticket = core.newTicket()
        let result = await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                core.begin(
                    AsyncRequest(
                        ticket: ticket, entry: entry, buffer: buffer, continuation: continuation))
            }
        } onCancel: {
            core.cancel(ticket)
        }
        if Task.isCancelled { core.forget(ticket) }
        if let error = result { throw error }
    }

    // MARK: The disk

    /// What the disk is like.
    public var info: DiskInfo { core.withDisk { $0.info } }

    /// Why the session is over; nil while it is open.
    public var ended: WireError? { core.withDisk { $0.ended } }

    /// The pause that the service told of last and that is not over: requests wait by themselves.
    public var stall: DiskStall? { core.withDisk { $0.stall } }

    /// Events since the last call, oldest first.
    public func takeEvents() -> [SessionEvent] { core.withDisk { $0.takeEvents() } }

    /// What happens to the session from now on: pauses, their ends, changes of the disk; the last
    /// is its end, with the reason. Each call gives a stream of its own, which keeps the newest 64
    /// events for whoever is slow.
    public func events() -> AsyncStream<SessionEvent> { core.listeners.stream() }

    /// Registers a buffer; requests need one that is. Blocks, and completions wait meanwhile, for
    /// as long as the deadline (CLOCK_MONOTONIC nanoseconds) allows.
    @discardableResult
    public func registerMemory(
        _ buffer: IOBuffer, readOnly: Bool = false, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) -> UInt32 {
        try core.withDisk { disk throws(ClientError) in
            try disk.registerMemory(
                buffer, readOnly: readOnly, deadlineNanoseconds: deadlineNanoseconds)
        }
    }

    /// Gives a registered buffer back. Blocks until no request uses it: those that were begun
    /// before complete first, and those that begin meanwhile are refused.
    ///
    /// Throws `timedOut` at the deadline. As long as requests used it the buffer stays registered;
    /// afterwards it is not registered any more. Either way call again.
    public func unregisterMemory(
        _ buffer: IOBuffer, deadlineNanoseconds: UInt64? = nil
    ) throws(ClientError) {
        try core.giveBack(buffer, deadlineNanoseconds)
    }

    /// Ends the session. Requests that are under way throw `cancelled`; it is not known whether
    /// they were done, and the device may use their memory for some time (ring.md, "When memory is
    /// yours again").
    public func close() { core.stop() }
}
