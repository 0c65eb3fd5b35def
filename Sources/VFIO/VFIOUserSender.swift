// SPDX-License-Identifier: Apache-2.0
// Sends messages to a vfio-user server, each whole, from any thread: doorbells that are not mapped
// are written by data threads while the control thread asks something else.

internal import Linux
internal import Synchronization

/// The sending side of a vfio-user connection.
final class VFIOUserSender: Sendable {
    private let fd: OwnedFD
    /// The id of the last message; whoever holds the lock sends.
    private let lastID = Mutex<UInt16>(0)

    init(_ fd: consuming OwnedFD) { self.fd = fd }

    /// Sends a whole message, waiting for room until the deadline (CLOCK_MONOTONIC ns), and returns
    /// its id. `message` is made from the id.
    ///
    /// The descriptors travel with the first byte. A message that was sent in part when the
    /// deadline passes has broken the stream for good, hence `gone`.
    func send(
        fds: [CInt], deadline: UInt64, operation: String, _ message: (_ id: UInt16) -> [UInt8]
    ) throws(VFIOError) -> UInt16 {
        try lastID.withLock { id throws(VFIOError) in
            id &+= 1
            try transmit(message(id), fds: fds, deadline: deadline, operation: operation)
            return id
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
