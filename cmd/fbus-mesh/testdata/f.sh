# What same.sh calls.
what=$1
shift
case $what in
both) echo "to stdout"; echo "to stderr" >&2; exit 3 ;;
input) echo "$#:$*"; cat ;;
status) exit "$1" ;;
signal) kill -"$1" $$; sleep 10 ;;
tree)
	(trap '' TERM INT HUP; while :; do sleep 0.05; done) & one=$!
	setsid sleep 1000 & two=$!
	echo "$$ $one $two" >"$1.new"; mv "$1.new" "$1"
	wait ;;
deadline) [ -n "$FBUS_DEADLINE" ] && echo "there is one" ;;
progress) i=1; while [ $i -le 3 ]; do echo "$i 3 step $i" >&3; sleep 0.15; i=$((i + 1)); done ;;
trace) echo "$TRACEPARENT" ;;
who) echo "$FBUS_FUNCTION $FBUS_CALLER" ;;
busy) exit 75 ;;
hold) echo x >>"$1"; until [ -e "${1%/*}/go" ]; do sleep 0.02; done ;;
attempt) echo "attempt $FBUS_ATTEMPT"; [ "$FBUS_ATTEMPT" = 3 ] ;;
hello) echo hello ;;
esac
