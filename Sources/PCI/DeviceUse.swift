// SPDX-License-Identifier: Apache-2.0
// Who uses a PCI function's disks: mounts, swap, other devices, processes.

public import Linux

/// Somebody who uses a device, and how.
public struct DeviceUser: Sendable, Hashable, CustomStringConvertible {
    /// For people: `nvme0n1p2 is mounted on /home`.
    public var description: String
}

extension PCIHost {
    /// The most users that are named; the first few are enough to know what to do.
    private static let usersMax = 16

    /// Who uses the disks of a function, and the nodes of its controller.
    public func users(_ address: PCIAddress) throws(PCIError) -> [DeviceUser] {
        let blocks = try blockDevices(address)
        var texts: [String] = []
        for block in blocks where block.chain.count > 1 {
            texts.append(
                "\(block.chain.dropLast().joined(separator: " → ")) is held by "
                    + (block.chain.last ?? ""))
        }
        texts += try mounts(blocks, "\(proc)/self/mountinfo", "")
        texts += try swaps(blocks)
        texts += try processes(Nodes(blocks, try characterNodes(address, blocks), dev), blocks)
        var seen: Set<String> = []
        return texts.filter { seen.insert($0).inserted }.prefix(Self.usersMax).map {
            DeviceUser(description: $0)
        }
    }

    /// The controller's node and those for passthrough to its namespaces.
    private func characterNodes(
        _ address: PCIAddress, _ blocks: [BlockDevice]
    ) throws(PCIError) -> Set<String> {
        var nodes: Set<String> = []
        for controller in try names("\(path(address))/nvme") {
            nodes.insert(controller)
            let entries = try names("\(path(address))/nvme/\(controller)")
            nodes.formUnion(entries.filter { $0.hasPrefix("ng") })
        }
        for block in blocks where block.chain.count == 1 && block.name.hasPrefix("nvme") {
            nodes.insert("ng" + block.name.dropFirst(4))
        }
        return nodes
    }

    // MARK: Mounts and swap

    /// proc_pid_mountinfo(5): the third field is the device, what follows " - " type and source.
    /// File systems on several devices have numbers of their own, hence the source.
    private func mounts(
        _ blocks: [BlockDevice], _ path: String, _ suffix: String
    ) throws(PCIError) -> [String] {
        var texts: [String] = []
        for line in try lines(path) {
            let fields = line.split(separator: " ")
            guard fields.count > 6 else { continue }
            let separator = fields.firstIndex(of: "-").map { $0 + 2 } ?? fields.count
            let source = fields.indices.contains(separator) ? Self.unescaped(fields[separator]) : ""
            let node = Self.nodeName(ofPath: source)
            for block in blocks
            where block.number == fields[2] || (node != nil && node == block.nodeName) {
                let place = Self.unescaped(fields[4])
                texts.append("\(block.title) is mounted on \(Self.printable(place))\(suffix)")
            }
        }
        return texts
    }

    private func swaps(_ blocks: [BlockDevice]) throws(PCIError) -> [String] {
        var texts: [String] = []
        for line in try lines("\(proc)/swaps").dropFirst() {
            guard let first = line.split(whereSeparator: { $0 == " " || $0 == "\t" }).first,
                let node = Self.nodeName(ofPath: Self.unescaped(first))
            else { continue }
            for block in blocks where block.nodeName == node {
                texts.append("\(block.title) is used as swap")
            }
        }
        return texts
    }

    /// Without the octal escapes (`\040` for a blank) of proc.
    static func unescaped(_ text: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            guard byte == 0x5c, digits.count == 3, digits.allSatisfy({ (0x30...0x37).contains($0) })
            else {
                bytes.append(byte)
                continue
            }
            let value = digits.reduce(0) { $0 << 3 | Int($1 & 7) }
            bytes.append(UInt8(truncatingIfNeeded: value))
            rest = rest.dropFirst(3)
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    static func printable(_ text: String) -> String {
        String(decoding: text.utf8.map { $0 < 0x20 || $0 == 0x7f ? 0x3f : $0 }, as: UTF8.self)
    }

    // MARK: Processes

    /// What an open file's link is compared with.
    private struct Nodes {
        var titles: [String: String] = [:]
        var numbers: [String: String] = [:]

        init(_ blocks: [BlockDevice], _ characters: Set<String>, _ dev: String) {
            for block in blocks {
                titles[block.nodeName] = block.title
                if !block.number.isEmpty { numbers["b\(block.number)"] = block.title }
            }
            for name in characters {
                titles[name] = name
                if let number = Files.deviceNumber("\(dev)/\(name)") {
                    numbers[number] = name
                }
            }
        }
    }

    /// Processes that have one of the nodes open, and mounts that only others see.
    private func processes(
        _ nodes: Nodes, _ blocks: [BlockDevice]
    ) throws(PCIError) -> [String] {
        guard !nodes.titles.isEmpty else { return [] }
        var texts: [String] = []
        let own = linkName("\(proc)/self")
        var namespaces: Set<String> = []
        if let mine = Files.target(ofLink: "\(proc)/self/ns/mnt") { namespaces.insert(mine) }
        for pid in try names(proc) where pid != own && pid.utf8.allSatisfy({ $0 < 58 && $0 > 47 }) {
            let process = "\(proc)/\(pid)"
            for title in try open(process, nodes) {
                texts.append("\(title) is open in \(who(process, pid))")
            }
            if let namespace = Files.target(ofLink: "\(process)/ns/mnt"),
                namespaces.insert(namespace).inserted
            {
                let suffix = " in the mount namespace of \(who(process, pid))"
                texts += (try? mounts(blocks, "\(process)/mountinfo", suffix)) ?? []
            }
        }
        return texts
    }

    private func who(_ process: String, _ pid: String) -> String {
        "process \(pid) (\(line("\(process)/comm") ?? "?"))"
    }

    /// The nodes that one process has open. A process that ends meanwhile has none.
    private func open(_ process: String, _ nodes: Nodes) throws(PCIError) -> Set<String> {
        let files: [String]
        do {
            files = try Files.list("\(process)/fd", limit: Self.openFilesMax)
        } catch { return [] }
        guard files.count <= Self.openFilesMax else {
            throw .unreadable("\(process) has more than \(Self.openFilesMax) files open")
        }
        var titles: Set<String> = []
        for file in files {
            guard let link = Files.target(ofLink: "\(process)/fd/\(file)"),
                let node = Self.nodeName(ofPath: link)
            else { continue }
            if let title = nodes.titles[node] {
                titles.insert(title)
            } else if let number = Files.deviceNumber("\(process)/fd/\(file)"),
                let title = nodes.numbers[number]
            {
                titles.insert(title)
            }
        }
        // udev looks at every new disk for a moment; unbinding under it harms nothing.
        let isPassing = ["udevadm", "systemd-udevd"].contains(linkName("\(process)/exe") ?? "")
        return isPassing ? [] : titles
    }

    /// The most open files of one process that are looked at (fs.nr_open is 2^20 by default).
    private static let openFilesMax = 1 << 20
}

extension PCIHost {
    /// Processes that have a function open through VFIO, for people. Only the group or the node
    /// tells which function it is.
    public func vfioHolders(_ function: PCIFunction) throws(PCIError) -> [VFIOHolder] {
        var nodes: Set<String> = []
        if let group = function.iommuGroup {
            nodes = ["vfio/\(group)", "vfio/noiommu-\(group)"]
        }
        for name in try names("\(path(function.address))/vfio-dev") {
            nodes.insert("vfio/devices/\(name)")
        }
        var holders: [VFIOHolder] = []
        for pid in try names(proc) where pid.utf8.allSatisfy({ $0 < 58 && $0 > 47 }) {
            let files = (try? Files.list("\(proc)/\(pid)/fd", limit: Self.openFilesMax)) ?? []
            let holds = files.contains { file in
                let link = Files.target(ofLink: "\(proc)/\(pid)/fd/\(file)") ?? ""
                return Self.nodeName(ofPath: link).map(nodes.contains) ?? false
            }
            guard holds, let number = Int32(pid) else { continue }
            holders.append(
                VFIOHolder(pid: number, name: line("\(proc)/\(pid)/comm") ?? "?"))
        }
        return holders.sorted { $0.pid < $1.pid }
    }
}

/// A process that has a function open through VFIO.
public struct VFIOHolder: Sendable, Hashable, CustomStringConvertible {
    /// The process.
    public var pid: Int32
    /// The name of its program.
    public var name: String
    /// `process 42 (nvmed-worker)`; the service manager holds for its units.
    public var description: String {
        pid == 1 ? "the service manager (a unit's stored descriptors)" : "process \(pid) (\(name))"
    }
}
