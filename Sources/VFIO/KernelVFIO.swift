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
    static let devices = "/sys/bus/pci/devices"

    /// Opens a device that is bound to vfio-pci, with the reset that the kernel does at the first
    /// open: with `none` the function stays as it was. `afterwards` is what it may do at the last
    /// close. With `staysAwake` the function does not go to sleep (D3hot) when it is closed.
    public static func open(
        _ text: String, mode: IOMMUMode, reset: ResetMethod, afterwards: ResetMethod = .none,
        staysAwake: Bool = false
    ) throws(VFIOError) -> VFIODescriptors {
        guard let address = PCIAddress(text) else {
            throw .unsupported("'\(text)' is not a PCI address like 0000:01:00.0")
        }
        return try DeviceOpening(address: address, kernel: RunningKernel())
            .open(mode, reset, afterwards, staysAwake: staysAwake)
    }
}

/// The opening of one device: every step of it, in order.
struct DeviceOpening {
    let address: PCIAddress
    let kernel: any KernelCalls
    /// How long a group that is in use is waited for: whoever had the device last may be closing it
    /// in a reset, a hundred milliseconds or two.
    var busyPatienceNanoseconds: UInt64 = 5_000_000_000

    private var directory: String { "\(KernelVFIO.devices)/\(address)" }

    func open(
        _ mode: IOMMUMode, _ reset: ResetMethod, _ afterwards: ResetMethod,
        staysAwake: Bool = false
    ) throws(VFIOError) -> VFIODescriptors {
        try checkDriver()
        if staysAwake { try stayAwake() }
        // What cannot be set is not needed: some functions have no reset at all.
        let problem = setResetMethod(reset)
        if reset == .flr, let problem {
            throw .unsupported("\(address) cannot be reset by itself (\(problem))")
        }
        defer { if reset != afterwards { _ = setResetMethod(afterwards) } }
        let group = link("\(directory)/iommu_group")
        switch choose(mode) {
        case .iommufd: return try openNode()
        case .noiommu: return try openWithoutIOMMU(group)
        case .type1:
            guard let group, kernel.exists("/dev/vfio/\(group)") else {
                throw .unsupported(
                    "\(address) has no IOMMU group in /dev/vfio; switch the IOMMU on (firmware, "
                        + "and on Intel intel_iommu=on on the kernel's command line)")
            }
            return try openGroup(group)
        }
    }

    /// `auto` is type 1, which every kernel with an IOMMU has had for long and which survives
    /// restarts of ours as tried; iommufd where a kernel was built without containers. It is never
    /// `noiommu`, which is for the operator to decide.
    func choose(_ mode: IOMMUMode) -> VFIOInterface {
        switch mode {
        case .type1: .type1
        case .iommufd: .iommufd
        case .noiommu: .noiommu
        case .auto:
            !kernel.exists("/dev/vfio/vfio") && kernel.exists("/dev/iommu") ? .iommufd : .type1
        }
    }

    /// Names whoever has the device when it is not vfio-pci.
    private func checkDriver() throws(VFIOError) {
        guard kernel.exists(directory) else {
            throw .unsupported("there is no PCI device \(address)")
        }
        let driver = link("\(directory)/driver")
        guard driver != "vfio-pci" else { return }
        let holder = driver.map { "driver \($0) has it" } ?? "no driver has it"
        throw .notBound(
            "\(address) is not bound to vfio-pci (\(holder)); run: nvmectl device bind \(address)")
    }

    private func openGroup(_ number: String) throws(VFIOError) -> VFIODescriptors {
        let container = try openContainer(NV_VFIO_TYPE1V2, "type 1 version 2 IOMMU")
        let group = try open("/dev/vfio/\(number)")
        let flags = try call("VFIO_GROUP_GET_STATUS", group, .groupFlags)
        guard flags & Int64(NV_VFIO_GROUP_VIABLE) != 0 else {
            throw .unsupported(
                "IOMMU group \(number) of \(address) is not viable: another device of the group "
                    + "has a driver that is not vfio; see \(directory)/iommu_group/devices")
        }
        let device = try attach(group, container, NV_VFIO_TYPE1V2)
        return VFIODescriptors(interface: .type1, memory: container, group: group, device: device)
    }

    /// A group into a container, then the device of the group.
    private func attach(
        _ group: borrowing OwnedFD, _ container: borrowing OwnedFD, _ type: UInt64
    ) throws(VFIOError) -> OwnedFD {
        try call("VFIO_GROUP_SET_CONTAINER", group, .setContainer(container.raw))
        try call("VFIO_SET_IOMMU", container, .setIOMMU(type))
        let name = address.description
        let device = try call("VFIO_GROUP_GET_DEVICE_FD \(name)", group, .deviceFD(name))
        return OwnedFD(adopting: CInt(clamping: device))
    }

    private func openContainer(
        _ extension: UInt64, _ name: String
    ) throws(VFIOError) -> OwnedFD {
        let container = try open("/dev/vfio/vfio")
        let version = kernel.request(container.raw, .version)
        guard version == 0 else { throw .unsupported("VFIO version \(version); we speak 0") }
        guard kernel.request(container.raw, .hasExtension(`extension`)) > 0 else {
            throw .unsupported("the kernel's VFIO has no \(name)")
        }
        return container
    }

    // MARK: iommufd

    /// The device's own node, bound to a new iommufd with one address space.
    private func openNode() throws(VFIOError) -> VFIODescriptors {
        // There is one entry, vfioN.
        guard let name = kernel.firstName(in: "\(directory)/vfio-dev") else {
            throw .unsupported("the kernel has no device nodes of VFIO (CONFIG_VFIO_DEVICE_CDEV)")
        }
        let iommufd = try open("/dev/iommu")
        let device = try open("/dev/vfio/devices/\(name)")
        try call("VFIO_DEVICE_BIND_IOMMUFD", device, .bindIOMMUFD(iommufd.raw))
        let space = UInt32(clamping: try call("IOMMU_IOAS_ALLOC", iommufd, .allocateSpace))
        try call("VFIO_DEVICE_ATTACH_IOMMUFD_PT", device, .attach(space: space))
        return VFIODescriptors(
            interface: .iommufd, memory: iommufd, group: nil, device: device, addressSpace: space)
    }

    // MARK: No IOMMU

    /// A group that the kernel made for a device without an IOMMU.
    private func openWithoutIOMMU(_ number: String?) throws(VFIOError) -> VFIODescriptors {
        guard let number, kernel.exists("/dev/vfio/noiommu-\(number)") else {
            throw .unsupported(
                "\(address) has no group without an IOMMU: either it has an IOMMU (use "
                    + "IOMMU=auto), or vfio's enable_unsafe_noiommu_mode was off when it was bound")
        }
        let container = try openContainer(NV_VFIO_NOIOMMU, "mode without an IOMMU")
        let group = try open("/dev/vfio/noiommu-\(number)")
        let device = try attach(group, container, NV_VFIO_NOIOMMU)
        return VFIODescriptors(
            interface: .noiommu, memory: container, group: group, device: device)
    }

    // MARK: sysfs and calls

    /// Tells the kernel how it may reset the function; the error when it does not want to.
    private func setResetMethod(_ method: ResetMethod) -> SystemCallError? {
        do throws(SystemCallError) {
            // An empty line takes all methods away.
            try kernel.write(
                "\(directory)/reset_method", method == .none ? "\n" : "\(method.rawValue)\n")
            return nil
        } catch { return error }
    }

    /// vfio-pci lets a function that nobody has open go to D3hot, of which some come back as after
    /// a reset. It leaves one alone whose power is controlled by hand; a kernel without power
    /// management (ENOENT) leaves all alone.
    private func stayAwake() throws(VFIOError) {
        do throws(SystemCallError) {
            try kernel.write("\(directory)/power/control", "on\n")
        } catch {
            guard error.errno != ENOENT else { return }
            throw .unsupported("\(address) cannot be kept awake when it is closed: \(error)")
        }
    }

    /// How often it is looked at meanwhile: the kernel tells nobody when a group becomes free.
    private static let busyPollMilliseconds: Int32 = 50

    private func open(_ path: String) throws(VFIOError) -> OwnedFD {
        let deadline = MonotonicClock.nowNanoseconds &+ busyPatienceNanoseconds
        while true {
            do throws(SystemCallError) {
                return try kernel.open(path)
            } catch {
                guard error.errno == EBUSY, MonotonicClock.nowNanoseconds < deadline else {
                    throw refusal(path, error)
                }
            }
            _ = poll(nil, 0, Self.busyPollMilliseconds)
        }
    }

    private func refusal(_ path: String, _ error: SystemCallError) -> VFIOError {
        let hint: String
        switch error.errno {
        case EBUSY:
            return .unsupported(
                "\(path) is in use by another process, and only one may have a group; "
                    + "nvmectl device unbind --dry-run says which")
        case EACCES: hint = "its owner, root, needs mode 0600"
        case EPERM where path.hasPrefix("/dev/vfio/noiommu-"):
            hint = "without an IOMMU nvmed-opener.service needs CAP_SYS_RAWIO; see its comment"
        case EPERM: hint = "DeviceAllow= of nvmed-opener.service does not name it"
        default: return .system(error)
        }
        return .unsupported("\(error) (\(hint))")
    }

    @discardableResult
    private func call(
        _ name: String, _ fd: borrowing OwnedFD, _ request: VFIORequest
    ) throws(VFIOError) -> Int64 {
        try KernelVFIO.call(name, kernel.request(fd.raw, request))
    }

    /// The last component of a link's target; nil when there is no such link.
    private func link(_ path: String) -> String? {
        kernel.target(ofLink: path)?.split(separator: "/").last.map(String.init)
    }
}

extension KernelVFIO {
    @discardableResult
    static func call(_ name: String, _ result: Int64) throws(VFIOError) -> Int64 {
        guard result < 0 else { return result }
        throw .system(SystemCallError(name, errno: CInt(clamping: -result)))
    }
}
