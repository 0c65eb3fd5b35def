// SPDX-License-Identifier: Apache-2.0
// Giving a PCI device back to the kernel, with its worker's help or without.

internal import Linux
internal import Systemd
internal import Wire

extension Device {
    /// Takes duplicates of a worker's device and of the kernel's requests, if it sent them.
    func hold(_ fds: [PassedFD]) {
        guard fds.count == 2, let device = fds[0].take(), let request = fds[1].take() else {
            return
        }
        hardware?.letGo()
        do throws(SystemCallError) {
            hardware = try HardwareWatch(device: device, request: request) { [weak self] in
                self?.removalRequested()
            }
        } catch {
            log.warning("an unbind is not noticed while the worker is down: \(error)")
        }
    }

    /// Lets go of the device in every state in which no worker needs it kept: whoever holds it
    /// keeps it from being opened again, and from being unbound.
    func reconsiderHardware() {
        switch state {
        case .absent, .retrying, .failed, .removed:
            letGoOfHardware()
        case .starting, .ready, .draining, .recovering: break
        }
    }

    /// Closes what is held of the device.
    func letGoOfHardware() {
        removal?.cancel()
        removal = nil
        hardware?.letGo()
        hardware = nil
    }

    /// The kernel wants the device back. The worker hears it too, and has a moment.
    private func removalRequested() {
        guard removal == nil, hardware != nil else { return }
        log.warning("the system wants the device back (unbind or unplug)", id: .deviceRemoved)
        removal = try? EventLoop.current.after(nanoseconds: SupervisorLimits.removalNanoseconds) {
            [weak self] in self?.removeByForce()
        }
        if removal == nil { removeByForce() }
    }

    private func removeByForce() {
        guard hardware != nil else { return }
        log.error("its worker has not given it back in time: it is killed", id: .workerStuck)
        // First of all nobody starts it again.
        abandonLoad()
        post(.gone, reason: "the system wanted the device back; its worker was stuck")
        EventLoop.current.task {
            do throws(WireError) {
                try await self.units.kill(self.name)
            } catch {
                self.log.warning("its worker could not be killed: \(error); continuing")
            }
            do throws(WireError) {
                // What the manager keeps goes with the unit.
                try await self.units.stop(self.name)
            } catch {
                self.log.error(
                    "its worker could not be stopped: \(error); continuing", id: .workerStuck)
            }
        }
    }
}
