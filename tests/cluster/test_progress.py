from hypothesis import given
from hypothesis import strategies as st

from agent.cluster.progress import ProgressRule, Report


def test_the_first_report_is_due_at_once() -> None:
    assert ProgressRule().due(5.0, 10, 3) == Report(10, 3)


def test_a_report_is_due_after_ten_seconds_even_without_progress() -> None:
    rule = ProgressRule()
    rule.due(0.0, 100, 1)
    assert rule.due(9.9, 100, 1) is None
    assert rule.due(10.0, 100, 1) == Report(100, 1)


def test_a_percent_is_reported_but_not_twice_a_second() -> None:
    rule = ProgressRule()
    rule.due(0.0, 1000, 0)
    assert rule.due(0.9, 1000, 500) is None
    assert rule.due(1.0, 1000, 9) is None
    assert rule.due(1.0, 1000, 10) == Report(1000, 10)


@given(
    st.lists(
        st.tuples(st.floats(0.0, 12.0), st.integers(0, 2**50), st.integers(0, 2**50)),
        max_size=30,
    )
)
def test_reports_never_go_down_and_never_exceed_the_total(
    steps: list[tuple[float, int, int]],
) -> None:
    rule = ProgressRule()
    now, last, last_at = 0.0, Report(0, 0), None
    for pause, total, done in steps:
        now += pause
        report = rule.due(now, total, done)
        if report is None:
            assert last_at is not None
            assert now - last_at < 10.0
            continue
        assert report.done_bytes >= last.done_bytes
        assert report.total_bytes >= last.total_bytes
        assert report.done_bytes <= report.total_bytes
        assert last_at is None or now - last_at >= 1.0
        last, last_at = report, now
