// SPDX-License-Identifier: Apache-2.0
// The SMART / Health page, read without waiting. NVM Express Base Specification 2.0, section
// 5.16.1.3.

internal import DMA
internal import NVMeSpec
internal import VFIO

extension NVMeController {
    /// Asks for the SMART / Health page without waiting; `pollAdmin` tells when it is there. One
    /// request at a time. Pending events stay pending (RAE).
    public func requestHealth() throws(DriverError) {
        guard !healthIsRequested, !adminIsClosed, let place = healthPage else { return }
        var entry = SubmissionEntry.getLogPage(
            .smartHealth, dwordCount: UInt32(SmartHealth.pageByteCount / 4),
            retainAsynchronousEvent: true)
        entry.prp1 = place.iova
        try admin?.post(entry, token: AdminToken.health, device: device)
        healthIsRequested = true
    }

    /// The second page of the admin buffer, which nothing else uses: for the device and for us.
    private var healthPage: (iova: UInt64, address: UInt)? {
        guard let slice = plan?.adminBuffer, let base = pool?.deviceWritesIOVA,
            let address = unsafe pool?.deviceWritesAddress(slice)
        else { return nil }
        return (base + UInt64(slice.offset) + 4096, UInt(bitPattern: address) + 4096)
    }

    /// Whether there is something to tell. A controller that refuses the page has no health.
    func takeHealth(_ answer: AdminAnswer) -> Bool {
        healthIsRequested = false
        guard answer.status.isSuccess, let place = healthPage,
            let address = unsafe UnsafeRawPointer(bitPattern: place.address)
        else { return false }
        // One copy; nothing is read twice from memory that the device may still write.
        let page = unsafe [UInt8](
            UnsafeRawBufferPointer(start: address, count: SmartHealth.pageByteCount))
        guard let fresh = try? SmartHealth(parsing: page) else { return false }
        health = fresh
        return true
    }
}
