// SPDX-License-Identifier: Apache-2.0
// Interrupt delivery: vectors bound to the client's eventfds, masks, and the one level-triggered
// pin.

internal import CLinux
internal import Linux

/// The vectors of one kind (INTx, MSI-X, error, request) with the client's descriptors.
struct VectorSet {
    private(set) var fds: [CInt]
    private var masked: [Bool]
    private var waiting: [Bool]

    init(count: Int) {
        fds = Array(repeating: -1, count: count)
        masked = Array(repeating: false, count: count)
        waiting = Array(repeating: false, count: count)
    }

    var count: Int { fds.count }
    var isConnected: Bool { fds.contains { $0 >= 0 } }

    mutating func connect(_ index: Int, _ fd: consuming OwnedFD) {
        disconnect(index)
        // The client may have left the eventfd blocking; a full counter must not stop this process.
        _ = nv_set_nonblocking(fd.raw, 1)
        fds[index] = fd.release()
    }

    mutating func disconnect(_ index: Int) {
        if fds[index] >= 0 { _ = nv_close(fds[index]) }
        fds[index] = -1
        waiting[index] = false
    }

    mutating func disconnectAll() {
        for index in fds.indices {
            disconnect(index)
            masked[index] = false
        }
    }

    mutating func mask(_ index: Int) { masked[index] = true }

    mutating func unmask(_ index: Int) {
        masked[index] = false
        if waiting[index] {
            waiting[index] = false
            trigger(index)
        }
    }

    /// Signals a vector, or remembers it while the vector is masked.
    @inline(__always)
    mutating func trigger(_ index: Int) {
        guard index >= 0, index < fds.count else { return }
        guard !masked[index] else {
            waiting[index] = true
            return
        }
        if fds[index] >= 0 { _ = nv_eventfd_signal(fds[index]) }
    }
}

/// All interrupts of the function.
final class Interrupts {
    var pin = VectorSet(count: 1)
    var messages: VectorSet
    var error = VectorSet(count: 1)
    var request = VectorSet(count: 1)

    /// INTMS and INTMC: vectors masked while the pin is in use.
    var pinMask: UInt32 = 0

    init(vectorCount: Int) { messages = VectorSet(count: vectorCount) }

    deinit { disconnectAll() }

    /// Raises the interrupt of a completion queue.
    @inline(__always)
    func raise(vector: UInt16) {
        if messages.isConnected {
            messages.trigger(Int(vector))
        } else {
            raisePin(vector)
        }
    }

    private func raisePin(_ vector: UInt16) {
        guard vector >= 32 || pinMask & (1 << UInt32(vector)) == 0 else { return }
        // Between two clients nobody could unmask it.
        guard pin.isConnected else { return }
        pin.trigger(0)
        // A level: it stays quiet until the client has looked and unmasked it.
        pin.mask(0)
    }

    /// Lets go of the client's descriptors; INTMS and INTMC are the controller's, and may stay.
    func disconnectAll(keepingMask: Bool = false) {
        pin.disconnectAll()
        messages.disconnectAll()
        error.disconnectAll()
        request.disconnectAll()
        if !keepingMask { pinMask = 0 }
    }
}
