#!/usr/bin/env bash
# hello.sh NAME…: call the function hello for each NAME, all over one fbus pipe.
# Needs bash 4.3; to try it:
#	fbus run --offer hello='xargs echo hello' -- bash hello.sh Bob Eve
coproc BUS { exec fbus pipe --text; }

quote() { # REPLY = $1 as a JSON string
	local s=$1 b='\' i c u
	s=${s//"$b"/"$b$b"} s=${s//'"'/"$b\""}
	for ((i = 1; i < 32; i++)); do
		printf -v u '\\u%04x' "$i"
		printf -v c %b "$u"
		s=${s//"$c"/"$u"}
	done
	REPLY="\"$s\""
}

call() { # call FUNCTION TEXT: REPLY = its output; a failure is on stderr
	local answer result='"result":"(.*)"}$' error='"error":[{]"code":([-0-9]+),"message":"(([^"\]|\\.)*)"'
	quote "$2"
	printf '{"jsonrpc":"2.0","id":1,"method":"%s","input":%s}\n' "$1" "$REPLY" >&"${BUS[1]}" || return 255
	IFS= read -r answer <&"${BUS[0]}" || return 255
	if [[ $answer =~ $result ]]; then
		printf -v REPLY %b "${BASH_REMATCH[1]//'\"'/'"'}" # it knows the other escapes of JSON
		return
	fi
	[[ $answer =~ $error ]] && printf '%b\n' "${BASH_REMATCH[2]}" >&2
	return "$((BASH_REMATCH[1] > 0 ? BASH_REMATCH[1] : 1))"
}

status=0
for name; do
	call hello "$name" && printf %s "$REPLY" || status=$?
done
exit "$status"
