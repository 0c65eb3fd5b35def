// SPDX-License-Identifier: Apache-2.0
// One client of the vfio-user server: its messages and the answers to them.
// The public vfio-user specification, protocol version 0.1.

internal import CLinux
internal import Glibc
internal import Linux

/// A command that failed; the error number goes into the reply.
struct CommandError: Error {
    let errno: CInt
    init(_ errno: CInt) { self.errno = errno }
}

/// A reply's payload and descriptor.
struct CommandResult {
    var body: [UInt8] = []
    var fd: CInt = -1
}

/// A message that has to wait until the controller is done with its current command.
private struct DeferredMessage: ~Copyable {
    let header: MessageHeader
    let body: [UInt8]
    var fds: IncomingFDs
}

/// One connection.
@safe
final class VFIOUserSession {
    /// Messages that may arrive while a DMA reply is being waited for; a sane client has one
    /// command outstanding.
    static let maxDeferred = 256
    /// How long a client may take to answer DMA_READ and DMA_WRITE: its process may have died while
    /// a service manager keeps the socket for the next, which is started at once, or after a while
    /// when many have died. A device of hardware would never give up.
    static let dmaReplyMilliseconds: UInt64 = 600_000
    /// Messages handled before the queues have their turn again.
    static let messagesPerTurn = 16

    let device: ServedDevice
    let stream: MessageStream
    private var isNegotiated = false
    private var peerTransferByteCount = VFIOUser.maxTransferByteCount
    private var deferred: [UniqueBox<DeferredMessage>] = []
    private var nextCommandID: UInt16 = 0
    /// Set when a nested exchange finds the connection unusable; ends the session at the next
    /// chance.
    private var nestedEnd: StreamEnd?

    private var controller: Controller { device.controller }

    init(device: ServedDevice, fd: consuming OwnedFD) {
        self.device = device
        stream = MessageStream(fd: fd, options: device.options)
        device.controller.memory.remote = unsafe RemoteMemory(
            read: { [unowned self] in unsafe self.remoteRead($0, $1, $2) },
            write: { [unowned self] in unsafe self.remoteWrite($0, $1, $2) })
    }

    /// Undoes everything the client has set up.
    func end() {
        device.controller.memory.remote = nil
        device.disconnect()
    }

    // MARK: Messages

    /// Handles what has arrived, up to a bound. True when there was something.
    func handleMessages() throws(StreamEnd) -> Bool {
        if let nestedEnd { throw nestedEnd }
        try stream.flush()
        var handled = 0
        while handled < Self.messagesPerTurn {
            if !deferred.isEmpty {
                let message = deferred.removeFirst()
                guard var message = message.take() else { continue }
                try handle(message.header, message.body[...], &message.fds)
            } else {
                guard var message = try stream.receive() else { break }
                try handle(message.header, message.body, &message.fds)
            }
            handled += 1
        }
        if let nestedEnd { throw nestedEnd }
        return handled > 0
    }

    private func handle(
        _ header: MessageHeader, _ body: ArraySlice<UInt8>, _ fds: inout IncomingFDs
    ) throws(StreamEnd) {
        controller.counters.messages &+= 1
        guard header.isCommand else {
            // A reply nobody waits for: of a DMA exchange that timed out.
            guard header.isReply else { throw .broken("a message of unknown type") }
            return
        }
        do throws(CommandError) {
            let result = try perform(header.command, ByteReader(body), &fds)
            try reply(header, result)
        } catch {
            controller.counters.messageErrors &+= 1
            try stream.reply(to: header, [], error: error.errno)
        }
    }

    private func reply(
        _ header: MessageHeader, _ result: CommandResult
    ) throws(CommandError) {
        do throws(StreamEnd) {
            try stream.reply(to: header, result.body, fd: result.fd)
        } catch {
            nestedEnd = error
        }
    }

    private func perform(
        _ number: UInt16, _ body: ByteReader, _ fds: inout IncomingFDs
    ) throws(CommandError) -> CommandResult {
        guard let command = VFIOUserCommand(rawValue: number) else { throw CommandError(ENOSYS) }
        guard isNegotiated || command == .version else { throw CommandError(EINVAL) }
        guard fds.count == 0 || command == .dmaMap || command == .deviceSetIRQs else {
            throw CommandError(EINVAL)
        }
        switch command {
        case .version: return try version(body)
        case .dmaMap: return try dmaMap(body, &fds)
        case .dmaUnmap: return try dmaUnmap(body)
        case .deviceGetInfo: return try deviceInfo(body)
        case .deviceGetRegionInfo: return try regionInfo(body)
        case .deviceGetRegionIOFDs: return try regionIOFDs(body)
        case .deviceGetIRQInfo: return try irqInfo(body)
        case .deviceSetIRQs: return try setIRQs(body, &fds)
        case .regionRead: return try regionRead(body)
        case .regionWrite: return try regionWrite(body)
        case .regionWriteMulti: return try regionWriteMulti(body)
        case .deviceReset:
            device.reset()
            return CommandResult()
        case .deviceFeature: throw CommandError(ENOTSUP)
        case .dmaRead, .dmaWrite: throw CommandError(EINVAL)
        }
    }

    // MARK: Version

    private func version(_ body: ByteReader) throws(CommandError) -> CommandResult {
        guard !isNegotiated, let major = body.u16(0), let minor = body.u16(2), major == 0 else {
            throw CommandError(EINVAL)
        }
        var text = Array(body.rest(4))
        if !text.isEmpty {
            // The capabilities end with a NUL.
            guard text.removeLast() == 0 else { throw CommandError(EINVAL) }
            if !text.isEmpty { try adopt(text) }
        }
        isNegotiated = true
        var writer = ByteWriter()
        writer.u16(0)
        writer.u16(min(minor, 1))
        writer.raw(Self.capabilities.utf8)
        writer.raw([0])
        return CommandResult(body: writer.bytes)
    }

    private static let capabilities =
        "{\"capabilities\":{\"max_msg_fds\":\(VFIOUser.maxMessageFDs),"
        + "\"max_data_xfer_size\":\(VFIOUser.maxTransferByteCount),"
        + "\"max_dma_maps\":\(AddressSpace.maxRegions),\"pgsizes\":4096,"
        + "\"write_multiple\":true}}"

    private func adopt(_ text: [UInt8]) throws(CommandError) {
        guard let json = JSONParser.parse(text), case .object = json else {
            throw CommandError(EINVAL)
        }
        guard let limit = json["capabilities"]?["max_data_xfer_size"] else { return }
        guard let bytes = limit.unsigned, bytes >= 8 else { throw CommandError(EINVAL) }
        peerTransferByteCount = min(Int(clamping: bytes), VFIOUser.maxTransferByteCount)
    }

    // MARK: Regions

    private func deviceInfo(_ body: ByteReader) throws(CommandError) -> CommandResult {
        guard let argsz = body.u32(0), argsz >= 16 else { throw CommandError(EINVAL) }
        var writer = ByteWriter()
        // VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI
        for value in [16, 3, VFIOUser.regionCount, VFIOUser.irqCount] { writer.u32(value) }
        return CommandResult(body: writer.bytes)
    }

    private func regionInfo(_ body: ByteReader) throws(CommandError) -> CommandResult {
        guard let argsz = body.u32(0), argsz >= 32, let index = body.u32(8),
            index < VFIOUser.regionCount
        else { throw CommandError(EINVAL) }
        let size = device.regionByteCount(index)
        let options = device.options
        let isMappable = index == 0 && options.doorbells == .mapped
        let needed: UInt32 = isMappable ? 64 : 32
        let hasRoom = argsz >= needed
        var writer = ByteWriter()
        writer.u32(needed)
        // READ | WRITE, and for the doorbells MMAP | CAPS
        writer.u32(size == 0 ? 0 : isMappable ? (hasRoom ? 0xF : 0xB) : 3)
        writer.u32(index)
        writer.u32(isMappable && hasRoom ? 32 : 0)
        writer.u64(size)
        writer.u64(0)
        if isMappable && hasRoom {
            writer.u16(1)  // VFIO_REGION_INFO_CAP_SPARSE_MMAP
            writer.u16(1)
            writer.u32(0)
            writer.u32(1)
            writer.u32(0)
            writer.u64(options.unalignedSparseAreas ? 0x1008 : 0x1000)
            writer.u64(options.unalignedSparseAreas ? 0x0FF0 : 0x1000)
        }
        return CommandResult(
            body: writer.bytes, fd: isMappable ? device.registerFile.raw : -1)
    }

    private func regionIOFDs(_ body: ByteReader) throws(CommandError) -> CommandResult {
        guard let argsz = body.u32(0), argsz >= 16, let flags = body.u32(4), flags == 0,
            let index = body.u32(8), index < VFIOUser.regionCount
        else { throw CommandError(EINVAL) }
        var writer = ByteWriter()
        // No region has any.
        for value in [16, 0, index, 0] { writer.u32(value) }
        return CommandResult(body: writer.bytes)
    }

    private func regionRead(_ body: ByteReader) throws(CommandError) -> CommandResult {
        guard let offset = body.u64(0), let region = body.u32(8), let count = body.u32(12),
            count <= UInt32(VFIOUser.maxTransferByteCount),
            let bytes = device.read(region, offset, count)
        else { throw CommandError(EINVAL) }
        var writer = ByteWriter()
        writer.raw(body.bytes.prefix(16))
        writer.raw(bytes)
        return CommandResult(body: writer.bytes)
    }

    private func regionWrite(_ body: ByteReader) throws(CommandError) -> CommandResult {
        guard let offset = body.u64(0), let region = body.u32(8), let count = body.u32(12),
            body.count == 16 + Int(count)
        else { throw CommandError(EINVAL) }
        let error = device.write(region, offset, body.rest(16))
        guard error == 0 else { throw CommandError(error) }
        return CommandResult(body: Array(body.bytes.prefix(16)))
    }

    private func regionWriteMulti(_ body: ByteReader) throws(CommandError) -> CommandResult {
        guard let count = body.u64(0), count <= 512, body.count == 8 + Int(count) * 24 else {
            throw CommandError(EINVAL)
        }
        for index in 0..<Int(count) {
            let at = 8 + index * 24
            guard let offset = body.u64(at), let region = body.u32(at + 8),
                let width = body.u32(at + 12), width <= 8
            else { throw CommandError(EINVAL) }
            let error = device.write(
                region, offset, body.rest(at + 16).prefix(Int(width)))
            guard error == 0 else { throw CommandError(error) }
        }
        var writer = ByteWriter()
        writer.u64(count)
        return CommandResult(body: writer.bytes)
    }

    // MARK: DMA by message

    private func remoteRead(
        _ address: UInt64, _ target: UnsafeMutableRawPointer, _ byteCount: Int
    ) -> Bool {
        var done = 0
        while done < byteCount {
            let count = min(byteCount - done, peerTransferByteCount)
            let at = address &+ UInt64(done)
            let into = unsafe target + done
            guard
                exchange(
                    .dmaRead, at, count, payload: [],
                    reply: { reply in
                        guard reply.count == 16 + count else { return false }
                        return unsafe reply.rest(16).withUnsafeBytes {
                            guard let base = $0.baseAddress else { return false }
                            unsafe memcpy(into, base, count)
                            return true
                        }
                    })
            else { return false }
            done += count
        }
        return true
    }

    private func remoteWrite(
        _ address: UInt64, _ source: UnsafeRawPointer, _ byteCount: Int
    ) -> Bool {
        var done = 0
        while done < byteCount {
            let count = min(byteCount - done, peerTransferByteCount)
            let payload = unsafe Array(
                UnsafeRawBufferPointer(start: source + done, count: count))
            guard
                exchange(
                    .dmaWrite, address &+ UInt64(done), count, payload: payload,
                    reply: { $0.count >= 8 })
            else { return false }
            done += count
        }
        return true
    }

    /// Sends a command to the client and waits for its reply, while taking in whatever else
    /// arrives.
    private func exchange(
        _ command: VFIOUserCommand, _ address: UInt64, _ count: Int, payload: [UInt8],
        reply accept: (ByteReader) -> Bool
    ) -> Bool {
        guard nestedEnd == nil else { return false }
        controller.counters.dmaMessages &+= 1
        nextCommandID &+= 1
        let id = nextCommandID
        var writer = ByteWriter()
        writer.u64(address)
        writer.u64(UInt64(count))
        writer.raw(payload)
        do throws(StreamEnd) {
            try stream.command(
                MessageHeader(id: id, command: command.rawValue), writer.bytes)
            return try awaitReply(id, command, accept)
        } catch {
            nestedEnd = error
            return false
        }
    }

    private func awaitReply(
        _ id: UInt16, _ command: VFIOUserCommand, _ accept: (ByteReader) -> Bool
    ) throws(StreamEnd) -> Bool {
        let deadline =
            MonotonicClock.nowNanoseconds &+ Self.dmaReplyMilliseconds &* 1_000_000
        while true {
            try stream.flush()
            if var message = try stream.receive() {
                let header = message.header
                if header.isReply, header.id == id, header.command == command.rawValue {
                    let isError = header.flags & VFIOUser.flagError != 0
                    return !isError && accept(ByteReader(message.body))
                }
                try takeIn(header, message.body, &message.fds)
                continue
            }
            let now = MonotonicClock.nowNanoseconds
            guard now < deadline else { throw .broken("\(command) was not answered") }
            let due = min(deadline, stream.nextDeadline.map { max($0, now) } ?? deadline)
            var entry = nv_poll_entry(
                fd: stream.fd.raw, events: NV_POLLIN | (stream.wantsWritable ? NV_POLLOUT : 0),
                revents: 0)
            _ = unsafe nv_poll_many(&entry, 1, Int64(clamping: due - now))
        }
    }

    /// A command in the middle of another: doorbells and register reads are harmless, the rest has
    /// to wait, and everything after it, to keep the order.
    private func takeIn(
        _ header: MessageHeader, _ body: ArraySlice<UInt8>, _ fds: inout IncomingFDs
    ) throws(StreamEnd) {
        if deferred.isEmpty, isHarmless(header, ByteReader(body)) {
            return try handle(header, body, &fds)
        }
        guard header.isCommand else { return }
        guard deferred.count < Self.maxDeferred else {
            throw .broken("more than \(Self.maxDeferred) commands during a DMA exchange")
        }
        let taken = fds
        fds = IncomingFDs([])
        deferred.append(
            UniqueBox(DeferredMessage(header: header, body: Array(body), fds: taken)))
    }

    private func isHarmless(_ header: MessageHeader, _ body: ByteReader) -> Bool {
        guard body.u32(8) == 0 else { return false }
        switch VFIOUserCommand(rawValue: header.command) {
        case .regionRead: return true
        case .regionWrite: return Controller.isDoorbell(body.u64(0) ?? 0)
        default: return false
        }
    }
}

/// Holds something that cannot be copied, so that an array can hold it.
final class UniqueBox<Value: ~Copyable> {
    private var value: Value?

    init(_ value: consuming Value) { self.value = consume value }

    /// Takes the content out; nil the second time.
    func take() -> Value? { value.take() }
}
