// SPDX-License-Identifier: Apache-2.0
// Who may ask the opener for which device, and what the configuration says about it.

internal import DMA
internal import DiskConfig
internal import Linux
internal import Systemd
internal import VFIO
internal import Wire

/// Who asks, as the kernel and systemd know it.
struct Asker: Sendable, Equatable {
    /// The user id.
    var uid: UInt32
    /// The process id.
    var pid: Int32
    /// The systemd unit; nil when it is in none.
    var unit: String?
}

/// A device as the opener works with it.
struct OpenableDevice: Sendable, Equatable {
    /// The configured name.
    var name: String
    /// The PCI address.
    var address: String
    /// How memory is translated.
    var mode: IOMMUMode
    /// Whether the function is reset whenever it is opened.
    var alwaysResets: Bool
    /// Whether the controller goes on when everything above it is stopped: the function must not go
    /// to sleep then.
    var keepsAlive: Bool
    /// The processors that interrupts go to; empty: the kernel's choice.
    var interruptAffinity: [UInt32]
    /// The guest memory that its clients may register; nil: none.
    var guestMemory: ConfiguredGuestMemory?
}

/// The decisions, without any effect.
enum OpenerPolicy {
    /// The unit of the worker of a device; nil when the name is too long for one.
    static func unit(ofWorker device: String) -> String? {
        EscapedUnit.name(template: "nvmed-worker", instance: device, suffix: "service")
    }

    /// Refuses everybody but root and the device's own worker.
    static func authorise(_ asker: Asker, _ device: String) throws(WireError) {
        let worker = unit(ofWorker: device)
        guard asker.uid != 0, worker == nil || asker.unit != worker else { return }
        throw WireError(
            .permissionDenied,
            "only \(worker ?? "its worker") may ask for device \(device); process \(asker.pid) "
                + "is in \(asker.unit ?? "no unit")", device: device)
    }

    /// The device of a name, if it is one that the opener opens.
    static func find(
        _ name: String, in configuration: Configuration
    ) throws(WireError) -> OpenableDevice {
        guard let device = configuration.devices.first(where: { $0.name == name }) else {
            let problem = configuration.problems.first {
                $0.location.file.contains("\(name).device")
            }
            throw WireError(
                .notFound,
                "device \(name) is not configured" + (problem.map { ": \($0)" } ?? ""), device: name
            )
        }
        guard case .pci(let address) = device.transport else {
            throw WireError(
                .invalidArgument, "device \(name) is no PCI device; nothing has to be opened",
                device: name)
        }
        guard device.usesVFIO else {
            throw WireError(
                .permissionDenied,
                "device \(name) is left to the kernel (nvme_vfio=off); switch it on and run "
                    + "nvmectl device bind \(name)", device: name)
        }
        return OpenableDevice(
            name: name, address: address, mode: mode(device.iommu),
            alwaysResets: device.alwaysResets ?? false, keepsAlive: device.keepsAlive ?? false,
            interruptAffinity: device.interruptAffinity, guestMemory: device.guestMemory)
    }

    /// Where the pool of a device lies, of whatever transport.
    static func pool(
        of name: String, in configuration: Configuration
    ) throws(WireError) -> PoolPlace {
        guard let device = configuration.devices.first(where: { $0.name == name }) else {
            throw WireError(.notFound, "device \(name) is not configured", device: name)
        }
        let medium: PoolMedium? =
            switch device.poolBacking {
            case nil, .memfd: nil
            case .hugetlb: .hugePages
            case .file: .file
            case .dax: .deviceMemory
            }
        guard let medium, let path = device.poolPath else {
            throw WireError(
                .invalidArgument, "the pool of device \(name) lies in no file (Pool=)",
                device: name)
        }
        return PoolPlace(medium, path: path)
    }

    /// The NUMA node of a device: that is where its pool's pages are made.
    static func node(
        of name: String, in configuration: Configuration, _ machine: MachineNodes
    ) -> Int? {
        guard let device = configuration.devices.first(where: { $0.name == name }),
            case .pci(let address) = device.transport, let address = PCIAddress(address)
        else { return nil }
        return machine.node(of: address)
    }

    /// The guest memory of a device: the configured ranges of the configured node, for a device
    /// that uses physical addresses. `number` finds the number of a node.
    static func guestMemory(
        of device: OpenableDevice, number: (_ path: String) -> UInt64?
    ) throws(VFIOError) -> GuestMemoryFound {
        guard let memory = device.guestMemory else {
            throw .unsupported("no guest memory is configured (GuestMemory=)")
        }
        guard device.mode == .noiommu else {
            throw .unsupported("guest memory is for IOMMU=noiommu only")
        }
        guard let number = number(memory.path) else {
            throw .unsupported("GuestMemory=: \(memory.path) is no character device")
        }
        return GuestMemoryFound(deviceNumber: number, ranges: memory.ranges)
    }

    private static func mode(_ configured: ConfiguredIOMMU?) -> IOMMUMode {
        switch configured {
        case nil, .auto: .auto
        case .type1: .type1
        case .iommufd: .iommufd
        case .noiommu: .noiommu
        }
    }
}

extension VFIOInterface {
    /// The interface as the wire has it.
    var onWire: OpenedInterface {
        switch self {
        case .type1: .type1
        case .iommufd: .iommufd
        case .noiommu: .noiommu
        }
    }
}
