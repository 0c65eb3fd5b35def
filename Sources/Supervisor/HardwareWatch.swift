// SPDX-License-Identifier: Apache-2.0
// The supervisor's hold on a PCI device: it keeps it when the worker dies, and hears of the
// kernel's wish to have it back even while no worker lives.

internal import Linux
internal import Systemd

/// Duplicates of a worker's VFIO device and of the eventfd by which the kernel asks for it.
///
/// The eventfd is watched for edges and never read: the worker watches it as well.
@Control
final class HardwareWatch {
    private var device: OwnedFD?
    private var request: OwnedFD?
    private var source: DescriptorSource?

    /// Holds both, and calls `onRequest` each time the kernel asks.
    init(
        device: consuming OwnedFD, request: consuming OwnedFD,
        onRequest: @escaping @Control () -> Void
    ) throws(SystemCallError) {
        source = try EventLoop.current.watch(request, [.readable, .edgeTriggered]) { _ in
            onRequest()
        }
        self.device = consume device
        self.request = consume request
    }

    /// Lets go. The last close of a device may sleep, so it is not done on this thread.
    func letGo() {
        source?.cancel()
        source = nil
        device.take()?.closeInBackground()
        request = nil
    }

    isolated deinit { letGo() }
}
