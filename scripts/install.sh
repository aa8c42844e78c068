#!/usr/bin/env bash
# Installs the named packages of Debian or Ubuntu, as root. Another apt-get on this machine is waited for, and a mirror that has its
# moments is asked again; apt-get's words are shown only when it failed each time.
set -uo pipefail
log=$(mktemp); trap 'rm -f "$log"' EXIT
apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@"; }

echo "installing $*" >&2
# The lock on the lists is one that apt-get itself does not wait for.
for pause in 0 5 20 60; do
  sleep "$pause"
  { apt update && apt install -y --no-install-recommends "$@"; } >> "$log" 2>&1 && exit 0
done
cat "$log" >&2
echo "apt-get could not install $*; its words stand above." >&2
exit 1
