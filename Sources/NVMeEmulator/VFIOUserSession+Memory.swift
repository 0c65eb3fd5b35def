// SPDX-License-Identifier: Apache-2.0
// DMA regions and interrupts of a client. The public vfio-user specification, protocol version 0.1.

internal import Glibc
internal import Linux

extension VFIOUserSession {
    // MARK: Memory

    func dmaMap(
        _ body: ByteReader, _ fds: inout IncomingFDs
    ) throws(CommandError) -> CommandResult {
        guard body.count == 32, let flags = body.u32(4), let offset = body.u64(8),
            let address = body.u64(16), let size = body.u64(24), flags & 3 != 0, fds.count <= 1
        else { throw CommandError(EINVAL) }
        device.controller.counters.dmaMaps &+= 1
        let fd = device.options.dmaByMessage ? nil : fds.peek(0)
        do throws(RegionError) {
            try device.controller.memory.add(
                address: address, byteCount: size, fd: fd, offset: offset,
                isReadable: flags & 1 != 0, isWritable: flags & 2 != 0)
        } catch {
            throw CommandError(error.errno)
        }
        return CommandResult()
    }

    func dmaUnmap(_ body: ByteReader) throws(CommandError) -> CommandResult {
        guard let argsz = body.u32(0), argsz >= 24, let flags = body.u32(4),
            let address = body.u64(8), let size = body.u64(16)
        else { throw CommandError(EINVAL) }
        device.controller.counters.dmaUnmaps &+= 1
        // Bit 0 asks for a dirty bitmap, which only migration needs; bit 1 means everything.
        switch flags {
        case 0:
            do throws(RegionError) {
                try device.controller.memory.remove(address: address, byteCount: size)
            } catch {
                throw CommandError(error.errno)
            }
        case 2:
            guard address == 0, size == 0 else { throw CommandError(EINVAL) }
            device.controller.memory.removeAll()
        default: throw CommandError(ENOTSUP)
        }
        // Queues and shadow doorbells let go of their pointers before the client hears that it may
        // reuse them.
        device.controller.rebindQueues()
        return CommandResult(body: Array(body.bytes.prefix(24)))
    }

    // MARK: Interrupts

    private func vectorCount(_ index: UInt32) -> Int {
        switch index {
        case VFIOUser.irqPin, VFIOUser.irqError, VFIOUser.irqRequest: 1
        case VFIOUser.irqMSIX: device.options.vectorCount
        default: 0
        }
    }

    func irqInfo(_ body: ByteReader) throws(CommandError) -> CommandResult {
        guard let argsz = body.u32(0), argsz >= 16, let index = body.u32(8),
            index < VFIOUser.irqCount
        else { throw CommandError(EINVAL) }
        let count = vectorCount(index)
        // EVENTFD; the pin is MASKABLE and AUTOMASKED as well; MSI-X vectors may come one by one,
        // so no NORESIZE.
        let flags: UInt32 =
            count == 0 ? 0 : index == VFIOUser.irqPin ? 7 : index == VFIOUser.irqMSIX ? 3 : 1
        var writer = ByteWriter()
        for value in [16, flags, index, UInt32(count)] { writer.u32(value) }
        return CommandResult(body: writer.bytes)
    }

    /// SET_IRQS as it came.
    private struct IRQRequest {
        let data: UInt32
        let action: UInt32
        let index: UInt32
        let start: Int
        let count: Int
        let booleans: ArraySlice<UInt8>
    }

    private static let dataNone: UInt32 = 1
    private static let dataBoolean: UInt32 = 2
    private static let dataEventFD: UInt32 = 4
    private static let mask: UInt32 = 8
    private static let unmask: UInt32 = 16
    private static let trigger: UInt32 = 32

    func setIRQs(
        _ body: ByteReader, _ fds: inout IncomingFDs
    ) throws(CommandError) -> CommandResult {
        let request = try checkedRequest(body, fdCount: fds.count)
        let interrupts = device.controller.interrupts
        switch request.index {
        case VFIOUser.irqPin: try apply(request, &interrupts.pin, &fds)
        case VFIOUser.irqMSIX: try apply(request, &interrupts.messages, &fds)
        case VFIOUser.irqError: try apply(request, &interrupts.error, &fds)
        default: try apply(request, &interrupts.request, &fds)
        }
        return CommandResult()
    }

    private func checkedRequest(
        _ body: ByteReader, fdCount: Int
    ) throws(CommandError) -> IRQRequest {
        guard let argsz = body.u32(0), argsz >= 20, let flags = body.u32(4),
            let index = body.u32(8), let start = body.u32(12), let count = body.u32(16),
            index < VFIOUser.irqCount, flags & ~0x3F == 0
        else { throw CommandError(EINVAL) }
        let data = flags & 7
        let action = flags & 0x38
        guard data.nonzeroBitCount == 1, action.nonzeroBitCount == 1 else {
            throw CommandError(EINVAL)
        }
        let vectors = UInt32(vectorCount(index))
        guard start < vectors, count <= vectors - start else { throw CommandError(EINVAL) }
        let isOff = data == Self.dataNone && action == Self.trigger && start == 0
        guard count > 0 || isOff else { throw CommandError(EINVAL) }
        guard data == Self.dataEventFD ? fdCount == 0 || fdCount == Int(count) : fdCount == 0,
            data != Self.dataBoolean || body.count == 20 + Int(count)
        else { throw CommandError(EINVAL) }
        return IRQRequest(
            data: data, action: action, index: index, start: Int(start), count: Int(count),
            booleans: body.rest(20))
    }

    private func apply(
        _ request: IRQRequest, _ vectors: inout VectorSet, _ fds: inout IncomingFDs
    ) throws(CommandError) {
        if request.count == 0 { return vectors.disconnectAll() }
        // Telling the client when a vector is masked is of no use to anybody here.
        guard request.data != Self.dataEventFD || request.action == Self.trigger else {
            throw CommandError(ENOTSUP)
        }
        for offset in 0..<request.count {
            let vector = request.start + offset
            if request.data == Self.dataEventFD {
                if let fd = fds.take(offset) {
                    vectors.connect(vector, fd)
                } else {
                    vectors.disconnect(vector)
                }
                continue
            }
            let isMeant =
                request.data == Self.dataNone
                || request.booleans[request.booleans.startIndex + offset] != 0
            guard isMeant else { continue }
            switch request.action {
            case Self.mask: vectors.mask(vector)
            case Self.unmask: vectors.unmask(vector)
            default: vectors.trigger(vector)
            }
        }
    }
}
