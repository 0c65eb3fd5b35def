// SPDX-License-Identifier: Apache-2.0
// The reset path: a controller that cannot be gone on with is brought up again, and what was with
// it is given out again or ends, once. DESIGN, section 5, "Reset path".

internal import CMemory
internal import DMA
internal import Linux
internal import NVMeSpec
internal import VFIO

extension NVMeController {
    /// Brings the controller up again with the regions and the requests of the state area. After
    /// `adopt` threw `notAdoptable`, or instead of it.
    ///
    /// `replay` says of a session (the engine's key) what may be given out again, in order; the
    /// rest ends as `outcomeUnknown`. As after `adopt`, sessions and rings must be there before the
    /// first `reap`, which delivers what ended.
    ///
    /// Throws `notAdoptable` when nothing can be kept: `start` follows, and all sessions end.
    public func startOver(
        _ inheritance: Inheritance, replay: (_ session: UInt32) -> Replay,
        keep: (NVMeController) -> Void = { _ in }
    ) throws(DriverError) {
        throw .notAdoptable("it is not written yet")
    }
}
