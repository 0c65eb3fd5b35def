// SPDX-License-Identifier: Apache-2.0
// Closing descriptors whose last close may sleep.

internal import CLinux

extension OwnedFD {
    /// A second descriptor of an open file that is known by its number only.
    public static func duplicate(ofRaw raw: CInt) throws(SystemCallError) -> OwnedFD {
        OwnedFD(adopting: try checked("dup", nv_dup_cloexec(raw)))
    }

    /// Closes in a thread of its own: the last close of a VFIO device may reset the function, which
    /// takes up to seconds. Without a thread it is closed here.
    public consuming func closeInBackground() {
        let raw = release()
        if nv_close_in_background(raw) < 0 { _ = nv_close(raw) }
    }

    /// Closes descriptors of these numbers, which nobody else owns, one after the other in a thread
    /// of its own; without a thread here.
    public static func closeInBackground(_ raw: [CInt]) {
        do throws(SystemCallError) {
            try BackgroundThread.start { for fd in raw { _ = nv_close(fd) } }
        } catch {
            for fd in raw { _ = nv_close(fd) }
        }
    }
}
