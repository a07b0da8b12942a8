# Run twice: beside a node that offers f, cat and yes itself, and beside one that finds them at
# another node. The outputs have to be the same. $ON selects the worker, $THERE is the node that
# it is at, and $FILES a directory for both sides. Each $STEPth status is tried.

section() { printf '\n== %s\n' "$*"; }
gone() { # no process of the file $1 runs; without it the program was ended before it wrote it
	[ -e "$1" ] || { echo "all gone"; return; }
	for pid in $(cat "$1"); do
		n=0
		while kill -0 "$pid" 2>/dev/null; do
			n=$((n + 1))
			if [ $n -gt 200 ]; then echo "$pid runs"; return; fi
			sleep 0.05
		done
	done
	echo "all gone"
	rm "$1"
}
there() { until [ -s "$1" ]; do sleep 0.01; done; }

section bytes both ways
fbus call cat <"$BIG" | cksum
head -c 32769 "$BIG" | fbus call cat | cksum
fbus call -n cat | cksum
head -c 1000000 "$BIG" | fbus call cat | (sleep 0.1; cksum)

section input as it comes
mkfifo in out
fbus call cat <in >out &
exec 8>in 9<out
echo one >&8; read -r line <&9; echo "$line"
echo two >&8; read -r line <&9; echo "$line"
exec 8>&- 9<&-
wait $!; echo $?

section stdout, stderr and status apart
fbus call f both >o 2>e; echo $?; cat o; sed 's/^/err: /' e
fbus call -o file f both 2>/dev/null; echo $?; ls file 2>/dev/null
fbus call --status-file s f both >o 2>e; cat s
head -c 100000 "$BIG" >input; fbus call -i input f input a 'b c' | cksum
fbus call -f name=Bob -F n=1 cat
fbus call -p -d '{"a":[1.50,null]}' cat

section all statuses and signals
seq 0 "$STEP" 255 | fbus map -j 4 --json --arg status f
printf '%s\n' HUP INT QUIT KILL SEGV TERM USR1 | fbus map --json --arg signal f
fbus call f signal SEGV; echo $?

section cancel, with the tree gone
for signal in TERM INT HUP KILL; do
	env --default-signal=INT fbus call f tree "$FILES/tree" &
	call=$!
	there "$FILES/tree"
	kill -$signal $call
	wait $call 2>/dev/null; echo $signal $?
	gone "$FILES/tree"
done
fbus call yes | head -n 1
fbus call --status-file s yes | head -n 1; cat s

section deadline
fbus call -t 500ms f tree "$FILES/tree"; echo $?
gone "$FILES/tree"
fbus call -t 60s f deadline; echo $?

section progress
fbus call -v f progress 2>&1 | grep -v '^fbus: node'

section trace and caller
TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 fbus call f trace
fbus call f who

section waiting
fbus call -w 100ms absent; echo $?
fbus call absent; echo $?
fbus call -w 20s late >o 2>e & call=$!
sleep 0.1
FBUS_NODE=$THERE fbus offer -q late --slots 1 -- sh -c 'echo late; sleep 0.1' & offer=$!
wait $call; echo $?; cat o e
kill $offer; wait $offer 2>/dev/null
fbus call f busy; echo $?

section no slot
fbus call f hold "$FILES/hold" & call=$!
fbus call f hold "$FILES/hold" & call2=$!
fbus call f hold "$FILES/hold" & call3=$!
fbus call f hold "$FILES/hold" & call4=$!
until [ "$(wc -l <"$FILES/hold")" -ge 4 ] 2>/dev/null; do sleep 0.01; done 2>/dev/null
fbus call --no-wait f both; echo $?
fbus call -w 100ms f both; echo $?
fbus call -t 200ms f both; echo $?
fbus call f both >o 2>e & waiting=$!
touch "$FILES/go"
wait $waiting; echo $?; cat o e
wait $call $call2 $call3 $call4
rm "$FILES/go" "$FILES/hold"

section workers by name
fbus call --on "$ON" f both >o 2>e; echo $?; cat o e
fbus call --on nobody f both; echo $?
fbus call --all --tag f both >o 2>e; echo $?; cat o e
fbus call --all --json f both; echo $?

section map
seq 100 | fbus map --tag cat; echo $?
seq 20 | fbus map --each raw cat; echo $?
fbus map --arg status f 0 3 0; echo $?
fbus map -t 500ms --arg tree f "$FILES/tree"; echo $?
gone "$FILES/tree"
seq 50 | fbus map --on "$ON" --each raw cat | cksum

section jobs
id=$(fbus post f both); fbus result "$id" >o 2>e; echo $?; cat o e
id=$(head -c 10000000 "$BIG" | fbus post cat); fbus result "$id" | cksum
id=$(fbus post -n --retries 2 --backoff 10ms f attempt); fbus result "$id"; echo $?
id=$(fbus post -t 500ms f tree "$FILES/tree"); fbus result "$id"; echo $?
gone "$FILES/tree"
fbus post -n --then follow f hello >id
fbus result "$(cat id)" >/dev/null
there "$FILES/follow"; cat "$FILES/follow"
fbus post --each arg --batch many --arg status f 0 1 2 >/dev/null 2>&1
fbus wait --batch many; echo $?
id=$(fbus post f tree "$FILES/tree"); there "$FILES/tree"
fbus cancel -q "$id"; fbus result "$id"; echo $?
gone "$FILES/tree"
