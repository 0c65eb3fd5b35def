// SPDX-License-Identifier: Apache-2.0
// The bounds of the supervisor, each with its reason.

/// Bounds of the supervisor.
enum SupervisorLimits {
    /// Connected clients; a client costs a descriptor and some KiB.
    static let clients = 4096
    /// Connected clients of one user who is no operator: nobody locks the others out alone.
    static let clientsPerUser = clients / 4
    /// Of the connections, how many only operators get: they have to come in to see who has the
    /// others.
    static let clientsReserved = 64
    /// Requests of one client that are being worked on; a client with more is not read meanwhile.
    static let requestsPerClient = 64
    /// Bad messages that are answered before the connection is closed.
    static let rejectionsPerClient = 16
    /// Messages taken from one client in one turn of the loop, so that others get theirs.
    static let messagesPerTurn = 16
    /// Connections accepted in one turn of the loop.
    static let acceptsPerTurn = 64
    /// Bytes of replies that wait for a client that does not read: a few full pages.
    static let outgoingByteCount = 256 << 10
    /// Requests that wait for one worker, answered late ones included.
    static let requestsPerWorker = 1024
    /// Operations that wait for their turn at one device: every client may want the same disk.
    static let waitersPerDevice = 2 * clients
    /// Sessions of one device that the supervisor keeps track of: more than fit an fd store.
    static let sessionsPerDevice = 4096
    /// Sessions of all devices, when the configuration does not say.
    static let sessions = 4096
    /// How often one request is made again when the worker dies under it: one that does so every
    /// time is not helped by more.
    static let attemptsPerRequest = 8
    /// Pages of one list that are asked for: sessions and inspection of one worker have an end.
    static let pagesPerList = 64
    /// Entries of the inspection tree that one reply may be cut from.
    static let inspectEntries = 1 << 16

    /// A request without a deadline of its own.
    static let requestNanoseconds: UInt64 = 30_000_000_000
    /// Bringing a device up, which no client waits for longer than its own deadline: CAP.TO may
    /// be 127 s, and the worker bounds its own steps below that.
    static let loadNanoseconds: UInt64 = 150_000_000_000
    /// How long a list of sessions waits for workers that a restarted supervisor asks what they
    /// have: one that hangs must not keep the others' sessions from being told for long.
    static let adoptionNanoseconds: UInt64 = 5_000_000_000
    /// How long an inspection waits for each worker.
    static let inspectNanoseconds: UInt64 = 1_000_000_000
    /// The orderly end of one worker: CC.SHN may take seconds.
    static let shutdownNanoseconds: UInt64 = 15_000_000_000
    /// How long whoever wants a device waits that was in service and is tried again by itself; then
    /// he is told why, and to come again.
    static let pauseNanoseconds: UInt64 = 5_000_000_000
    /// How long the next state of a device is waited for whose worker says that it starts again: it
    /// is told at once, or the worker is asked once more.
    static let noticeNanoseconds: UInt64 = 200_000_000
    /// How long the end of a device waits for the successor of a worker that has just died: it
    /// takes milliseconds, and when it does not come there is nothing to wait for.
    static let successorNanoseconds: UInt64 = 5_000_000_000
    /// How long a worker may take to give its device back when the kernel asks: whoever unbinds
    /// or unplugs it waits that long.
    static let removalNanoseconds: UInt64 = 2_000_000_000
    /// How long an exclusive open waits for a session that its client has just closed.
    static let closingSessionNanoseconds: UInt64 = 500_000_000
    /// A save without a deadline of its own.
    static let saveNanoseconds: UInt64 = 30_000_000_000
    /// Of a save's time, what is kept for writing down: a disk that is busy takes that long to have
    /// some MiB for certain. A quarter of a shorter time.
    static let commitNanoseconds: UInt64 = 2_000_000_000
    /// How long a frozen device waits beyond the save's deadline for the word that it is durable:
    /// whoever hangs longer than that must not keep everybody's I/O.
    static let leaseNanoseconds: UInt64 = 10_000_000_000
    /// How long a worker may take to let its device go on before its connection is closed, which
    /// it cannot overlook.
    static let thawNanoseconds: UInt64 = 5_000_000_000
    /// How long one wait for a device that is being restored lasts; then the next one begins.
    static let restoreTurnNanoseconds: UInt64 = 600_000_000_000
    /// How long a client may leave its replies unread while more wait: it has stopped reading.
    static let unreadNanoseconds: UInt64 = 5_000_000_000
    /// How long accepting pauses when the descriptor table is full.
    static let acceptPauseNanoseconds: UInt64 = 100_000_000
}
