"""A stand-in for kube-apiserver, faithful where an agent can tell the difference."""

from agent.demo.apiserver.faults import Cut, Fault, Faults
from agent.demo.apiserver.http import Seen
from agent.demo.apiserver.server import Server, Standin
from agent.demo.apiserver.watches import Limits

__all__ = ["Cut", "Fault", "Faults", "Limits", "Seen", "Server", "Standin"]
