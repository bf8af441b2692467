#!/bin/sh
# Installs what only the system's package manager can give, when root or with sudo; else prints the command.
#   prerequisites.sh PROGRAM=PACKAGE …     PROGRAM may be @venv (Python's venv module) or a library (libx.so.1)
set -eu
missing=
for pair in "$@"; do
  program=${pair%%=*} package=${pair#*=}
  case $program in
    @venv) "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null ;;
    *.so.*) /sbin/ldconfig -p | grep -q "$program" ;;
    *) command -v "$program" >/dev/null 2>&1 ;;
  esac || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
command="apt-get install -y --no-install-recommends$missing"
if ! command -v apt-get >/dev/null 2>&1; then
  echo "codevo: please install:$missing" >&2
  exit 1
fi
if [ "$(id -u)" = 0 ]; then
  run=
elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
  run=sudo
else
  echo "codevo: these packages are missing:$missing" >&2
  echo "codevo: please run:  sudo $command" >&2
  exit 1
fi
echo "codevo: installing$missing"
export DEBIAN_FRONTEND=noninteractive
$run apt-get update -qq
# shellcheck disable=SC2086
$run $command >/dev/null
