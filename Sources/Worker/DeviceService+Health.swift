// SPDX-License-Identifier: Apache-2.0
// The controller's health: read now and then, told to the supervisor, and logged when it is bad.

internal import NVMeDriver
internal import NVMeSpec
internal import Systemd
internal import Wire

extension DeviceService {
    /// Reads the health page soon, and from then on regularly.
    func armHealth() {
        if healthTimer == nil {
            healthTimer = try? loop.timer { [weak self] in self?.askHealth() }
        }
        healthTimer?.arm(after: WorkerLimits.firstHealthNanoseconds)
    }

    private func askHealth() {
        guard let controller = usableController, !isQuiet else { return }
        healthTimer?.arm(after: WorkerLimits.healthNanoseconds)
        do throws(DriverError) {
            try controller.requestHealth()
        } catch {
            // A full admin queue has its turn again; anything else fails the device.
            note(error)
        }
    }

    /// The controller has reported about its health by itself.
    func healthEvent(_ event: AsynchronousEvent, _ controller: NVMeController) {
        log.warning(
            "the controller reports about its health: \(event)", id: .controllerEvent)
        guard controller.health != nil else {
            // It has no such page: the event alone tells, as the Critical Warning bits would (Base
            // Specification 2.0, figure 148: reliability, temperature, spare).
            let bits: [UInt32] = [1 << 2, 1 << 1, 1 << 0]
            var health = Health()
            let index = Int(event.information)
            health.criticalWarning = bits.indices.contains(index) ? bits[index] : 0
            return tell(health)
        }
        tellHealth(controller)
    }

    /// Tells what the controller last said.
    func tellHealth(_ controller: NVMeController) {
        guard let page = controller.health else { return }
        tell(Health(page))
    }

    private func tell(_ health: Health) {
        let before = lastHealth
        lastHealth = health
        if health.criticalWarning & ~(before?.criticalWarning ?? 0) != 0 {
            log.error(
                "critical warning: \(health.warnings.joined(separator: ", ")) "
                    + "(\(health.summary))", id: .health)
        } else if health.criticalWarning == 0, before?.criticalWarning ?? 0 != 0 {
            log.notice("no critical warning any more (\(health.summary))", id: .healthRecovered)
        }
        if let before, health.mediaErrors > before.mediaErrors {
            log.warning(
                "the controller counts \(health.mediaErrors) media errors, "
                    + "\(health.mediaErrors &- before.mediaErrors) more than before",
                id: .mediaErrors)
        }
        observer?.tell(.health(health))
    }
}

extension Health {
    /// From the controller's page; numbers that do not fit become the largest.
    init(_ page: SmartHealth) {
        self.init()
        criticalWarning = UInt32(page.criticalWarning)
        temperatureKelvin = UInt32(page.compositeTemperature)
        availableSparePercent = UInt32(page.availableSpare)
        usedPercent = UInt32(page.percentageUsed)
        mediaErrors = UInt64(clamping: page.mediaErrors)
        unsafeShutdowns = UInt64(clamping: page.unsafeShutdowns)
        powerOnHours = UInt64(clamping: page.powerOnHours)
    }

    /// The numbers that matter, for the log.
    fileprivate var summary: String {
        "\(temperatureKelvin) K, spare \(availableSparePercent) %, used \(usedPercent) %, "
            + "\(mediaErrors) media errors"
    }
}
