#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A client of nvmed that was written from Proto/ alone: the standard library and protobuf.

Usage: ring_client.py PROTO_DIRECTORY SUPERVISOR_SOCKET DISK

Opens the disk, registers memory, opens a ring, writes the whole first MiB through it, flushes, reads
it back into other memory and compares. Prints "verified N bytes" or what went wrong.
"""
import fcntl, importlib, mmap, os, select, socket, subprocess, sys, tempfile

MESSAGE_BYTES = 144 << 10
WAIT_MS = 30_000


def load(proto):
    """The messages, as protoc generates them."""
    with tempfile.TemporaryDirectory() as directory:
        files = [os.path.join(proto, name) for name in os.listdir(proto) if name.endswith(".proto")]
        subprocess.run(
            ["protoc", f"--proto_path={proto}", f"--python_out={directory}", *files], check=True)
        sys.path.insert(0, directory)
        modules = [importlib.import_module(name) for name in
                   ("common_pb2", "supervisor_pb2", "session_pb2")]
        sys.path.pop(0)
        return modules


class Connection:
    """Envelopes over a SOCK_SEQPACKET socket: one a message."""

    def __init__(self, sock, envelope):
        self.sock, self.envelope, self.last = sock, envelope, 0

    def call(self, fds=(), **body):
        """Sends a request; its reply and the descriptors that came along."""
        self.last += 1
        request = self.envelope(version=1, request_id=self.last, **body)
        if fds:
            request.fd_count = len(fds)
        socket.send_fds(self.sock, [request.SerializeToString()], fds)
        while True:
            data, received, _, _ = socket.recv_fds(self.sock, MESSAGE_BYTES, 16)
            if not data:
                sys.exit("the other end closed the connection")
            reply = self.envelope.FromString(data)
            if reply.WhichOneof("body") == "session_ended":
                sys.exit(f"the session ended: {reply.session_ended.reason}")
            if reply.request_id != self.last:
                # An event, or a reply that comes twice because the worker was replaced meanwhile.
                for fd in received:
                    os.close(fd)
                continue
            if reply.HasField("error"):
                sys.exit(f"{body}: {reply.error}")
            return reply, received


def shared_memory(byte_count):
    """A memory file with the seals that RegisterMemory asks for, and a mapping of it."""
    fd = os.memfd_create("python", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, byte_count)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd, mmap.mmap(fd, byte_count)


class Ring:
    """A ring as ring.md describes it. Words are stored whole, through views of 4 and 8 bytes."""

    def __init__(self, fds, byte_count, ring_id):
        memory, self.kick, wake = fds
        self.wake = socket.socket(fileno=wake)
        seals = fcntl.fcntl(memory, fcntl.F_GET_SEALS)
        wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        assert seals & wanted == wanted, "the ring is not sealed"
        self.map = mmap.mmap(memory, byte_count)
        self.words = memoryview(self.map).cast("I")
        self.longs = memoryview(self.map).cast("Q")
        assert self.map[0:8] == b"NVMEDRNG" and self.word(8) == 1 and self.word(12) == 4096
        assert self.longs[32 // 8] == byte_count and self.word(40) == ring_id
        self.submissions, self.completions = self.word(16), self.word(20)
        self.submission_offset, self.completion_offset = self.word(24), self.word(28)
        self.tail = self.word(256)
        self.head = self.word(384)

    def word(self, offset):
        return self.words[offset // 4]

    def submit(self, opcode, tag, lba=0, block_count=0, region=0, offset=0, flags=0):
        """One entry; false: the ring is full."""
        if (self.tail - self.word(640)) % 2**32 >= self.submissions:
            return False
        at = (self.submission_offset + self.tail % self.submissions * 64) // 8
        self.longs[at] = opcode | flags << 8 | block_count << 32
        self.longs[at + 1] = lba
        self.longs[at + 2] = tag
        self.longs[at + 3] = region
        self.longs[at + 4] = offset
        for index in range(5, 8):
            self.longs[at + index] = 0
        self.tail = (self.tail + 1) % 2**32
        self.words[256 // 4] = self.tail
        # Python has no fence and no exchange: kick every time, and leave submission_need_wake alone.
        os.write(self.kick, (1).to_bytes(8, "little"))
        return True

    def reap(self):
        """The completions that are there: tag, code, status."""
        done = []
        tail = self.word(768)
        while self.head != tail:
            at = (self.completion_offset + self.head % self.completions * 16) // 8
            rest = self.longs[at + 1]
            done.append((self.longs[at], rest >> 16 & 0xFFFF, rest & 0xFFFF))
            self.head = (self.head + 1) % 2**32
        waited = (self.tail - self.word(384)) % 2**32 > self.completions
        self.words[384 // 4] = self.head
        if waited and done:
            os.write(self.kick, (1).to_bytes(8, "little"))
        return done

    def wait(self, session):
        """Sleeps until there are completions; polls again soon, because the last look has no fence."""
        while self.word(768) == self.head:
            self.words[512 // 4] = 1
            if self.word(768) != self.head:
                break
            assert self.word(1024) == 0, "the ring ended"
            poll = select.poll()
            poll.register(self.wake, select.POLLIN)
            poll.register(session, select.POLLIN)
            ready = poll.poll(10)
            self.words[512 // 4] = 0
            if any(fd == self.wake.fileno() for fd, _ in ready):
                assert self.wake.recv(1, socket.MSG_DONTWAIT), "the worker is gone"
            elif ready:
                # An event, such as SessionStalled: nothing has to be done about it.
                assert session.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT), "the session ended"
        self.words[512 // 4] = 0


def run_all(ring, session, requests):
    """Submits requests, as many at once as there is room for, and waits for all."""
    waiting, in_flight = list(enumerate(requests)), set()
    while waiting or in_flight:
        while waiting and ring.submit(tag=waiting[0][0], **waiting[0][1]):
            in_flight.add(waiting.pop(0)[0])
        ring.wait(session)
        for tag, code, status in ring.reap():
            assert code == 0, f"request {tag} failed: code {code}, NVMe status {status:#x}"
            in_flight.remove(tag)


def main():
    proto, path, disk = sys.argv[1:]
    common, supervisor, session = load(proto)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(WAIT_MS / 1000)
    sock.connect(path)
    opened, fds = Connection(sock, supervisor.SupervisorEnvelope).call(
        open_disk=supervisor.OpenDisk(name=disk.encode(), access=common.ACCESS_MODE_READ_WRITE))
    assert len(fds) == 1 and opened.HasField("disk_opened")
    session_socket = socket.socket(fileno=fds[0])
    session_socket.settimeout(WAIT_MS / 1000)
    connection = Connection(session_socket, session.SessionEnvelope)
    info = connection.call(get_disk_info=session.GetDiskInfo())[0].disk_info

    byte_count, piece = 1 << 20, 16384
    fd, memory = shared_memory(2 * byte_count)
    connection.call([fd], register_memory=session.RegisterMemory(
        region_id=5, byte_count=2 * byte_count))
    reply, fds = connection.call(open_ring=session.OpenRing(
        ring_id=9, submission_entry_count=16, completion_entry_count=8))
    assert len(fds) == 3 and reply.ring_opened.ring_id == 9
    ring = Ring(fds, reply.ring_opened.byte_count, 9)

    memory[:byte_count] = os.urandom(byte_count)
    blocks = piece // info.block_byte_count
    places = range(byte_count // piece)
    run_all(ring, session_socket, [dict(
        opcode=1, lba=i * blocks, block_count=blocks, region=5, offset=i * piece) for i in places])
    run_all(ring, session_socket, [dict(opcode=0)])
    run_all(ring, session_socket, [dict(
        opcode=2, lba=i * blocks, block_count=blocks, region=5, offset=byte_count + i * piece)
        for i in places])
    if memory[:byte_count] != memory[byte_count:]:
        sys.exit("the data differs")
    connection.call(close_ring=session.CloseRing(ring_id=9))
    connection.call(unregister_memory=session.UnregisterMemory(region_id=5))
    print(f"verified {byte_count} bytes")


if __name__ == "__main__":
    main()
