#!/usr/bin/env bash
# Looks for what building needs; what the lab needs beyond that, `lab check --install` sees to. On Debian and Ubuntu, as root, it
# installs the system packages that are missing; otherwise it says exactly what is missing and how to get it.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

declare -A package=([cc]=gcc [c++]=g++ [git]=git [flock]=util-linux [unshare]=util-linux [setpriv]=util-linux)
missing=() packages=()
for program in "${!package[@]}"; do
  command -v "$program" >/dev/null || { missing+=("$program"); packages+=("${package[$program]}"); }
done
if [ ${#missing[@]} -gt 0 ]; then
  mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    "$(dirname "${BASH_SOURCE[0]}")/install.sh" "${packages[@]}"
  else
    echo "These programs are missing: ${missing[*]}. Install the packages ${packages[*]} (sudo apt-get install ${packages[*]})." >&2
    exit 1
  fi
fi

command -v cargo >/dev/null || { echo "Rust is missing: install Rust 1.89 or later with rustup, then run this again." >&2; exit 1; }
# The last of the programs to be built says that all are there.
kit=${L2LB_KIT_DIR:-$("$(dirname "${BASH_SOURCE[0]}")/../lab/kit/build.sh" --path)}
if [ ! -x "$kit/kube-proxy" ] && [ -z "${L2LB_KIT_DIR:-}" ] && ! command -v go >/dev/null; then
  echo "Go is missing: install Go 1.26 or later (it builds the Kubernetes programs of the lab), or name a folder that holds" \
    "them in L2LB_KIT_DIR." >&2
  exit 1
fi
if [ "$(id -u)" != 0 ] && ! unshare --user --map-root-user --net --mount true 2>/dev/null; then
  echo "This machine does not let ordinary users make user namespaces: run as root, or allow them (sysctl" \
    "kernel.unprivileged_userns_clone=1, or kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)." >&2
  exit 1
fi
