// SPDX-License-Identifier: Apache-2.0
// Giving a controller that went on by itself what it had when its driver ended: its memory where it
// was, and interrupts. Everything else is adoption.

internal import DMA
public import Linux
public import SavedState
internal import VFIO

extension NVMeController {
    /// Gives the controller of a saved state, which nobody was connected to meanwhile, its pool and
    /// interrupts again. The state area has been made from the saved state. Returns the eventfds of
    /// the interrupts, which are the caller's.
    ///
    /// `slots` is what was written down of the pool, which has to be laid out like that; empty:
    /// nothing was. The pool must hold `token`: else it belongs to something that went on after the
    /// state was saved. Throws `notAdoptable` then, or when the pool is not where the device
    /// reaches; nothing was done to the device.
    ///
    /// This object is of no more use afterwards: whoever takes the controller over begins as after
    /// the death of a predecessor, with `adopt`.
    public func reconnect(
        pool file: borrowing OwnedFD, slots: [SavedSlot] = [], token: SaveToken
    ) throws(DriverError) -> [CInt] {
        let record = try knownController()
        var given: OwnedFD?
        do throws(SystemCallError) {
            given = try file.duplicate()
        } catch { throw .system(error) }
        var inheritance = Inheritance(
            pool: { given.take() }, place: poolSource.place, interrupt: { _ in nil },
            memory: { _, _ in nil })
        inheritance.poolSlots = slots
        try takePool(record, inheritance, checking: true)
        guard let seal = poolSeal, seal == token else {
            throw .notAdoptable(
                "its pool does not belong to the saved state: the device went on after that was "
                    + "saved, or it is another's")
        }
        CrashPoint.hit(.restoreChecked)
        do throws(VFIOError) {
            try device.enableMemorySpace()
        } catch { throw Self.refusal(error) }
        // Before it may touch memory: somebody else may have had it, and given it other addresses.
        try checkRegisters(record)
        do throws(VFIOError) {
            try pool?.mapWindows(device)
        } catch { throw Self.refusal(error) }
        try connectInterrupts()
        guard Int(record.interruptCount) == interrupts.count else {
            throw .notAdoptable(
                "it had \(record.interruptCount) interrupts, and there are \(interrupts.count)")
        }
        do throws(VFIOError) {
            try device.enableBusMaster()
        } catch { throw Self.refusal(error) }
        CrashPoint.hit(.restoreConnected)
        var copies: [CInt] = []
        for index in interrupts.indices { copies.append(try duplicateInterrupt(index).release()) }
        return copies
    }
}
