// SPDX-License-Identifier: Apache-2.0
// What nvmed is told before and after a driver changes hands.

import DiskConfig
import Linux
import NVMeClient
import PCI
import Wire

/// Talks to nvmed about a PCI device. Binding works without nvmed, too: nothing here fails.
struct ServiceAsking {
    let target: PCITarget
    let global: GlobalOptions
    let host: PCIHost

    /// How long a worker may take for its end, by way of systemctl.
    private static let stopMilliseconds: Int32 = 45_000
    /// How long udev's program waits for nvmed.
    private static let shortMilliseconds: UInt64 = 3000

    /// Has nvmed let go of the device; what there is to know about it.
    func letGo() -> [String] {
        guard let name = target.device?.name else { return [] }
        do throws(ClientError) {
            try global.connect().releaseDevice(
                name, reason: "given back to the kernel by nvmectl device unbind",
                deadlineNanoseconds: global.deadline)
            return ["nvmed has let go of device \(name); after bind it uses it again"]
        } catch {
            return ["nvmed was not asked to let go (\(error))"] + stopUnit(name)
        }
    }

    /// Without a supervisor the service manager still ends a worker.
    private func stopUnit(_ name: String) -> [String] {
        let systemctl = "/usr/bin/systemctl"
        guard let function = try? host.function(target.address),
            let holders = try? host.vfioHolders(function), !holders.isEmpty,
            Files.exists("/run/systemd/system"), Files.exists(systemctl)
        else { return [] }
        let unit = "nvmed-worker@\(name).service"
        var program = Spawn(
            systemctl, ["--quiet", "stop", unit], environment: ["PATH=/usr/bin:/bin"])
        program.diesWithParent = false
        do {
            let status = try program.run(timeoutMilliseconds: Self.stopMilliseconds)
            return status == 0 ? ["stopped \(unit)"] : ["\(unit) could not be stopped"]
        } catch {
            return ["\(unit) could not be stopped: \(error)"]
        }
    }

    /// Tells nvmed that the device can be used, and that what failed or was gone is worth another
    /// attempt. `isEvent`: udev asks, for which nvmed is not to be started.
    func announce(isEvent: Bool) {
        guard let name = target.device?.name, !isEvent || isRunning else { return }
        let deadline =
            isEvent ? Deadline.after(milliseconds: Self.shortMilliseconds) : global.deadline
        do throws(ClientError) {
            let backend = try global.connect()
            try backend.releaseDevice(
                name, reason: "", undo: true, deadlineNanoseconds: deadline)
            let device = try backend.device(name, deadlineNanoseconds: deadline)
            guard device.state == .failed || device.state == .removed else { return }
            try backend.retryDevice(name, deadlineNanoseconds: deadline)
        } catch {}
    }

    /// Whether nvmed runs, where systemd tells; connecting to its socket would start it.
    private var isRunning: Bool {
        let units = "/run/systemd/units"
        return !Files.exists(units)
            || Files.target(ofLink: "\(units)/invocation:nvmed.service") != nil
    }
}
