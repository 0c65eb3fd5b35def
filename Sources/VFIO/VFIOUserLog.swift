// SPDX-License-Identifier: Apache-2.0
// What a successor has to know of the message that its predecessor was handling.

internal import CMemory
internal import Linux

/// Two words in memory that outlives the process.
///
/// The first: which DMA_WRITE has been carried out and may have
/// been answered, while it is still on the socket.
///
/// The answer goes out before the message is taken off the socket, so that the server is never left
/// without one; a process that is killed in between leaves a message whose answer the server may
/// have, and whose memory a client may have filled with something else since. The successor answers
/// it once more, which the server ignores, and does not write once more.
///
/// The second: part of a message has been taken off the socket, so that what is left of it means
/// nothing to a successor.
@safe
final class VFIOUserLog {
    private static let byteCount = 4096

    let fd: OwnedFD
    private let mapping: Mapping
    /// What the predecessor had carried out; judged against the first message only.
    private var inherited: UInt64
    private var current: UInt64 = 0

    /// An empty log.
    convenience init() throws(SystemCallError) {
        try self.init(
            adopting: MemFD.create(name: "nvmed-vfio-user-log", byteCount: Self.byteCount))
    }

    /// A predecessor's.
    init(adopting fd: consuming OwnedFD) throws(SystemCallError) {
        guard try MemFD.byteCount(of: fd) == Self.byteCount else {
            throw SystemCallError("the log of the vfio-user connection", errno: Errno.invalid)
        }
        mapping = try Mapping(fd, byteCount: Self.byteCount)
        inherited = unsafe nv_load64(mapping.base)
        self.fd = fd
    }

    /// Part of a message has been taken off the socket.
    var isInMessage: Bool {
        get { unsafe nv_load64(mapping.base + 8) != 0 }
        set { unsafe nv_store64(mapping.base + 8, newValue ? 1 : 0) }
    }

    /// Whether a DMA_WRITE is to be carried out: not if the predecessor did.
    func begin(_ id: UInt16, address: UInt64, count: UInt64) -> Bool {
        // Ids of messages that could be mistaken for each other are apart by their turn; the rest
        // tells servers apart that give all the same. Never 0.
        let place = (address &* 0x9E37_79B9_7F4A_7C15) >> 32 ^ count
        current = UInt64(id) << 48 | (place & 0xFFFF_FFFF) << 8 | 1
        return current != inherited
    }

    /// The message has been carried out: to be called before it is answered.
    func isWritten() { unsafe nv_store64(mapping.base, current) }

    /// The message is off the socket.
    func finish() {
        inherited = 0
        unsafe nv_store64(mapping.base, 0)
    }
}
