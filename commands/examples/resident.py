#!/usr/bin/env python3
# One process for many calls, a line in, a line out:
#     fbus offer hello --resident lines -- python3 hello.py
#     fbus call hello Bob
import sys

for line in sys.stdin.buffer:
    sys.stdout.buffer.write(b"hello " + line)
    sys.stdout.buffer.flush()
