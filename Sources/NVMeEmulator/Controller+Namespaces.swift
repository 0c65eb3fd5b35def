// SPDX-License-Identifier: Apache-2.0
// Namespaces that come, change and go while the controller runs.

extension Controller {
    /// Attaches a namespace and tells the host; returns its id.
    func addNamespace(_ namespaceOptions: NamespaceOptions) throws(NamespaceError) -> UInt32 {
        let free = namespaces.firstIndex { $0 == nil }.map { UInt32($0) + 1 }
        guard let id = namespaceOptions.namespaceID ?? free else {
            throw .refused("all \(options.maxNamespaceCount) are in use (--max-namespaces)")
        }
        guard id > 0, id <= options.maxNamespaceCount else {
            throw .refused("nsid \(id) is beyond \(options.maxNamespaceCount) (--max-namespaces)")
        }
        guard namespaces[Int(id) - 1] == nil else { throw .refused("nsid \(id) is in use") }
        let namespace = try Namespace(
            namespaceOptions, namespaceID: id, serial: options.serial)
        namespaces[Int(id) - 1] = namespace
        refreshSlot(Int(id) - 1)
        namespaceChanged(id)
        return id
    }

    /// Detaches a namespace and tells the host.
    func removeNamespace(_ id: UInt32) throws(NamespaceError) {
        let index = try find(id)
        namespaces[index] = nil
        refreshSlot(index)
        namespaceChanged(id)
    }

    /// Changes the size of a namespace and tells the host.
    func resizeNamespace(_ id: UInt32, byteCount: UInt64) throws(NamespaceError) {
        let index = try find(id)
        try namespaces[index]?.resize(byteCount: byteCount)
        refreshSlot(index)
        namespaceChanged(id)
    }

    private func find(_ id: UInt32) throws(NamespaceError) -> Int {
        guard id > 0, id <= options.maxNamespaceCount, namespaces[Int(id) - 1] != nil else {
            throw .refused("there is no namespace \(id)")
        }
        return Int(id) - 1
    }

    private func refreshSlot(_ index: Int) {
        var slot = NamespaceSlot()
        if let namespace = namespaces[index] {
            unsafe slot.base = namespace.base
            slot.blockCount = namespace.blockCount
            slot.blockShift = namespace.blockShift
            slot.isReadOnly = namespace.isReadOnly
        }
        slots[index] = slot
    }
}
