// SPDX-License-Identifier: Apache-2.0
// The bounds of a worker, each with its reason.

internal import Wire

/// Bounds of what clients, the supervisor and the device can make a worker do or keep.
enum WorkerLimits {
    /// I/O queue pairs of a device: control and data share one thread here, so that more gain
    /// nothing.
    static let queueCount = 16
    /// I/O queue pairs unless the configuration says otherwise: one for messages, one for rings.
    static let standardQueueCount: UInt32 = 2
    /// Entries of an I/O queue: the state area is made for the largest, because it exists before
    /// any configuration.
    static let queueDepth = 1024
    /// Requests of one session that are with the device: as many as an ordinary queue has entries.
    static let requestsInFlightPerSession = 256
    /// Bytes of inline reads of one session that are with the device or wait for their client:
    /// below `Channel.outgoingByteLimit`, so that a client that reads, however slowly, never
    /// overflows it.
    static let inlineReadByteCount = 24 * WireLimits.payloadByteCount
    /// Messages taken from one session before the others have their turn.
    static let messagesPerTurn = 16
    /// Messages taken from the supervisor before the loop turns.
    static let supervisorMessagesPerTurn = 16
    /// The most bytes of one Read, Write or Compare in registered memory: more gains nothing, and
    /// delays Cancel.
    static let requestByteCount: UInt64 = 64 << 20
    /// Places for owed answers that requests for the device leave to others: Cancel,
    /// UnregisterMemory and CloseRing, one for each session at a time, and as many again.
    static let owedReserve = 512
    /// Rings of one session: one for each thread of an ordinary relay.
    static let ringsPerSession = 16
    /// Regions of one session: as many as ring entries can name.
    static let regionsPerSession = 64
    /// Bytes of all regions of one session: they are pinned for as long as the session lives.
    static let regionByteCountPerSession: UInt64 = 1 << 30
    /// Bytes of all regions of all sessions of a device.
    static let regionByteCountPerDevice: UInt64 = 16 << 30
    /// Completions taken from a queue before their replies go out.
    static let completionsPerReap = 64
    /// Rounds of completions before the loop turns.
    static let reapsPerTurn = 4
    /// Commands that are aborted at one time: controllers allow few (ACL), and a device that lost
    /// more has failed.
    static let abortsPerQueue = 4
    /// Queues of one controller that are deleted and made anew before it is reset as a whole: a
    /// controller that loses commands again and again has failed.
    static let queueReplacements = 4
    /// How long an answer may be there before its interrupt: more than any device coalesces by
    /// default (Base Specification 2.0, 5.27.1.6: in units of 100 microseconds).
    static let interruptPatienceNanoseconds: UInt64 = 2_000_000
    /// How long an interrupt may come after its answer was found before it is said to be lost: more
    /// than a machine that runs anything at all keeps a processor from it.
    static let lateInterruptNanoseconds: UInt64 = 2_000_000_000
    /// I/O that takes longer is taken to be lost, unless the configuration says otherwise.
    static let ioTimeoutMilliseconds: UInt32 = 30_000
    /// How often the loop looks for lost interrupts while something is with the device, at most.
    static let tickMilliseconds: UInt32 = 100
    /// How often the health page is read: temperatures move within minutes. Reading it can cost a
    /// drive some milliseconds, so not more often.
    static let healthNanoseconds: UInt64 = 300_000_000_000
    /// The first time: when bring-up and the first requests are over.
    static let firstHealthNanoseconds: UInt64 = 2_000_000_000
    /// How long requests in flight may take to finish when the worker is asked to leave.
    static let drainNanoseconds: UInt64 = 10_000_000_000
    /// How long they may take when a successor goes on with them anyway: clients wait meanwhile.
    static let restartNanoseconds: UInt64 = 500_000_000
    /// How long commands may take to end when a device is saved that cannot carry them over, at
    /// most: nobody is served meanwhile.
    static let longestDrainNanoseconds: UInt64 = 120_000_000_000
    /// How long a device stays frozen that nobody says anything about: as long as the slowest of
    /// all devices may take, and the disk that the state is written to.
    static let leaseNanoseconds: UInt64 = 60_000_000_000
    /// The most that a supervisor may ask for: what clients wait for a reset.
    static let longestLeaseNanoseconds: UInt64 = 300_000_000_000
    /// How long sessions may be without service before they are told.
    static let stallNanoseconds: UInt64 = 1_000_000_000
    /// How long they may be without service before they end, unless NVMED_SESSION_STALL_MS says
    /// otherwise: the device may need a reset, a person, or a restart of its server.
    static let stallLimitNanoseconds: UInt64 = 120_000_000_000
    /// How long requests in flight may take when the system wants the device back: the supervisor
    /// ends a worker that has not let go after two seconds.
    static let releaseNanoseconds: UInt64 = 500_000_000
    /// How long the opener may take to find physical addresses: it only reads them.
    static let translationNanoseconds: UInt64 = 5_000_000_000
    /// How long guest memory that was not found is not looked for again.
    static let guestMemoryRetryNanoseconds: UInt64 = 60_000_000_000
    /// How long the opener may take: opening may wait for a reset of the function.
    static let openerNanoseconds: UInt64 = 30_000_000_000
    /// Starts in `fruitlessWindowNanoseconds` that completed no command before the device is left
    /// alone: one may be bad luck, five are a reason.
    static let fruitlessStarts: UInt32 = 5
    /// Starts that are further apart are not a loop.
    static let fruitlessWindowNanoseconds: UInt64 = 60_000_000_000
    /// Failures of the controller in `failureWindowNanoseconds` after which a successor resets it
    /// and the sessions go on, unless NVMED_FAILURES says otherwise: a command that is lost again
    /// after each reset must not keep everybody else waiting for ever.
    static let failures: UInt32 = 3
    /// Failures that are further apart have nothing to do with each other.
    static let failureWindowNanoseconds: UInt64 = 600_000_000_000
    /// How long the device is left alone then, doubled each time up to the longest: what a person
    /// may wait for after a repair.
    static let restFirstNanoseconds: UInt64 = 60_000_000_000
    static let restLastNanoseconds: UInt64 = 3_600_000_000_000
    /// How long the bus may take to say whether this is the end or a restart: the manager kills
    /// what does not stop, and commands have to finish before that.
    static let busNanoseconds: UInt64 = 1_000_000_000
    /// How long a predecessor that still holds the state area is waited for.
    static let fenceMilliseconds: Int32 = 10_000
    /// How long the last close of a device is waited for: a function level reset takes 100 ms, and
    /// the watchdog's patience is longer.
    static let closeMilliseconds: Int32 = 2_000
    /// How long the service manager may take to confirm a stored descriptor while nothing else goes
    /// on here.
    static let barrierNanoseconds: UInt64 = 5_000_000_000
    /// How long it may take while the loop goes on, and only the client who asked waits: a manager
    /// that reloads its units on a slow machine confirms nothing for seconds.
    static let confirmNanoseconds: UInt64 = 30_000_000_000
    /// How long a client may leave its replies unread, unless NVMED_CLIENT_STALL_MS says otherwise.
    static let clientStallMilliseconds: UInt64 = 30_000
    /// How long a client that has replies unread may take to make room for the reason why its
    /// session ended: one that reads at all needs milliseconds, and on a machine that is short of
    /// processors seconds.
    static let farewellNanoseconds: UInt64 = 5_000_000_000
    /// Sessions that are over and wait for that: as many as there can be, since all end with the
    /// device. Others end without a reason.
    static let farewells = 256
    /// Open files of the process: a session has one, a region another while it is registered.
    static let openFiles: UInt64 = 16_384
}
