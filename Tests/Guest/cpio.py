# SPDX-License-Identifier: Apache-2.0
"""Writes the archives that a Linux kernel unpacks as its first root (cpio, format "newc").

Archives may follow each other in one file: the kernel unpacks them in order, later files replace
earlier ones. See Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
"""
import os, stat, tarfile


class Archive:
    """An archive under construction; `add` knows no file systems, `add_tree` and `add_tar` do."""

    def __init__(self, file):
        self.file = file
        self.inode = 1
        self.known = set()

    def add(self, name, mode, data=b"", owner=0, group=0):
        name = name.strip("/")
        if name and os.path.dirname(name) not in self.known:
            self.add(os.path.dirname(name), stat.S_IFDIR | 0o755)
        if stat.S_ISDIR(mode):
            if not name or name in self.known:
                return
            self.known.add(name)
        self.record(name, mode, data, owner, group)

    def record(self, name, mode, data, owner, group):
        path = name.encode() + b"\0"
        fields = (self.inode, mode, owner, group, 2 if stat.S_ISDIR(mode) else 1, 0, len(data),
                  0, 0, 0, 0, len(path), 0)
        self.inode += 1
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self.file.write(header + b"\0" * (-len(header) % 4))
        self.file.write(data)
        self.file.write(b"\0" * (-len(data) % 4))

    def add_file(self, name, source, mode=0o644):
        with open(source, "rb") as file:
            self.add(name, stat.S_IFREG | mode, file.read())

    def add_link(self, name, target):
        self.add(name, stat.S_IFLNK | 0o777, target.encode())

    def add_tar(self, path, wanted):
        """Files, directories and links of a tar for which `wanted(name)` holds; no device nodes."""
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.removeprefix("./").strip("/")
                if name in ("", ".") or not wanted(name):
                    continue
                if member.isdir():
                    self.add(name, stat.S_IFDIR | member.mode, b"", member.uid, member.gid)
                elif member.issym():
                    self.add_link(name, member.linkname)
                elif member.isfile() or member.islnk():
                    self.add(name, stat.S_IFREG | member.mode, tar.extractfile(member).read(),
                             member.uid, member.gid)

    def end(self):
        self.record("TRAILER!!!", 0, b"", 0, 0)
        self.file.write(b"\0" * (-self.file.tell() % 512))
