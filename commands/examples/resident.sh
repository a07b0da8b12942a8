#!/bin/sh
# One process for many calls, a line in, a line out:
#	fbus offer hello --resident lines -- sh hello.sh
#	fbus call hello Bob
while IFS= read -r line; do
	printf 'hello %s\n' "$line"
done
