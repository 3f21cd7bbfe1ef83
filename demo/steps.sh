# What every demo does, sourced by it: an empty $out, and steps that leave their result and their time there.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

prepare() { # prepare: make $out, which must not exist yet
  if [ -e "$out" ] && [ -n "$(ls -A "$out")" ]; then
    echo "error: $out exists; remove it or choose another folder with OUT=..." >&2; exit 2
  fi
  mkdir -p "$out"
}

one_video() { # one_video INSTEAD WHAT [VIDEO]: at most one argument, which is a file
  local instead=$1 what=$2
  shift 2
  if [ $# -gt 1 ]; then echo "error: give one video, or none for $instead" >&2; exit 2; fi
  if [ $# -eq 1 ] && [ ! -f "$1" ]; then echo "error: $1 is not a file; give $what" >&2; exit 2; fi
}

step() { # step NAME COMMAND...: show the command, run it, keep its JSON result and its seconds
  local name=$1 from
  shift
  echo "+ $*" >&2
  from=$(date +%s.%N)
  "$@" > "$out/$name.json"
  echo "$name $(date +%s.%N) $from" >> "$out/steps.txt"
}
