#!/usr/bin/env bash
# Gets what the lab's virtual machines need: QEMU, and Debian's cloud kernel with its modules (bonding, VLANs, network delay), which many
# a machine's own kernel lacks. The package is unpacked into a cache folder, not installed. The last line printed is that folder.
#
#   lab/vm/prepare.sh             get what is missing; exit code 3: it cannot be had here, for the reason on stderr;
#                                 another one: it should be to be had here, and was not, after several tries
#   lab/vm/prepare.sh --newest    ask for a newer kernel package even though one is in the cache
#
# XDG_CACHE_HOME  where the cache lives (default: ~/.cache)
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
cache=${XDG_CACHE_HOME:-$HOME/.cache}/l2lb/vm
cannot() { echo "$*" >&2; exit 3; }
failed() { echo "$*" >&2; exit 1; }
has_apt() { command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; }
is_root() { [ "$(id -u)" = 0 ]; }

apt() { # its words only when it fails; another apt-get on this machine is waited for
  local log; log=$(mktemp)
  apt-get -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@" >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; return 1; }
  rm -f "$log"
}
updated=  # yes: the lists are new, all of them
update() { apt -o APT::Update::Error-Mode=any update && updated=yes; }
persist() { # does it, as root with new lists if that fails; a mirror has its moments
  local pause
  for pause in 0 5 20; do
    sleep "$pause"
    "$@" && return
    ! is_root || [ "$1" = update ] || update || true
  done
  "$@"
}
# Whether what apt does not know does not exist: all lists are new, or those there are tell of Debian's or Ubuntu's own packages, and
# what cannot be updated is another source.
lists_are_usable() { [ -n "$updated" ] || knows bash; }
knows() { [ -n "$(apt-cache madison "$1" 2>/dev/null)" ]; }

[ "$(uname -m)" = x86_64 ] || cannot "the lab's virtual machine is made for x86_64, this machine is $(uname -m)"
mkdir -p "$cache"
exec 9> "$cache/.lock"
flock 9

newest() { find "$cache" -mindepth 2 -maxdepth 2 -name vmlinuz -printf '%h\n' | sort -V | tail -1; }
found=$(newest)
[ "${1:-}" != --newest ] || found=

declare -A package_of=([qemu-system-x86_64]=qemu-system-x86)
[ -n "$found" ] || package_of[xz]=xz-utils   # a fresh kernel's modules are compressed
lacking=() wanted=()
for program in "${!package_of[@]}"; do
  command -v "$program" >/dev/null || { lacking+=("$program"); wanted+=("${package_of[$program]}"); }
done
if [ ${#lacking[@]} -gt 0 ]; then
  is_root && has_apt ||
    cannot "these programs are missing: ${lacking[*]}: sudo apt-get install --no-install-recommends ${wanted[*]}"
  echo "installing ${wanted[*]} (for the lab's virtual machine)" >&2
  install() { DEBIAN_FRONTEND=noninteractive apt install -y --no-install-recommends "${wanted[@]}"; }
  persist install || {
    for one in "${wanted[@]}"; do
      knows "$one" || ! lists_are_usable || cannot "apt knows no package $one"
    done
    failed "apt-get could not install ${wanted[*]}; its words stand above"
  }
fi

if [ -n "$found" ]; then echo "$found"; exit 0; fi

has_apt || cannot "there is no apt-get to fetch a kernel package with"
package() { # the package behind Debian's name for the newest one
  apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9].*-cloud-amd64$/ {print $2; exit}'
}
name=$(package)
if [ -z "$name" ] && is_root; then
  persist update || true
  name=$(package)
  [ -n "$name" ] || lists_are_usable || failed "apt-get update failed; its words stand above"
fi
[ -n "$name" ] || cannot "apt knows no package linux-image-cloud-amd64 (Debian's cloud kernel), which the lab's virtual machine boots"

work=$(mktemp -d "$cache/.unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "fetching $name (once; cached in the folder printed at the end)" >&2
download() { name=$(package) && (cd "$work" && apt download "$name"); }
if ! persist download; then
  # Only root can fetch new lists: what old ones name may be gone.
  is_root || cannot "apt-get could not download $name; its words stand above"
  failed "apt-get could not download $name; its words stand above"
fi
deb=$(find "$work" -maxdepth 1 -name '*.deb' | head -1)
version=$(dpkg-deb -f "$deb" Version)
dpkg-deb -x "$deb" "$work/root"
mkdir "$work/out"
mv "$work"/root/boot/vmlinuz-* "$work/out/vmlinuz"
# Debian 12 has them below /lib, later ones below /usr/lib.
modules=$(find "$work/root" -type d -path '*/lib/modules/*/kernel' | head -1)
[ -n "$modules" ] || cannot "the package $name $version holds no modules"
mv "$modules" "$work/out/modules"
find "$work/out/modules" -name '*.ko.xz' -exec xz -d {} +
out=$cache/${name#linux-image-}-${version//[^A-Za-z0-9.+~-]/_}
rm -rf "$out"
mv "$work/out" "$out"
echo "$out"
