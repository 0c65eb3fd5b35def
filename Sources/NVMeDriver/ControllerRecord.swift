// SPDX-License-Identifier: Apache-2.0
// What the state area says of the controller: how it was set up, and what it is (its Identify
// pages), so that a successor can go on with it without asking it anything.

internal import CMemory

/// How the controller was set up in an epoch. Written when bring-up is complete; a controller
/// without it cannot be adopted.
struct ControllerRecord: Sendable, Equatable {
    /// The epoch that it belongs to.
    var epoch: UInt32
    /// CC, AQA, ASQ and ACQ as they were written.
    var configuration: UInt32
    var adminQueueAttributes: UInt32
    var adminSubmissionAddress: UInt64
    var adminCompletionAddress: UInt64
    /// Where the device has the pool's two zones.
    var poolReadsIOVA: UInt64
    var poolWritesIOVA: UInt64
    /// Bytes of the pool's file.
    var poolByteCount: UInt64
    /// What the pool was laid out for: queue pairs, entries of each, bytes of a transfer and of the
    /// bounce pages.
    var plannedQueues: UInt32
    var entries: UInt32
    var maxTransferByteCount: UInt64
    var bouncePoolByteCount: UInt64
    /// I/O queue pairs that exist.
    var queueCount: UInt32
    /// Eventfds of interrupt vectors.
    var interruptCount: UInt32
    /// The device has taken the shadow doorbells.
    var hasShadowDoorbells: Bool
    /// Asynchronous event requests with the device.
    var eventRequests: UInt32
    /// Places of the inventory of namespaces that may be in use: those below it.
    var inventoryCount: UInt32 = 0

    var words: [UInt64] {
        [
            UInt64(epoch) | UInt64(configuration) << 32,
            UInt64(adminQueueAttributes) | UInt64(plannedQueues) << 32,
            adminSubmissionAddress, adminCompletionAddress, poolReadsIOVA, poolWritesIOVA,
            poolByteCount, UInt64(entries) | UInt64(queueCount) << 32, maxTransferByteCount,
            bouncePoolByteCount,
            UInt64(interruptCount) | UInt64(eventRequests & 0xFFFF) << 32
                | (hasShadowDoorbells ? 1 : 0) << 48,
            UInt64(inventoryCount),
        ]
    }
}

extension ControllerRecord {
    init?(_ words: [UInt64]) {
        guard words.count == StateLayout.controllerWords, words[0] & 0xFFFF_FFFF != 0 else {
            return nil
        }
        epoch = UInt32(truncatingIfNeeded: words[0])
        configuration = UInt32(truncatingIfNeeded: words[0] >> 32)
        adminQueueAttributes = UInt32(truncatingIfNeeded: words[1])
        plannedQueues = UInt32(truncatingIfNeeded: words[1] >> 32)
        adminSubmissionAddress = words[2]
        adminCompletionAddress = words[3]
        poolReadsIOVA = words[4]
        poolWritesIOVA = words[5]
        poolByteCount = words[6]
        entries = UInt32(truncatingIfNeeded: words[7])
        queueCount = UInt32(truncatingIfNeeded: words[7] >> 32)
        maxTransferByteCount = words[8]
        bouncePoolByteCount = words[9]
        interruptCount = UInt32(truncatingIfNeeded: words[10])
        eventRequests = UInt32(truncatingIfNeeded: words[10] >> 32 & 0xFFFF)
        hasShadowDoorbells = words[10] >> 48 & 1 != 0
        inventoryCount = UInt32(truncatingIfNeeded: words[11])
    }
}

extension StateArea {
    /// Writes down how the controller was set up.
    func setController(_ record: ControllerRecord) { controllerRecord.write(record.words) }

    /// How the controller was set up; `free` when bring-up did not come to its end.
    var controller: RecordContent<ControllerRecord> {
        RecordContent(controllerRecord.read(), isFree: { $0[0] & 0xFFFF_FFFF == 0 }) {
            ControllerRecord($0)
        }
    }

    /// The controller is not as it was written down any more.
    public func clearController() {
        guard controllerRecord.read() != .empty else { return }
        controllerRecord.write([])
    }

    private var controllerRecord: TwinRecord {
        unsafe TwinRecord(
            base: address(StateLayout.controllerOffset), wordCount: StateLayout.controllerWords,
            key: Checksum.controllerKind)
    }

    /// Events that the controller has told and nobody has acted upon: bits of `PendingEvents`. All
    /// of them when nobody can tell.
    var pendingEvents: UInt64 {
        get {
            switch eventsRecord.read() {
            case .empty: 0
            case .words(let words): words[0]
            case .damaged: PendingEvents.all
            }
        }
        nonmutating set { eventsRecord.write([newValue]) }
    }

    var eventsRecord: TwinRecord {
        unsafe TwinRecord(
            base: address(StateLayout.eventsOffset), wordCount: 1, key: Checksum.eventsKind)
    }
}

/// What is known of a namespace, as the controller said it.
enum NamespacePages: Equatable {
    /// Identify Namespace and its descriptors (both 4096 bytes; descriptors may be absent).
    case pages(identify: [UInt8], descriptors: [UInt8]?)
    /// Why it is not served.
    case refused(String)
}

extension StateArea {
    /// Keeps a page of the controller: 0 Identify Controller, 1 limits of the NVM command set, 2
    /// the order of the pool's pages (`poolPageOrder`).
    func setControllerPage(_ page: Int, _ bytes: [UInt8]) {
        guard page >= 0, page < StateLayout.controllerPages else { return }
        setBlob(layout.controllerPageOffset(page), tag: UInt64(page) + 1, bytes, [])
    }

    /// A page of the controller; nil when it was not kept or is damaged.
    func controllerPage(_ page: Int) -> [UInt8]? {
        guard page >= 0, page < StateLayout.controllerPages,
            let blob = blob(layout.controllerPageOffset(page)), blob.tag == UInt64(page) + 1
        else { return nil }
        return blob.first
    }

    private static let poolOrderPage = 2

    /// Which huge pages of the pool's file are in use, in the order of their physical addresses;
    /// empty for a device behind an IOMMU. nil: it is damaged.
    var poolPageOrder: [UInt32]? {
        guard let bytes = controllerPage(Self.poolOrderPage), bytes.count % 2 == 0 else {
            return nil
        }
        return stride(from: 0, to: bytes.count, by: 2).map {
            UInt32(bytes[$0]) | UInt32(bytes[$0 + 1]) << 8
        }
    }

    /// Notes the order; at most 2048 pages, each a number below 65536.
    func setPoolPageOrder(_ order: [UInt32]) {
        let bytes = order.flatMap {
            [UInt8(truncatingIfNeeded: $0), UInt8(truncatingIfNeeded: $0 >> 8)]
        }
        if controllerPage(Self.poolOrderPage) != bytes {
            setControllerPage(Self.poolOrderPage, bytes)
        }
    }

    /// Keeps what the controller said of a namespace, at a place of the inventory.
    func setNamespace(_ index: Int, id: UInt32, _ pages: NamespacePages) {
        guard index >= 0, index < StateLayout.inventoryCapacity else { return }
        let offset = layout.namespaceOffset(index)
        switch pages {
        case .pages(let identify, let descriptors):
            let tag = UInt64(id) | (descriptors == nil ? 1 : 2) << 32
            setBlob(offset, tag: tag, identify, descriptors ?? [])
        case .refused(let text):
            setBlob(offset, tag: UInt64(id) | 3 << 32, Array(text.utf8.prefix(4096)), [])
        }
    }

    /// What the controller said of the namespace at a place; nil when there is none, or it is
    /// damaged.
    func namespace(_ index: Int) -> (id: UInt32, pages: NamespacePages)? {
        guard index >= 0, index < StateLayout.inventoryCapacity,
            let blob = blob(layout.namespaceOffset(index))
        else { return nil }
        let id = UInt32(truncatingIfNeeded: blob.tag)
        switch blob.tag >> 32 {
        case 1: return (id, .pages(identify: blob.first, descriptors: nil))
        case 2: return (id, .pages(identify: blob.first, descriptors: blob.second))
        case 3: return (id, .refused(String(decoding: blob.first, as: UTF8.self)))
        default: return nil
        }
    }

    /// Whether nothing is said of a namespace at a place.
    func isNamespaceFree(_ index: Int) -> Bool {
        guard index >= 0, index < StateLayout.inventoryCapacity else { return true }
        return unsafe nv_load64(address(layout.namespaceOffset(index))) == 0
    }

    /// Forgets the namespace at a place.
    func clearNamespace(_ index: Int) {
        guard index >= 0, index < StateLayout.inventoryCapacity else { return }
        unsafe nv_store64(address(layout.namespaceOffset(index)), 0)
    }

    /// The seal is taken away before the pages change and put back when they have: who dies in
    /// between leaves nothing, and whoever needs it asks the controller.
    private func setBlob(_ offset: Int, tag: UInt64, _ first: [UInt8], _ second: [UInt8]) {
        let base = unsafe address(offset)
        unsafe nv_store64(base, 0)
        nv_dma_wmb()
        let (one, two) = (first.prefix(4096), second.prefix(4096))
        for (index, byte) in one.enumerated() { unsafe nv_store8(base + 64 + index, byte) }
        for (index, byte) in two.enumerated() { unsafe nv_store8(base + 4160 + index, byte) }
        unsafe nv_store64(base + 8, tag)
        unsafe nv_store64(base + 16, UInt64(one.count) | UInt64(two.count) << 32)
        nv_dma_wmb()
        unsafe nv_store64(base, Self.blobSeal(base, offset, one.count, two.count))
    }

    private func blob(_ offset: Int) -> (tag: UInt64, first: [UInt8], second: [UInt8])? {
        let base = unsafe address(offset)
        let counts = unsafe nv_load64(base + 16)
        let (one, two) = (Int(counts & 0xFFFF_FFFF), Int(counts >> 32))
        guard one <= 4096, two <= 4096,
            unsafe nv_load64(base) == Self.blobSeal(base, offset, one, two)
        else { return nil }
        return unsafe (
            nv_load64(base + 8), [UInt8](UnsafeRawBufferPointer(start: base + 64, count: one)),
            [UInt8](UnsafeRawBufferPointer(start: base + 4160, count: two))
        )
    }

    private static func blobSeal(
        _ base: UnsafeMutableRawPointer, _ offset: Int, _ one: Int, _ two: Int
    ) -> UInt64 {
        var crc = Checksum.key(
            Checksum.inventoryKind, queue: UInt32(truncatingIfNeeded: offset / 64), epoch: 0)
        for word in 1..<3 { crc = nv_crc32c_64(crc, unsafe nv_load64(base + word * 8)) }
        for word in 0..<((one + 7) / 8) {
            crc = nv_crc32c_64(crc, unsafe nv_load64(base + 64 + word * 8))
        }
        for word in 0..<((two + 7) / 8) {
            crc = nv_crc32c_64(crc, unsafe nv_load64(base + 4160 + word * 8))
        }
        // Never 0: that is what an empty place has.
        return UInt64(crc) | 1 << 32
    }
}
