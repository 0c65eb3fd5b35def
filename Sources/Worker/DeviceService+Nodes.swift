// SPDX-License-Identifier: Apache-2.0
// What is close to a device on a machine with NUMA nodes: its pool's memory and its threads.

internal import DMA
internal import Linux
internal import NVMeDriver
internal import Wire

/// Where a device is in its machine.
struct DevicePlacement: Equatable {
    /// Its NUMA node; nil: it has none, or nobody says.
    var node: Int?
    /// The processors of that node.
    var processors: [UInt32] = []

    /// What the machine says of a device.
    init(_ transport: Transport, _ machine: MachineNodes) {
        // A vfio-user server is a process, and moves.
        guard case .pci(let address) = transport, let address = PCIAddress(address) else { return }
        node = machine.node(of: address)
        processors = node.map { machine.processors(of: $0) } ?? []
    }

    /// How the thread of a queue (1…) waits, and where.
    func spinPolicy(_ config: DeviceConfig, queue: Int) -> SpinPolicy {
        var policy = SpinPolicy.standard
        if let nanoseconds = config.spinNanoseconds { policy.limitNanoseconds = nanoseconds }
        guard !config.dataAffinity.isEmpty else {
            policy.preferred = processors
            return policy
        }
        policy.processor = config.dataAffinity[max(0, queue - 1) % config.dataAffinity.count]
        return policy
    }
}

extension DeviceService {
    /// Where the device of a configuration is.
    func placement(_ config: DeviceConfig) -> DevicePlacement {
        DevicePlacement(config.transport, environment.machine)
    }

    /// Where the pool of a configuration gets its memory from.
    func poolSource(_ config: DeviceConfig) -> PoolSource {
        let node = placement(config).node
        guard let place = config.poolPlace else { return PoolSource(.memory, node: node) }
        return PoolSource(place, node: node) {
            [environment] place, byteCount, node throws(PoolFileError) in
            try environment.poolFile(place, byteCount, node)
        }
    }

    func inspectNode(_ tree: inout InspectTree) {
        guard let config else { return }
        tree.add("device/numa_node", placement(config).node.map { "\($0)" } ?? "none")
    }
}
