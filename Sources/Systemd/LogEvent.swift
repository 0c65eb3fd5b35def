// SPDX-License-Identifier: Apache-2.0
// Everything that is logged and has a name: the identities by which operators search the journal,
// and which `Units/nvmed.catalog` explains.

/// A kind of message. Its raw value is its MESSAGE_ID, which `journalctl -x` looks up in the
/// catalogue.
///
/// A new one gets a new random number (`systemd-id128 new`) and an entry of the catalogue; a test
/// compares the two.
public enum LogEvent: String, CaseIterable, Sendable {
    /// A device changed its state.
    case deviceState = "3348b10ed6f64d0485c13e149fcd9a07"
    /// A device takes I/O.
    case deviceReady = "0bc9ed1a3b1b4bbd916b72b0a70acc55"
    /// A device or its worker is being restored.
    case deviceRecovering = "2a3477397d974ccab529bde921bb8820"
    /// A device could not be brought up, or was given up; it is tried again.
    case deviceFailed = "613b81f3295349678ec5525293af337d"
    /// A device failed so often that nothing is tried by itself any more.
    case deviceGivenUp = "82330d2a832448deb116b748a34f910c"
    /// A device is gone: unplugged, or wanted back by the kernel.
    case deviceRemoved = "64f985f6dade4036aa62c674bbe05ac9"
    /// The worker has brought its controller up.
    case controllerReady = "579d1c96b44b49368ab3196409fc9b26"
    /// The worker could not bring its controller up.
    case startFailed = "e8baa8f52e124737a9be27d5c4adf3ba"
    /// The worker gave its controller up.
    case controllerFailed = "50a1447f507240cdb1678f2818d67c1d"
    /// The controller reports a fatal status (CSTS.CFS).
    case controllerFatal = "e58233f0d58b43efb89c7520cddbea0c"
    /// A completion came without an interrupt.
    case missedInterrupt = "0edc41edcff64490bf0b71e7813291b1"
    /// A command has not been answered in time and is aborted.
    case commandTimedOut = "9bc4f97ec1424fcc9287bc0d2820f072"
    /// An Abort was answered.
    case abortEnded = "c244e809dfd7481ca6956643e8c0440e"
    /// The controller reports something by itself.
    case controllerEvent = "8236e2cf59f34c03b5ba3fc8cebb430a"
    /// A controller reports a critical warning about itself.
    case health = "a30370fcd0c449569bae2399e012e712"
    /// The critical warnings of a controller are over.
    case healthRecovered = "27a37bcf2fa84d5aa475621a7bc82d38"
    /// A command failed at the medium.
    case mediaError = "6117b66a84d046b7acc0781be80d873d"
    /// A controller counts more media errors than before.
    case mediaErrors = "1a156f98da7241bf85e9efc408c9fcce"
    /// Clients, sessions, memory or descriptors are used up.
    case exhausted = "f79737c3c160422487f89bdf48aedc14"
    /// The DMA pool could not be made or has no room.
    case poolExhausted = "5744059436c74dea89926baeec3cf668"
    /// A device was not bound to vfio-pci.
    case bindingRefused = "7c1b893643e34f539c49a7962278ab94"
    /// A device changed hands between the kernel's driver and vfio-pci.
    case bound = "bf4cb68de742425c80eaf8a79c92a14c"
    /// A device that nvmed needs belongs to another driver.
    case notBound = "22d02184ddcd4579b448a67f02af8536"
    /// A session was opened.
    case sessionOpened = "6f64ddadfb444996b3968f076a4f17af"
    /// A session ended.
    case sessionEnded = "582566f825744fa9a7e67a4d392c19a5"
    /// A session was taken from its client.
    case sessionRevoked = "b8359c4502a34ee6a07f7aa79df8e055"
    /// A client was refused or lost its connection.
    case clientRefused = "a8ad37f46864400fb39f866874f8ff66"
    /// The configuration was read.
    case configuration = "4af6a5c160824dc4948720300d603cf5"
    /// The configuration is wrong.
    case configurationError = "23cb4262d4e94b648e3b74d959c557ce"
    /// Something about the configuration is odd.
    case configurationWarning = "65e63fce182b4afcaf16ed849e36ce3b"
    /// The supervisor cannot start or go on.
    case supervisorFailed = "6bc746f190ca4c358526762474748304"
    /// A worker cannot start or go on.
    case workerFailed = "f6b259bc3a2b479cb6059ba590cb263a"
    /// A worker was killed because it did not answer (watchdog, time-out).
    case workerKilled = "60b332aec113485ca9db2502f440f93f"
    /// A worker died again and again before it completed a command; the device is left alone.
    case crashLoop = "d00b32a12a4f4e77aa32cd3248d4ed17"
    /// A worker could not be stopped.
    case workerStuck = "3264fd599b0e4e0ca502f4f84ee69659"
    /// What a predecessor left is not used.
    case stateDiscarded = "c8e91fc532e14a87b19bfbc973eadac1"
    /// What should outlive a worker could not be stored.
    case storeFailed = "3acdfb4369254bc59b9effc02f644b7d"
    /// A device, or all that can be, are saved for a full stop.
    case servicingSaved = "69ab2b252ecf41bab383a16efc11c6ca"
    /// A save was given up: everything goes on.
    case servicingFailed = "5fd0c8ddb70c4ba484ccc4169a7bee5e"
    /// A device is left out of a save, or was not restored: it is started cold.
    case servicingCold = "43919c8d85964a20995dee6cf39f544c"
    /// A device, or all that could be, were taken over as they were saved.
    case servicingRestored = "e7317f5f50af488ea7eb6f68e50e5d49"

    /// The identity that the journal gets.
    public var id: MessageID { MessageID(unchecked: rawValue) }

    /// How many of one device are written per interval.
    var burst: Int {
        switch self {
        case .deviceState, .deviceReady, .controllerReady, .bound, .configuration,
            .servicingSaved, .servicingCold, .servicingRestored:
            100
        case .configurationWarning: 300
        case .sessionOpened, .sessionEnded: 1000
        default: LogSink.burst
        }
    }
}
