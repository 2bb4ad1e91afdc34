"""API servers for tests: the stand-in, and the real kube-apiserver."""
