// SPDX-License-Identifier: Apache-2.0
// The namespaces of a controller (NVM Express Base Specification 2.0, 5.17.2), and what is kept of
// them in the state area, so that a successor need not ask.

internal import CMemory
internal import NVMeSpec

extension NVMeController {
    /// Reads the list of active namespaces and identifies each: at bring-up, and when the
    /// controller says that they changed. `look` gets what was found before a successor would find
    /// it: what follows from a difference has to be durable when it returns.
    public func refreshNamespaces(
        look: (_ found: [UInt32: NamespaceInfo]) -> Void = { _ in }
    ) throws(DriverError) {
        let found = try findNamespaces()
        look(found.infos)
        keepNamespaces(found)
    }

    /// Asks for the namespaces, and keeps nothing.
    func findNamespaces() throws(DriverError) -> FoundNamespaces {
        var found = FoundNamespaces()
        var after: UInt32 = 0
        // Every page but the last has 1024 ids, each above the one before: the ids bound the loop.
        while true {
            let bytes = try executeForPage(
                .identify(cns: .activeNamespaceList, namespaceID: after),
                "Identify Active Namespace List")
            let last = after
            let list = try parse { () throws(PageError) in
                try NamespaceList(parsing: bytes, after: last)
            }
            for id in list.namespaceIDs {
                guard found.pages.count < Self.maxNamespaces else {
                    found.leftOut += 1
                    continue
                }
                let pages = try namespacePages(id)
                (found.pages[id], found.infos[id]) = (pages, namespaceInfo(id, pages))
            }
            guard !list.isLast, found.pages.count < Self.maxNamespaces,
                let highest = list.namespaceIDs.last, highest > after
            else { break }
            after = highest
        }
        return found
    }

    /// The namespaces are these from now on, for a successor too.
    func keepNamespaces(_ found: FoundNamespaces) {
        for id in found.pages.keys.sorted() {
            if let pages = found.pages[id] { keepNamespace(id, pages) }
        }
        namespaces = found.infos
        namespacesLeftOut = found.leftOut
        for id in namespacePlaces.keys where found.pages[id] == nil { forgetNamespace(id) }
    }

    /// Identifies one namespace again, or forgets it when it is not active any more. Much cheaper
    /// than `refreshNamespaces` where there are many. `look` gets all namespaces as they will be.
    public func refreshNamespace(
        _ id: UInt32, look: (_ found: [UInt32: NamespaceInfo]) -> Void = { _ in }
    ) throws(DriverError) {
        guard id > 0, id < 0xFFFF_FFFE else { return }
        // The list of those above the one before begins with it, or it is not active.
        let bytes = try executeForPage(
            .identify(cns: .activeNamespaceList, namespaceID: id - 1),
            "Identify Active Namespace List")
        let list = try parse { () throws(PageError) in
            try NamespaceList(parsing: bytes, after: id - 1)
        }
        var found = namespaces
        guard list.namespaceIDs.first == id else {
            found[id] = nil
            look(found)
            namespaces = found
            return forgetNamespace(id)
        }
        guard namespaces[id] != nil || namespaces.count < Self.maxNamespaces else { return }
        let pages = try namespacePages(id)
        found[id] = namespaceInfo(id, pages)
        look(found)
        keepNamespace(id, pages)
        namespaces = found
    }

    /// The descriptors come first: they name the command set, and CNS 00h is about no other than
    /// the NVM command set.
    private func namespacePages(_ id: UInt32) throws(DriverError) -> NamespacePages {
        do throws(DriverError) {
            let (descriptors, bytes) = try namespaceDescriptors(id)
            if let csi = descriptors.csi, csi != 0 {
                return .refused(NamespaceInfo.commandSetRefusal(csi))
            }
            let page = try executeForPage(
                .identify(cns: .namespace, namespaceID: id), "Identify Namespace \(id)")
            _ = try parse { () throws(PageError) in try IdentifyNamespace(parsing: page) }
            return .pages(identify: page, descriptors: bytes)
        } catch {
            // What the controller does not say, or says wrongly, of one namespace must not cost the
            // others.
            switch error {
            case .command, .page: return .refused(error.description)
            default: throw error
            }
        }
    }

    /// The list is mandatory from 1.3 on, and wherever there are several command sets.
    private func namespaceDescriptors(
        _ id: UInt32
    ) throws(DriverError) -> (NamespaceDescriptors, [UInt8]?) {
        guard version >= .v1_3 || capabilities.supportsMultipleCommandSets else {
            return (NamespaceDescriptors(), nil)
        }
        do throws(DriverError) {
            let bytes = try executeForPage(
                .identify(cns: .namespaceDescriptors, namespaceID: id),
                "Identify Namespace Descriptors \(id)")
            return (
                try parse { () throws(PageError) in try NamespaceDescriptors(parsing: bytes) },
                bytes
            )
        } catch {
            // Some controllers claim 1.3 and do not have it. Where there are several command sets
            // the answer is needed: guessing one would misread the namespace.
            guard case .command = error, !capabilities.supportsMultipleCommandSets else {
                throw error
            }
            return (NamespaceDescriptors(), nil)
        }
    }

    private func namespaceInfo(_ id: UInt32, _ pages: NamespacePages) -> NamespaceInfo {
        switch pages {
        case .refused(let reason): return NamespaceInfo(namespaceID: id, refusal: reason)
        case .pages(let identify, let descriptors):
            do throws(PageError) {
                return NamespaceInfo(
                    namespaceID: id, identify: try IdentifyNamespace(parsing: identify),
                    descriptors: try descriptors.map { bytes throws(PageError) in
                        try NamespaceDescriptors(parsing: bytes)
                    } ?? NamespaceDescriptors(), controller: limits)
            } catch { return NamespaceInfo(namespaceID: id, refusal: error.description) }
        }
    }

    // MARK: The inventory of the state area

    /// Writes the pages of a namespace to a place that is not in use, and only then gives up the
    /// place of the old ones: who dies in between leaves the old pages or the new.
    private func keepNamespace(_ id: UInt32, _ pages: NamespacePages) {
        let old = namespacePlaces[id]
        if let old, let known = state.namespace(old), known.id == id, known.pages == pages {
            return
        }
        let used = Set(namespacePlaces.values)
        // There is one place more than there are namespaces.
        guard let place = (0..<StateLayout.inventoryCapacity).first(where: { !used.contains($0) })
        else { return }
        state.setNamespace(place, id: id, pages)
        namespacePlaces[id] = place
        if place >= inventoryCount {
            inventoryCount = place + 1
            updateRecord()
        }
        if let old { state.clearNamespace(old) }
    }

    private func forgetNamespace(_ id: UInt32) {
        guard let place = namespacePlaces.removeValue(forKey: id) else { return }
        state.clearNamespace(place)
    }

    /// Nothing of the inventory counts: the controller is brought up anew.
    func clearInventory() {
        namespacePlaces = [:]
        inventoryCount = 0
    }

    /// The namespaces as they are on record, for a comparison, without those of which the record
    /// is damaged. Of two records of one the second is `surplus`; where they are of different disks
    /// nobody knows which the commands were for.
    func takeKnownNamespaces(_ count: Int) -> (infos: [UInt32: NamespaceInfo], surplus: [Int]) {
        clearInventory()
        inventoryCount = min(count, StateLayout.inventoryCapacity)
        var known: [UInt32: NamespaceInfo] = [:]
        var surplus: [Int] = []
        for place in 0..<inventoryCount where !state.isNamespaceFree(place) {
            guard let (id, pages) = state.namespace(place), id > 0, id < 0xFFFF_FFFE else {
                surplus.append(place)
                continue
            }
            let info = namespaceInfo(id, pages)
            guard namespacePlaces[id] != nil else {
                (namespacePlaces[id], known[id]) = (place, info)
                continue
            }
            surplus.append(place)
            if let other = known[id], !info.isSameDisk(as: other) { known[id] = nil }
        }
        return (known, surplus)
    }

    /// The namespaces as a predecessor knew them.
    func takeInventory(_ count: Int) throws(DriverError) {
        guard count <= StateLayout.inventoryCapacity else {
            throw .notAdoptable("the state area has \(count) namespaces")
        }
        for place in 0..<count where !state.isNamespaceFree(place) {
            guard let (id, pages) = state.namespace(place), id > 0, id < 0xFFFF_FFFE else {
                throw .notAdoptable("the pages of a namespace are damaged (place \(place))")
            }
            // Two at once: the predecessor died between writing the new pages and giving up the
            // old. Either was true, and the event that led to it is pending.
            if namespacePlaces[id] != nil {
                state.clearNamespace(place)
                continue
            }
            namespacePlaces[id] = place
            namespaces[id] = namespaceInfo(id, pages)
        }
        inventoryCount = count
    }
}

/// What a controller says of its namespaces.
struct FoundNamespaces {
    /// By namespace id.
    var pages: [UInt32: NamespacePages] = [:]
    /// What they mean.
    var infos: [UInt32: NamespaceInfo] = [:]
    /// How many there are beside these.
    var leftOut = 0
}
