// SPDX-License-Identifier: Apache-2.0
// The rules of Proto/, held over the descriptors that protoc-c generated, and over the text.

import CProtobufC
import CWire
import Linux
import Testing

/// A message type as its descriptor tells it.
private struct MessageType {
    var name: String
    var fields: [FieldType]
}

/// A field as its descriptor tells it.
private struct FieldType {
    var name: String
    var number: UInt32
    var label: ProtobufCLabel
    var message: String?
}

/// Every message and enumeration that the four envelopes, and saved state, reach.
private struct Descriptors {
    private(set) var messages: [String: MessageType] = [:]
    private(set) var enumerations: [String: [Int32: String]] = [:]
    /// Chains of messages that come back to themselves.
    private(set) var cycles: [String] = []

    // SAFETY: descriptors are constants of the generated code and live for ever.
    init() {
        unsafe visit(nvmed__v1__session_envelope__descriptor, [])
        unsafe visit(nvmed__v1__worker_envelope__descriptor, [])
        unsafe visit(nvmed__v1__supervisor_envelope__descriptor, [])
        unsafe visit(nvmed__v1__opener_envelope__descriptor, [])
        unsafe visit(nvmed__v1__saved_host__descriptor, [])
        unsafe visit(nvmed__v1__saved_device__descriptor, [])
    }

    private mutating func visit(_ descriptor: ProtobufCMessageDescriptor, _ path: [String]) {
        let name = unsafe String(cString: descriptor.name)
        if path.contains(name) { return cycles.append((path + [name]).joined(separator: " → ")) }
        var type = MessageType(name: name, fields: [])
        for index in 0..<Int(unsafe descriptor.n_fields) {
            let field = unsafe descriptor.fields[index]
            var message: String?
            if unsafe field.type == PROTOBUF_C_TYPE_MESSAGE {
                let inner = unsafe field.descriptor.assumingMemoryBound(
                    to: ProtobufCMessageDescriptor.self
                ).pointee
                message = unsafe String(cString: inner.name)
                unsafe visit(inner, path + [name])
            } else if unsafe field.type == PROTOBUF_C_TYPE_ENUM {
                unsafe visit(
                    enumeration: field.descriptor.assumingMemoryBound(
                        to: ProtobufCEnumDescriptor.self
                    ).pointee)
            }
            unsafe type.fields.append(
                FieldType(
                    name: String(cString: field.name), number: field.id, label: field.label,
                    message: message))
        }
        messages[name] = type
    }

    private mutating func visit(enumeration: ProtobufCEnumDescriptor) {
        var values: [Int32: String] = [:]
        for index in 0..<Int(unsafe enumeration.n_values) {
            let value = unsafe enumeration.values[index]
            values[unsafe value.value] = unsafe String(cString: value.name)
        }
        enumerations[unsafe String(cString: enumeration.name)] = values
    }
}

@Suite("The rules of Proto")
struct ProtoRulesTests {
    private let descriptors = Descriptors()

    /// The lines of a file of Proto/.
    private func lines(_ name: String) throws -> [Substring] {
        let root = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
        let bytes = try Files.read("/\(root)/Proto/\(name)", limit: 1 << 20)
        return String(decoding: bytes, as: UTF8.self)
            .split(separator: "\n", omittingEmptySubsequences: false)
    }

    private static let files = [
        "common.proto", "session.proto", "supervisor.proto", "worker.proto", "opener.proto",
        "saved.proto",
    ]

    @Test("the three envelopes and what they carry are found")
    func found() {
        #expect(descriptors.messages.count > 50)
        #expect(descriptors.enumerations.count >= 4)
        #expect(descriptors.messages["nvmed.v1.SessionEnvelope"] != nil)
    }

    @Test("no field is required")
    func required() {
        let required = descriptors.messages.values.flatMap { type in
            type.fields.filter { $0.label == PROTOBUF_C_LABEL_REQUIRED }.map {
                "\(type.name).\($0.name)"
            }
        }
        #expect(required == [])
    }

    @Test("no message contains itself, not even by way of others")
    func recursion() {
        #expect(descriptors.cycles == [])
    }

    @Test("each enumeration begins with an unspecified zero")
    func enumerations() {
        let wrong = descriptors.enumerations.filter {
            $0.value[0]?.hasSuffix("_UNSPECIFIED") != true
        }
        #expect(wrong.keys.sorted() == [])
    }

    @Test("everything is in the versioned package")
    func package() {
        let outside = descriptors.messages.keys.filter { !$0.hasPrefix("nvmed.v1.") }
        #expect(outside == [])
    }

    @Test("the envelopes have the same first fields, and the payload the highest number")
    func envelopes() throws {
        for name in ["SessionEnvelope", "WorkerEnvelope", "SupervisorEnvelope"] {
            let type = try #require(descriptors.messages["nvmed.v1.\(name)"])
            let head = type.fields.prefix(5).map { "\($0.number) \($0.name)" }
            #expect(
                head == ["1 version", "2 request_id", "3 deadline_ns", "4 fd_count", "5 error"])
        }
        let last = try #require(descriptors.messages["nvmed.v1.SessionEnvelope"]?.fields.last)
        #expect(last.name == "payload")
        #expect(last.number == 1000)
    }

    @Test("there are no groups, maps, extensions, and the syntax is proto2", arguments: files)
    func constructs(file: String) throws {
        let text = try lines(file)
        let code = text.filter { !$0.drop { $0 == " " }.hasPrefix("//") }
        let forbidden = code.filter {
            $0.contains(#/\bgroup\b|\bmap<|\bextend\b|\bextensions\b|\brequired\b/#)
        }
        #expect(forbidden == [])
        #expect(code.contains("syntax = \"proto2\";"))
        #expect(code.contains("package nvmed.v1;"))
    }

    @Test("each field, value, message and enumeration has a comment", arguments: files)
    func comments(file: String) throws {
        let text = try lines(file)
        let bare = text.indices.filter { index in
            let line = text[index].drop { $0 == " " }
            // The bodies of an envelope are explained at their messages.
            let isDeclared =
                line.hasPrefix("optional ") || line.hasPrefix("repeated ")
                || line.hasPrefix("message ") || line.hasPrefix("enum ")
                || line.contains(#/^[A-Z_0-9]+ = \d+;/#)
            let above = index > text.startIndex ? text[index - 1].drop { $0 == " " } : ""
            return isDeclared && !above.hasPrefix("// ")
        }
        #expect(bare.map { "\(file):\($0 + 1): \(text[$0])" } == [])
    }
}
