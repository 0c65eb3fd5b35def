// SPDX-License-Identifier: Apache-2.0
// One client of the DMA manager: allocates, gives back, and claims after a restore.

internal import Linux

/// Bytes of a buffer that are in a row, here and for the device.
public struct DMARun: Sendable, Equatable {
    /// Its pages in the pool; of locked memory, numbered from 0.
    public var pages: PageRun
    /// Where this process has the first byte.
    public var base: UInt
    /// The device's address of the first byte; nil: of locked memory whose place is not known.
    public var address: UInt64?

    /// Its length in bytes.
    public var byteCount: Int { pages.count * PoolMemory.pageByteCount }
}

/// Memory that a client has. It stays the client's until it is released.
public struct DMABuffer: Sendable, Equatable {
    /// Whose.
    public let owner: String
    /// What its owner calls it.
    public let tag: String
    /// Of what it is.
    public let memory: DMABacking.Memory
    /// Its pieces.
    public let runs: [DMARun]
    /// Of locked memory: which.
    let lockedID: Int

    /// Bytes of all pieces.
    public var byteCount: Int { runs.reduce(0) { $0 + $1.byteCount } }
}

/// A client of memory for devices. When it is gone, its name is free again.
public final class DMAClient {
    /// What it is.
    public let parameters: DMAClientParameters
    private let manager: DMAManager
    private var name: String { parameters.name }
    private var backing: DMABacking { parameters.backing }

    init(_ parameters: DMAClientParameters, _ manager: DMAManager) {
        self.parameters = parameters
        self.manager = manager
    }

    deinit { manager.forget(parameters.name) }

    /// The most bytes of one allocation.
    public static let byteCountMax = SlotPool.pageCountMax * PoolMemory.pageByteCount

    // MARK: Allocating

    /// Takes memory, rounded up to whole pages and full of zeroes.
    public func allocate(
        _ byteCount: Int, contiguity: DMAContiguity = .required, tag: String
    ) throws(DMAError) -> DMABuffer {
        guard byteCount > 0, byteCount <= Self.byteCountMax else {
            throw .malformed(field: "an allocation of \(byteCount) bytes")
        }
        let count = (byteCount + PoolMemory.pageByteCount - 1) / PoolMemory.pageByteCount
        guard let pool = manager.pool(backing.memory) else {
            return try allocateLocked(count, contiguity, tag)
        }
        let runs: [PageRun]
        do throws(SlotPoolError) {
            switch contiguity {
            case .required: runs = [try pool.slots.allocate(count, owner: name, tag: tag)]
            case .preferred, .none:
                runs = try pool.slots.allocateScattered(
                    count, owner: name, tag: tag, smallestFirst: contiguity == .none)
            }
        } catch { throw .slots(error) }
        return try begin(runs, tag, pool)
    }

    /// Takes exactly these pages of the pool, which are free: a plan says what lies where.
    /// `isClean`: they are known to be full of zeroes.
    public func take(
        _ run: PageRun, tag: String, isClean: Bool = false
    ) throws(DMAError) -> DMABuffer {
        let pool = try ownPool()
        do throws(SlotPoolError) {
            try pool.slots.take(run, owner: name, tag: tag)
        } catch { throw .slots(error) }
        return isClean ? try open([run], tag, pool) : try begin([run], tag, pool)
    }

    private func ownPool() throws(DMAError) -> PoolMemory {
        guard let pool = manager.pool(backing.memory) else {
            throw .notConfigured(client: name, memory: .privatePool)
        }
        return pool
    }

    /// Zeroes what was taken, and opens it.
    private func begin(
        _ runs: [PageRun], _ tag: String, _ pool: PoolMemory
    ) throws(DMAError) -> DMABuffer {
        for run in runs { pool.clear(run) }
        return try open(runs, tag, pool)
    }

    private func open(
        _ runs: [PageRun], _ tag: String, _ pool: PoolMemory
    ) throws(DMAError) -> DMABuffer {
        let buffer = buffer(runs, tag, pool)
        guard backing.changesPermissions else { return buffer }
        do throws(VTLGuard.Failure) {
            try manager.open(
                buffer.runs.map { (pages: $0.pages, address: $0.address ?? 0) }, backing.memory)
        } catch {
            guard error.isRolledBack else {
                throw lose(buffer, error.error)
            }
            for run in runs { try? pool.slots.release(run, owner: name) }
            throw .permissions(client: name, error.error)
        }
        return buffer
    }

    private func buffer(_ runs: [PageRun], _ tag: String, _ pool: PoolMemory) -> DMABuffer {
        DMABuffer(
            owner: name, tag: tag, memory: backing.memory,
            runs: runs.map { run in
                DMARun(
                    pages: run,
                    base: unsafe UInt(bitPattern: pool.base)
                        + UInt(run.first * PoolMemory.pageByteCount),
                    address: pool.address(ofPage: run.first))
            }, lockedID: 0)
    }

    private func allocateLocked(
        _ count: Int, _ contiguity: DMAContiguity, _ tag: String
    ) throws(DMAError) -> DMABuffer {
        guard (1...SlotPool.nameByteCountMax).contains(tag.utf8.count) else {
            throw .malformed(field: "a tag of \(tag.utf8.count) bytes")
        }
        let id = try manager.locked.allocate(
            count * PoolMemory.pageByteCount, owner: name, tag: tag,
            contiguous: contiguity == .required, physical: backing.changesPermissions)
        guard let buffer = lockedBuffer(id) else { throw .notOwned(client: name) }
        guard backing.changesPermissions else { return buffer }
        do throws(VTLGuard.Failure) {
            try manager.open(
                buffer.runs.map { (pages: Self.key($0.pages, id), address: $0.address ?? 0) },
                .lockedMemory)
        } catch {
            guard error.isRolledBack else { throw lose(buffer, error.error) }
            manager.locked.release(id)
            throw .permissions(client: name, error.error)
        }
        return buffer
    }

    /// Blocks of locked memory all begin at page 0: their guards are told apart by their number.
    private static func key(_ run: PageRun, _ id: Int) -> PageRun {
        PageRun(first: id &* SlotPool.pageCountMax &+ run.first, count: run.count)
    }

    private func lockedBuffer(_ id: Int) -> DMABuffer? {
        guard let block = manager.locked.blocks[id], block.owner == name else { return nil }
        let base = unsafe UInt(bitPattern: block.mapping.base)
        let count = block.mapping.byteCount / PoolMemory.pageByteCount
        var runs: [DMARun] = []
        for page in 0..<count {
            let address = block.addresses.isEmpty ? nil : block.addresses[page]
            if let last = runs.last,
                last.address.map({ $0 &+ UInt64(last.byteCount) }) == address
            {
                runs[runs.count - 1].pages.count += 1
            } else {
                runs.append(
                    DMARun(
                        pages: PageRun(first: page, count: 1),
                        base: base + UInt(page * PoolMemory.pageByteCount), address: address))
            }
        }
        return DMABuffer(
            owner: name, tag: block.tag, memory: .lockedMemory, runs: runs, lockedID: id)
    }

    // MARK: Giving back

    /// Gives memory back. `lost`: lower trust levels can touch it still, so that nobody gets it
    /// any more.
    public func release(_ buffer: DMABuffer) throws(DMAError) {
        guard buffer.owner == name, buffer.memory == backing.memory, isOwn(buffer) else {
            throw .notOwned(client: name)
        }
        var failure: VTLPermissionError?
        for run in buffer.runs {
            let key =
                buffer.memory == .lockedMemory ? Self.key(run.pages, buffer.lockedID) : run.pages
            if let error = manager.close(key, buffer.memory) { failure = failure ?? error }
        }
        if let failure { throw lose(buffer, failure) }
        guard let pool = manager.pool(buffer.memory) else {
            return manager.locked.release(buffer.lockedID)
        }
        do throws(SlotPoolError) {
            for run in buffer.runs { try pool.slots.release(run.pages, owner: name) }
        } catch { throw .slots(error) }
    }

    private func isOwn(_ buffer: DMABuffer) -> Bool {
        guard let pool = manager.pool(buffer.memory) else {
            return lockedBuffer(buffer.lockedID) == buffer
        }
        return Set(buffer.runs.map(\.pages)).count == buffer.runs.count
            && buffer.runs.allSatisfy { pool.slots.isAllocated($0.pages, to: name) }
    }

    /// Takes memory out of use for good, and says so.
    private func lose(_ buffer: DMABuffer, _ error: VTLPermissionError) -> DMAError {
        if let pool = manager.pool(buffer.memory) {
            for run in buffer.runs { try? pool.slots.leak(run.pages, owner: name) }
        } else {
            manager.locked.lose(buffer.lockedID)
        }
        for run in buffer.runs {
            manager.note(
                DMALoss(
                    owner: name, tag: buffer.tag, memory: buffer.memory, pages: run.pages,
                    reason: error.description))
        }
        return .lost(client: name, tag: buffer.tag, byteCount: buffer.byteCount, error)
    }

    // MARK: Coming back

    /// What the client has in its pool now, each run by itself; also what an earlier client of its
    /// name left.
    public var buffers: [DMABuffer] {
        guard let pool = manager.pool(backing.memory) else {
            return manager.locked.blocks.keys.sorted().compactMap { lockedBuffer($0) }
        }
        return pool.slots.slots(of: name).filter { $0.state == .allocated }
            .map { buffer([$0.run], $0.tag, pool) }
    }

    /// What the client had when it was saved, and has not claimed.
    public var unclaimed: [SlotPool.Slot] {
        manager.pool(backing.memory)?.slots.slots(of: name).filter { $0.state == .pending } ?? []
    }

    /// Claims memory that the client had, by its place; it is as it was left. Where trust levels
    /// matter it is opened again.
    public func attach(_ run: PageRun) throws(DMAError) -> DMABuffer {
        let pool = try ownPool()
        let slot: SlotPool.Slot
        do throws(SlotPoolError) {
            slot = try pool.slots.claim(run, owner: name)
        } catch { throw .slots(error) }
        return try open([run], slot.tag, pool)
    }

    /// Claims memory by the device's address of its first byte.
    public func attach(address: UInt64, byteCount: Int) throws(DMAError) -> DMABuffer {
        let page = UInt64(PoolMemory.pageByteCount)
        guard byteCount > 0, byteCount <= Self.byteCountMax, address % page == 0,
            byteCount % PoolMemory.pageByteCount == 0,
            let range = try ownPool().ranges.first(where: {
                $0.address <= address && (address - $0.address) / page < UInt64($0.pages.count)
            })
        else { throw .notOwned(client: name) }
        return try attach(
            PageRun(
                first: range.pages.first + Int((address - range.address) / page),
                count: byteCount / PoolMemory.pageByteCount))
    }

    /// Claims all that the client had.
    public func attachAll() throws(DMAError) -> [DMABuffer] {
        var all: [DMABuffer] = []
        for slot in unclaimed { all.append(try attach(slot.run)) }
        return all
    }
}
