#!/bin/sh
# compute-sanitizer over the whole case table of the Hopper kernels and of the cache on the device:
# every kernel that each case is computed by, under each tool, shared out among processes.
#   sh csrc/test/cuda/sm90_sanitize.sh BUILT EACH_LANE [processes [tools [longest]]]
# BUILT: folder with sm90_runner and kv_cache_runner as they are built. EACH_LANE: the same built with
# -DSAGE_EACH_LANE_ARRIVES=ON, for racecheck (docs/kernels_hopper.md, "Checks"). processes: 14.
# tools: "racecheck memcheck synccheck initcheck". longest: tokens above which cases are left out.
# Logs go to the folder that LOGS names, or to one that is removed. Fails on any finding, on any case
# that fails, and where a process does not end.
set -eu
built=$1 each_lane=$2 processes=${3:-14}
tools=${4:-racecheck memcheck synccheck initcheck} longest=${5:-1000000000}
shards=40 cache_shards=8
if [ -z "${LOGS:-}" ]; then
  LOGS=$(mktemp -d)
  trap 'rm -rf "$LOGS"' EXIT
fi
export LOGS built each_lane longest SANITIZER="${SANITIZER:-compute-sanitizer}"

# Given tool, runner, n, of: runs that share of the table, and writes a log of it.
share='
folder=$built options=
case $0 in
  racecheck) folder=$each_lane ;;
  initcheck)
    export SAGE_TEST_NO_POISON=1
    options="--check-api-memory-access no" # the runner copies padding to the host that nobody wrote
    ;;
esac
timeout ${LIMIT:-400} "$SANITIZER" --tool $0 $options --print-limit 3 "$folder/$1" check "" $2 $3 "$longest" \
  >"$LOGS/$0.$1.$2" 2>&1 || echo "exit code $?" >>"$LOGS/$0.$1.$2"
'
for tool in $tools; do
  n=0
  while [ $n -lt $shards ]; do
    echo "$tool sm90_runner $n $shards"
    [ $n -lt $cache_shards ] && echo "$tool kv_cache_runner $n $cache_shards"
    n=$((n + 1))
  done
done | xargs -P "$processes" -L 1 sh -c "$share"

failed=0
for tool in $tools; do
  for runner in sm90_runner kv_cache_runner; do
    cat "$LOGS/$tool.$runner".* | awk -v tool="$tool" -v runner="$runner" \
      -v shards="$(if [ $runner = sm90_runner ]; then echo $shards; else echo $cache_shards; fi)" '
      / of [0-9]+ cases failed/ { cases += $3; ++ended }
      /^ok  / { ++ok }
      /^FAIL/ { ++bad }
      /^=+ (ERROR|RACECHECK) SUMMARY: [0-9]+ (errors?$|hazards? displayed)/ { findings += $4; ++summaries }
      /^exit code/ { ++codes }
      END {
        printf "%-10s %-16s %4d cases, %5d runs ok, %d failed, %d findings, %d of %d processes ended\n",
          tool, runner, cases, ok, bad, findings, ended < summaries ? ended : summaries, shards
        exit bad > 0 || findings > 0 || codes > 0 || ok == 0 || ended != shards || summaries != shards
      }' || failed=1
  done
done
exit $failed
