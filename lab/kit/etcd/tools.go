//go:build tools

// Package kit pins the etcd server that the lab runs.
package kit

import _ "go.etcd.io/etcd/server/v3"
