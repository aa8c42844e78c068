//go:build tools

// Package kit pins the helm that the lab runs.
package kit

import _ "helm.sh/helm/v3/cmd/helm"
