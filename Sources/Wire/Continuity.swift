// SPDX-License-Identifier: Apache-2.0
// How devices and sessions got over the deaths of workers (Proto/common.proto).

internal import CWire

/// How a device, or a session of it, got over the deaths of workers.
public struct Continuity: Sendable, Hashable {
    /// The worker that serves it now: rises with every worker process of the device.
    public var generation: UInt64
    /// How often a worker took the live controller over, without a reset; of a session: since it
    /// was opened.
    public var adoptions: UInt64 = 0
    /// How often the controller was reset while sessions were kept; of a session: since it was
    /// opened.
    public var resets: UInt64 = 0
    /// How long requests waited the last time; nil: they never did.
    public var lastPauseNanoseconds: UInt64?
    /// A device that its first worker serves, or a later one of which no more is known.
    public init(generation: UInt64) { self.generation = generation }
}

extension Continuity {
    func write(into writer: inout MessageWriter) {
        writer.number(1, generation)
        if adoptions > 0 { writer.number(2, adoptions) }
        if resets > 0 { writer.number(3, resets) }
        writer.number(4, lastPauseNanoseconds)
    }

    init?(_ pointer: UnsafePointer<Nvmed__V1__Continuity>?) {
        guard let c = unsafe pointer?.pointee else { return nil }
        self.init(generation: unsafe c.generation)
        adoptions = unsafe c.adoptions
        resets = unsafe c.resets
        lastPauseNanoseconds = unsafe Field.optional(c.has_last_pause_ns, c.last_pause_ns)
    }
}
