// SPDX-License-Identifier: Apache-2.0
// The block devices that come from a PCI function, and what is built on them.

internal import Linux

/// A disk, a partition, or something built on one.
struct BlockDevice: Hashable {
    /// Its name in /sys/class/block and, with slashes for exclamation marks, in /dev.
    var name: String
    /// Its number, `259:0`.
    var number: String
    /// What it is built on, from the PCI function's own disk to itself, for people.
    var chain: [String]

    /// The name for people: how one gets from the function's disk to it.
    var title: String { chain.joined(separator: " → ") }
    /// Its name below /dev.
    var nodeName: String { String(name.map { $0 == "!" ? "/" : $0 }) }
}

extension PCIHost {
    /// The most devices that are followed from one function; more is a loop, or nothing sane.
    private static let followedMax = 1024

    private func blockPath(_ name: String) -> String { "\(sysfs)/class/block/\(name)" }

    /// The disks and partitions of a function, and everything that is built on them.
    func blockDevices(_ address: PCIAddress) throws(PCIError) -> [BlockDevice] {
        let all = try places()
        var queue = own(address, all).map {
            BlockDevice(name: $0, number: line("\(blockPath($0))/dev") ?? "", chain: [$0])
        }
        var seen = Set(queue.map(\.name))
        var index = 0
        let loops = loopFiles(all.keys)
        while index < queue.count {
            guard index < Self.followedMax else {
                throw .unreadable(
                    "\(address): more than \(Self.followedMax) devices are built on it")
            }
            let below = queue[index]
            index += 1
            var above = try names("\(blockPath(below.name))/holders")
            above += loops.filter { $0.value.contains(below.nodeName) }.map(\.key).sorted()
            for name in above where seen.insert(name).inserted {
                queue.append(
                    BlockDevice(
                        name: name, number: line("\(blockPath(name))/dev") ?? "",
                        chain: below.chain + [title(name)]))
            }
        }
        return queue
    }

    /// Whether a block device is a partition of another.
    func isPartition(_ block: BlockDevice) -> Bool {
        Files.exists("\(blockPath(block.name))/partition")
    }

    /// Where sysfs has each block device.
    private func places() throws(PCIError) -> [String: String] {
        var places: [String: String] = [:]
        for name in try names("\(sysfs)/class/block") {
            places[name] = Files.target(ofLink: blockPath(name)) ?? ""
        }
        return places
    }

    /// The disks below the function, their multipath heads, and the partitions of both.
    private func own(_ address: PCIAddress, _ places: [String: String]) -> [String] {
        let below = places.filter { Self.hasComponent($0.value, address.description) }.keys
        let heads = Set(below.compactMap(Self.head))
        let ofHeads = places.filter { name, place in
            heads.contains(name) || heads.contains { Self.hasComponent(place, $0) }
        }.keys
        return Set(below).union(ofHeads).sorted()
    }

    private static func hasComponent(_ path: String, _ part: String) -> Bool {
        path.split(separator: "/").contains { $0 == part }
    }

    /// The disk that the path `nvme0c1n2` of a multipath namespace belongs to: `nvme0n2`.
    static func head(ofPath name: String) -> String? {
        guard name.hasPrefix("nvme"), let match = name.wholeMatch(of: #/nvme(\d+)c\d+n(\d+)/#)
        else { return nil }
        return "nvme\(match.1)n\(match.2)"
    }

    /// A name with what dm and loop devices are called by people.
    private func title(_ name: String) -> String {
        if let called = line("\(blockPath(name))/dm/name"), !called.isEmpty {
            return "\(name) (\(called))"
        }
        return name
    }

    /// What loop devices are on; a loop device does not appear among the holders.
    private func loopFiles(_ names: some Sequence<String>) -> [String: Set<String>] {
        var files: [String: Set<String>] = [:]
        for name in names where name.hasPrefix("loop") {
            guard let file = line("\(blockPath(name))/loop/backing_file"),
                let node = Self.nodeName(ofPath: file)
            else { continue }
            files[name] = [node]
        }
        return files
    }

    /// What comes after `/dev/` in a path; nil for a path that is not below a directory of nodes.
    static func nodeName(ofPath path: String) -> String? {
        guard let range = path.range(ofLast: "/dev/") else { return nil }
        let name = path[range.upperBound...]
        let deleted = " (deleted)"
        return String(name.hasSuffix(deleted) ? name.dropLast(deleted.count) : name)
    }
}

extension String {
    /// The last place where `part` is.
    func range(ofLast part: String) -> Range<String.Index>? {
        var found: Range<String.Index>?
        var rest = startIndex
        while let range = self[rest...].firstRange(of: part) {
            found = range
            rest = index(after: range.lowerBound)
        }
        return found
    }
}
