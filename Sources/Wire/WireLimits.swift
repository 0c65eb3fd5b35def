// SPDX-License-Identifier: Apache-2.0
// The bounds of the protocols, each with its reason.

/// Bounds of messages. Every one is enforced by the receiver.
public enum WireLimits {
    /// The protocol version spoken here.
    public static let version: UInt32 = 1
    /// The most inline data of one message, in bytes: what a default socket buffer passes in one
    /// piece.
    public static let payloadByteCount = 128 << 10
    /// The most bytes of a message beside its payload; requests need tens, lists come in pages.
    public static let headByteCount = 16 << 10
    /// The most bytes of a message.
    public static let messageByteCount = payloadByteCount + headByteCount
    /// The most descriptors of one message.
    public static let fdCount = 4
    /// Memory that decoding one message may use, in bytes: 24 times the head, since the C form of
    /// the smallest nested message is that much larger than its bytes in the worst honest message.
    public static let decodeBudgetByteCount = 24 * headByteCount
    /// The most pages of a memory file that are translated in one message: 2 GiB of huge pages.
    public static let physicalPageCount = 1024
    /// The most processors that interrupts are spread over: a device has hardly more queues.
    public static let processorCount = 256
    /// The most quirks of a device: some more than there are.
    public static let quirkCount = 16
    /// The most ranges of guest memory: more than machines have.
    public static let guestRangeCount = 64
    /// The most bytes of a name (disk, device): a file name of Linux.
    public static let nameByteCount = 255
    /// The most bytes of an inspection path, an address, or a text a person reads.
    public static let textByteCount = 4096
    /// The most ranges of one unmap: what one Dataset Management command carries.
    public static let unmapRangeCount = 256
    /// The most namespaces told of one device: they fit one message.
    public static let namespaceCount = 128
    /// The most bytes that the reasons why namespaces of one device are not served take together:
    /// they fit the same message.
    public static let refusalsByteCount = 4 << 10
    /// Bytes of the token that ties a saved state to a pool.
    public static let saveTokenByteCount = 16
    /// The most bytes of one device's saved state: a few KiB for each of its queues and sessions,
    /// and a hundred for each command in flight, of which there are at most 65,536.
    public static let savedStateByteCount: UInt64 = 64 << 20
    /// The most entries of one page of a list.
    public static let pageEntryCount = 256
    /// The bytes that the entries of one page may take, which leaves room for the envelope.
    public static let pageByteCount = headByteCount - 512
}
