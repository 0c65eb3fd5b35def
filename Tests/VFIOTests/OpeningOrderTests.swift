// SPDX-License-Identifier: Apache-2.0
// What the kernel is asked when a device is opened: in which order, and what each refusal becomes.

import Glibc
import Linux
import Testing

@testable import VFIO

/// A step that fails, and what the error must speak of.
struct OpeningFault: Sendable, CustomTestStringConvertible {
    let mode: IOMMUMode
    let step: VFIORequestKind
    let answer: Int64
    let words: String
    var testDescription: String { "\(mode) \(step) = \(answer)" }
}

@Suite("The steps of opening a device")
struct OpeningOrderTests {
    private let kernel: RecordingKernel

    init() throws { kernel = try RecordingKernel() }

    private func open(
        _ mode: IOMMUMode, reset: ResetMethod = .none, afterwards: ResetMethod = .none,
        staysAwake: Bool = false
    ) throws(VFIOError) -> VFIODescriptors {
        guard let address = PCIAddress(RecordingKernel.address) else {
            throw .unsupported("no address")
        }
        return try DeviceOpening(address: address, kernel: kernel, busyPatienceNanoseconds: 1)
            .open(mode, reset, afterwards, staysAwake: staysAwake)
    }

    /// Why it was not opened; empty when it was.
    private func problem(_ mode: IOMMUMode, reset: ResetMethod = .none) -> String {
        do throws(VFIOError) {
            _ = try open(mode, reset: reset)
            return ""
        } catch { return error.description }
    }

    @Test("type 1: no reset, container, group, the group into the container, the IOMMU, the device")
    func type1() throws {
        let opened = try open(.type1)
        let container = opened.memory.raw
        #expect(opened.interface == .type1)
        #expect(opened.raw.count == 3)
        #expect(
            kernel.takeCalls() == [
                .sysfs("\n"), .open("/dev/vfio/vfio"), .request("container", .version),
                .request("container", .hasExtension(3)), .open("/dev/vfio/7"),
                .request("group", .groupFlags), .request("group", .setContainer(container)),
                .request("container", .setIOMMU(3)),
                .request("group", .deviceFD(RecordingKernel.address)),
            ])
    }

    @Test("iommufd: no reset, iommufd, node, bound before it is attached to its own address space")
    func iommufd() throws {
        let opened = try open(.iommufd)
        let iommufd = opened.memory.raw
        #expect(opened.interface == .iommufd)
        #expect(opened.addressSpace == 5)
        #expect(opened.raw.count == 2)
        #expect(
            kernel.takeCalls() == [
                .sysfs("\n"), .open("/dev/iommu"), .open("/dev/vfio/devices/vfio3"),
                .request("device", .bindIOMMUFD(iommufd)), .request("iommufd", .allocateSpace),
                .request("device", .attach(space: 5)),
            ])
    }

    @Test("no IOMMU: the group that the kernel made for it, and the IOMMU type that is none")
    func noIOMMU() throws {
        kernel.change { $0.paths.insert("/dev/vfio/noiommu-7") }
        let opened = try open(.noiommu)
        let container = opened.memory.raw
        #expect(opened.interface == .noiommu)
        #expect(
            kernel.takeCalls() == [
                .sysfs("\n"), .open("/dev/vfio/vfio"), .request("container", .version),
                .request("container", .hasExtension(8)), .open("/dev/vfio/noiommu-7"),
                .request("group", .setContainer(container)),
                .request("container", .setIOMMU(8)),
                .request("group", .deviceFD(RecordingKernel.address)),
            ])
    }

    @Test("a function that has to go on when it is closed is kept awake before it is opened")
    func staysAwake() throws {
        _ = try open(.type1, staysAwake: true)
        #expect(Array(kernel.takeCalls().prefix(2)) == [.sysfs("on\n"), .sysfs("\n")])

        kernel.change { $0.errors["control"] = ENOENT }
        _ = try open(.type1, staysAwake: true)
        kernel.change { $0.errors["control"] = EACCES }
        let error = #expect(throws: VFIOError.self) { _ = try open(.type1, staysAwake: true) }
        #expect("\(try #require(error))".contains("kept awake"))
    }

    @Test("a device that is always reset has FLR as its only way before the first open and after")
    func alwaysResets() throws {
        _ = try open(.type1, reset: .flr, afterwards: .flr)
        let calls = kernel.takeCalls()
        #expect(calls.first == .sysfs("flr\n"))
        #expect(calls.count { if case .sysfs = $0 { true } else { false } } == 1)
    }

    @Test("a device that is reset once loses the ways to reset it when it is open, or could not be")
    func resetsOnce() throws {
        _ = try open(.type1, reset: .flr)
        let calls = kernel.takeCalls()
        #expect(calls.first == .sysfs("flr\n"))
        #expect(calls.last == .sysfs("\n"))

        kernel.change { $0.answers[.deviceFD] = -Int64(EBUSY) }
        #expect(problem(.type1, reset: .flr) != "")
        #expect(kernel.takeCalls().last == .sysfs("\n"))
    }

    @Test("a reset that is asked for and does not exist is an error; one that is not to be is not")
    func noReset() {
        kernel.change { $0.errors["reset_method"] = EINVAL }
        #expect(problem(.type1, reset: .flr).contains("cannot be reset by itself"))
        #expect(kernel.takeCalls() == [.sysfs("flr\n")])
        #expect(problem(.type1) == "")
    }

    @Test("auto is type 1, iommufd without containers, and never no IOMMU")
    func auto() throws {
        #expect(try open(.auto).interface == .type1)
        kernel.change { $0.paths.remove("/dev/vfio/vfio") }
        #expect(try open(.auto).interface == .iommufd)
        kernel.change { $0.paths = ["/dev/vfio/vfio", "/dev/vfio/noiommu-7"] }
        #expect(problem(.auto).contains("no IOMMU group in /dev/vfio"))
    }

    @Test("what holds the device is named, and nothing is touched")
    func otherDriver() {
        kernel.change { $0.links["driver"] = "../../nvme" }
        #expect(problem(.type1).contains("driver nvme has it"))
        kernel.change { $0.links["driver"] = nil }
        #expect(problem(.type1).contains("no driver has it"))
        #expect(kernel.takeCalls().isEmpty)
    }

    @Test(
        "a step that fails is named, and nothing stays open",
        arguments: [
            .init(mode: .type1, step: .version, answer: 1, words: "VFIO version 1"),
            .init(mode: .type1, step: .version, answer: -25, words: "VFIO version -25"),
            .init(mode: .type1, step: .hasExtension, answer: 0, words: "no type 1 version 2"),
            .init(mode: .noiommu, step: .hasExtension, answer: 0, words: "without an IOMMU"),
            .init(mode: .type1, step: .groupFlags, answer: 0, words: "not viable"),
            .init(mode: .type1, step: .groupFlags, answer: -5, words: "GROUP_GET_STATUS"),
            .init(mode: .type1, step: .setContainer, answer: -22, words: "SET_CONTAINER"),
            .init(mode: .type1, step: .setIOMMU, answer: -1, words: "SET_IOMMU"),
            .init(mode: .type1, step: .deviceFD, answer: -19, words: "GET_DEVICE_FD 0000:01:00.0"),
            .init(mode: .noiommu, step: .setContainer, answer: -1, words: "SET_CONTAINER"),
            .init(mode: .noiommu, step: .deviceFD, answer: -19, words: "GET_DEVICE_FD"),
            .init(mode: .iommufd, step: .bindIOMMUFD, answer: -22, words: "BIND_IOMMUFD"),
            .init(mode: .iommufd, step: .allocateSpace, answer: -12, words: "IOAS_ALLOC"),
            .init(mode: .iommufd, step: .attach, answer: -22, words: "ATTACH_IOMMUFD_PT"),
        ] as [OpeningFault])
    func failures(_ fault: OpeningFault) {
        kernel.change {
            $0.paths.insert("/dev/vfio/noiommu-7")
            $0.answers[fault.step] = fault.answer
        }
        #expect(problem(fault.mode).contains(fault.words))
        #expect(kernel.leftOpen == 0)
    }

    @Test(
        "a node that cannot be opened is named with what helps",
        arguments: [
            (IOMMUMode.type1, "/dev/vfio/7", EBUSY, "in use by another process"),
            (.type1, "/dev/vfio/7", EACCES, "mode 0600"),
            (.type1, "/dev/vfio/vfio", EPERM, "DeviceAllow="),
            (.noiommu, "/dev/vfio/noiommu-7", EPERM, "CAP_SYS_RAWIO"),
            (.iommufd, "/dev/iommu", ENOENT, "/dev/iommu"),
            (.iommufd, "/dev/vfio/devices/vfio3", EACCES, "mode 0600"),
        ])
    func nodes(_ mode: IOMMUMode, _ path: String, _ error: CInt, _ words: String) {
        kernel.change {
            $0.paths.insert("/dev/vfio/noiommu-7")
            $0.errors[path] = error
        }
        let told = problem(mode)
        #expect(told.contains(path) && told.contains(words), "\(told)")
        #expect(kernel.leftOpen == 0)
    }

    @Test("what the kernel was built without is named")
    func missing() {
        kernel.change { $0.directories = [:] }
        #expect(problem(.iommufd).contains("CONFIG_VFIO_DEVICE_CDEV"))
        #expect(problem(.noiommu).contains("enable_unsafe_noiommu_mode"))
        kernel.change { $0.links["iommu_group"] = nil }
        #expect(problem(.type1).contains("switch the IOMMU on"))
    }
}
