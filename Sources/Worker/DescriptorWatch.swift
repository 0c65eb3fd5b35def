// SPDX-License-Identifier: Apache-2.0
// Watching descriptors that belong to somebody else.

internal import CLinux
internal import Linux
internal import Systemd

/// A descriptor of somebody else that is watched through a duplicate.
@Control
final class DescriptorWatch {
    private let fd: OwnedFD
    private var source: DescriptorSource?

    init(
        _ raw: CInt, _ events: Events, _ handler: @escaping @Control (Events) -> Void
    ) throws(SystemCallError) {
        fd = OwnedFD(adopting: try checked("dup", nv_dup_cloexec(raw)))
        source = try EventLoop.current.watch(fd, events, handler)
    }

    /// The handler is not called any more.
    func cancel() {
        source?.cancel()
        source = nil
    }
}
