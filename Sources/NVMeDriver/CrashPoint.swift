// SPDX-License-Identifier: Apache-2.0
// Where a worker may die: the numbered steps of DESIGN, section 5, and of the fault model.
//
// Each point stands directly after the step that it names, or before the one that would undo its
// meaning. In production `hit` is nothing; with -DNVMED_CRASH_POINTS (a build for tests only,
// `.ci/crash build`) a point kills or stops its process there. Tests walk `allCases`, so that a
// point that nobody calls or no scenario reaches is found.

/// A point at which a process can be ended by a test.
public enum CrashPoint: UInt8, CaseIterable, Sendable {
    // MARK: submit: from the request to the device

    /// An I/O request was looked at on its socket, and nothing is known of it yet.
    case requestPeeked = 0
    /// The request is in the log (slot or record), and still on its socket.
    case requestStaged = 1
    /// The request is off its socket.
    case requestDequeued = 2
    /// A request of many commands has its record, and no command.
    case recordSealed = 3
    /// The slot of a part is staged, and its record does not say that the part is issued.
    case childIssued = 4
    /// A client's bytes are copied to bounce pages that no slot owns yet.
    case bounceFilled = 5
    /// Words 0 to 6 of a slot are the new command's, and its state word is the old one.
    case slotFilled = 6
    /// The slot is STAGED, and its queue entry is the old one.
    case slotStaged = 7
    /// The queue entry is written, and the tail does not cover it.
    case entryWritten = 8
    /// The tail in the state area covers the entry, and the doorbell is not written.
    case tailPublished = 9
    /// The doorbell is written, and the log does not say so.
    case doorbellRung = 10
    /// The log says that the doorbell is written.
    case doorbellLogged = 11
    /// Entries of a client's ring are taken, and its submission head does not say so.
    case ringTaken = 12

    // MARK: complete: from the device to the client

    /// A completion entry is seen, and its slot is STAGED.
    case completionSeen = 16
    /// A read's bytes are copied from its bounce pages to the client.
    case bounceDelivered = 17
    /// The slot is COMPLETING, and the client's completion is not written.
    case slotCompleting = 18
    /// A part of a larger request was counted in its record.
    case childCounted = 19
    /// The record says that its request is done, and the client's completion is not written.
    case recordDone = 20
    /// The completion is in the ring, and no position covers it.
    case ringEntryPosted = 21
    /// The log's positions of the ring cover it, and the client's tail does not.
    case ringPositionsLogged = 22
    /// The client's tail covers it, and the client was not woken.
    case ringTailPublished = 23
    /// The client was woken.
    case ringWoken = 24
    /// The reply is on the socket, and its slot is COMPLETING.
    case replySent = 25
    /// The reply did not fit the socket, and is on record as owed.
    case replyOwed = 26
    /// The owed reply is on the socket, and still on record.
    case owedSent = 27
    /// The completion queue's head passed the entry, and its slot is COMPLETING.
    case headPublished = 28
    /// The slot is FREE, and the device does not know the new head.
    case slotFreed = 29
    /// The device knows the new head.
    case completionDoorbellRung = 30
    /// The record is free, and its pages are not given back.
    case recordFreed = 31

    // MARK: register: memory of clients

    /// RegisterMemory is on record, and still on its socket.
    case memoryRecorded = 40
    /// The memory's descriptor is stored.
    case memoryStored = 41
    /// The region is MAPPING, and the device does not see it.
    case memoryMapping = 42
    /// The device sees it, and the record says MAPPING.
    case memoryMapped = 43
    /// The region is MAPPED, and the client was not answered.
    case memoryReady = 44
    /// The client was answered, and its request is still on the socket.
    case memoryAnswered = 45
    /// UnregisterMemory is on record, and commands still use the region.
    case memoryEnding = 46
    /// The region is UNMAPPING, and the device sees it.
    case memoryUnmapping = 47
    /// The device does not see it, and the record says UNMAPPING.
    case memoryUnmapped = 48
    /// The record is free, and the descriptor is stored.
    case memoryFreed = 49
    /// The descriptor is out of the store, and the client was not answered.
    case memoryRemoved = 50

    // MARK: open: sessions and rings

    /// OpenSession is on record, and the socket's end is not stored.
    case sessionRecorded = 56
    /// The socket's end is stored, and the client has no answer.
    case sessionStored = 57
    /// The client has its end.
    case sessionAnswered = 58
    /// OpenRing is on record, and still on its socket.
    case ringRecorded = 59
    /// The ring, its kick and its wake are stored.
    case ringStored = 60
    /// The client was answered, and its request is still on the socket.
    case ringAnswered = 61

    // MARK: close: sessions and rings

    /// CloseRing is on record, and its commands are in flight.
    case ringEnding = 64
    /// The ring's record is free, and its descriptors are stored.
    case ringFreed = 65
    /// The ring's descriptors are out of the store, and the client was not answered.
    case ringRemoved = 66
    /// The session is on record as ending, and its commands are in flight.
    case sessionEnding = 67
    /// The session's socket is out of the store, and its record is in use.
    case sessionRemoved = 68
    /// The session's record is free.
    case sessionFreed = 69

    // MARK: adopt: the successor

    /// The fence is held, and the generation is the predecessor's.
    case adoptFenced = 72
    /// The generation is this one's.
    case adoptGenerationRaised = 73
    /// Everything was checked, and nothing was changed.
    case adoptChecked = 74
    /// A predecessor's COMPLETING slots were delivered again, and the head has not passed them.
    case adoptDelivered = 75
    /// A command that the device never saw has its queue entry again.
    case adoptResubmitted = 76
    /// The probe is in its slot and its entry, and no tail covers it.
    case adoptProbeStaged = 77
    /// The probe's doorbell is written.
    case adoptProbeRung = 78
    /// The queues are adopted, and the sessions are not.
    case adoptQueuesReady = 79
    /// The sessions are adopted, and no client was woken.
    case adoptSessionsReady = 80
    /// The manager knows that this worker is ready.
    case adoptReady = 81

    // MARK: reset: a controller that cannot be adopted

    /// It is known that the controller cannot be adopted, and the epoch is the old one.
    case resetBegun = 88
    /// What the controller had answered when it was disabled is on record.
    case resetScanned = 89
    /// The epoch is the new one, and the controller runs.
    case resetEpochRaised = 90
    /// The controller is disabled.
    case resetDisabled = 91
    /// The controller is ready, without I/O queues.
    case resetEnabled = 92
    /// The queues are there, and nothing was submitted again.
    case resetQueuesReady = 93
    /// Something of the old epoch is in the new queue, and only the old epoch counts.
    case resetEntryMoved = 94
    /// The new epoch counts, and its commands are not rung.
    case resetDone = 97

    // MARK: abort: the ladder

    /// The command's id is held, and the Abort is not staged.
    case abortHeld = 104
    /// The Abort is with the device.
    case abortSubmitted = 105
    /// The Abort was answered, and the id is held.
    case abortAnswered = 106
    /// A queue is deleted, and not made anew.
    case queueDeleted = 107
    /// A queue was made anew, and its commands were not ended.
    case queueRecreated = 108
    /// An event is on record as pending, and the admin queue's head has not passed it.
    case eventStored = 109

    // MARK: records: the two copies of what changes

    /// The older copy of a twin holds new words, and the old seal.
    case twinFilled = 112
    /// The older copy is sealed, and so the newer one now.
    case twinSealed = 113

    // MARK: sessions: a planned restart

    /// Nothing is taken from clients any more.
    case restartFrozen = 120
    /// What was written is flushed, and the process is about to exit.
    case restartFlushed = 121

    // MARK: save: everything is about to be stopped, and the controller goes on

    /// Nothing is taken from clients any more, and what is in flight may end (CRASHES.md, V1).
    case saveFrozen = 128
    /// Nothing is submitted or reaped any more, and the pool has no token (V2).
    case saveQuiet = 129
    /// The pool has the token, and nothing was told (V3).
    case saveSealed = 130
    /// The state is in its memory file, and the supervisor has no answer.
    case saveTaken = 131
    /// The supervisor has the state (V4).
    case saveAnswered = 132
    /// The supervisor says that the state is durable, and nothing has changed (V5).
    case saveCommitted = 133
    /// The state area is out of the store, and the sessions are there (V6).
    case saveForgotten = 134
    /// The sessions have ended, and the device is open.
    case saveEnded = 135
    /// The device is closed and nothing is stored; the supervisor has no answer (V7).
    case saveClosed = 136
    /// The token is destroyed, and nothing goes on (T1).
    case thawUnsealed = 137

    // MARK: restore: a controller that went on by itself

    /// The saved state and the pool belong together, and nothing was done to the device (L1).
    case restoreChecked = 140
    /// The device has its memory and its interrupts again, and nothing is stored (L2).
    case restoreConnected = 141
    /// State area, pool and device are stored, and the pool has the token (L3).
    case restoreStored = 142
    /// The token is destroyed, and the device was told nothing (L4).
    case restoreUnsealed = 143

    /// The name by which it is asked for.
    public var name: String { "\(self)" }

    /// The point of a name.
    public init?(name: String) {
        guard let point = Self.allCases.first(where: { $0.name == name }) else { return nil }
        self = point
    }

    /// The process got here. Nothing in production; in a debug build a unit test may look on.
    @inlinable @inline(__always)
    public static func hit(_ point: CrashPoint) {
        #if NVMED_CRASH_POINTS
            CrashPlan.hit(point)
        #elseif DEBUG
            CrashObserver.hit(point)
        #endif
    }
}
