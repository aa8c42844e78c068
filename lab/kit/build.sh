#!/usr/bin/env bash
# Builds the programs that the lab runs (etcd, the Kubernetes control plane, kube-proxy, kubectl, helm) from their Go modules,
# as pinned by the go.mod files beside this script, into a cache folder keyed by those pins. The last line printed is that folder.
#
#   lab/kit/build.sh              build what is missing
#   lab/kit/build.sh --path       only print where the programs are or would be
#
# L2LB_KIT_DIR    a folder that already holds the programs (nothing is built)
# XDG_CACHE_HOME  where the cache lives (default: ~/.cache)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs=(etcd kube-apiserver kube-controller-manager kube-proxy kubectl helm)

if [ -n "${L2LB_KIT_DIR:-}" ]; then
  for p in "${programs[@]}"; do
    [ -x "$L2LB_KIT_DIR/$p" ] || { echo "L2LB_KIT_DIR=$L2LB_KIT_DIR has no program $p: put it there, or unset L2LB_KIT_DIR to build it." >&2; exit 1; }
  done
  echo "$L2LB_KIT_DIR"; exit 0
fi

version=$(awk '$1 == "require" && $2 == "k8s.io/kubernetes" {print $3}' "$here/kubernetes/go.mod")
[ -n "$version" ] || version=$(awk '$1 == "k8s.io/kubernetes" {print $2; exit}' "$here/kubernetes/go.mod")
pins=$(cat "$here"/*/go.mod "$here"/*/go.sum | sha256sum | cut -c1-12)
out=${XDG_CACHE_HOME:-$HOME/.cache}/l2lb/kit/$version-$pins
[ "${1:-}" = --path ] && { echo "$out"; exit 0; }

missing=()
for p in "${programs[@]}"; do [ -x "$out/$p" ] || missing+=("$p"); done
[ ${#missing[@]} -eq 0 ] && { echo "$out"; exit 0; }

command -v go >/dev/null || { echo "The lab builds Kubernetes from its Go modules and finds no 'go': install Go 1.26 or later, or name a folder with ${programs[*]} in L2LB_KIT_DIR." >&2; exit 1; }
mkdir -p "$out"
exec 9> "$out/.lock"
flock 9                                     # a second build waits for the first and then finds everything there

build() { # build PROGRAM MODULE-FOLDER PACKAGE [LDFLAGS]: to a name of its own first, so that an interrupted build leaves nothing half
  [ -x "$out/$1" ] && return
  echo "building $1 (once; cached in the folder printed at the end)" >&2
  (cd "$here/$2" && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w ${4:-}" -o "$out/.$1.$$" "$3")
  mv "$out/.$1.$$" "$out/$1"
}
stamp="-X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$(echo "$version" | cut -d. -f2) -X k8s.io/component-base/version.gitTreeState=clean -X k8s.io/component-base/version.gitCommit=$version"
build etcd                    etcd       go.etcd.io/etcd/server/v3
build helm                    helm       helm.sh/helm/v3/cmd/helm
build kubectl                 kubernetes k8s.io/kubernetes/cmd/kubectl "$stamp"
build kube-apiserver          kubernetes k8s.io/kubernetes/cmd/kube-apiserver "$stamp"
build kube-controller-manager kubernetes k8s.io/kubernetes/cmd/kube-controller-manager "$stamp"
build kube-proxy              kubernetes k8s.io/kubernetes/cmd/kube-proxy "$stamp"
echo "$out"
