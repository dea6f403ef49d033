# What deploy/check.sh and deploy/check-scale.sh share: checks, one line each, and requests.

pass() { printf 'ok    %s\n' "$*"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }

expect() { # what, expected, found
  [ "$2" = "$3" ] || fail "$1: $3; expected $2"
  pass "$1: $3"
}

ask() { curl --silent --show-error --noproxy '*' --max-time 120 "$@"; }
status() { ask --output /dev/null --write-out '%{http_code}' "$@"; }
