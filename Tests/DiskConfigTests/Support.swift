// SPDX-License-Identifier: Apache-2.0
// Configuration in memory for these tests.

import DiskConfig

/// A system with two users and one group.
let accounts = NameLookup(
    user: { ["root": 0, "alice": 1000][$0] }, group: { ["disk": 6][$0] })

/// A file of /etc (directory 2) unless another is said.
func file(_ relativePath: String, _ text: String, directory: Int = 2) -> ConfigSourceFile {
    let names = ["/usr/lib/nvmed", "/run/nvmed", "/etc/nvmed"]
    return ConfigSourceFile(
        directory: directory, relativePath: relativePath,
        path: "\(names[directory])/\(relativePath)", bytes: Array(text.utf8))
}

/// Parses files.
func parse(_ files: ConfigSourceFile...) -> Configuration {
    Configuration.parse(files, lookup: accounts)
}

/// A device that disks of these tests may name.
let nvme0 = file("nvme0.device", "[Device]\nTransport=vfio-user\nSocket=/run/nvme0.sock\n")

/// The problems of one disk file beside a good device.
func problems(ofDisk text: String) -> [String] {
    parse(nvme0, file("vol0.disk", text)).problems.map(\.description)
}

/// The problems of one device file.
func problems(ofDevice text: String) -> [String] {
    parse(file("nvme1.device", text)).problems.map(\.description)
}
