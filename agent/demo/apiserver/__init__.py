"""A stand-in for kube-apiserver, faithful where an agent can tell the difference."""
