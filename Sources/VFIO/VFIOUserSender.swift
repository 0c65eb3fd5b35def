// SPDX-License-Identifier: Apache-2.0
// Sends messages to a vfio-user server, each whole, from any thread: doorbells that are not mapped
// are written by data threads while the control thread asks something else.

internal import Linux
internal import Synchronization

/// The sending side of a vfio-user connection.
final class VFIOUserSender: Sendable {
    private let fd: OwnedFD
    /// The lower bits of the last message's id; whoever holds the lock sends.
    private let lastID = Mutex<UInt16>(0)
    /// The upper bits of all ids.
    private let generation: UInt16

    /// Bits of an id that are counted. A process waits for one answer at a time, and leaves no more
    /// than that to its successor.
    private static let countedBits: UInt16 = 10
    /// The most bytes of a message: the kernel takes so many in one piece or not at all (unix(7)
    /// puts 32 KiB and more in one buffer), so that whoever is killed has sent a whole message or
    /// none.
    static let messageByteCountMax = 32 << 10

    /// Sends on a socket that earlier processes may have used: the ids of this one carry its
    /// generation, so that an answer to another's message is told from its own.
    init(_ fd: consuming OwnedFD, generation: UInt64) {
        self.fd = fd
        self.generation = UInt16(truncatingIfNeeded: generation) << Self.countedBits
    }

    /// Sends a whole message, waiting for room until the deadline (CLOCK_MONOTONIC ns), and returns
    /// its id: that of the server's message which it answers, or a new one. `message` is made from
    /// the id, and has at most `messageByteCountMax` bytes.
    ///
    /// The descriptors travel with the first byte. A message that was sent in part when the
    /// deadline passes has broken the stream for good, hence `gone`.
    func send(
        fds: [CInt], deadline: UInt64, operation: String, answering: UInt16? = nil,
        _ message: (_ id: UInt16) -> [UInt8]
    ) throws(VFIOError) -> UInt16 {
        try lastID.withLock { id throws(VFIOError) in
            if answering == nil { id = (id &+ 1) & ((1 << Self.countedBits) - 1) }
            let full = answering ?? generation | id
            let bytes = message(full)
            assert(bytes.count <= Self.messageByteCountMax)
            try transmit(bytes, fds: fds, deadline: deadline, operation: operation)
            return full
        }
    }

    private func transmit(
        _ message: [UInt8], fds: [CInt], deadline: UInt64, operation: String
    ) throws(VFIOError) {
        var sent = 0
        while sent < message.count {
            do {
                sent += try unsafe message.withUnsafeBufferPointer {
                    bytes throws(SystemCallError) in
                    let rest = unsafe UnsafeRawBufferPointer(
                        rebasing: UnsafeRawBufferPointer(bytes)[sent...])
                    return try unsafe UnixSocket.send(
                        fd, rest, fds: sent == 0 ? fds : [], nonblocking: true)
                }
            } catch {
                guard error.errno == Errno.again else {
                    throw VFIOUserConnection.translate(error)
                }
                let left = VFIOUserConnection.millisecondsLeft(until: deadline)
                guard left > 0, try waitWritable(milliseconds: left) else {
                    throw .gone("\(operation): the server stopped reading")
                }
            }
        }
    }

    private func waitWritable(milliseconds: Int) throws(VFIOError) -> Bool {
        do throws(SystemCallError) {
            return try fd.waitWritable(timeoutMilliseconds: Int32(clamping: milliseconds))
        } catch {
            throw VFIOUserConnection.translate(error)
        }
    }
}
