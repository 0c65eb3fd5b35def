// SPDX-License-Identifier: Apache-2.0
// The session protocol as protobuf (Proto/session.proto).

internal import CProtobufC
internal import CWire

extension SessionProtocol {
    /// Reads and writes carry data.
    public static var hasPayload: Bool { true }

    /// One descriptor comes with registered memory, three with a ring.
    public static func fdCount(of content: Content<SessionProtocol>) -> Int {
        switch content {
        case .request(.registerMemory): 1
        case .reply(.ringOpened): 3
        case .request, .reply, .event, .failure: 0
        }
    }

    /// Reads an envelope without its payload.
    public static func read(
        _ head: UnsafeRawBufferPointer, arena: MessageArena
    ) throws(Rejection) -> (envelope: Envelope<SessionProtocol>, fdCount: UInt32) {
        var id: UInt64 = 0
        do throws(WireError) {
            return try unsafe arena.withAllocator { allocator throws(WireError) in
                guard
                    let c = unsafe nvmed__v1__session_envelope__unpack(
                        allocator, head.count, head.bindMemory(to: UInt8.self).baseAddress)
                else { throw Field.malformed }
                id = unsafe c.pointee.request_id
                try unsafe Field.checkVersion(c.pointee.has_version, c.pointee.version)
                let envelope = Envelope<SessionProtocol>(
                    requestID: id,
                    deadlineNanoseconds: unsafe Field.optional(
                        c.pointee.has_deadline_ns, c.pointee.deadline_ns),
                    content: try unsafe content(of: c))
                return (envelope, unsafe c.pointee.fd_count)
            }
        } catch { throw Rejection(id, error) }
    }

    private static func content(
        of c: UnsafePointer<Nvmed__V1__SessionEnvelope>
    ) throws(WireError) -> Content<SessionProtocol> {
        if let error = unsafe c.pointee.error { return .failure(try unsafe WireError(error)) }
        if let request = try unsafe dataRequest(c) { return .request(request) }
        if let request = try unsafe otherRequest(c) { return .request(request) }
        if let reply = try unsafe reply(c) { return .reply(reply) }
        if let event = try unsafe event(c) { return .event(event) }
        throw unsafe Field.unknownBody(c.pointee.base)
    }

    private static func location(
        _ has: protobuf_c_boolean, _ region: UInt64, _ byteOffset: UInt64
    ) -> DataLocation {
        has != 0 ? .region(id: region, byteOffset: byteOffset) : .inline
    }

    private static func dataRequest(
        _ c: UnsafePointer<Nvmed__V1__SessionEnvelope>
    ) throws(WireError) -> SessionRequest? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__SESSION_ENVELOPE__BODY_READ:
            let m = try unsafe Field.need(c.pointee.read, "read").pointee
            return .read(
                lba: try unsafe Field.need(m.has_lba, m.lba, "read.lba"),
                blockCount: try unsafe Field.need(
                    m.has_block_count, m.block_count, "read.block_count"),
                location: unsafe location(m.has_region_id, m.region_id, m.region_offset))
        case NVMED__V1__SESSION_ENVELOPE__BODY_WRITE:
            let m = try unsafe Field.need(c.pointee.write, "write").pointee
            return .write(
                lba: try unsafe Field.need(m.has_lba, m.lba, "write.lba"),
                blockCount: try unsafe Field.need(
                    m.has_block_count, m.block_count, "write.block_count"),
                fua: unsafe m.fua != 0,
                location: unsafe location(m.has_region_id, m.region_id, m.region_offset))
        case NVMED__V1__SESSION_ENVELOPE__BODY_COMPARE:
            let m = try unsafe Field.need(c.pointee.compare, "compare").pointee
            return .compare(
                lba: try unsafe Field.need(m.has_lba, m.lba, "compare.lba"),
                blockCount: try unsafe Field.need(
                    m.has_block_count, m.block_count, "compare.block_count"),
                location: unsafe location(m.has_region_id, m.region_id, m.region_offset))
        case NVMED__V1__SESSION_ENVELOPE__BODY_FLUSH: return .flush
        case NVMED__V1__SESSION_ENVELOPE__BODY_UNMAP:
            return .unmap(try unsafe ranges(Field.need(c.pointee.unmap, "unmap")))
        case NVMED__V1__SESSION_ENVELOPE__BODY_WRITE_ZEROES:
            let m = try unsafe Field.need(c.pointee.write_zeroes, "write_zeroes").pointee
            let range = BlockRange(
                lba: try unsafe Field.need(m.has_lba, m.lba, "write_zeroes.lba"),
                blockCount: try unsafe Field.need(
                    m.has_block_count, m.block_count, "write_zeroes.block_count"))
            return unsafe .writeZeroes(range, deallocate: m.deallocate != 0, fua: m.fua != 0)
        case NVMED__V1__SESSION_ENVELOPE__BODY_VERIFY:
            let m = try unsafe Field.need(c.pointee.verify, "verify").pointee
            return .verify(
                BlockRange(
                    lba: try unsafe Field.need(m.has_lba, m.lba, "verify.lba"),
                    blockCount: try unsafe Field.need(
                        m.has_block_count, m.block_count, "verify.block_count")))
        default: return nil
        }
    }

    private static func ranges(
        _ c: UnsafePointer<Nvmed__V1__Unmap>
    ) throws(WireError) -> [BlockRange] {
        let ranges = try unsafe Field.list(
            c.pointee.ranges, c.pointee.n_ranges, limit: WireLimits.unmapRangeCount, "unmap.ranges"
        ) { range throws(WireError) in
            BlockRange(
                lba: try unsafe Field.need(
                    range.pointee.has_lba, range.pointee.lba, "unmap.ranges.lba"),
                blockCount: try unsafe Field.need(
                    range.pointee.has_block_count, range.pointee.block_count,
                    "unmap.ranges.block_count"))
        }
        guard !ranges.isEmpty else {
            throw WireError(.invalidArgument, "there is no range", field: "unmap.ranges")
        }
        return ranges
    }

    private static func otherRequest(
        _ c: UnsafePointer<Nvmed__V1__SessionEnvelope>
    ) throws(WireError) -> SessionRequest? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__SESSION_ENVELOPE__BODY_GET_DISK_INFO: return .getDiskInfo
        case NVMED__V1__SESSION_ENVELOPE__BODY_CANCEL:
            let m = try unsafe Field.need(c.pointee.cancel, "cancel").pointee
            return .cancel(
                requestID: try unsafe Field.need(
                    m.has_target_request_id, m.target_request_id, "cancel.target_request_id"))
        case NVMED__V1__SESSION_ENVELOPE__BODY_REGISTER_MEMORY:
            let m = try unsafe Field.need(c.pointee.register_memory, "register_memory").pointee
            return .registerMemory(
                regionID: try unsafe Field.need(
                    m.has_region_id, m.region_id, "register_memory.region_id"),
                byteCount: try unsafe Field.need(
                    m.has_byte_count, m.byte_count, "register_memory.byte_count"),
                readOnly: unsafe m.read_only != 0, fileOffset: unsafe m.file_offset)
        case NVMED__V1__SESSION_ENVELOPE__BODY_UNREGISTER_MEMORY:
            let m = try unsafe Field.need(
                c.pointee.unregister_memory, "unregister_memory"
            ).pointee
            return .unregisterMemory(
                regionID: try unsafe Field.need(
                    m.has_region_id, m.region_id, "unregister_memory.region_id"))
        case NVMED__V1__SESSION_ENVELOPE__BODY_OPEN_RING:
            let m = try unsafe Field.need(c.pointee.open_ring, "open_ring").pointee
            let count = try unsafe Field.need(
                m.has_submission_entry_count, m.submission_entry_count,
                "open_ring.submission_entry_count")
            return .openRing(
                ringID: try unsafe Field.need(m.has_ring_id, m.ring_id, "open_ring.ring_id"),
                submissionEntryCount: count,
                completionEntryCount: unsafe Field.optional(
                    m.has_completion_entry_count, m.completion_entry_count) ?? count)
        case NVMED__V1__SESSION_ENVELOPE__BODY_CLOSE_RING:
            let m = try unsafe Field.need(c.pointee.close_ring, "close_ring").pointee
            return .closeRing(
                ringID: try unsafe Field.need(m.has_ring_id, m.ring_id, "close_ring.ring_id"))
        default: return nil
        }
    }

    private static func reply(
        _ c: UnsafePointer<Nvmed__V1__SessionEnvelope>
    ) throws(WireError) -> SessionReply? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__SESSION_ENVELOPE__BODY_DONE: .done
        case NVMED__V1__SESSION_ENVELOPE__BODY_READ_REPLY: .read
        case NVMED__V1__SESSION_ENVELOPE__BODY_DISK_INFO:
            .diskInfo(try unsafe DiskInfo(Field.need(c.pointee.disk_info, "disk_info")))
        case NVMED__V1__SESSION_ENVELOPE__BODY_CANCEL_REPLY:
            .cancelled(
                try unsafe Field.need(c.pointee.cancel_reply, "cancel_reply").pointee.cancelled != 0
            )
        case NVMED__V1__SESSION_ENVELOPE__BODY_RING_OPENED:
            try unsafe ringOpened(Field.need(c.pointee.ring_opened, "ring_opened").pointee)
        default: nil
        }
    }

    private static func ringOpened(
        _ m: Nvmed__V1__RingOpened
    ) throws(WireError) -> SessionReply {
        .ringOpened(
            ringID: try unsafe Field.need(m.has_ring_id, m.ring_id, "ring_opened.ring_id"),
            byteCount: try unsafe Field.need(
                m.has_byte_count, m.byte_count, "ring_opened.byte_count"))
    }

    private static func event(
        _ c: UnsafePointer<Nvmed__V1__SessionEnvelope>
    ) throws(WireError) -> SessionEvent? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__SESSION_ENVELOPE__BODY_DISK_CHANGED:
            let m = try unsafe Field.need(c.pointee.disk_changed, "disk_changed").pointee
            let change = unsafe UInt32(truncatingIfNeeded: m.change.rawValue)
            let info = unsafe m.info
            return .diskChanged(
                DiskChange(rawValue: change) ?? .unspecified,
                unsafe info == nil ? nil : try unsafe DiskInfo(Field.need(info, "info")))
        case NVMED__V1__SESSION_ENVELOPE__BODY_SESSION_STALLED:
            let m = try unsafe Field.need(c.pointee.session_stalled, "session_stalled")
            return .stalled(reason: unsafe Field.text(m.pointee.reason))
        case NVMED__V1__SESSION_ENVELOPE__BODY_SESSION_RESUMED:
            let m = try unsafe Field.need(c.pointee.session_resumed, "session_resumed")
            return .resumed(stalledNanoseconds: unsafe m.pointee.stalled_ns)
        case NVMED__V1__SESSION_ENVELOPE__BODY_SESSION_ENDED:
            let m = try unsafe Field.need(c.pointee.session_ended, "session_ended")
            return .ended(
                try unsafe WireError(Field.need(m.pointee.reason, "session_ended.reason")))
        default: return nil
        }
    }

    // MARK: Writing

    /// Writes the body's field.
    public static func write(
        _ content: Content<SessionProtocol>, into writer: inout MessageWriter
    ) {
        switch content {
        case .request(let request): write(request, &writer)
        case .reply(let reply): write(reply, &writer)
        case .event(let event): write(event, &writer)
        case .failure: break
        }
    }

    private static func write(_ location: DataLocation, _ first: UInt32, _ w: inout MessageWriter) {
        guard case .region(let id, let byteOffset) = location else { return }
        w.number(first, id)
        w.number(first + 1, byteOffset)
    }

    private static func write(_ range: BlockRange, _ w: inout MessageWriter) {
        w.number(1, range.lba)
        w.number(2, range.blockCount)
    }

    private static func write(_ request: SessionRequest, _ w: inout MessageWriter) {
        switch request {
        case .getDiskInfo: w.message(20) { _ in }
        case .read(let lba, let blockCount, let location):
            w.message(21) {
                $0.number(1, lba)
                $0.number(2, blockCount)
                write(location, 3, &$0)
            }
        case .write(let lba, let blockCount, let fua, let location):
            w.message(22) {
                $0.number(1, lba)
                $0.number(2, blockCount)
                $0.flag(3, fua)
                write(location, 4, &$0)
            }
        case .flush: w.message(23) { _ in }
        case .unmap(let ranges):
            w.message(24) { w in
                for range in ranges { w.message(1) { write(range, &$0) } }
            }
        case .writeZeroes(let range, let deallocate, let fua):
            w.message(25) {
                write(range, &$0)
                $0.flag(3, deallocate)
                $0.flag(4, fua)
            }
        case .compare(let lba, let blockCount, let location):
            w.message(26) {
                $0.number(1, lba)
                $0.number(2, blockCount)
                write(location, 3, &$0)
            }
        case .verify(let range): w.message(27) { write(range, &$0) }
        case .cancel(let requestID): w.message(28) { $0.number(1, requestID) }
        case .registerMemory(let regionID, let byteCount, let readOnly, let fileOffset):
            w.message(29) {
                $0.number(1, regionID)
                $0.number(2, byteCount)
                $0.flag(3, readOnly)
                if fileOffset != 0 { $0.number(4, fileOffset) }
            }
        case .unregisterMemory(let regionID): w.message(30) { $0.number(1, regionID) }
        case .openRing(let ringID, let submissionEntryCount, let completionEntryCount):
            w.message(31) {
                $0.number(1, ringID)
                $0.number(2, submissionEntryCount)
                $0.number(3, completionEntryCount)
            }
        case .closeRing(let ringID): w.message(32) { $0.number(1, ringID) }
        }
    }

    private static func write(_ reply: SessionReply, _ w: inout MessageWriter) {
        switch reply {
        case .done: w.message(60) { _ in }
        case .diskInfo(let info): w.message(61) { info.write(into: &$0) }
        case .read: w.message(62) { _ in }
        case .cancelled(let cancelled): w.message(63) { $0.flag(1, cancelled) }
        case .ringOpened(let ringID, let byteCount):
            w.message(64) {
                $0.number(1, ringID)
                $0.number(2, byteCount)
            }
        }
    }

    private static func write(_ event: SessionEvent, _ w: inout MessageWriter) {
        switch event {
        case .diskChanged(let change, let info):
            w.message(90) { w in
                w.number(1, change.rawValue)
                if let info { w.message(2) { info.write(into: &$0) } }
            }
        case .stalled(let reason): w.message(91) { $0.text(1, reason) }
        case .resumed(let nanoseconds): w.message(92) { $0.number(1, nanoseconds) }
        case .ended(let error):
            w.message(93) { w in w.message(1) { error.write(into: &$0) } }
        }
    }
}
