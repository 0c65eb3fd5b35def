// SPDX-License-Identifier: Apache-2.0
// Takes a PCI function from one driver to another, and back when that fails.

public import Linux

/// Binds functions to vfio-pci and gives them back to the kernel.
public struct PCIBinder: Sendable {
    /// The driver that gives functions to user programs.
    public static let vfioDriver = "vfio-pci"

    /// What an operator allows beyond the rule.
    public struct Options: Sendable {
        /// Bind what is no NVMe controller.
        public var force = false
        /// Bind without an IOMMU, which lets the device write anywhere in memory.
        public var noIOMMU = false
        /// Check everything and change nothing.
        public var dryRun = false
        /// The rule.
        public init() {}
    }

    /// What was done.
    public struct Outcome: Sendable, Hashable {
        /// Whether anything changed, or would have with a dry run.
        public var changed: Bool
        /// The driver before.
        public var formerDriver: String?
        /// The driver now.
        public var driver: String?
        /// Things to know: modules that were loaded, doubts.
        public var notes: [String]
    }

    private let host: PCIHost

    /// Binds on a machine.
    public init(_ host: PCIHost) { self.host = host }

    // MARK: Binding

    /// Binds a function to vfio-pci if nobody uses it.
    public func bind(
        _ address: PCIAddress, _ options: Options = Options()
    ) throws(PCIError) -> Outcome {
        let function = try host.function(address)
        guard function.driver != Self.vfioDriver else {
            return Outcome(
                changed: false, formerDriver: Self.vfioDriver, driver: Self.vfioDriver, notes: [])
        }
        var notes: [String] = []
        try check(function, options)
        try checkUsers(address)
        guard !options.dryRun else {
            return Outcome(
                changed: true, formerDriver: function.driver, driver: function.driver, notes: notes)
        }
        try prepareDriver(function, options, &notes)
        try move(function)
        return Outcome(
            changed: true, formerDriver: function.driver, driver: Self.vfioDriver, notes: notes)
    }

    /// What does not change while somebody may still open the disks.
    private func check(_ function: PCIFunction, _ options: Options) throws(PCIError) {
        guard function.isNVMe || options.force else {
            throw .refused(
                function.address,
                reasons: [
                    "it is no NVMe controller (class \(hex(function.classCode)), not "
                        + "\(hex(PCIFunction.nvmeClass)))"
                ], hint: "Use --force if you are sure.")
        }
        guard function.iommuGroup != nil || options.noIOMMU else {
            throw .refused(
                function.address, reasons: ["it has no IOMMU group"],
                hint: "Switch the IOMMU on in the firmware and with intel_iommu=on or "
                    + "amd_iommu=on, or accept that the device can write to all of memory: "
                    + "IOMMU=noiommu in its file, or --no-iommu.")
        }
        let allowed: Set = [Self.vfioDriver, "pci-stub"]
        let blockers = try host.neighbours(function).filter { neighbour in
            !neighbour.isBridge && neighbour.driver.map { !allowed.contains($0) } ?? false
        }
        guard blockers.isEmpty else {
            throw .refused(
                function.address,
                reasons: blockers.map {
                    "\($0.address) is in the same IOMMU group \(function.iommuGroup ?? "") and "
                        + "belongs to the driver \($0.driver ?? "")"
                },
                hint: "Give those to vfio-pci as well, or move the device to another slot.")
        }
    }

    private func checkUsers(_ address: PCIAddress) throws(PCIError) {
        let users = try host.users(address)
        guard users.isEmpty else {
            throw .inUse(address, users: users.map(\.description))
        }
    }

    /// Makes sure that vfio-pci is there.
    private func prepareDriver(
        _ function: PCIFunction, _ options: Options, _ notes: inout [String]
    ) throws(PCIError) {
        let driver = "\(host.sysfs)/bus/pci/drivers/\(Self.vfioDriver)"
        if !Files.exists(driver) {
            do {
                try host.loadModule(Self.vfioDriver)
                notes.append("loaded the kernel module \(Self.vfioDriver)")
            } catch {
                throw .failed(
                    function.address, step: "loading the kernel module \(Self.vfioDriver)",
                    cause: "\(error)", restored: true)
            }
            guard Files.exists(driver) else {
                throw .failed(
                    function.address, step: "loading the kernel module \(Self.vfioDriver)",
                    cause: "it is loaded, and there is no \(driver)", restored: true)
            }
        }
        guard function.iommuGroup == nil else { return }
        let parameter = "\(host.sysfs)/module/vfio/parameters/enable_unsafe_noiommu_mode"
        try write([.init(parameter, "Y")], function, "switching VFIO's no-IOMMU mode on", true)
        notes.append("there is no IOMMU: the device can write to all of memory")
    }

    /// Takes the function from its driver and gives it to vfio-pci, with its disks claimed so that
    /// nobody can mount them in between.
    private func move(_ function: PCIFunction) throws(PCIError) {
        let path = host.path(function.address)
        let former = try override(function)
        try write(
            [.init("\(path)/driver_override", Self.vfioDriver)], function,
            "writing driver_override", true)
        var current = function
        do {
            let claims = try claim(function)
            // Once more: somebody may have come since; from here on nobody can. The driver, too:
            // the kernel probes a new device while udev announces it.
            try checkUsers(function.address)
            current = try host.function(function.address)
            guard current.driver != Self.vfioDriver else { return }
            var writes: [SlowFiles.Write] = []
            if current.driver != nil {
                writes.append(.init("\(path)/driver/unbind", function.address.description))
            }
            writes.append(
                .init("\(host.sysfs)/bus/pci/drivers_probe", function.address.description))
            try write(writes, function, "changing the driver", false)
            try verify(function, Self.vfioDriver)
            extendLifetime(claims)
        } catch {
            throw restore(current, former, after: error)
        }
    }

    private func verify(_ function: PCIFunction, _ driver: String) throws(PCIError) {
        let now = host.linkName("\(host.path(function.address))/driver")
        guard now != driver else { return }
        throw .failed(
            function.address, step: "binding to \(driver)",
            cause: now.map { "the driver \($0) took it" } ?? "the driver did not take it",
            restored: false)
    }

    /// What driver_override says; empty when nothing.
    private func override(_ function: PCIFunction) throws(PCIError) -> String {
        let path = "\(host.path(function.address))/driver_override"
        do {
            let text = PCIHost.firstLine(
                try SlowFiles.read(path, timeoutMilliseconds: host.timeoutMilliseconds))
            return text == "(null)" ? "" : text
        } catch {
            throw failure(error, function, "reading driver_override", restored: true)
        }
    }

    /// Holds the disks of a function so that nobody can mount them or build on them. What holds one
    /// already without having been found is a refusal, too.
    private func claim(_ function: PCIFunction) throws(PCIError) -> DiskClaims {
        let claims = DiskClaims()
        // A claim of a disk is one of its partitions, too: those cannot be claimed any more, and a
        // partition that somebody claimed keeps its disk from being claimed.
        for block in try host.blockDevices(function.address)
        where block.chain.count == 1 && !host.isPartition(block) {
            do {
                claims.add(try Files.claim(blockDevice: "\(host.dev)/\(block.nodeName)"))
            } catch {
                // A path of a multipath namespace has no node, and an empty one no medium.
                guard error.errno == Errno.busy else { continue }
                try checkUsers(function.address)
                throw .inUse(
                    function.address,
                    users: [
                        "the kernel uses \(block.name) (a file system in another mount namespace, "
                            + "btrfs, ZFS, an NVMe target)"
                    ])
            }
        }
        return claims
    }

    /// Puts the former driver back; the error to tell, which says whether that worked.
    private func restore(
        _ function: PCIFunction, _ former: String, after error: PCIError
    ) -> PCIError {
        // While a write hangs in the kernel, every other would wait for its lock.
        if case .waiting = error { return error }
        let path = host.path(function.address)
        var writes = [SlowFiles.Write("\(path)/driver_override", "\(former)\n")]
        let now = host.linkName("\(path)/driver")
        if let now, now != function.driver {
            writes.append(.init("\(path)/driver/unbind", function.address.description))
        }
        if now != function.driver, function.driver != nil {
            writes.append(
                .init("\(host.sysfs)/bus/pci/drivers_probe", function.address.description))
        }
        try? host.write(writes, host.timeoutMilliseconds)
        let isBack = host.linkName("\(path)/driver") == function.driver
        guard case .failed(let address, let step, let cause, _) = error else { return error }
        return .failed(address, step: step, cause: cause, restored: isBack)
    }

    // MARK: Giving back

    /// Gives a function that is bound to vfio-pci to the kernel's own driver. `letGo` asks whoever
    /// may have it open to close it, before the kernel is made to wait for that.
    public func unbind(
        _ address: PCIAddress, _ options: Options = Options(), letGo: () -> [String] = { [] }
    ) throws(PCIError) -> Outcome {
        let function = try host.function(address)
        guard function.driver == Self.vfioDriver else {
            return Outcome(
                changed: false, formerDriver: function.driver, driver: function.driver,
                notes: try takeOver(function, options))
        }
        if options.dryRun {
            return Outcome(
                changed: true, formerDriver: function.driver, driver: function.driver,
                notes: try host.vfioHolders(function).map { "\($0) has it open" })
        }
        let notes = letGo()
        let holders = try host.vfioHolders(function)
        guard holders.isEmpty || options.force else {
            throw .refused(
                address, reasons: holders.map { "\($0) has it open" },
                hint: "End that (for a worker: systemctl stop nvmed-worker@DEVICE.service), or use "
                    + "--force to have the kernel wait for it.")
        }
        let path = host.path(address)
        // One after the other in one process: should the kernel wait, the device is still given
        // back in the end.
        var writes: [SlowFiles.Write] = [
            .init("\(path)/driver_override", "\n"),
            .init("\(path)/driver/unbind", address.description),
        ]
        // Whoever opened it for a worker took the ways to reset it from the kernel. A function
        // that has none has no such file.
        let reset = "\(path)/reset_method"
        if Files.exists(reset) { writes.append(.init(reset, "default\n")) }
        writes.append(.init("\(host.sysfs)/bus/pci/drivers_probe", address.description))
        try write(writes, function, "giving it back", false)
        return Outcome(
            changed: true, formerDriver: function.driver, driver: host.linkName("\(path)/driver"),
            notes: notes)
    }

    /// A function without a driver is offered to the kernel's.
    private func takeOver(
        _ function: PCIFunction, _ options: Options
    ) throws(PCIError) -> [String] {
        guard function.driver == nil, !options.dryRun else { return [] }
        let path = host.path(function.address)
        try write(
            [
                .init("\(path)/driver_override", "\n"),
                .init("\(host.sysfs)/bus/pci/drivers_probe", function.address.description),
            ], function, "giving it back", false)
        return []
    }

    // MARK: Writing

    private func write(
        _ writes: [SlowFiles.Write], _ function: PCIFunction, _ step: String, _ untouched: Bool
    ) throws(PCIError) {
        do {
            try host.write(writes, host.timeoutMilliseconds)
        } catch {
            throw failure(error, function, step, restored: untouched)
        }
    }

    private func failure(
        _ error: SlowFiles.Failure, _ function: PCIFunction, _ step: String, restored: Bool
    ) -> PCIError {
        switch error {
        case .system(let error):
            .failed(function.address, step: step, cause: "\(error)", restored: restored)
        case .stuck:
            .waiting(
                function.address, step: step,
                holders: ((try? host.vfioHolders(function)) ?? []).map(\.description))
        }
    }

    private func hex(_ value: UInt32) -> String {
        let text = String(value, radix: 16)
        return String(repeating: "0", count: max(0, 6 - text.count)) + text
    }
}

/// Disks that nobody else can claim while this lives. A list of its own, because arrays take no
/// descriptors.
private final class DiskClaims {
    private final class Claim {
        let fd: OwnedFD
        let next: Claim?

        init(_ fd: consuming OwnedFD, _ next: Claim?) {
            self.fd = fd
            self.next = next
        }
    }

    private var last: Claim?

    func add(_ fd: consuming OwnedFD) { last = Claim(fd, last) }
}
