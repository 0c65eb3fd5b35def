// SPDX-License-Identifier: Apache-2.0
// Opening a PCI device through kernel VFIO: /dev/vfio, groups and containers (Linux 6.1,
// Documentation/driver-api/vfio.rst).

internal import CLinux
internal import Glibc
public import Linux

/// How the device's memory accesses are translated, as configured.
public enum IOMMUMode: String, Sendable, CaseIterable {
    /// type1 where there is a group with an IOMMU, else iommufd; never without an IOMMU.
    case auto
    /// Group and container, type 1 version 2.
    case type1
    /// The device's own node and an iommufd.
    case iommufd
    /// No translation: physical addresses.
    case noiommu
}

/// Which reset the kernel may use on a function from now on (sysfs `reset_method`).
public enum ResetMethod: String, Sendable, CaseIterable {
    /// None: opening and closing leave the function as it is.
    case none
    /// Function level reset, at every open and last close.
    case flr
}

/// The interface that a device was opened through.
public enum VFIOInterface: String, Sendable {
    /// Group and container, with an IOMMU.
    case type1
    /// Node and iommufd.
    case iommufd
    /// Group and container, without an IOMMU.
    case noiommu
}

/// The open descriptors of one device. As long as one process or fd store has them, the device
/// stays as it is.
public struct VFIODescriptors: ~Copyable, Sendable {
    /// The interface.
    public let interface: VFIOInterface
    /// The container or the iommufd: where memory is mapped.
    public let memory: OwnedFD
    /// The group; nil with iommufd.
    public let group: OwnedFD?
    /// The device.
    public let device: OwnedFD
    /// The id of the address space in the iommufd; 0 otherwise.
    public let addressSpace: UInt32
    /// The number of `group`: an optional owner cannot be looked into.
    let rawGroup: CInt?

    /// Puts descriptors together that were opened elsewhere.
    public init(
        interface: VFIOInterface, memory: consuming OwnedFD, group: consuming OwnedFD?,
        device: consuming OwnedFD, addressSpace: UInt32 = 0
    ) {
        self.interface = interface
        self.memory = memory
        switch consume group {
        case .some(let fd):
            rawGroup = fd.raw
            self.group = consume fd
        case .none:
            rawGroup = nil
            self.group = nil
        }
        self.device = device
        self.addressSpace = addressSpace
    }

    /// The descriptors in the order memory, group, device, for a message.
    public var raw: [CInt] {
        [memory.raw] + (rawGroup.map { [$0] } ?? []) + [device.raw]
    }
}

/// Opens PCI devices.
public enum KernelVFIO {
    private static let devices = "/sys/bus/pci/devices"

    /// Opens a device that is bound to vfio-pci, with the reset that the kernel does at the first
    /// open: with `none` the function stays as it was. `afterwards` is what it may do at the last
    /// close.
    public static func open(
        _ text: String, mode: IOMMUMode, reset: ResetMethod, afterwards: ResetMethod = .none
    ) throws(VFIOError) -> VFIODescriptors {
        guard let address = FunctionAddress(text) else {
            throw .unsupported("'\(text)' is not a PCI address like 0000:01:00.0")
        }
        let directory = "\(devices)/\(address)"
        try checkDriver(address, directory)
        // What cannot be set is not needed: some functions have no reset at all.
        let problem = setResetMethod(reset, directory)
        if reset == .flr, let problem {
            throw .unsupported("\(address) cannot be reset by itself (\(problem))")
        }
        defer { if reset != afterwards { _ = setResetMethod(afterwards, directory) } }
        let group = link("\(directory)/iommu_group")
        switch choose(mode, hasGroup: group != nil) {
        case .iommufd: return try openNode(address, directory)
        case .noiommu: return try openWithoutIOMMU(address, group)
        case .type1:
            guard let group, Files.exists("/dev/vfio/\(group)") else {
                throw .unsupported(
                    "\(address) has no IOMMU group in /dev/vfio; switch the IOMMU on (firmware, "
                        + "and on Intel intel_iommu=on on the kernel's command line)")
            }
            return try openGroup(group, address)
        }
    }

    /// `auto` is type 1, which every kernel with an IOMMU has had for long and which survives
    /// restarts of ours as tried; iommufd where a kernel was built without containers. It is never
    /// `noiommu`, which is for the operator to decide.
    static func choose(_ mode: IOMMUMode, hasGroup: Bool) -> VFIOInterface {
        switch mode {
        case .type1: .type1
        case .iommufd: .iommufd
        case .noiommu: .noiommu
        case .auto:
            !Files.exists("/dev/vfio/vfio") && Files.exists("/dev/iommu") ? .iommufd : .type1
        }
    }

    /// Names whoever has the device when it is not vfio-pci.
    private static func checkDriver(
        _ address: FunctionAddress, _ directory: String
    ) throws(VFIOError) {
        guard Files.exists(directory) else {
            throw .unsupported("there is no PCI device \(address)")
        }
        let driver = link("\(directory)/driver")
        guard driver != "vfio-pci" else { return }
        let holder = driver.map { "driver \($0) has it" } ?? "no driver has it"
        throw .notBound(
            "\(address) is not bound to vfio-pci (\(holder)); run: nvmectl device bind \(address)")
    }

    private static func openGroup(
        _ number: String, _ address: FunctionAddress
    ) throws(VFIOError) -> VFIODescriptors {
        let container = try openContainer(NV_VFIO_TYPE1V2, "type 1 version 2 IOMMU")
        let group = try open("/dev/vfio/\(number)")
        let flags = try call("VFIO_GROUP_GET_STATUS", nv_vfio_group_flags(group.raw))
        guard flags & NV_VFIO_GROUP_VIABLE != 0 else {
            throw .unsupported(
                "IOMMU group \(number) of \(address) is not viable: another device of the group "
                    + "has a driver that is not vfio; see \(devices)/\(address)/iommu_group/devices"
            )
        }
        try call("VFIO_GROUP_SET_CONTAINER", nv_vfio_set_container(group.raw, container.raw))
        try call("VFIO_SET_IOMMU", nv_vfio_set_iommu(container.raw, NV_VFIO_TYPE1V2))
        let device = try call(
            "VFIO_GROUP_GET_DEVICE_FD \(address)",
            unsafe nv_vfio_device_fd(group.raw, address.description))
        return VFIODescriptors(
            interface: .type1, memory: container, group: group,
            device: OwnedFD(adopting: device))
    }

    private static func openContainer(
        _ extension: UInt64, _ name: String
    ) throws(VFIOError) -> OwnedFD {
        let container = try open("/dev/vfio/vfio")
        let version = nv_vfio_api_version(container.raw)
        guard version == 0 else { throw .unsupported("VFIO version \(version); we speak 0") }
        guard nv_vfio_has_extension(container.raw, `extension`) > 0 else {
            throw .unsupported("the kernel's VFIO has no \(name)")
        }
        return container
    }

    // MARK: iommufd

    /// The device's own node, bound to a new iommufd with one address space.
    private static func openNode(
        _ address: FunctionAddress, _ directory: String
    ) throws(VFIOError) -> VFIODescriptors {
        // There is one entry, vfioN.
        guard let name = (try? Files.list("\(directory)/vfio-dev", limit: 1))?.first else {
            throw .unsupported("the kernel has no device nodes of VFIO (CONFIG_VFIO_DEVICE_CDEV)")
        }
        let iommufd = try open("/dev/iommu")
        let device = try open("/dev/vfio/devices/\(name)")
        try call("VFIO_DEVICE_BIND_IOMMUFD", nv_vfio_bind_iommufd(device.raw, iommufd.raw))
        var space: UInt32 = 0
        try call("IOMMU_IOAS_ALLOC", unsafe nv_iommufd_alloc_ioas(iommufd.raw, &space))
        try call("VFIO_DEVICE_ATTACH_IOMMUFD_PT", nv_vfio_attach_ioas(device.raw, space))
        return VFIODescriptors(
            interface: .iommufd, memory: iommufd, group: nil, device: device, addressSpace: space)
    }

    // MARK: No IOMMU

    /// A group that the kernel made for a device without an IOMMU.
    private static func openWithoutIOMMU(
        _ address: FunctionAddress, _ group: String?
    ) throws(VFIOError) -> VFIODescriptors {
        guard let group, Files.exists("/dev/vfio/noiommu-\(group)") else {
            throw .unsupported(
                "\(address) has no group without an IOMMU: either it has an IOMMU (use "
                    + "IOMMU=auto), or vfio's enable_unsafe_noiommu_mode was off when it was bound")
        }
        let container = try openContainer(NV_VFIO_NOIOMMU, "mode without an IOMMU")
        let fd = try open("/dev/vfio/noiommu-\(group)")
        try call("VFIO_GROUP_SET_CONTAINER", nv_vfio_set_container(fd.raw, container.raw))
        try call("VFIO_SET_IOMMU", nv_vfio_set_iommu(container.raw, NV_VFIO_NOIOMMU))
        let device = try call(
            "VFIO_GROUP_GET_DEVICE_FD \(address)",
            unsafe nv_vfio_device_fd(fd.raw, address.description))
        return VFIODescriptors(
            interface: .noiommu, memory: container, group: fd, device: OwnedFD(adopting: device))
    }

    // MARK: sysfs and calls

    /// Tells the kernel how it may reset the function; the error when it does not want to.
    static func setResetMethod(_ method: ResetMethod, _ directory: String) -> SystemCallError? {
        let path = "\(directory)/reset_method"
        do throws(SystemCallError) {
            let fd = try OwnedFD.open(path, flags: O_WRONLY)
            // An empty line takes all methods away.
            let text = Array((method == .none ? "\n" : "\(method.rawValue)\n").utf8)
            try checked("write \(path)", unsafe nv_write(fd.raw, text, text.count))
            return nil
        } catch { return error }
    }

    private static func open(_ path: String) throws(VFIOError) -> OwnedFD {
        do throws(SystemCallError) {
            return try OwnedFD.open(path, flags: O_RDWR)
        } catch {
            let hint: String
            switch error.errno {
            case EBUSY:
                throw .unsupported(
                    "\(path) is in use by another process; only one may have a group")
            case EACCES: hint = "its owner, root, needs mode 0600"
            case EPERM: hint = "DeviceAllow= of nvmed-opener.service does not name it"
            default: throw .system(error)
            }
            throw .unsupported("\(error) (\(hint))")
        }
    }

    @discardableResult
    static func call(_ name: String, _ result: CInt) throws(VFIOError) -> CInt {
        do throws(SystemCallError) {
            return try checked(name, result)
        } catch { throw .system(error) }
    }

    /// The last component of a link's target; nil when there is no such link.
    static func link(_ path: String) -> String? {
        Files.target(ofLink: path)?.split(separator: "/").last.map(String.init)
    }
}
