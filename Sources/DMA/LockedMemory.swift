// SPDX-License-Identifier: Apache-2.0
// Memory of this process that stays in memory: locked, bounded, and gone with the process.

internal import Linux
internal import VFIO

/// The locked memory of all clients.
final class LockedMemory {
    /// An allocation.
    final class Block {
        let mapping: Mapping
        let owner: String
        let tag: String
        /// The physical address of each page; empty: they are not known.
        let addresses: [UInt64]

        init(_ mapping: consuming Mapping, owner: String, tag: String, addresses: [UInt64]) {
            self.mapping = mapping
            self.owner = owner
            self.tag = tag
            self.addresses = addresses
        }
    }

    /// The most bytes of all allocations.
    let byteCountMax: Int
    private(set) var byteCount = 0
    /// By an id that is never used twice.
    private(set) var blocks: [Int: Block] = [:]
    /// What lower trust levels can still touch: mapped as long as this process lives.
    private var lost: [Block] = []
    private var lastID = 0

    init(byteCountMax: Int) { self.byteCountMax = byteCountMax }

    /// Locks memory of whole pages. With `physical` its addresses are looked up, and it has to be
    /// in a row for `contiguous`.
    func allocate(
        _ byteCount: Int, owner: String, tag: String, contiguous: Bool, physical: Bool
    ) throws(DMAError) -> Int {
        guard byteCount <= byteCountMax - self.byteCount else {
            throw .lockedMemoryLimit(
                client: owner, wanted: byteCount, used: self.byteCount, limit: byteCountMax)
        }
        do {
            let mapping = try Mapping(anonymous: byteCount)
            mapping.excludeFromCoreDumps()
            try mapping.lock()
            let addresses = physical ? try PhysicalMemory.addresses(ofLocked: mapping) : []
            let isInARow = zip(addresses, addresses.dropFirst()).allSatisfy { $1 == $0 &+ 4096 }
            guard !contiguous || isInARow else {
                throw DMAError.notContiguous(client: owner, byteCount: byteCount)
            }
            lastID += 1
            blocks[lastID] = Block(mapping, owner: owner, tag: tag, addresses: addresses)
            self.byteCount += byteCount
            return lastID
        } catch let error as DMAError {
            throw error
        } catch { throw .lockedMemory(client: owner, reason: "\(error)") }
    }

    /// Lets go of an allocation; the memory goes back to the kernel.
    func release(_ id: Int) {
        guard let block = blocks.removeValue(forKey: id) else { return }
        byteCount -= block.mapping.byteCount
    }

    /// Takes an allocation out of use for good. It counts on.
    func lose(_ id: Int) {
        if let block = blocks.removeValue(forKey: id) { lost.append(block) }
    }
}
