// SPDX-License-Identifier: Apache-2.0
// Messages that wait for a socket to have room.

internal import Linux

/// A descriptor that a queued message holds.
final class HeldFD {
    let fd: OwnedFD
    init(_ fd: consuming OwnedFD) { self.fd = fd }
}

/// Messages that wait, in order. The channel bounds them.
struct OutgoingQueue {
    struct Message {
        let bytes: [UInt8]
        let fds: [HeldFD]
        var rawFDs: [CInt] { fds.map { $0.fd.raw } }
    }

    private var messages: [Message] = []
    private var head = 0
    private(set) var byteCount = 0
    private(set) var sentCount: UInt64 = 0

    var count: Int { messages.count - head }
    var isEmpty: Bool { count == 0 }
    var first: Message? { isEmpty ? nil : messages[head] }

    /// Copies a message and duplicates its descriptors.
    mutating func append(
        _ bytes: [UInt8], _ payload: UnsafeRawBufferPointer, _ fds: [CInt]
    ) throws(SystemCallError) {
        var held: [HeldFD] = []
        for raw in fds { held.append(HeldFD(try OwnedFD.duplicate(raw: raw))) }
        unsafe messages.append(Message(bytes: bytes + payload, fds: held))
        byteCount += bytes.count + payload.count
    }

    mutating func removeAll() {
        messages = []
        head = 0
        byteCount = 0
    }

    mutating func removeFirst() {
        byteCount -= messages[head].bytes.count
        sentCount &+= 1
        head += 1
        // Amortised: what was sent is dropped when it is half of what is stored.
        guard head * 2 > messages.count else { return }
        messages.removeFirst(head)
        head = 0
    }
}

extension OwnedFD {
    /// A second descriptor of an open file that somebody else owns.
    static func duplicate(raw: CInt) throws(SystemCallError) -> OwnedFD {
        let borrowed = OwnedFD(adopting: raw)
        do {
            let copy = try borrowed.duplicate()
            _ = borrowed.release()
            return copy
        } catch {
            _ = borrowed.release()
            throw error
        }
    }
}

extension UnixSocket {
    /// Sends one message in two parts without blocking.
    static func sendParts(
        _ fd: borrowing OwnedFD, _ head: [UInt8], _ payload: UnsafeRawBufferPointer, _ fds: [CInt]
    ) throws(SystemCallError) {
        var failure: SystemCallError?
        unsafe head.withUnsafeBytes { head in
            do throws(SystemCallError) {
                try unsafe send(fd, head, body: payload, fds: fds, nonblocking: true)
            } catch { failure = error }
        }
        if let failure { throw failure }
    }
}
