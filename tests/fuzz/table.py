"""All rows: what the tests run over."""

from tests.fuzz import of_clusters, of_people, of_repositories

DECODERS = [*of_repositories.DECODERS, *of_clusters.DECODERS, *of_people.DECODERS]
