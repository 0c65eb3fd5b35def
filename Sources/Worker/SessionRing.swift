// SPDX-License-Identifier: Apache-2.0
// A ring of a session: its memory, its descriptors, and the data thread that serves it.

internal import Linux
internal import NVMeDriver
internal import Systemd
internal import Wire

/// What a ring is made of.
@Control
final class RingDescriptors {
    let memory: RingMemory
    /// The client writes it; the data thread watches it and never reads it, because a client can
    /// make reading block.
    let kick: EventFD
    /// Our end of the socket that wakes the client; written without blocking, never read.
    let wake: OwnedFD
    /// The client's end, as long as its request may have to be answered once more.
    var clientWake: HeldDescriptor?

    /// Makes a ring.
    init(shape: RingShape, ringID: UInt32) throws(SystemCallError) {
        memory = try RingMemory(shape: shape, ringID: ringID)
        kick = try EventFD()
        // Taken whole, one after the other: fields of a pair cannot be moved out of it.
        let pair = try UnixSocket.pair(kind: .sequencedPacket, nonblocking: true)
        wake = try pair.first.duplicate()
        clientWake = HeldDescriptor(try pair.second.duplicate())
    }

    /// Takes over a predecessor's.
    init(
        memory: consuming RingMemory, kick: consuming OwnedFD, wake: consuming OwnedFD,
        clientWake: HeldDescriptor?
    ) {
        self.memory = memory
        self.kick = EventFD(adopting: kick)
        self.wake = wake
        self.clientWake = clientWake
    }
}

/// An open ring. The data thread uses the memory until `DataThread.close`.
@Control
final class SessionRing {
    /// The client's id.
    let id: UInt32
    let parts: RingDescriptors
    let thread: DataThread
    /// Its index on the thread.
    let index: Int
    /// What is on record of it.
    var record: RingRecord
    /// Where it is counted; nil: nowhere.
    let statistics: StatisticsBlock?

    init(
        parts: RingDescriptors, record: RingRecord, thread: DataThread, index: Int,
        statistics: StatisticsBlock?
    ) {
        id = record.id
        self.parts = parts
        self.record = record
        self.thread = thread
        self.index = index
        self.statistics = statistics
    }

    /// Whether a CloseRing waits for the end of its requests, or is being answered.
    var isClosing: Bool { record.closeRequestID != 0 }

    /// What it is doing; nil when it is closed.
    var status: DataThread.RingStatus? { thread.status(index) }

    /// Whether nothing of it is with the device.
    var isIdle: Bool { (status?.inFlight ?? 0) == 0 }
}
