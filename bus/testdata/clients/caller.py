#!/usr/bin/env python3
"""caller.py SOCKET|TICKET FUNCTION [ARG...]: call a function on an fbus bus.

With ARGs it sends them as a list; without, stdin is the input, read as the
function takes it. Ends with the function's status. The sections named below
are those of PROTOCOL.md. Needs Python 3.10 and msgpack (python3-msgpack).
"""
import os, select, signal, socket, ssl, stat, struct, sys
import msgpack

MAX_FRAME, MAX_FIRST, MAX_INPUT, CHUNK = 1 << 20, 4096, 32768, 65536  # section 8; CHUNK is ours
ID = 1  # of our only call: ids rise from 1 on each connection (5.1, 5.6)
# Section 7: the codes of an ERROR in place of HELLO whose status is not 255.
STATUS = {code: status for status, codes in {
    70: b"internal", 75: b"busy draining list_lost",
    77: b"denied no_certificate revoked unlisted used expired not_yet_valid wrong_use bad_certificate",
}.items() for code in codes.split()}
sock = None


class T:  # types of frames
    HELLO, ERROR, CALL, DATA, EOF, GRANT, CANCEL, END = 1, 2, 5, 6, 7, 8, 9, 10


def die(status, *why):
    text = ": ".join(w.decode(errors="replace") if isinstance(w, bytes) else str(w) for w in why)
    print("caller:", "".join(c if c.isprintable() else "?" for c in text), file=sys.stderr)  # section 5.5
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
    die(255, "protocol", why)


def read_exactly(n):
    data = bytearray()
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            die(255, "node_lost", "the node closed the connection: a call may have run")
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
            die(255, "foreign", f"{where} belongs to user {uid}")
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
    send(T.HELLO, 1, 0, "", "", "caller.py")  # section 3.1
    sock.settimeout(10)
    match receive(MAX_FIRST):
        case [T.HELLO, 1, int(), bytes(), bytes(), bytes(), *_]:
            sock.settimeout(None)
        case [T.HELLO, int(major), *_]:  # section 3.2
            send(T.ERROR, "version", "this caller speaks version 1")
            die(255, "version", f"the node speaks version {major}")
        case [T.ERROR, bytes(code), bytes(message), *_]:
            die(STATUS.get(code, 255), code, message)
        case _:
            broken("the first frame must be HELLO")


def start(function, words):
    """Section 5.1: CALL takes along what input there is, and waits for none.
    Returns whether more is to come."""
    if words:  # section 6: strings are str, which may hold any bytes
        args = msgpack.packb(words, use_bin_type=True, unicode_errors="surrogateescape")
        send(T.CALL, ID, function, 1, args, b"", 1)
        return False
    data, more = b"", True
    while more and len(data) < MAX_INPUT and select.select([0], [], [], 0)[0]:
        part = os.read(0, MAX_INPUT - len(data))
        data, more = data + part, bool(part)
    send(T.CALL, ID, function, 0, b"", data, 0 if more else 1)
    return more


def serve(more, wake):
    """One call until its END. Waits for the node, for a signal, and, while there
    is credit (5.3) for it, for input."""
    credit = 0
    while True:
        held = isinstance(sock, ssl.SSLSocket) and sock.pending()  # read already: nothing to wait for
        ready, _, _ = select.select([sock, wake] + ([0] if more and credit else []), [], [], 0 if held else None)
        if wake in ready:
            os.read(wake, 1)
            send(T.CANCEL, ID)  # section 5.4; END follows
            more = False
        if 0 in ready and more:
            data = os.read(0, min(credit, CHUNK))
            send(T.DATA, ID, 0, data) if data else send(T.EOF, ID)  # section 5.2
            credit, more = credit - len(data), bool(data)
        if sock not in ready and not held:
            continue
        match receive():
            case [T.DATA, 1, 1 | 2 as stream, bytes(data), *_]:
                write(stream, data)
                send(T.GRANT, ID, stream, len(data))  # it is dealt with: as much again
            case [T.GRANT, 1, 0, int(n), *_]:
                credit += n
            case [T.END, 1, int(source), int(status), *rest] if all(isinstance(e, bytes) for e in rest[:3]):
                if source and not status:  # section 5.5
                    broken(f"status 0 of an end with source {source}")
                write(1, optional(rest, 2, b""))
                if source == 2:
                    die(status, optional(rest, 0, b""), optional(rest, 1, b""))
                sys.exit(status)
            case [T.ERROR, bytes(code), bytes(message), *_]:
                die(255, "node_lost", message or code, "the call may have run")  # section 3.3
            case [int(t), *_] if not 1 <= t <= 10:
                pass  # section 2: from a newer minor version
            case _:
                broken("unexpected frame")


def write(stream, data):
    out = sys.stdout.buffer if stream == 1 else sys.stderr.buffer
    try:
        out.write(data)
        out.flush()
    except BrokenPipeError:  # a stdout that is closed ends us, and so the call (5.8)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)


def main():
    if len(sys.argv) < 3:
        die(64, "usage", "caller.py SOCKET|TICKET FUNCTION [ARG...]")
    wake, wake_in = os.pipe()  # the first INT or TERM cancels, the second kills
    os.set_blocking(wake_in, False)
    signal.set_wakeup_fd(wake_in)
    for n in signal.SIGINT, signal.SIGTERM:
        signal.signal(n, lambda n, _: signal.signal(n, signal.SIG_DFL))
    try:
        connect(sys.argv[1])
        serve(start(sys.argv[2], sys.argv[3:]), wake)
    except OSError as err:
        die(255, err)


main()
