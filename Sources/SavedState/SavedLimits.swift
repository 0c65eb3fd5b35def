// SPDX-License-Identifier: Apache-2.0
// The bounds of saved state, each with its reason. The reader holds every one.

/// Bounds of saved state.
public enum SavedLimits {
    /// The most bytes of a section: 64 full queues and 1025 namespaces with full pages take 13 MiB.
    public static let sectionByteCount = 16 << 20
    /// The most bytes of a file: what a thousand devices with some load need in practice. A save
    /// leaves out those for which there is no room.
    public static let fileByteCount = 256 << 20
    /// What a file needs beside its devices: the header and the host's section, which has the names
    /// of all of them.
    static let hostByteCount = 1 << 20
    /// The most devices of a file: as many as may be configured (`ConfigLimits.deviceCount`).
    public static let deviceCount = 1000
    /// The most sections of a file: the host, the devices, and a few that later versions add.
    public static let sectionCount = 1024
    /// The most bytes of a name: a file name of Linux.
    public static let nameByteCount = 255
    /// The most bytes of a path, an address, or a text for people.
    public static let textByteCount = 4096
    /// The most bytes of a kept configuration: what the state area keeps.
    public static let configurationByteCount = 16384
    /// The most bytes of a message that opened a session: what the state area keeps.
    public static let openingByteCount = 448
    /// The most sessions of a device: what the state area has places for.
    public static let sessionCount = 256
    /// The most I/O queue pairs of a device: what the driver asks for.
    public static let queueCount: UInt32 = 64
    /// The most entries of a queue.
    public static let queueEntryCount: UInt32 = 1024
    /// The most requests of several commands of a queue: what the state area has places for.
    public static let requestCount = 64
    /// The most namespaces of a device: what the state area has places for.
    public static let namespaceCount = 1025
    /// The most regions of clients' memory: what the state area has places for.
    public static let regionCount = 1023
    /// The most runs of physical addresses, and slots, of a pool: 1 GiB in runs of 16 KiB.
    public static let poolEntryCount = 65536
    /// The most huge pages of a pool without an IOMMU: what is looked up in one file.
    public static let poolPageCount: UInt32 = 1024
    /// Bytes of a page that a controller says of itself.
    public static let pageByteCount = 4096
    /// What decoding a section may allocate: `decodeFactor` times its bytes and
    /// `decodeBaseByteCount`, since the C form of a command is about ten times its bytes.
    static let decodeFactor = 24
    static let decodeBaseByteCount = 64 << 10
}
