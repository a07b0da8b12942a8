#!/usr/bin/env python3
"""worker.py SOCKET|TICKET NAME: offer a function on an fbus bus that upper-cases.

Its input comes out upper-cased (ASCII), at whatever size; called with arguments
it prints those, one a line. The sections named below are those of PROTOCOL.md.
Needs Python 3.10 and msgpack (python3-msgpack).

There is one file descriptor to wait for, so there is no loop but the one that
reads frames: whatever happens, happens because a frame came.
"""
import os, signal, socket, ssl, stat, struct, sys
import msgpack

MAX_FRAME, MAX_FIRST, CHUNK = 1 << 20, 4096, 65536  # section 8; CHUNK is ours
WINDOW = 256 << 10  # the most input that we hold: granted, or not yet passed on
sock = None


class T:  # types of frames
    HELLO, ERROR, OFFER, OFFERED, CALL, DATA, EOF, GRANT, CANCEL, END = range(1, 11)


def die(status, *why):
    print("worker:", ": ".join(w.decode(errors="replace") if isinstance(w, bytes) else str(w) for w in why),
          file=sys.stderr)
    sys.exit(status)


def send(*frame):
    """Section 2: a length and one msgpack array; bytes go as bin, str as str.

    It may block, never for good: a node reads whatever it waits for itself."""
    body = msgpack.packb(frame, use_bin_type=True)
    try:
        sock.sendall(struct.pack(">I", len(body)) + body)
    except BrokenPipeError:
        pass  # the node's last words, perhaps an ERROR, are still to be read


def broken(why):
    send(T.ERROR, "protocol", why)  # section 3.3
    die(1, "protocol", why)


def read_exactly(n):
    data = bytearray()
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            die(1, "the node closed the connection")
        data += part
    return data


def receive(limit=MAX_FRAME):
    """The next frame. raw: str and bin are both bytes (section 2); a map that is
    only skipped becomes a list of pairs, for its keys may be anything."""
    size, = struct.unpack(">I", read_exactly(4))
    if size > limit:
        broken(f"frame of {size} bytes exceeds the limit of {limit}")
    try:
        return msgpack.unpackb(read_exactly(size), raw=True, object_pairs_hook=list, strict_map_key=False)
    except ValueError as err:
        broken(f"not msgpack: {err}")


def optional(elements, i, default):
    return elements[i] if i < len(elements) else default


def open_node(where):
    """Section 2: a unix socket of this user's or root's, or, where a ticket is
    given, TLS 1.3 over TCP (section 2.1): the ticket is a bundle for any library."""
    if stat.S_ISSOCK(os.stat(where).st_mode):
        s = socket.socket(socket.AF_UNIX)
        s.connect(where)
        uid = struct.unpack("iII", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if uid not in (0, os.geteuid()):
            die(1, f"{where} belongs to user {uid}")
        return s
    with open(where) as file:
        facts = dict(line.strip().split(": ", 1) for line in file if ": " in line)
    context = ssl.create_default_context(cafile=where)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["fbus/1"])
    context.load_cert_chain(where)
    host, port = facts["address"].rsplit(":", 1)
    s = socket.create_connection((host.strip("[]"), int(port)), 10)
    return context.wrap_socket(s, server_hostname=facts["server name"])


def connect(where):
    global sock
    sock = open_node(where)
    send(T.HELLO, 1, 0, "", os.urandom(8).hex(), socket.gethostname())  # section 3.1
    sock.settimeout(10)
    match receive(MAX_FIRST):
        case [T.HELLO, 1, int(), bytes(), bytes(), bytes(), *_]:
            sock.settimeout(None)
        case [T.HELLO, int(major), *_]:  # section 3.2
            send(T.ERROR, "version", "this worker speaks version 1")
            die(1, "version", f"the node speaks version {major}")
        case [T.ERROR, bytes(code), bytes(message), *_]:
            die(1, code, message)
        case _:
            broken("the first frame must be HELLO")


class Call:
    """The acceptor's side of one call (section 5.7): what came in, upper-cased,
    waits in pending until there is credit to send it."""

    def __init__(self, id, pending, eof, credit):
        self.id, self.pending, self.eof, self.credit = id, bytearray(pending), eof, credit
        self.granted = 0  # credit for input that the node has not used yet

    def pump(self):
        """Send what there is credit for, make room for input; true at the end."""
        while self.pending and self.credit:
            data = bytes(self.pending[:min(self.credit, CHUNK)])
            send(T.DATA, self.id, 1, data)
            del self.pending[:len(data)]
            self.credit -= len(data)
        room = WINDOW - self.granted - len(self.pending)
        if not self.eof and room >= WINDOW // 4:  # section 5.3; a few large GRANTs, not many small ones
            send(T.GRANT, self.id, 0, room)
            self.granted += room
        return self.eof and not self.pending


def accept(id, kind, args, data, flags, window):
    """Section 5.1. None if the call has been ended already."""
    if kind == 0:
        return Call(id, data.upper(), bool(flags & 1), window)
    try:  # section 6; an input beside the arguments gets no credit and so stays away
        words = msgpack.unpackb(args, unicode_errors="surrogateescape", strict_map_key=False)
        lines = [(w if isinstance(w, bytes) else w.encode(errors="surrogateescape")).upper() + b"\n" for w in words]
        if kind == 1:
            return Call(id, b"".join(lines), True, window)
    except (ValueError, TypeError, AttributeError):  # not msgpack; not a list; not strings
        pass
    send(T.END, id, 2, 65, "bad_input", "arguments must be a list of strings")


def serve():
    call, last = None, 0
    while True:
        match receive():
            case [T.OFFERED, 1, bytes(code), bytes(message), *_]:  # section 4
                if code:
                    die(77 if code == b"denied" else 1, code, message)
                print("offering", sys.argv[2], file=sys.stderr, flush=True)
            case [T.CALL, int(id), bytes(), int(kind), bytes(args), bytes(data), int(flags), *more] \
                    if isinstance(window := optional(more, 5, 262144), int):
                if id <= last:
                    broken(f"call id {id} after {last}")
                last = id
                if call:  # more than our one slot
                    send(T.END, id, 2, 75, "busy", "one call at a time")
                else:
                    call = accept(id, kind, args, data, flags, window)
            case [T.DATA | T.EOF | T.GRANT | T.CANCEL, int(id), *_] if id > last:
                broken(f"call {id} was never opened")
            case [T.DATA | T.EOF | T.GRANT | T.CANCEL, int(id), *_] if not call or id != call.id:
                pass  # section 5.6: it has crossed our END
            case [T.DATA, _, 0, bytes(data), *_]:
                call.granted -= len(data)
                if call.eof or call.granted < 0:
                    broken("input after its end or beyond credit")
                call.pending += data.upper()
            case [T.EOF, _, *_]:
                if call.eof:
                    broken("input ended twice")
                call.eof = True
            case [T.GRANT, _, 1 | 2 as stream, int(n), *_]:
                call.credit += n if stream == 1 else 0
            case [T.CANCEL, *_]:  # section 5.4: nothing runs on, so END can go at once
                send(T.END, call.id, 2, 143, "cancelled", "cancelled")
                call = None
            case [T.ERROR, bytes(code), bytes(message), *_]:
                die(1, code, message)
            case [int(t), *_] if not 1 <= t <= 10:
                pass  # section 2: from a newer minor version
            case _:
                broken("unexpected frame")
        if call and call.pump():
            send(T.END, call.id, 0, 0, "exit")  # section 5.5
            call = None


def main():
    if len(sys.argv) != 3:
        die(64, "usage: worker.py SOCKET|TICKET NAME")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        connect(sys.argv[1])
        send(T.OFFER, 1, sys.argv[2], 1, 1, "upper-cases its input or arguments", "a list of strings")
        serve()
    except OSError as err:
        die(1, err)


main()
