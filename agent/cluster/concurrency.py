"""How many volumes a node moves at a time: ``loadConcurrency`` of Velero's node-agent ConfigMap. Pure.

The ConfigMap has one key of any name, whose value is JSON (velero.md section 3.3). A number for
everywhere, and rules for nodes by their labels, of which the smallest that matches wins. Rules that
make no sense are skipped with a warning, as Velero does; a ConfigMap that cannot be read is an error.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from agent.cluster.objects import UNREADABLE, ConfigMap
from agent.errors import ClusterError

LOG = logging.getLogger(__name__)


class Requirement(msgspec.Struct, frozen=True):
    """One of ``matchExpressions``."""

    key: str = ""
    operator: str = ""
    values: list[str] | None = None

    def met_by(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels meet it; one that has no meaning is met by none."""
        match self.operator:
            case "In":
                return labels.get(self.key) in (self.values or ())
            case "NotIn":  # also met by those without the label
                return labels.get(self.key) not in (self.values or ())
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
        return False

    @property
    def meaningful(self) -> bool:
        """Tell whether the API server would accept it."""
        if self.operator in ("In", "NotIn"):
            return bool(self.key and self.values)
        return self.operator in ("Exists", "DoesNotExist") and bool(self.key and not self.values)


class NodeSelector(msgspec.Struct, frozen=True, rename="camel"):
    """A label selector; an empty one selects every node."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[Requirement] | None = None

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a node with these labels is meant."""
        wanted = (self.match_labels or {}).items()
        return all(labels.get(key) == value for key, value in wanted) and all(
            requirement.met_by(labels) for requirement in self.match_expressions or ()
        )

    @property
    def meaningful(self) -> bool:
        """Tell whether all of its expressions are."""
        return all(requirement.meaningful for requirement in self.match_expressions or ())


class Rule(msgspec.Struct, frozen=True, rename="camel"):
    """One of ``perNodeConfig``."""

    node_selector: NodeSelector = msgspec.field(default_factory=NodeSelector)
    number: int = 0


class _LoadConcurrency(msgspec.Struct, rename="camel"):
    global_config: int = 0
    per_node_config: list[Rule] | None = None


class _NodeAgentConfig(msgspec.Struct, rename="camel"):
    load_concurrency: _LoadConcurrency | None = None


@dataclass(frozen=True, slots=True)
class LoadConcurrency:
    """What a ConfigMap says: ``everywhere``, or None where that is left to the agent, and rules."""

    everywhere: int | None = None
    rules: tuple[Rule, ...] = ()

    def volumes(self, labels: Mapping[str, str] | None, otherwise: int) -> int:
        """Return how many volumes a node with these labels moves at a time.

        Without its labels no rule means anything.
        """
        rules = self.rules if labels is not None else ()
        matching = [rule.number for rule in rules if rule.node_selector.selects(labels or {})]
        return min(matching, default=self.everywhere or otherwise)


def read_concurrency(found: ConfigMap, what: str) -> LoadConcurrency:
    """Read a ConfigMap, which ``what`` names; raises ``ClusterError`` that says what is wrong."""
    data = found.data or {}
    if len(data) > 1:
        raise ClusterError(
            f"{what} has {len(data)} keys, and which of them is meant is not known: leave one"
        )
    if not data:
        return LoadConcurrency()
    ((key, text),) = data.items()
    try:
        config = msgspec.json.decode(text.encode(errors="replace"), type=_NodeAgentConfig)
    except UNREADABLE as error:
        raise ClusterError(
            f"{what}: what it has under {key[:80]!r} cannot be read: {error}"
        ) from None
    load = config.load_concurrency or _LoadConcurrency()
    if load.global_config < 0:
        LOG.warning("%s: loadConcurrency.globalConfig %d is ignored", what, load.global_config)
    rules = []
    for number, rule in enumerate(load.per_node_config or (), 1):
        if rule.number > 0 and rule.node_selector.meaningful:
            rules.append(rule)
        else:
            LOG.warning("%s: rule %d of loadConcurrency.perNodeConfig is ignored", what, number)
    everywhere = load.global_config if load.global_config > 0 else None
    return LoadConcurrency(everywhere, tuple(rules))
