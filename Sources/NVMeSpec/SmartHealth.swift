// SPDX-License-Identifier: Apache-2.0
// The SMART / Health Information log page, 02h. NVM Express Base Specification 2.0,
// section 5.16.1.3.

/// SMART / Health Information.
public struct SmartHealth: Page {
    /// Bits: 0 spare, 1 temperature, 2 reliability, 3 read only, 4 backup, 5 PMR.
    public var criticalWarning: UInt8 = 0
    /// Composite temperature, in kelvins.
    public var compositeTemperature: UInt16 = 0
    /// Available spare, in percent.
    public var availableSpare: UInt8 = 0
    /// Available spare threshold, in percent.
    public var availableSpareThreshold: UInt8 = 0
    /// Percentage used; may pass 100.
    public var percentageUsed: UInt8 = 0
    /// Endurance group critical warning summary.
    public var enduranceGroupWarning: UInt8 = 0
    /// Data units read, in thousands of 512 bytes.
    public var dataUnitsRead: UInt128 = 0
    /// Data units written, in thousands of 512 bytes.
    public var dataUnitsWritten: UInt128 = 0
    /// Host read commands.
    public var hostReadCommands: UInt128 = 0
    /// Host write commands.
    public var hostWriteCommands: UInt128 = 0
    /// Controller busy time, in minutes.
    public var controllerBusyMinutes: UInt128 = 0
    /// Power cycles.
    public var powerCycles: UInt128 = 0
    /// Power on hours.
    public var powerOnHours: UInt128 = 0
    /// Unsafe shutdowns.
    public var unsafeShutdowns: UInt128 = 0
    /// Media and data integrity errors.
    public var mediaErrors: UInt128 = 0
    /// Error log entries over the life of the controller.
    public var errorLogEntries: UInt128 = 0
    /// Time above the warning temperature, in minutes.
    public var warningTemperatureMinutes: UInt32 = 0
    /// Time above the critical temperature, in minutes.
    public var criticalTemperatureMinutes: UInt32 = 0
    /// Temperature sensors 1 to 8, in kelvins; 0 if not there.
    public var temperatureSensors = [UInt16](repeating: 0, count: 8)

    /// A page with every field zero.
    public init() {}

    /// Parses bytes that were copied from the device.
    public init(parsing bytes: [UInt8]) throws(PageError) {
        self = try Self.parsed(from: bytes)
    }

    /// The page as a controller returns it.
    public func encode() -> [UInt8] { encoded() }

    /// The name of the page in the specification.
    public static let pageName = "SMART / Health Information"

    /// Bytes of the whole page.
    public static let pageByteCount = 512
}

extension SmartHealth: LaidOutPage {
    mutating func visit(_ codec: inout PageCodec) {
        codec.field(&criticalWarning, at: 0, "Critical Warning")
        codec.field(&compositeTemperature, at: 1, "Composite Temperature")
        codec.field(&availableSpare, at: 3, "Available Spare")
        codec.field(&availableSpareThreshold, at: 4, "Available Spare Threshold")
        codec.field(&percentageUsed, at: 5, "Percentage Used")
        codec.field(&enduranceGroupWarning, at: 6, "Endurance Group Critical Warning Summary")
        codec.field(&dataUnitsRead, at: 32, "Data Units Read")
        codec.field(&dataUnitsWritten, at: 48, "Data Units Written")
        codec.field(&hostReadCommands, at: 64, "Host Read Commands")
        codec.field(&hostWriteCommands, at: 80, "Host Write Commands")
        codec.field(&controllerBusyMinutes, at: 96, "Controller Busy Time")
        codec.field(&powerCycles, at: 112, "Power Cycles")
        codec.field(&powerOnHours, at: 128, "Power On Hours")
        codec.field(&unsafeShutdowns, at: 144, "Unsafe Shutdowns")
        codec.field(&mediaErrors, at: 160, "Media and Data Integrity Errors")
        codec.field(&errorLogEntries, at: 176, "Number of Error Information Log Entries")
        codec.field(&warningTemperatureMinutes, at: 192, "Warning Composite Temperature Time")
        codec.field(&criticalTemperatureMinutes, at: 196, "Critical Composite Temperature Time")
        for index in 0..<8 {
            var raw = index < temperatureSensors.count ? temperatureSensors[index] : 0
            codec.field(&raw, at: 200 &+ index &* 2, "Temperature Sensor \(index &+ 1)")
            if index < temperatureSensors.count { temperatureSensors[index] = raw }
        }
    }
}
