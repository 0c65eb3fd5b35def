// SPDX-License-Identifier: Apache-2.0
// Opening what is no device: every mistake is named, nothing is left open.

import Linux
import Testing

@testable import VFIO

@Suite("Opening devices")
struct OpeningTests {
    private func problem(_ address: String, _ mode: IOMMUMode = .auto) -> String {
        do throws(VFIOError) {
            _ = try KernelVFIO.open(address, mode: mode, reset: .none)
            return "opened"
        } catch { return error.description }
    }

    @Test("an address that is none is named")
    func noAddress() {
        #expect(problem("nvme0").contains("'nvme0' is not a PCI address"))
    }

    @Test("a device that is not there is named")
    func noDevice() {
        #expect(problem("ffff:ff:1f.7").contains("there is no PCI device ffff:ff:1f.7"))
    }

    @Test("descriptors of other files are no device")
    func otherFiles() throws {
        #expect(throws: VFIOError.self) {
            let null = try OwnedFD.open("/dev/null", flags: 2)
            let device = try null.duplicate()
            _ = try KernelVFIODevice(
                VFIODescriptors(interface: .type1, memory: null, group: nil, device: device),
                events: DeviceEvents(), name: "d", origin: .inherited)
        }
    }

    @Test("a memory file that may move or shrink has no physical addresses")
    func movableMemory() throws {
        let file = try MemFD.create(name: "m", byteCount: 2 << 20)
        let error = #expect(throws: VFIOError.self) {
            _ = try PhysicalMemory.addresses(of: file, byteCount: 2 << 20)
        }
        #expect(error?.description.contains("huge pages") == true)
    }

    @Test("sizes that are no huge pages are refused", arguments: [UInt64(0), 4096, .max, 1 << 40])
    func oddSizes(_ byteCount: UInt64) throws {
        let file = try MemFD.create(name: "m", byteCount: 4096)
        #expect(throws: VFIOError.self) {
            _ = try PhysicalMemory.addresses(of: file, byteCount: byteCount)
        }
    }
}
