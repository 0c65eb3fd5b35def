// SPDX-License-Identifier: Apache-2.0
// Where protobuf-c decodes to: a piece of memory in proportion to the bytes, so that no section can
// make us allocate; and how fields are taken out of what it decoded.

internal import CProtobufC
internal import CWire

/// Decodes one message. Everything is copied out before the memory is given back.
@safe
struct Unpacking {
    @safe
    private struct State {
        var base: UnsafeMutableRawPointer
        var usedByteCount: Int
        var byteCount: Int
    }

    /// One of protobuf-c's functions: allocator, length, bytes.
    typealias Unpack<Message> = (
        UnsafeMutablePointer<ProtobufCAllocator>?, Int, UnsafePointer<UInt8>?
    ) -> UnsafeMutablePointer<Message>?

    /// Decodes a payload with `unpack` and reads it with `body`.
    static func read<Message, Value>(
        _ payload: ArraySlice<UInt8>, _ unpack: Unpack<Message>,
        _ body: (UnsafePointer<Message>) throws(FieldProblem) -> Value
    ) throws(FieldProblem) -> Value {
        // Within the limit of a section, so that the product cannot overflow.
        let budget =
            min(payload.count, SavedLimits.sectionByteCount) * SavedLimits.decodeFactor
            + SavedLimits.decodeBaseByteCount
        let base = UnsafeMutableRawPointer.allocate(byteCount: budget, alignment: 16)
        defer { unsafe base.deallocate() }
        var state = unsafe State(base: base, usedByteCount: 0, byteCount: budget)
        var allocator = unsafe ProtobufCAllocator(
            alloc: { context, byteCount in
                guard let state = unsafe context?.assumingMemoryBound(to: State.self),
                    unsafe byteCount <= state.pointee.byteCount
                else { return nil }
                // Within the budget, so neither sum can overflow.
                let start = unsafe state.pointee.usedByteCount
                let end = start + ((byteCount + 15) & ~15)
                guard unsafe end <= state.pointee.byteCount else { return nil }
                unsafe state.pointee.usedByteCount = end
                return unsafe state.pointee.base + start
            },
            // Nothing is freed before all is.
            free: { _, _ in }, allocator_data: nil)
        var result: Result<Value, FieldProblem> = .failure(
            FieldProblem("the payload", "is not protobuf, or too complex"))
        // SAFETY: neither the state nor the payload is used when the closures have returned.
        unsafe withUnsafeMutablePointer(to: &state) { state in
            unsafe allocator.allocator_data = UnsafeMutableRawPointer(state)
            unsafe payload.withUnsafeBufferPointer { bytes in
                guard let message = unsafe unpack(&allocator, bytes.count, bytes.baseAddress)
                else { return }
                do throws(FieldProblem) {
                    result = .success(try unsafe body(UnsafePointer(message)))
                } catch { result = .failure(error) }
            }
        }
        return try result.get()
    }
}

/// Readers of single fields; problems name the field.
enum SavedField {
    /// Bytes, bounded; absent are none.
    static func bytes(
        _ data: ProtobufCBinaryData, _ limit: Int, _ field: String
    ) throws(FieldProblem) -> [UInt8] {
        let count = unsafe data.len
        guard count <= limit else {
            throw FieldProblem(field, "has \(count) bytes; at most \(limit) go")
        }
        return unsafe Array(UnsafeBufferPointer(start: data.data, count: count))
    }

    /// Text: UTF-8 without NUL; absent is empty.
    static func text(
        _ data: ProtobufCBinaryData, _ field: String,
        limit: Int = SavedLimits.textByteCount
    ) throws(FieldProblem) -> String {
        let bytes = try unsafe bytes(data, limit, field)
        guard !bytes.contains(0), let text = String(validating: bytes, as: UTF8.self) else {
            throw FieldProblem(field, "is not UTF-8 without NUL")
        }
        return text
    }

    /// A page of a controller, to which the zeroes at its end are added; nil when it is absent.
    static func page(
        _ has: protobuf_c_boolean, _ data: ProtobufCBinaryData, _ field: String
    ) throws(FieldProblem) -> [UInt8]? {
        guard has != 0 else { return nil }
        let bytes = try unsafe bytes(data, SavedLimits.pageByteCount, field)
        return bytes + [UInt8](repeating: 0, count: SavedLimits.pageByteCount - bytes.count)
    }

    /// A number of 8 or 16 bits.
    static func narrow<Value: FixedWidthInteger & UnsignedInteger>(
        _ value: UInt32, _ field: String
    ) throws(FieldProblem) -> Value {
        guard let value = Value(exactly: value) else {
            throw FieldProblem(field, "is \(value); at most \(Value.max) goes")
        }
        return value
    }

    /// A nested message that must be there.
    static func need<Message>(
        _ pointer: UnsafeMutablePointer<Message>?, _ field: String
    ) throws(FieldProblem) -> UnsafePointer<Message> {
        guard let pointer = unsafe pointer else { throw FieldProblem(field, "is missing") }
        return unsafe UnsafePointer(pointer)
    }

    /// A list of messages, bounded.
    static func list<Message, Value>(
        _ pointers: UnsafeMutablePointer<UnsafeMutablePointer<Message>?>?, _ count: Int,
        limit: Int, _ field: String,
        _ read: (UnsafePointer<Message>) throws(FieldProblem) -> Value
    ) throws(FieldProblem) -> [Value] {
        guard count <= limit else {
            throw FieldProblem(field, "are \(count); at most \(limit) go")
        }
        var values: [Value] = []
        values.reserveCapacity(count)
        for index in 0..<count {
            values.append(try unsafe read(need(pointers?[index], field)))
        }
        return values
    }

    /// The fields that this version does not know.
    ///
    /// Number 0 is no field's. protobuf-c takes it when it is written in more bytes than it needs;
    /// nobody would read it again as it is written here.
    static func unknown(_ base: ProtobufCMessage) throws(FieldProblem) -> UnknownFields {
        var writer = ProtobufWriter()
        for index in 0..<Int(unsafe base.n_unknown_fields) {
            guard let field = unsafe base.unknown_fields?[index] else { continue }
            guard unsafe field.tag != 0 else {
                throw FieldProblem("the payload", "has a field of number 0")
            }
            unsafe writer.raw(
                field.tag, UInt32(truncatingIfNeeded: field.wire_type.rawValue),
                UnsafeBufferPointer(start: field.data, count: field.len))
        }
        var fields = UnknownFields()
        fields.bytes = writer.bytes
        return fields
    }
}
