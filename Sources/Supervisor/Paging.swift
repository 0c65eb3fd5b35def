// SPDX-License-Identifier: Apache-2.0
// Cuts lists into pages that fit a message.

internal import Wire

/// Pages of lists.
enum Paging {
    /// The most warnings of one reload.
    static let warningCount = 256

    /// The first entries that fit one message.
    static func page<Entry>(_ entries: [Entry], cost: (Entry) -> Int) -> Page<Entry> {
        var room = WireLimits.pageByteCount
        var taken: [Entry] = []
        for entry in entries {
            room -= cost(entry)
            // One entry always goes: none is larger than a page.
            guard (room >= 0 && taken.count < WireLimits.pageEntryCount) || taken.isEmpty
            else { return Page(taken, more: true) }
            taken.append(entry)
        }
        return Page(taken)
    }

    /// The first entries whose key sorts bytewise after `after` and that fit one message.
    static func page<Entry>(
        _ entries: [Entry], after: String?, key: (Entry) -> String, cost: (Entry) -> Int
    ) -> Page<Entry> {
        guard let after else { return page(entries, cost: cost) }
        return page(entries.filter { after.sortsBefore(key($0)) }, cost: cost)
    }

    // Upper bounds of the encoded sizes: texts as they are, every number at its longest.

    /// Of how something got over the deaths of workers: four numbers and the message around them.
    private static let continuityCost = 46

    static func cost(_ device: DeviceInfo) -> Int {
        136 + continuityCost + device.resetReason.utf8.count + device.name.utf8.count
            + device.reason.utf8.count + device.transport.utf8.count
            + device.serial.utf8.count + device.model.utf8.count + device.firmware.utf8.count
            + device.namespaces.reduce(0) { $0 + cost($1) }
    }

    static func cost(_ namespace: NamespaceInfo) -> Int {
        36 + namespace.identity.nguid.count + namespace.identity.eui64.count
            + namespace.identity.uuid.count + (namespace.refusal?.utf8.count ?? 0)
    }

    static func cost(_ disk: DiskEntry) -> Int {
        72 + continuityCost + disk.name.utf8.count + disk.device.utf8.count
            + disk.problem.utf8.count
    }

    static func cost(_ session: SessionInfo) -> Int {
        160 + continuityCost + session.disk.utf8.count + session.device.utf8.count
    }

    static func cost(_ device: ServicingDevice) -> Int {
        64 + device.name.utf8.count + min(device.reason.utf8.count, WireLimits.textByteCount)
    }

    static func cost(_ entry: InspectEntry) -> Int {
        12 + entry.path.utf8.count + entry.value.utf8.count
    }
}
