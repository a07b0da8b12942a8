#!/bin/sh
# The tools that the conformance suite of the Model Context Protocol expects, as shell functions:
# sh fixtures.sh offers them until it is ended. With a name it is the program of that function.
set -e

png=iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==
wav=UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAAAAA==

case $1 in
'') ;;
test_simple_text) printf 'This is a simple text response for testing.'; exit ;;
test_image_content) echo $png | base64 -d; exit ;;
test_audio_content) echo $wav | base64 -d; exit ;;
test_embedded_resource)
  echo '{"content":[{"type":"resource","resource":{"uri":"test://embedded-resource","mimeType":"text/plain","text":"This is an embedded resource content."}}]}'; exit ;;
test_multiple_content_types)
  echo '{"content":[{"type":"text","text":"Multiple content types test:"},{"type":"image","data":"'$png'","mimeType":"image/png"},{"type":"resource","resource":{"uri":"test://mixed-content-resource","mimeType":"application/json","text":"{\"test\":\"data\",\"value\":123}"}}]}'; exit ;;
test_error_handling) echo 'This tool intentionally returns an error for testing' >&2; exit 1 ;;
test_tool_with_progress) # at most one notification a second is sent
  for n in 0 50 100; do echo $n 100 >&3; sleep 1.2; done
  echo done; exit ;;
greet) # {"name":"World"} on stdin
  read -r doc
  name=${doc#*\"name\":\"}
  printf 'Hello, %s!' "${name%%\"*}"; exit ;;
test_missing_capability) echo 'the client can sample'; exit ;;
test_trigger_tool_change) # offers another tool, for a moment
  fbus offer "changed_$$" --attr tool -- true 2>/dev/null & sleep 1; exit ;;
confirm_delete) sleep 1; echo 'nobody was asked'; exit ;;
test_logging_tool | test_streaming_elicitation) echo 'no more than a result'; exit ;;
slow_compute) # its argument is a number in a JSON document on stdin
  read -r doc
  case $doc in *'"seconds":'*) seconds=${doc#*\"seconds\":} seconds=${seconds%%[!0-9.]*} ;; *) seconds=1 ;; esac
  sleep "$seconds"; echo "computed for $seconds s"; exit ;;
failing_job) sleep 1; echo 'this job always fails' >&2; exit 1 ;;
protocol_error_job | hold) sleep 600; exit ;;
json_schema_2020_12_tool | test_custom_header) cat; exit ;;
esac

offer() { # NAME [FLAG…] -- [ARG…]
  name=$1; shift
  flags=
  while [ "$1" != -- ]; do flags="$flags $1"; shift; done
  shift
  fbus offer "$name" --attr tool --description "a fixture of the conformance suite" --slots 8 $flags -- sh "$0" "$name" "$@" 2>/dev/null &
}
for name in test_simple_text test_image_content test_audio_content test_error_handling hold confirm_delete test_trigger_tool_change test_logging_tool test_streaming_elicitation; do offer $name --; done
for name in test_embedded_resource test_multiple_content_types; do offer $name --attr mcp.result --; done
offer test_tool_with_progress --progress-fd 3 --
offer failing_job --attr mcp.requires=io.modelcontextprotocol/tasks --
offer test_missing_capability --attr mcp.requires=sampling --
offer greet --schema "${0%/*}/greet.json" --
offer slow_compute --schema "${0%/*}/slow_compute.json" --
offer protocol_error_job --timeout 1s --
offer test_custom_header --schema "${0%/*}/test_custom_header.json" --
offer json_schema_2020_12_tool --schema "${0%/*}/json_schema_2020_12_tool.json" --
wait
