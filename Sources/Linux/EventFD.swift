// SPDX-License-Identifier: Apache-2.0
// An eventfd: a counter in the kernel that wakes whoever waits for it.

internal import CLinux

/// A counter that can be waited for. Reading and signalling never block.
public struct EventFD: ~Copyable, Sendable {
    /// The descriptor.
    public let fd: OwnedFD

    /// Creates a counter at zero.
    public init() throws(SystemCallError) {
        fd = OwnedFD(adopting: try checked("eventfd", nv_eventfd()))
    }

    /// Takes over a descriptor that is an eventfd.
    public init(adopting fd: consuming OwnedFD) { self.fd = fd }

    /// Adds one and wakes the waiter.
    public borrowing func signal() throws(SystemCallError) {
        try checked("write eventfd", nv_eventfd_signal(fd.raw))
    }

    /// Takes the count, which becomes zero.
    @discardableResult
    public borrowing func drain() throws(SystemCallError) -> Int64 {
        try checked("read eventfd", nv_eventfd_drain(fd.raw))
    }
}
