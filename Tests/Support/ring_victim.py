#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A client of a ring that stops at a step, to be killed there.

Usage: ring_victim.py PROTO_DIRECTORY SUPERVISOR_SOCKET DISK STEP

Goes on until STEP, prints "at STEP", and waits for its end.
"""
import os, signal, socket, sys

from ring_client import WAIT_MS, Connection, Ring, load, shared_memory

REQUESTS = 32


def reached(step):
    """Stops here when this is the step."""
    if sys.argv[4] == step:
        print(f"at {step}", flush=True)
        signal.pause()


def send(connection, **body):
    """Sends a request and does not wait for its reply."""
    connection.last += 1
    request = connection.envelope(version=1, request_id=connection.last, **body)
    connection.sock.send(request.SerializeToString())


def publish(ring):
    """Entries of 4 KiB reads, published together, without a kick."""
    for tag in range(REQUESTS):
        at = (ring.submission_offset + (ring.tail + tag) % ring.submissions * 64) // 8
        words = [2 | 8 << 32, 8 * tag, tag, 5, 4096 * tag, 0, 0, 0]
        for index, word in enumerate(words):
            ring.longs[at + index] = word
    ring.tail = (ring.tail + REQUESTS) % 2**32
    ring.words[256 // 4] = ring.tail


def main():
    proto, path, disk, _ = sys.argv[1:]
    common, supervisor, session = load(proto)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(WAIT_MS / 1000)
    sock.connect(path)
    _, fds = Connection(sock, supervisor.SupervisorEnvelope).call(
        open_disk=supervisor.OpenDisk(name=disk.encode(), access=common.ACCESS_MODE_READ_WRITE))
    session_socket = socket.socket(fileno=fds[0])
    session_socket.settimeout(WAIT_MS / 1000)
    connection = Connection(session_socket, session.SessionEnvelope)
    reached("opened")
    fd, _ = shared_memory(4096 * REQUESTS)
    connection.call([fd], register_memory=session.RegisterMemory(
        region_id=5, byte_count=4096 * REQUESTS))
    reached("registered")
    opening = session.OpenRing(
        ring_id=9, submission_entry_count=REQUESTS, completion_entry_count=REQUESTS)
    if sys.argv[4] == "asked":
        send(connection, open_ring=opening)
        reached("asked")
    reply, fds = connection.call(open_ring=opening)
    reached("received")
    ring = Ring(fds, reply.ring_opened.byte_count, 9)
    reached("mapped")
    publish(ring)
    reached("published")
    with open(ring.kick, "wb", buffering=0) as kick:
        kick.write((1).to_bytes(8, "little"))
        reached("kicked")
        if sys.argv[4] == "waiting":
            # All of them with the device, and both ways to take things back asked for.
            while ring.word(640) != ring.tail:
                os.sched_yield()
            send(connection, close_ring=session.CloseRing(ring_id=9))
            send(connection, unregister_memory=session.UnregisterMemory(region_id=5))
            reached("waiting")
        ring.wait(session_socket)
        ring.head = (ring.head + 1) % 2**32
        ring.words[384 // 4] = ring.head
        reached("completions")
        send(connection, close_ring=session.CloseRing(ring_id=9))
        reached("closing")
    sys.exit(f"no step is called {sys.argv[4]}")


main()
