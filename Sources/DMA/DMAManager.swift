// SPDX-License-Identifier: Apache-2.0
// The DMA manager: what memory there is for devices, and who has it.
//
// Clients say what they need (`DMAClientParameters`), and get it from the private pool, which
// outlives the processes, from the shared pool, or as locked memory of this process. One owner, one
// thread.

/// Memory that is never used again, and why.
public struct DMALoss: Sendable, Equatable {
    /// Whose it was.
    public var owner: String
    /// What its owner called it.
    public var tag: String
    /// Of what it is.
    public var memory: DMABacking.Memory
    /// Its pages; of locked memory, numbered from 0.
    public var pages: PageRun
    /// Why.
    public var reason: String
}

/// All memory for devices.
public final class DMAManager {
    /// The persistent pool; nil: there is none.
    public let privatePool: PoolMemory?
    /// The pool that everybody sees; nil: there is none.
    public let sharedPool: PoolMemory?
    /// What is never used again, in the order in which it was lost.
    public private(set) var losses: [DMALoss] = []

    let locked: LockedMemory
    private let permissions: (any VTLPermissions)?
    private var names: Set<String> = []
    /// Opened runs by the first page of each.
    private var guards: [DMABacking.Memory: [Int: VTLGuard]] = [:]

    /// A manager of what there is. `lockedByteCountMax` bounds the locked memory of all clients.
    public init(
        privatePool: PoolMemory? = nil, sharedPool: PoolMemory? = nil, lockedByteCountMax: Int = 0,
        permissions: (any VTLPermissions)? = nil
    ) {
        self.privatePool = privatePool
        self.sharedPool = sharedPool
        locked = LockedMemory(byteCountMax: lockedByteCountMax)
        self.permissions = permissions
    }

    // MARK: Clients

    /// A client. Its name is its own until the client is gone; what it then still has stays in use,
    /// and belongs to the next client of that name.
    public func makeClient(_ parameters: DMAClientParameters) throws(DMAError) -> DMAClient {
        guard (1...SlotPool.nameByteCountMax).contains(parameters.name.utf8.count) else {
            throw .malformed(field: "a client's name of \(parameters.name.utf8.count) bytes")
        }
        let backing = parameters.backing
        switch backing.memory {
        case .privatePool, .sharedPool:
            guard pool(backing.memory) != nil else {
                throw .notConfigured(client: parameters.name, memory: backing.memory)
            }
        case .lockedMemory:
            guard locked.byteCountMax > 0 else {
                throw .notConfigured(client: parameters.name, memory: backing.memory)
            }
        }
        guard !backing.changesPermissions || permissions != nil else {
            throw .permissions(
                client: parameters.name,
                VTLPermissionError("there is no way to change permissions on this machine"))
        }
        guard names.insert(parameters.name).inserted else { throw .nameInUse(parameters.name) }
        return DMAClient(parameters, self)
    }

    func forget(_ name: String) { names.remove(name) }

    func pool(_ memory: DMABacking.Memory) -> PoolMemory? {
        switch memory {
        case .privatePool: privatePool
        case .sharedPool: sharedPool
        case .lockedMemory: nil
        }
    }

    /// Promises a device pages of a pool, and bounds what it may have of it.
    public func setShare(
        _ owner: String, _ share: SlotPool.Share, of memory: DMABacking.Memory = .privatePool
    ) throws(DMAError) {
        guard let pool = pool(memory) else { throw .notConfigured(client: owner, memory: memory) }
        do throws(SlotPoolError) {
            try pool.slots.setShare(owner, share)
        } catch { throw .slots(error) }
    }

    // MARK: Saving and restoring

    /// What is in use, and the shares. The devices' queues must be quiet: what is allocated
    /// afterwards is not in it.
    public func save() -> SavedDMAManager {
        SavedDMAManager(
            privatePool: privatePool.map { SavedDMAPool($0.slots) },
            sharedPool: sharedPool.map { SavedDMAPool($0.slots) })
    }

    /// Devices that have not claimed all that they had.
    public var missingOwners: [String] {
        let owners = [privatePool, sharedPool].flatMap { $0?.slots.missingOwners ?? [] }
        return Set(owners).sorted()
    }

    /// A device has come back, or will not: what it did not claim is lost for good, for it may
    /// still be written. Nobody else is concerned. Returns what that is.
    @discardableResult
    public func leakUnclaimed(of owner: String) -> [DMALoss] {
        var lost: [DMALoss] = []
        for memory in [DMABacking.Memory.privatePool, .sharedPool] {
            for slot in pool(memory)?.slots.leakUnclaimed(of: owner) ?? [] {
                lost.append(
                    DMALoss(
                        owner: owner, tag: slot.tag, memory: memory, pages: slot.run,
                        reason: "it was not claimed after a restore"))
            }
        }
        losses += lost
        return lost
    }

    // MARK: Trust levels

    /// Opens runs to lower trust levels, whose pages have these addresses: all of them or none.
    func open(
        _ runs: [(pages: PageRun, address: UInt64)], _ memory: DMABacking.Memory
    ) throws(VTLGuard.Failure) {
        guard let permissions else { return }
        var opened: [PageRun] = []
        for run in runs {
            let first = run.address >> 12
            do throws(VTLGuard.Failure) {
                let held = try VTLGuard(
                    permissions, opening: [first..<(first + UInt64(run.pages.count))])
                guards[memory, default: [:]][run.pages.first] = held
                opened.append(run.pages)
            } catch {
                var failure = error
                for run in opened where close(run, memory) != nil { failure.isRolledBack = false }
                throw failure
            }
        }
    }

    /// Closes a run that was opened. The error: lower trust levels can touch it still.
    func close(_ run: PageRun, _ memory: DMABacking.Memory) -> VTLPermissionError? {
        guards[memory]?.removeValue(forKey: run.first)?.close()
    }

    /// Notes memory that must not be used again.
    func note(_ loss: DMALoss) { losses.append(loss) }
}
