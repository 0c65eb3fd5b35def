# SPDX-License-Identifier: Apache-2.0
"""How long PID 1 takes to answer on the bus: runs in the machine, in one process, because starting
one costs more there than the answer. Pings until the file `stop` of its directory is there, at most
SECONDS, and prints count, median and maximum in milliseconds.

  bus_latency.py STOP-FILE SECONDS
"""
import os, socket, struct, sys, time


def field(code, kind, text):
    data = text.encode()
    return struct.pack("<BB2sI", code, 1, kind + b"\0", len(data)) + data + b"\0"


def message(serial, destination, path, interface, member):
    fields = b""
    for part in (field(1, b"o", path), field(2, b"s", interface), field(3, b"s", member),
                 field(6, b"s", destination)):
        fields += b"\0" * (-len(fields) % 8) + part
    head = struct.pack("<cBBBIII", b"l", 1, 0, 1, 0, serial, len(fields)) + fields
    return head + b"\0" * (-len(head) % 8)


class Bus:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect("/run/dbus/system_bus_socket")
        self.socket.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        while not self.socket.recv(4096).endswith(b"\r\n"):
            pass
        self.socket.sendall(b"BEGIN\r\n")
        self.serial = 0
        self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")

    def exactly(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                sys.exit("the bus has hung up")
            data += part
        return data

    def call(self, destination, path, interface, member):
        """The seconds until the answer."""
        self.serial += 1
        start = time.monotonic()
        self.socket.sendall(message(self.serial, destination, path, interface, member))
        while True:
            head = self.exactly(16)
            body, fields = struct.unpack_from("<I4xI", head, 4)
            self.exactly(fields + (-fields % 8) + body)
            if head[1] in (2, 3):
                return time.monotonic() - start


def main():
    stop, seconds = sys.argv[1], float(sys.argv[2])
    bus, times = Bus(), []
    end = time.monotonic() + seconds
    while time.monotonic() < end and not os.path.exists(stop):
        times.append(1000 * bus.call("org.freedesktop.systemd1", "/org/freedesktop/systemd1",
                                     "org.freedesktop.DBus.Peer", "Ping"))
        time.sleep(0.01)
    times.sort()
    print(len(times), round(times[len(times) // 2], 2), round(times[-1], 2))


main()
