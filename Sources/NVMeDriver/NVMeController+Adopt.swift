// SPDX-License-Identifier: Apache-2.0
// Going on with the controller of a predecessor that died: DESIGN, section 5, "Adoption".

internal import CMemory
internal import DMA
public import Linux
internal import NVMeSpec
internal import VFIO

/// What a predecessor left in the fd store. Each call gives a descriptor of its own, and may be
/// repeated for the same thing; nil: there is none.
public struct Inheritance {
    /// `pool`: the DMA pool's memory file.
    public var pool: () -> OwnedFD?
    /// `irq-N`: the eventfd of an interrupt vector.
    public var interrupt: (_ vector: Int) -> OwnedFD?
    /// `m-N`: the memory file of a region, with the region's record.
    public var memory: (_ region: UInt32, _ record: RegionRecord) -> OwnedFD?

    /// What came from the fd store.
    public init(
        pool: @escaping () -> OwnedFD?, interrupt: @escaping (_ vector: Int) -> OwnedFD?,
        memory: @escaping (_ region: UInt32, _ record: RegionRecord) -> OwnedFD?
    ) {
        self.pool = pool
        self.interrupt = interrupt
        self.memory = memory
    }
}

/// What may be done again, after a reset, of a session's requests that were with the device.
public enum Replay: Sendable {
    /// Everything: the session has its namespace for itself, so that nobody else's write can be
    /// overwritten by an older one.
    case everything
    /// What changes nothing: reads, comparisons, flushes, verifications. The others end as
    /// `outcomeUnknown`.
    case harmless
    /// Nothing: the session is over.
    case nothing
}

extension NVMeController {
    /// Goes on with the running controller of a predecessor, as the state area has it. Instead of
    /// `start`.
    ///
    /// Everything is checked first. `notAdoptable` says why it cannot be; then nothing was changed,
    /// and `startOver` of the same object follows. Other errors are the device's.
    ///
    /// Nothing is sent to the device but a probe for each queue whose last doorbell is in doubt,
    /// and the commands that it was never told of. When this returns the engines have the answers
    /// that no client got: sessions and rings must be there before the first `reap`. The admin
    /// queue is silent until `finishAdoption`. `namespaces`, `identify` and the regions of the
    /// state area are as the predecessor knew them; regions that were half mapped are taken off
    /// the device (a record that is UNMAPPING stays until the owner clears it, its UnregisterMemory
    /// being unanswered).
    public func adopt(_ inheritance: Inheritance) throws(DriverError) {
        throw .notAdoptable("it is not written yet")
    }

    /// Ends the silence of the admin queue that `adopt` began: asks for events again, and tells
    /// those that nobody has acted upon. To be called when a client has got a completion, or
    /// nothing was in flight.
    ///
    /// With `comparing` the controller is asked who it is, an error telling that it is another,
    /// and `namespacesChanged` is among the events, so that the owner compares the namespaces.
    public func finishAdoption(comparing: Bool) throws(DriverError) -> [AdminEvent] { [] }
}
