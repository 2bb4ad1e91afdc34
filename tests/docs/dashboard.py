"""The picture of the Grafana dashboard in docs/, drawn from a real run and a real Prometheus's answers.

``python -m tests.docs.dashboard`` runs two agents for some minutes (``tests.monitoring.shift``), asks the
Prometheus that scrapes them what the dashboard asks, and writes docs/dashboard.svg. Grafana is not
there: it is drawn here as Grafana would, which the picture says itself.
"""

import tempfile
from pathlib import Path

from tests.docs.charts import page
from tests.docs.pages import PROJECT
from tests.e2e.scene import Scene
from tests.monitoring.panels import panels, read
from tests.monitoring.shift import with_scene
from tests.support.apiservers import standing
from tests.support.faultproxy import FaultProxy
from tests.support.prometheus import HOW, program
from tests.support.s3servers import ministack

PICTURE = PROJECT / "docs" / "dashboard.svg"
MIB, PAUSE_SECONDS, VOLUMES = 160, 8.0, 4
NOTE = (
    "Drawn by podlift's docs tool (tests/docs/dashboard.py) from a real Prometheus's answers about two real "
    "agents; not by Grafana."
)


def look(binary: str, folder: Path) -> str:
    """Return the picture of one run."""
    home = folder / "s3"
    home.mkdir()
    with ministack(home) as s3, standing(folder) as server, FaultProxy(s3) as proxy:
        server.apply_velero_crds()
        scene = Scene(server, s3, folder / "scene", proxy)
        with with_scene(scene, proxy, MIB, PAUSE_SECONDS) as shift, shift.watched(binary, 1.0):
            shift.work(VOLUMES)
            span, dashboard = shift.span(points=180), read()
            answers = [each.answers(shift.prometheus, span) for each in panels(dashboard)]
            return page(dashboard, answers, span, NOTE)


if __name__ == "__main__":
    found = program("prometheus")
    if found is None:
        raise SystemExit(f"prometheus is missing; to get it: {HOW}")
    with tempfile.TemporaryDirectory() as made:
        PICTURE.write_text(look(found, Path(made)))
    print(PICTURE.name, PICTURE.stat().st_size, "bytes")  # noqa: T201 (what was drawn)
