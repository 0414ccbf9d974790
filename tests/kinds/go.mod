// Kinds of others that the chart makes objects of: the modules whose files hold their CRDs. Nothing of
// them is built. To move to another version, change it here, and in go.sum what `go mod download -json
// MODULE@VERSION` prints as Sum and GoModSum.
module opensandbox.io/opensandbox-operator/tests/kinds

go 1.24.0

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
