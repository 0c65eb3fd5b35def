// SPDX-License-Identifier: Apache-2.0
// A PCI function as sysfs shows it: class, driver, IOMMU group.

public import Linux

/// A PCI function at one moment.
public struct PCIFunction: Sendable, Hashable {
    /// Where it is.
    public let address: PCIAddress
    /// Class, subclass and programming interface: 0x010802 is NVMe.
    public let classCode: UInt32
    /// The vendor's number.
    public let vendor: UInt16
    /// The device's number.
    public let device: UInt16
    /// The driver it is bound to, if any.
    public let driver: String?
    /// The number of its IOMMU group, if it has one.
    public let iommuGroup: String?

    /// The class of NVMe controllers: mass storage, non-volatile memory, NVM Express.
    public static let nvmeClass: UInt32 = 0x01_0802

    /// Whether it is an NVMe controller.
    public var isNVMe: Bool { classCode == Self.nvmeClass }
    /// Whether it is a bridge between PCI buses, whose driver does not keep VFIO from its group.
    var isBridge: Bool { classCode >> 16 == 0x06 }
}

extension PCIHost {
    func path(_ address: PCIAddress) -> String { "\(sysfs)/bus/pci/devices/\(address)" }

    /// The function at an address.
    public func function(_ address: PCIAddress) throws(PCIError) -> PCIFunction {
        let path = path(address)
        guard let classCode = number("\(path)/class") else { throw .absent(address) }
        return PCIFunction(
            address: address, classCode: UInt32(truncatingIfNeeded: classCode & 0xFF_FFFF),
            vendor: UInt16(truncatingIfNeeded: number("\(path)/vendor") ?? 0xFFFF),
            device: UInt16(truncatingIfNeeded: number("\(path)/device") ?? 0xFFFF),
            driver: linkName("\(path)/driver"), iommuGroup: linkName("\(path)/iommu_group"))
    }

    /// All functions of non-volatile memory (class 0108xx), by address.
    public func nvmeFunctions() throws(PCIError) -> [PCIFunction] {
        var found: [PCIFunction] = []
        for name in try names("\(sysfs)/bus/pci/devices") {
            guard let address = PCIAddress(name), let function = try? function(address),
                function.classCode >> 8 == PCIFunction.nvmeClass >> 8
            else { continue }
            found.append(function)
        }
        return found
    }

    /// The other functions of an IOMMU group.
    func neighbours(_ function: PCIFunction) throws(PCIError) -> [PCIFunction] {
        guard function.iommuGroup != nil else { return [] }
        var found: [PCIFunction] = []
        for name in try names("\(path(function.address))/iommu_group/devices") {
            guard let address = PCIAddress(name), address != function.address else { continue }
            if let neighbour = try? self.function(address) { found.append(neighbour) }
        }
        return found
    }

    /// A hexadecimal number with 0x.
    private func number(_ path: String) -> UInt64? {
        guard let text = line(path), text.hasPrefix("0x") else { return nil }
        return UInt64(text.dropFirst(2), radix: 16)
    }
}

/// What the kernel's NVMe driver tells of a controller it is bound to.
public struct KernelController: Sendable, Hashable {
    /// Its name, `nvme0`.
    public var name: String
    /// The model, without padding.
    public var model: String
    /// The serial number, without padding.
    public var serial: String
}

extension PCIHost {
    /// The controller as the kernel's driver has it; nil when that is not bound.
    public func controller(_ address: PCIAddress) -> KernelController? {
        let directory = "\(path(address))/nvme"
        guard let names = try? names(directory), let name = names.first else { return nil }
        return KernelController(
            name: name, model: line("\(directory)/\(name)/model") ?? "",
            serial: line("\(directory)/\(name)/serial") ?? "")
    }
}
