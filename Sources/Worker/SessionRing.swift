// SPDX-License-Identifier: Apache-2.0
// A ring of a session: its memory, its descriptors, and the data thread that serves it.

internal import Linux
internal import NVMeDriver
internal import Systemd
internal import Wire

/// An open ring. The data thread uses the memory until `DataThread.close`.
@Control
final class SessionRing {
    /// The client's id.
    let id: UInt32
    let memory: RingMemory
    /// The client writes it; the data thread watches it and never reads it, because a client can
    /// make reading block.
    let kick: EventFD
    /// Our end of the socket that wakes the client; written without blocking, never read.
    let wake: OwnedFD
    let thread: DataThread
    /// Its index on the thread.
    let index: Int
    /// Where it is counted; nil: nowhere.
    let statistics: StatisticsBlock?
    /// The CloseRing that waits for the end of its requests.
    var closeRequestID: UInt64?

    init(
        id: UInt32, memory: consuming RingMemory, kick: consuming EventFD,
        wake: consuming OwnedFD, thread: DataThread, index: Int, statistics: StatisticsBlock?
    ) {
        self.statistics = statistics
        self.id = id
        self.memory = memory
        self.kick = kick
        self.wake = wake
        self.thread = thread
        self.index = index
    }

    /// What it is doing; nil when it is closed.
    var status: DataThread.RingStatus? { thread.status(index) }

    /// Whether nothing of it is with the device.
    var isIdle: Bool { (status?.inFlight ?? 0) == 0 }
}
