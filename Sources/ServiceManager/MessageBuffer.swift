// SPDX-License-Identifier: Apache-2.0
// Room for one message of a socket, made once.

internal import CLinux
internal import Linux

/// Room for one message.
@safe
final class MessageBuffer {
    private let memory: UnsafeMutableRawBufferPointer

    init(byteCount: Int) {
        unsafe memory = .allocate(byteCount: byteCount, alignment: 16)
    }

    deinit { unsafe memory.deallocate() }

    /// The next message, nil when none waits. Its payload is here until the next call.
    func receive(_ fd: borrowing OwnedFD) throws(SystemCallError) -> ReceivedMessage? {
        try unsafe UnixSocket.receive(fd, into: memory, nonblocking: true)
    }

    /// The first bytes, copied out.
    func bytes(_ count: Int) -> [UInt8] {
        unsafe Array(memory[0..<min(max(count, 0), memory.count)])
    }
}

extension UnixSocket {
    /// Sends a text as one message, without waiting.
    static func sendText(_ fd: borrowing OwnedFD, _ text: String) throws(SystemCallError) {
        let bytes = Array(text.utf8)
        let sent = unsafe bytes.withUnsafeBytes { bytes in
            unsafe nv_send_message(
                fd.raw, bytes.baseAddress, bytes.count, nil, 0, nil, 0, 1)
        }
        try checked("sendmsg", sent)
    }
}
