"""Of botocore's descriptions what a client needs is there, and the rest is not."""

import json
import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.loaders import Loader, create_loader
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StructureShape

from agent.storage import s3
from agent.storage.models import OPERATIONS, SERVICES, models


@pytest.fixture
def fresh() -> Loader:
    """Return descriptions as they were read: clients that use them edit them in place."""
    return models.__wrapped__()


def without_sentences(found: Any) -> Any:
    """Return a description with its texts empty, made in another way than the product's."""
    if isinstance(found, list):
        return [without_sentences(value) for value in found]
    if not isinstance(found, dict):
        return found
    return {
        key: "" if key == "documentation" and isinstance(value, str) else without_sentences(value)
        for key, value in found.items()
    }


@pytest.mark.parametrize(
    ("service", "kind"),
    [
        ("s3", "endpoint-rule-set-1"),
        ("s3", "paginators-1"),
        ("sts", "service-2"),
        ("sts", "endpoint-rule-set-1"),
    ],
)
def test_a_service_is_described_as_ever_but_for_the_sentences(
    service: str, kind: str, fresh: Loader
) -> None:
    whole = create_loader().load_service_model(service, kind)
    ours = fresh.load_service_model(service, kind)
    assert ours == without_sentences(whole)
    assert list(ours) == list(whole)


def test_s3_has_the_operations_that_are_asked_for_and_all_that_these_are_made_of(
    fresh: Loader,
) -> None:
    whole = without_sentences(create_loader().load_service_model("s3", "service-2"))
    ours = fresh.load_service_model("s3", "service-2")
    assert list(ours) == list(whole)
    assert ours["operations"] == {name: whole["operations"][name] for name in sorted(OPERATIONS)}
    assert ours["shapes"].items() <= whole["shapes"].items()
    model = ServiceModel(ours, "s3")
    met: set[str] = set()
    for name in OPERATIONS:
        operation = model.operation_model(name)
        made_of = [operation.input_shape, operation.output_shape, *operation.error_shapes]
        meet([shape for shape in made_of if shape is not None], met)
    assert ours["shapes"].keys() == met


def meet(shapes: list[Shape], met: set[str]) -> None:
    """Follow shapes as botocore does, and collect their names."""
    for shape in shapes:
        if shape.name not in met:
            met.add(shape.name)
            below = list(shape.members.values()) if isinstance(shape, StructureShape) else []
            below += [shape.member] if isinstance(shape, ListShape) else []
            below += [shape.key, shape.value] if isinstance(shape, MapShape) else []
            meet(below, met)


def test_every_operation_that_the_storage_calls_is_among_them() -> None:
    called = set(re.findall(r"_client\(\)\.(\w+)|client\.(\w+_bucket)\(", storage_source()))
    names = {one or other for one, other in called}
    assert {botocore.xform_name(name) for name in OPERATIONS} - {"create_session"} == names


def storage_source() -> str:
    return "".join(path.read_text() for path in Path(s3.__file__).parent.glob("s3*.py"))


def test_the_sentences_were_most_of_it(fresh: Loader) -> None:
    whole = create_loader().load_service_model("s3", "service-2")
    ours = fresh.load_service_model("s3", "service-2")
    assert len(json.dumps(ours)) < len(json.dumps(whole)) / 2


def test_endpoints_are_those_of_the_services_that_we_ask(fresh: Loader) -> None:
    whole, ours = create_loader().load_data("endpoints"), fresh.load_data("endpoints")
    for theirs, kept in zip(whole["partitions"], ours["partitions"], strict=True):
        known = {name: each for name, each in theirs["services"].items() if name in SERVICES}
        assert kept == {**theirs, "services": known}
    assert ours["partitions"][0]["services"].keys() == SERVICES


@pytest.mark.parametrize(
    ("service", "host"),
    [
        ("s3", "s3.eu-west-1.amazonaws.com"),
        ("sts", "sts.eu-west-1.amazonaws.com"),
        ("sso", "portal.sso.eu-west-1.amazonaws.com"),
        ("sso-oidc", "oidc.eu-west-1.amazonaws.com"),
    ],
)
def test_every_client_of_the_credential_chain_finds_its_endpoint(service: str, host: str) -> None:
    session = botocore.session.Session()
    session.register_component("data_loader", models())
    client = session.create_client(
        service, "eu-west-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    assert client.meta.endpoint_url == f"https://{host}"
    client.close()


def test_what_is_not_there_is_missing_as_ever() -> None:
    with pytest.raises(botocore.exceptions.UnknownServiceError):
        models().load_service_model("no-such-service", "service-2")
