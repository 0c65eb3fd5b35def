// SPDX-License-Identifier: Apache-2.0
// The vfio-user client: a PCI device that another process serves over a Unix socket (vfio-user
// specification 0.9.2).

internal import CLinux
internal import Glibc
public import Linux

/// A device behind the vfio-user protocol.
@safe
public final class VFIOUserDevice: DeviceBacking {
    /// The bound on each answer of the server. A server that needs longer is taken for dead.
    public static let answerMilliseconds = 5_000
    /// Messages of the server that are handled in one go, so that a flood starves nobody.
    private static let messagesPerTurn = 64
    /// Registers and doorbells beyond this are never mapped: 2 × 65536 queues × 4 bytes and the
    /// registers.
    private static let maxMappableByteCount: UInt64 = 1 << 20
    /// Windows a device may have at one time.
    private static let maxWindows = 4096

    /// What the device is, as configured.
    public let name: String
    /// How many MSI-X vectors the device has.
    public private(set) var vectorCount = 0

    private var connection: VFIOUserConnection
    private let sender: VFIOUserSender
    private var registerByteCount: UInt64 = 0
    private var mappings: [MappedArea] = []
    private var windows: [DMAWindow] = []
    private var failure: VFIOError?
    /// The descriptor of the last answer.
    private var answerFD: OwnedFD?
    private var log: VFIOUserLog { connection.log }
    /// A predecessor made the connection.
    private let isAdopted: Bool
    /// The server may know windows from an earlier connection: it keeps its state when a client
    /// goes.
    public var mayHaveMappings = false

    /// Connects to the server at `path` and learns what the device has. `generation` rises with
    /// each process that uses the connection.
    public init(path: String, name: String, generation: UInt64 = 0) throws(VFIOError) {
        self.name = name
        isAdopted = false
        do throws(SystemCallError) {
            connection = try VFIOUserConnection(
                fd: try UnixSocket.connect(path, kind: .stream, nonblocking: true),
                log: VFIOUserLog(), generation: generation)
            sender = connection.sender
        } catch {
            throw .system(error)
        }
        try negotiate()
        try learnDevice()
    }

    /// Takes over the connection of a predecessor that died, and its log (`kept`). The server is
    /// asked nothing before `checkAdoptable`, for it may itself ask for the memory that
    /// `adoptWindow` tells of.
    public init(
        adopting socket: consuming OwnedFD, log: consuming OwnedFD, name: String,
        generation: UInt64
    ) throws(VFIOError) {
        self.name = name
        isAdopted = true
        do throws(SystemCallError) {
            connection = try VFIOUserConnection(
                fd: socket, log: VFIOUserLog(adopting: log), generation: generation)
            sender = connection.sender
        } catch {
            throw .system(error)
        }
    }

    deinit { for area in mappings { area.unmap() } }

    /// The descriptors that a successor needs, with the names they are stored under.
    public var kept: [(name: String, raw: CInt)] {
        [("vfio-user", connection.fd.raw), ("vfio-user-log", log.fd.raw)]
    }

    /// Ends the connection, whoever else holds it: the server lets go of all memory.
    public func disconnect() {
        UnixSocket.shutdown(connection.fd)
        _ = fail(.gone("the connection was ended"))
    }

    // MARK: Going on with a predecessor's connection

    /// The server knows it already.
    public func adoptWindow(_ window: DMAWindow) throws(VFIOError) {
        guard isAdopted else { throw Self.notAdopted }
        guard windows.count < Self.maxWindows else { throw Self.tooManyWindows }
        windows.append(window)
    }

    /// Reads on where the predecessor stopped, learns again what the device has, and looks whether
    /// it may touch memory.
    public func checkAdoptable() throws(VFIOError) {
        guard isAdopted else { throw Self.notAdopted }
        guard !log.isInMessage else {
            throw .unsupported("the predecessor died in the middle of a message of the server's")
        }
        try learnDevice()
        let command = try readRegion(VFIOUser.regionConfig, offset: 4, byteCount: 4) & 0xFFFF
        guard command & 0x6 == 0x6 else {
            throw .unsupported(
                "the command register is 0x\(String(command, radix: 16)): the device was reset, or "
                    + "kept from touching memory")
        }
    }

    private static let notAdopted = VFIOError.unsupported("the connection is not a predecessor's")
    private static let tooManyWindows = VFIOError.unsupported(
        "more than \(maxWindows) DMA windows")

    // MARK: Bring-up of the connection

    private func negotiate() throws(VFIOError) {
        var body = ByteWriter()
        body.u16(0)
        body.u16(1)
        let offer =
            "{\"capabilities\":{\"max_msg_fds\":1,\"max_data_xfer_size\":"
            + "\(VFIOUser.maxTransferByteCount),\"pgsizes\":4096}}"
        body.raw(offer.utf8)
        body.raw([0])
        let answer = try request(VFIOUserCommand.version, body.bytes)
        let reader = ByteReader(answer)
        guard let major = reader.u16(0), reader.u16(2) != nil else {
            throw .protocolViolation(operation: "VERSION", detail: "\(answer.count) bytes")
        }
        guard major == 0 else { throw .unsupported("vfio-user version \(major), we speak 0") }
        // What we transfer is one register: 8 bytes at most.
        if let limit = Self.number(after: "\"max_data_xfer_size\"", in: answer.dropFirst(4)),
            limit < 8
        {
            throw .unsupported("max_data_xfer_size \(limit)")
        }
    }

    private func learnDevice() throws(VFIOError) {
        var body = ByteWriter()
        for value: UInt32 in [16, 0, 0, 0] { body.u32(value) }
        let info = ByteReader(try request(VFIOUserCommand.deviceGetInfo, body.bytes))
        guard let regions = info.u32(8), let irqs = info.u32(12) else {
            throw .protocolViolation(operation: "DEVICE_GET_INFO", detail: "short answer")
        }
        guard regions > VFIOUser.regionConfig, irqs > VFIOUser.irqMSIX else {
            throw .unsupported("the server's device is no PCI device (\(regions) regions)")
        }
        try learnRegisters()
        var query = ByteWriter()
        for value: UInt32 in [16, 0, VFIOUser.irqMSIX, 0] { query.u32(value) }
        let irq = ByteReader(try request(VFIOUserCommand.deviceGetIRQInfo, query.bytes))
        guard let count = irq.u32(12) else {
            throw .protocolViolation(operation: "DEVICE_GET_IRQ_INFO", detail: "short answer")
        }
        // A PCI function has at most 2048 vectors (PCI Express Base 5.0, 7.7.2.2).
        vectorCount = Int(min(count, 2048))
    }

    private func learnRegisters() throws(VFIOError) {
        var body = ByteWriter()
        for value: UInt32 in [4096, 0, VFIOUser.regionBAR0, 0] { body.u32(value) }
        body.u64(0)
        body.u64(0)
        let answer = try request(VFIOUserCommand.deviceGetRegionInfo, body.bytes)
        let reader = ByteReader(answer)
        guard let flags = reader.u32(4), let size = reader.u64(16), let offset = reader.u64(24)
        else {
            throw .protocolViolation(operation: "DEVICE_GET_REGION_INFO", detail: "short answer")
        }
        guard size >= 0x1008 else { throw .unsupported("BAR0 of \(size) bytes is no NVMe BAR") }
        registerByteCount = size
        guard flags & VFIOUser.regionFlagMmap != 0, let fd = answerFD.take() else { return }
        let areas = Self.sparseAreas(answer, flags: flags) ?? [(0, size)]
        for (areaOffset, areaSize) in areas {
            mapArea(fd, regionOffset: offset, areaOffset, areaSize)
        }
    }

    /// The areas of a sparse mmap capability, nil when there is none. At most 64, a chain of at
    /// most 16 capabilities.
    private static func sparseAreas(_ body: [UInt8], flags: UInt32) -> [(UInt64, UInt64)]? {
        let reader = ByteReader(body)
        guard flags & VFIOUser.regionFlagCaps != 0, var at = reader.u32(12) else { return nil }
        for _ in 0..<16 where at != 0 {
            guard let id = reader.u16(Int(at)), let next = reader.u32(Int(at) + 4) else {
                return nil
            }
            if id == VFIOUser.capabilitySparseMmap {
                let count = Int(min(reader.u32(Int(at) + 8) ?? 0, 64))
                var areas: [(UInt64, UInt64)] = []
                for index in 0..<count {
                    let entry = Int(at) + 16 + 16 * index
                    guard let offset = reader.u64(entry), let size = reader.u64(entry + 8) else {
                        break
                    }
                    areas.append((offset, size))
                }
                return areas
            }
            at = next
        }
        return nil
    }

    /// Maps the whole pages of one area; an area that is not page aligned is used as far as whole
    /// pages go, and one that cannot be mapped is read and written by message.
    private func mapArea(
        _ fd: borrowing OwnedFD, regionOffset: UInt64, _ areaOffset: UInt64, _ areaSize: UInt64
    ) {
        let end = areaOffset.addingReportingOverflow(areaSize)
        guard !end.overflow, end.partialValue <= registerByteCount else { return }
        let limit = min(end.partialValue, Self.maxMappableByteCount) & ~0xFFF
        let first = areaOffset.addingReportingOverflow(0xFFF)
        guard !first.overflow, first.partialValue & ~0xFFF < limit else { return }
        let start = first.partialValue & ~0xFFF
        let fileOffset = regionOffset.addingReportingOverflow(start)
        guard !fileOffset.overflow, let position = Int64(exactly: fileOffset.partialValue),
            position & 0xFFF == 0,
            // A mapping beyond the file's end would be a SIGBUS in waiting.
            let fileSize = try? MemFD.byteCount(of: fd),
            fileSize >= 0, UInt64(fileSize) >= fileOffset.partialValue + (limit - start),
            let mapping = try? Mapping(fd, offset: position, byteCount: Int(limit - start))
        else { return }
        mappings.append(MappedArea(offset: Int(start), mapping: mapping))
    }

    // MARK: Registers

    /// The address of mapped BAR0 bytes, or nil.
    public func mappedRegisters(offset: Int, byteCount: Int) -> UnsafeMutableRawPointer? {
        for area in mappings where area.offset <= offset {
            if offset - area.offset <= area.byteCount - byteCount {
                return unsafe area.base + (offset - area.offset)
            }
        }
        return nil
    }

    /// Reads 4 or 8 bytes of BAR0 by message.
    public func readRegister(offset: Int, byteCount: Int) throws(VFIOError) -> UInt64 {
        try readRegion(VFIOUser.regionBAR0, offset: offset, byteCount: byteCount)
    }

    /// Writes 4 or 8 bytes of BAR0 by message and waits for the answer.
    public func writeRegister(offset: Int, byteCount: Int, value: UInt64) throws(VFIOError) {
        try writeRegion(
            VFIOUser.regionBAR0, offset: offset, byteCount: byteCount, value: value, reply: true)
    }

    /// Writes a doorbell by a message that wants no answer.
    public func writeDoorbell(offset: Int, value: UInt32) throws(VFIOError) {
        try writeRegion(
            VFIOUser.regionBAR0, offset: offset, byteCount: 4, value: UInt64(value), reply: false)
    }

    private func readRegion(
        _ region: UInt32, offset: Int, byteCount: Int
    ) throws(VFIOError) -> UInt64 {
        var body = ByteWriter()
        body.u64(UInt64(offset))
        body.u32(region)
        body.u32(UInt32(byteCount))
        let answer = ByteReader(try request(VFIOUserCommand.regionRead, body.bytes))
        guard answer.u32(12) == UInt32(byteCount),
            let value = byteCount == 8 ? answer.u64(16) : answer.u32(16).map(UInt64.init)
        else { throw fail(.protocolViolation(operation: "REGION_READ", detail: "short answer")) }
        return value
    }

    private func writeRegion(
        _ region: UInt32, offset: Int, byteCount: Int, value: UInt64, reply: Bool
    ) throws(VFIOError) {
        var body = ByteWriter()
        body.u64(UInt64(offset))
        body.u32(region)
        body.u32(UInt32(byteCount))
        if byteCount == 8 { body.u64(value) } else { body.u32(UInt32(truncatingIfNeeded: value)) }
        guard reply else {
            try post(VFIOUserCommand.regionWrite, body.bytes, flags: VFIOUser.flagNoReply)
            return
        }
        _ = try request(VFIOUserCommand.regionWrite, body.bytes)
    }

    /// Whether a server goes on without its client is for the server to say.
    public var reasonLostByClosing: String? { nil }

    /// Vendor and device, as the server's configuration space has them.
    public var pciID: PCIDeviceID? {
        guard let word = try? readRegion(VFIOUser.regionConfig, offset: 0, byteCount: 4) else {
            return nil
        }
        return PCIDeviceID(UInt32(truncatingIfNeeded: word))
    }

    /// Sets memory space enable and interrupt disable in the command register (PCI Local Bus 3.0,
    /// 6.2.2).
    public func enableMemorySpace() throws(VFIOError) { try setCommand(0x2 | 0x400) }

    /// Sets bus master enable in the command register.
    public func enableBusMaster() throws(VFIOError) { try setCommand(0x4) }

    private func setCommand(_ bits: UInt64) throws(VFIOError) {
        let command = try readRegion(VFIOUser.regionConfig, offset: 4, byteCount: 4)
        // The upper half is the status register, whose bits a 1 would clear.
        try writeRegion(
            VFIOUser.regionConfig, offset: 4, byteCount: 4, value: (command & 0xFFFF) | bits,
            reply: true)
    }

    // MARK: Memory, interrupts, reset

    /// Tells the server about memory, with its descriptor.
    public func map(
        _ window: DMAWindow, fd: borrowing OwnedFD, offset: UInt64
    ) throws(VFIOError) {
        guard windows.count < Self.maxWindows else { throw Self.tooManyWindows }
        var body = ByteWriter()
        body.u32(32)
        body.u32(window.access == .deviceReads ? 1 : 3)
        body.u64(offset)
        body.u64(window.iova)
        body.u64(window.byteCount)
        // Known before the server may use it, so that a DMA_READ that overtakes the answer finds
        // it.
        windows.append(window)
        do throws(VFIOError) {
            _ = try request(VFIOUserCommand.dmaMap, body.bytes, fds: [fd.raw])
        } catch {
            windows.removeAll { $0.iova == window.iova }
            throw error
        }
    }

    /// Takes memory away again; the server confirms that it lets go.
    public func unmap(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        var body = ByteWriter()
        body.u32(24)
        body.u32(0)
        body.u64(iova)
        body.u64(byteCount)
        // Whatever the server says, it reaches this memory through us no more.
        defer { windows.removeAll { $0.iova == iova } }
        _ = try request(VFIOUserCommand.dmaUnmap, body.bytes)
    }

    /// Takes memory away, when the server knows it.
    public func unmapIfMapped(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        do throws(VFIOError) {
            try unmap(iova: iova, byteCount: byteCount)
        } catch {
            guard case .refused(_, ENOENT) = error else { throw error }
        }
    }

    /// Takes away what this process or a predecessor told the server of. Servers that cannot forget
    /// everything at once are told of each window that is known.
    public func forgetMappings() throws(VFIOError) {
        guard isAdopted || mayHaveMappings || !windows.isEmpty else { return }
        if vectorCount == 0 { try learnDevice() }
        var body = ByteWriter()
        // VFIO_DMA_UNMAP_FLAG_ALL
        for value: UInt32 in [24, 2] { body.u32(value) }
        for value: UInt64 in [0, 0] { body.u64(value) }
        do throws(VFIOError) {
            _ = try request(VFIOUserCommand.dmaUnmap, body.bytes)
        } catch {
            guard case .refused = error else { throw error }
            for window in windows {
                try unmapIfMapped(iova: window.iova, byteCount: window.byteCount)
            }
        }
        windows.removeAll()
    }

    /// Hands an eventfd for each vector 0… to the server, one message each (servers bound the
    /// descriptors of a message).
    public func connectInterrupts(_ eventFDs: [CInt]) throws(VFIOError) {
        for (vector, fd) in eventFDs.enumerated() {
            var body = ByteWriter()
            // DATA_EVENTFD | ACTION_TRIGGER
            for value: UInt32 in [20, 4 | 32, VFIOUser.irqMSIX, UInt32(vector), 1] {
                body.u32(value)
            }
            _ = try request(VFIOUserCommand.deviceSetIRQs, body.bytes, fds: [fd])
        }
    }

    /// Resets the function.
    public func resetDevice() throws(VFIOError) {
        _ = try request(VFIOUserCommand.deviceReset, [])
    }

    // MARK: Messages

    /// The socket: readable when the server asks for something or died.
    public var eventDescriptors: [EventDescriptor] { [EventDescriptor(raw: connection.fd.raw)] }

    /// Answers what the server asks, without waiting.
    public func handleEvents() throws(VFIOError) -> [DeviceNotice] {
        for _ in 0..<Self.messagesPerTurn {
            guard let message = try next(deadline: 0) else { break }
            try handle(message)
        }
        return []
    }

    /// Waits for an interrupt while answering the server.
    public func wait(interrupt: CInt, milliseconds: Int) throws(VFIOError) {
        _ = try handleEvents()
        var descriptors = [
            pollfd(fd: interrupt, events: Int16(POLLIN), revents: 0),
            pollfd(fd: connection.fd.raw, events: Int16(POLLIN), revents: 0),
        ]
        _ = unsafe poll(&descriptors, 2, CInt(clamping: milliseconds))
        if descriptors[1].revents != 0 { _ = try handleEvents() }
    }

    private static func message(
        _ command: UInt16, id: UInt16, _ body: [UInt8], flags: UInt32, error: UInt32 = 0
    ) -> [UInt8] {
        var writer = ByteWriter()
        writer.u16(id)
        writer.u16(command)
        writer.u32(UInt32(VFIOUser.headerByteCount + body.count))
        writer.u32(flags)
        writer.u32(error)
        return writer.bytes + body
    }

    /// Sends a message with an id of its own, which it returns. May be called on any thread.
    @discardableResult
    private func post(
        _ command: UInt16, _ body: [UInt8], flags: UInt32, fds: [CInt] = []
    ) throws(VFIOError) -> UInt16 {
        try sender.send(
            fds: fds, deadline: Self.deadline(), operation: VFIOUserCommand.name(command)
        ) { Self.message(command, id: $0, body, flags: flags) }
    }

    /// Sends a command and waits for its answer, serving the server's own requests meanwhile. A
    /// descriptor that comes along is `answerFD`.
    private func request(
        _ command: UInt16, _ body: [UInt8], fds: [CInt] = []
    ) throws(VFIOError) -> [UInt8] {
        if let failure { throw failure }
        let operation = VFIOUserCommand.name(command)
        let deadline = Self.deadline()
        let id: UInt16
        do throws(VFIOError) {
            id = try post(command, body, flags: 0, fds: fds)
        } catch {
            throw fail(error)
        }
        while MonotonicClock.nowNanoseconds < deadline {
            guard let message = try next(deadline: deadline) else { break }
            guard message.isReply, message.id == id else {
                try handle(message)
                continue
            }
            answerFD = try take(message)
            guard message.command == command else {
                throw fail(
                    .protocolViolation(
                        operation: operation, detail: "answered as \(message.command)"))
            }
            guard !message.isError else {
                throw .refused(operation: operation, errno: Int32(clamping: message.error))
            }
            return message.body
        }
        // The answer may still come and would be taken for another's: the connection is of no more
        // use.
        throw fail(.timedOut(operation: operation, milliseconds: Self.answerMilliseconds))
    }

    /// The next message, which stays on the socket until it is taken.
    private func next(deadline: UInt64) throws(VFIOError) -> VFIOUserMessage? {
        if let failure { throw failure }
        do throws(VFIOError) {
            return try connection.next(deadline: deadline)
        } catch {
            throw fail(error)
        }
    }

    private func take(_ message: VFIOUserMessage) throws(VFIOError) -> OwnedFD? {
        do throws(VFIOError) {
            defer { log.finish() }
            return try connection.take(message)
        } catch {
            throw fail(error)
        }
    }

    private func fail(_ error: VFIOError) -> VFIOError {
        if failure == nil { failure = error }
        return error
    }

    /// Acts on a message, answers it, and takes it off the socket.
    private func handle(_ message: VFIOUserMessage) throws(VFIOError) {
        // A reply that nobody waits for is a refused posted write's, or a predecessor's. The
        // device's state tells the rest.
        if !message.isReply {
            switch message.command {
            case VFIOUserCommand.dmaRead: try serveDMA(message, deviceWrites: false)
            case VFIOUserCommand.dmaWrite: try serveDMA(message, deviceWrites: true)
            default: try answer(message, [], error: UInt32(ENOTSUP))
            }
        }
        _ = try take(message)
    }

    private func answer(
        _ message: VFIOUserMessage, _ body: [UInt8], error: UInt32 = 0
    ) throws(VFIOError) {
        guard message.flags & VFIOUser.flagNoReply == 0 else { return }
        let flags = VFIOUser.flagReply | (error == 0 ? 0 : VFIOUser.flagError)
        let (command, id) = (message.command, message.id)
        do throws(VFIOError) {
            _ = try sender.send(
                fds: [], deadline: Self.deadline(), operation: VFIOUserCommand.name(command),
                answering: id
            ) { Self.message(command, id: $0, body, flags: flags, error: error) }
        } catch {
            throw fail(error)
        }
    }

    /// DMA by message: the server reads or writes a window through us. It reaches the windows and
    /// nothing else.
    private func serveDMA(_ message: VFIOUserMessage, deviceWrites: Bool) throws(VFIOError) {
        let reader = ByteReader(message.body)
        guard let address = reader.u64(0), let count = reader.u64(8), count > 0,
            count <= UInt64(VFIOUser.maxTransferByteCount),
            !deviceWrites || UInt64(message.body.count) >= 16 + count,
            let pointer = unsafe locate(address, count, writable: deviceWrites)
        else { return try answer(message, [], error: UInt32(EFAULT)) }
        var reply = Array(message.body[0..<16])
        if deviceWrites {
            if log.begin(message.id, address: address, count: count) {
                unsafe message.body.withUnsafeBytes { bytes in
                    if let source = bytes.baseAddress {
                        unsafe memcpy(pointer, source + 16, Int(count))
                    }
                }
                log.isWritten()
            }
        } else {
            let bytes = unsafe UnsafeRawBufferPointer(start: pointer, count: Int(count))
            unsafe reply.append(contentsOf: bytes)
        }
        try answer(message, reply)
    }

    private func locate(
        _ address: UInt64, _ count: UInt64, writable: Bool
    ) -> UnsafeMutableRawPointer? {
        for window in windows where address >= window.iova {
            let offset = address - window.iova
            guard offset < window.byteCount, count <= window.byteCount - offset else { continue }
            guard !writable || window.access == .deviceReadsAndWrites else { return nil }
            return unsafe UnsafeMutableRawPointer(bitPattern: window.base + UInt(offset))
        }
        return nil
    }

    private static func deadline() -> UInt64 {
        MonotonicClock.nowNanoseconds + UInt64(answerMilliseconds) * 1_000_000
    }

    /// The unsigned number that follows a key in JSON text: all we need of the server's
    /// capabilities.
    private static func number(after key: String, in text: ArraySlice<UInt8>) -> Int? {
        let pattern = Array(key.utf8)
        guard text.count > pattern.count else { return nil }
        for start in text.startIndex...(text.endIndex - pattern.count)
        where text[start..<(start + pattern.count)].elementsEqual(pattern) {
            var value: Int?
            for byte in text[(start + pattern.count)...] {
                if byte >= 0x30, byte <= 0x39 {
                    let (scaled, overflow) = (value ?? 0).multipliedReportingOverflow(by: 10)
                    guard !overflow, scaled < Int.max - 9 else { return nil }
                    value = scaled + Int(byte - 0x30)
                } else if value != nil || (byte != 0x20 && byte != 0x3A) {
                    return value
                }
            }
            return value
        }
        return nil
    }
}

/// A mapped stretch of BAR0. Lives as long as its device.
@safe
private struct MappedArea {
    let offset: Int
    let byteCount: Int
    let base: UnsafeMutableRawPointer
    private let guardNumber: CInt

    init(offset: Int, mapping: consuming Mapping) {
        self.offset = offset
        byteCount = mapping.byteCount
        unsafe base = mapping.leak()
        // The server may truncate its file at any time: doorbells then go nowhere, and commands
        // time out.
        guardNumber = unsafe nv_guard_add(base, byteCount, 4096)
    }

    func unmap() {
        nv_guard_remove(guardNumber)
        unsafe Mapping.unmap(base, byteCount: byteCount)
    }
}
