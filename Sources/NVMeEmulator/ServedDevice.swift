// SPDX-License-Identifier: Apache-2.0
// The PCI function as vfio-user regions: BAR0 (registers), BAR4 (MSI-X table and pending bits),
// configuration space.

internal import Glibc
internal import Linux
internal import NVMeSpec

/// What outlives a connection: the controller with its configuration space.
@safe
final class ServedDevice {
    let options: EmulatorOptions
    let controller: Controller
    var config: PCIConfigSpace
    /// BAR0 as a file, of which clients may map the doorbell page.
    let registerFile: OwnedFD
    private var table: [UInt8]

    init(options: EmulatorOptions) throws(NamespaceError) {
        self.options = options
        let tableByteCount = Self.tableByteCount(options.vectorCount)
        table = Array(repeating: 0, count: Int(tableByteCount))
        config = PCIConfigSpace(
            vectorCount: options.vectorCount, registerByteCount: Controller.registerByteCount,
            tableByteCount: tableByteCount, pendingOffset: UInt64(options.vectorCount * 16 + 7) & ~7
        )
        let page: MemoryWindow
        do throws(SystemCallError) {
            registerFile = try MemFD.create(
                name: "registers", byteCount: Int(Controller.registerByteCount))
            let mapping = try Mapping(
                registerFile, byteCount: Int(Controller.registerByteCount))
            let all = unsafe MemoryWindow(
                base: mapping.leak(), byteCount: Int(Controller.registerByteCount))
            page = all.slice(Int(RegisterOffset.doorbells), Controller.doorbellByteCount)
        } catch {
            throw .system(error)
        }
        controller = try Controller(options: options, doorbellPage: page)
        resetTable()
    }

    /// Table and pending bits, rounded up to a power of two as BARs are.
    private static func tableByteCount(_ vectors: Int) -> UInt64 {
        var size: UInt64 = 4096
        while size < UInt64(vectors * 16 + vectors / 8 + 16) { size *= 2 }
        return size
    }

    private func resetTable() {
        for index in table.indices { table[index] = 0 }
        // The mask bit of each vector is set until somebody clears it.
        for vector in 0..<options.vectorCount { table[vector * 16 + 12] = 1 }
    }

    /// What DEVICE_RESET does: the function begins anew, memory and interrupts stay connected.
    func reset() {
        controller.counters.deviceResets &+= 1
        controller.resetDevice()
        config.reset()
        resetTable()
        controller.isBusMaster = config.isBusMaster
    }

    /// What the end of a connection does: everything begins anew, or, where that was asked for,
    /// the controller goes on with its queues, its commands and the memory of the client. Only the
    /// interrupts are disconnected, as by the last close of a device of hardware.
    func disconnect() {
        controller.wantsDisconnect = false
        if options.keepsState {
            controller.interrupts.disconnectAll(keepingMask: true)
            return controller.memory.disown()
        }
        if controller.cc.en && controller.csts.shst != .complete {
            controller.log.unsafeShutdowns &+= 1
        }
        controller.interrupts.disconnectAll()
        controller.resetDevice()
        controller.memory.removeAll()
        config.reset()
        resetTable()
        controller.isBusMaster = config.isBusMaster
    }

    /// The size of a region; 0 for those that do not exist.
    func regionByteCount(_ index: UInt32) -> UInt64 {
        switch index {
        case 0: Controller.registerByteCount
        case VFIOUser.regionTable: UInt64(table.count)
        case VFIOUser.regionConfig: UInt64(PCIConfigSpace.byteCount)
        default: 0
        }
    }

    private func isWithin(_ region: UInt32, _ offset: UInt64, _ count: UInt64) -> Bool {
        let size = regionByteCount(region)
        return count > 0 && offset < size && count <= size - offset
    }

    /// Reads part of a region; nil when it is not within it.
    func read(_ region: UInt32, _ offset: UInt64, _ count: UInt32) -> [UInt8]? {
        guard isWithin(region, offset, UInt64(count)) else { return nil }
        let start = Int(offset)
        switch region {
        case 0:
            var bytes: [UInt8] = []
            controller.readRegisters(offset: offset, into: &bytes, count: Int(count))
            return bytes
        case VFIOUser.regionTable: return Array(table[start..<(start + Int(count))])
        default:
            guard !controller.isGone else { return Array(repeating: 0xFF, count: Int(count)) }
            return Array(config.read(start, Int(count)))
        }
    }

    /// Writes part of a region; an error number when that cannot be.
    func write(_ region: UInt32, _ offset: UInt64, _ content: ArraySlice<UInt8>) -> CInt {
        guard isWithin(region, offset, UInt64(content.count)) else { return EINVAL }
        switch region {
        case 0:
            guard let value = ByteReader(content).value(0, width: content.count) else {
                return EINVAL
            }
            let isDone = controller.writeRegisters(
                offset: offset, value: value, byteCount: content.count)
            return isDone ? 0 : EINVAL
        case VFIOUser.regionTable:
            for (index, byte) in content.enumerated() { table[Int(offset) + index] = byte }
        default:
            if config.write(Int(offset), content) { reset() }
            controller.isBusMaster = config.isBusMaster
        }
        return 0
    }
}
