// SPDX-License-Identifier: Apache-2.0
// The descriptors of a kernel VFIO device: found in the fd store, or opened; kept; let go of.

internal import CLinux
internal import Linux
internal import NVMeDriver
internal import Systemd
internal import VFIO
internal import Wire

/// What came back from the fd store for the device.
struct StoredDevice: ~Copyable, Sendable {
    var container: OwnedFD?
    var group: OwnedFD?
    var device: OwnedFD?
    var error: OwnedFD?
    var request: OwnedFD?

    /// Takes what belongs to a device out of what the manager handed over.
    init(from fds: inout ListenFDs) {
        container = fds.take("vfio-container")
        group = fds.take("vfio-group")
        device = fds.take("vfio-device")
        error = fds.take("vfio-err")
        request = fds.take("vfio-req")
    }

    /// Nothing came.
    init() {}
}

/// Holds a device's descriptors on behalf of the process and of its successor.
@Control
final class DeviceKeeper {
    private let device: String
    private let log: Log
    private let store: FDStore
    private let notifier = Notifier()
    private var stored: StoredDevice
    /// The names that are in the store now.
    private var storedNames: Set<String>
    /// The device, also while no controller uses it.
    private var current: KernelVFIODevice?

    /// Takes over what a predecessor left.
    init(device: String, log: Log, store: FDStore, stored: consuming StoredDevice, names: [String])
    {
        self.device = device
        self.log = log
        self.store = store
        self.stored = stored
        storedNames = Set(
            names.filter { name in
                name == "pool" || ["vfio-", "irq-", "iommufd-"].contains { name.hasPrefix($0) }
            })
    }

    // MARK: Opening

    /// A predecessor's device, or the one that the configuration names.
    func open(address: String) throws(DriverError) -> any DeviceBacking {
        do throws(VFIOError) {
            if let current, !current.isGone {
                try current.beginAgain()
                return current
            }
            if let kept = try takeStored() {
                current = kept
                return kept
            }
            // Whoever still holds the group keeps it from being opened.
            forget()
            let descriptors = try KernelVFIO.open(address, mode: .auto, reset: .none)
            let opened = try KernelVFIODevice(
                descriptors, events: DeviceEvents(), name: device, isInherited: false)
            current = opened
            return opened
        } catch { throw .device(error) }
    }

    /// The device as the fd store had it; nil when it did not have all of it.
    private func takeStored() throws(VFIOError) -> KernelVFIODevice? {
        let container = stored.container.take()
        let group = stored.group.take()
        let fd = stored.device.take()
        let events = try DeviceEvents(error: stored.error.take(), request: stored.request.take())
        guard let container, let group, let fd else { return nil }
        log.info("the device comes from the fd store; it is started afresh")
        return try KernelVFIODevice(
            VFIODescriptors(interface: .type1, memory: container, group: group, device: fd),
            events: events, name: device, isInherited: true)
    }

    // MARK: Keeping

    /// Stores what a successor needs, and waits until the manager has it. Blocks, bounded.
    func keep(_ controller: NVMeController) {
        if let pool = controller.poolFD { replace("pool", pool) }
        guard let current else { return }
        for (index, raw) in controller.interruptDescriptors.enumerated() {
            replace("irq-\(index)", raw)
        }
        for entry in current.kept where !storedNames.contains(entry.name) {
            replace(entry.name, entry.raw)
        }
        barrier()
    }

    private func barrier() {
        do throws(SystemCallError) {
            try notifier.barrier(timeoutMicroseconds: WorkerLimits.barrierNanoseconds / 1000)
        } catch {
            log.warning(
                "the manager has not confirmed what it keeps: \(error); continuing",
                id: .storeFailed)
        }
    }

    /// The device's descriptor and that of the kernel's requests, for the supervisor.
    var watched: [CInt] { current?.watched ?? [] }

    private func replace(_ name: String, _ raw: CInt) {
        let copy = nv_dup_cloexec(raw)
        guard copy >= 0 else { return }
        let fd = OwnedFD(adopting: copy)
        do throws(FDStoreError) {
            if storedNames.contains(name) { try store.remove(name) }
            try store.store(name, fd)
            storedNames.insert(name)
        } catch {
            log.warning(
                "\(error); continuing without: a restarted worker opens the device anew",
                id: .storeFailed)
        }
    }

    /// Lets go of the device, here and in the store: after this the kernel has it, as soon as the
    /// controller that uses it is gone too. Blocks, bounded.
    func forget() {
        current = nil
        guard !storedNames.isEmpty else { return }
        for name in storedNames.sorted() {
            do throws(FDStoreError) {
                try store.remove(name)
            } catch {
                log.warning("\(error); continuing")
            }
        }
        storedNames = []
        barrier()
    }
}

extension Transport {
    /// Whether it is a device of the machine, which can be taken away.
    var isHardware: Bool { if case .pci = self { true } else { false } }
}
