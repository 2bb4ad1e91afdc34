"""When each alert must fire and when not: series as promtool writes them, one sample a minute.

``a+bxn`` begins at a and adds b n times; ``_`` is a scrape that failed; ``stale`` ends a series.
"""

from typing import NamedTuple

Series = dict[str, str]

DAY = 24 * 60


class Case(NamedTuple):
    """What is scraped, and whether the alert fires after so many minutes.

    Where that is more than a day, there is a sample an hour.
    """

    alert: str
    why: str
    fires: bool
    minutes: int
    series: Series

    @property
    def interval(self) -> str:
        return "1h" if self.minutes > DAY else "1m"


def _ended(kind: str, result: str) -> str:
    return f'podlift_{kind}s_total{{instance="a",result="{result}"}}'


BUILD = 'podlift_build_info{instance="a",job="podlift"}'
UP = 'up{instance="a",job="podlift"}'
WAITING = 'podlift_backups_waiting{instance="a"}'
JOB = 'kube_job_failed{condition="true",job_name="podlift-scrub-1"}'
STARTED = "process_start_time_seconds"
LAST = 'kube_cronjob_status_last_successful_time{cronjob="podlift-scrub"}'


def _daemonset(name: str, wanted: str, ready: str) -> Series:
    about = f'{{namespace="velero",daemonset="{name}"}}'
    return {
        f"kube_daemonset_status_desired_number_scheduled{about}": wanted,
        f"kube_daemonset_status_number_ready{about}": ready,
    }


def _started(agent: str) -> str:
    return f'process_start_time_seconds{{instance="{agent}"}}'


def _taken_over(backups: int, restores: int) -> Series:
    return {
        'podlift_backups_resumed_total{instance="a"}': f"{backups}x400",
        'podlift_restores_resumed_total{instance="a"}': f"{restores}x400",
    }


def _moving(files: str, at_work: str = "1x120") -> Series:
    """Return what an agent shows that moves no byte, and files as told."""
    flows = ("processed", "read", "uploaded", "fetched", "restored")
    return {
        WAITING.replace("waiting", "running"): at_work,
        'podlift_restores_running{instance="a"}': "0x120",
        'podlift_files_total{instance="a",state="new"}': files,
        'podlift_files_total{instance="a",state="unmodified"}': "3x120",
        **{f'podlift_{flow}_bytes_total{{instance="a"}}': "1000x120" for flow in flows},
    }


def _memory(taken: str) -> Series:
    return {"podlift_memory_bytes": taken, "podlift_memory_limit_bytes": "100x60"}


def _flat(name: str, value: int, minutes: int) -> Series:
    return {name: f"{value}x{minutes}"}


CASES = [
    Case("PodliftBackupFailed", "one failed", True, 30, {_ended("backup", "failed"): "0x20 1x20"}),
    Case("PodliftBackupFailed", "one refused", True, 30, {_ended("backup", "refused"): "0x9 1x30"}),
    Case("PodliftBackupFailed", "long ago", False, 100, {_ended("backup", "failed"): "0x5 1x120"}),
    Case(
        "PodliftBackupFailed",
        "others ended otherwise",
        False,
        30,
        {_ended("backup", "completed"): "0+1x60", _ended("backup", "left"): "0+1x60"},
    ),
    Case("PodliftRestoreFailed", "one failed", True, 30, {_ended("restore", "failed"): "0x9 1x40"}),
    Case(
        "PodliftRestoreFailed",
        "a backup failed",
        False,
        30,
        {_ended("restore", "failed"): "0x60", _ended("backup", "failed"): "0+1x60"},
    ),
    Case(
        "PodliftNothingCompletes",
        "one waits and none completes for seven hours",
        True,
        7 * 60 + 5,
        {_ended("backup", "completed"): "5x900", WAITING: "2x900"},
    ),
    Case(
        "PodliftNothingCompletes",
        "one completes in between",
        False,
        7 * 60 + 5,
        {_ended("backup", "completed"): "5x200 6x700", WAITING: "2x900"},
    ),
    Case(
        "PodliftNothingCompletes",
        "nothing waits",
        False,
        12 * 60,
        {_ended("backup", "completed"): "5x900", WAITING: "0x900"},
    ),
    Case(
        "PodliftEntriesUnreadable",
        "two were left out",
        True,
        30,
        {"podlift_unreadable_entries_total": "0x20 2x20"},
    ),
    Case(
        "PodliftEntriesUnreadable",
        "none more since",
        False,
        100,
        {"podlift_unreadable_entries_total": "0x5 2x120"},
    ),
    Case(
        "PodliftRestoreIncomplete",
        "one is not complete",
        True,
        30,
        {"podlift_incomplete_entries_total": "0x20 1x20"},
    ),
    Case("PodliftRestoreIncomplete", "none", False, 30, _flat("podlift_incomplete_entries_total", 3, 60)),
    Case(
        "PodliftBackupFailed",
        "a new agent refused one before it was scraped",
        True,
        30,
        {_ended("backup", "refused"): "_x20 1x40", _started("a"): "_x20 1200x40"},
    ),
    Case(
        "PodliftBackupFailed",
        "monitoring begins long after",
        False,
        200,
        {_ended("backup", "refused"): "_x120 1x100", _started("a"): "_x120 60x100"},
    ),
    Case(
        "PodliftRestoreFailed",
        "a new agent failed one before it was scraped",
        True,
        30,
        {_ended("restore", "failed"): "_x20 1x40", _started("a"): "_x20 1200x40"},
    ),
    Case(
        "PodliftEntriesUnreadable",
        "a new agent left one out before it was scraped",
        True,
        30,
        {"podlift_unreadable_entries_total": "_x20 1x40", STARTED: "_x20 1200x40"},
    ),
    Case(
        "PodliftRestoreIncomplete",
        "a new agent ended one before it was scraped",
        True,
        30,
        {"podlift_incomplete_entries_total": "_x20 1x40", STARTED: "_x20 1200x40"},
    ),
    Case(
        "PodliftTakenOverAgainAndAgain",
        "thrice, each time before the first scrape",
        True,
        300,
        {_started("a"): "0x60 3600x60 7200x60 10800x200"} | _taken_over(1, 0),
    ),
    Case(
        "PodliftTakenOverAgainAndAgain",
        "a restore, thrice",
        True,
        300,
        {_started("a"): "0x60 3600x60 7200x60 10800x200"} | _taken_over(0, 1),
    ),
    Case(
        "PodliftTakenOverAgainAndAgain",
        "once, as by an update",
        False,
        300,
        {_started("a"): "0x60 3600x400"} | _taken_over(1, 0),
    ),
    Case(
        "PodliftTakenOverAgainAndAgain",
        "thrice, with nothing to take over",
        False,
        300,
        {_started("a"): "0x60 3600x60 7200x60 10800x200"} | _taken_over(0, 0),
    ),
    Case("PodliftNoProgress", "at work, and nothing moves", True, 90, _moving("7x120")),
    Case("PodliftNoProgress", "a file now and then", False, 90, _moving("0+1x120")),
    Case("PodliftNoProgress", "not at work", False, 90, _moving("7x120", "0x120")),
    Case("PodliftNoProgress", "it waits for a lock", False, 101, _moving("7x101 8x20", "0x60 1x60")),
    Case("PodliftNoProgress", "for half an hour", False, 90, _moving("0+1x60 60x60")),
    Case("PodliftQueueNeverEmpty", "thirteen hours", True, 13 * 60, {WAITING: "2x900"}),
    Case("PodliftQueueNeverEmpty", "empty once", False, 13 * 60, {WAITING: "2x400 0 1x500"}),
    Case("PodliftMemoryNearLimit", "nine tenths", True, 30, _memory("90x60")),
    Case("PodliftMemoryNearLimit", "for a moment", False, 30, _memory("50x20 90x5 50x60")),
    Case(
        "PodliftThrottled",
        "half a second a second for an hour and a half",
        True,
        90,
        {"podlift_storage_throttled_seconds_total": "0+30x120"},
    ),
    Case(
        "PodliftThrottled",
        "for half an hour",
        False,
        90,
        {"podlift_storage_throttled_seconds_total": "0+30x30 900x120"},
    ),
    Case("PodliftLockOld", "sixteen minutes", True, 20, {"podlift_lock_age_seconds": "0+60x30"}),
    Case(
        "PodliftLockOld",
        "refreshed every five minutes",
        False,
        30,
        {"podlift_lock_age_seconds": "0 60 120 180 240 300 0 60 120 180 240 300 0 60 120 180 240 300x20"},
    ),
    Case("PodliftNoAgent", "there is none", True, 20, _flat("something_else", 1, 60)),
    Case("PodliftNoAgent", "there is one", False, 20, _flat(BUILD, 1, 60)),
    Case("PodliftAgentDown", "it was there", True, 60, {BUILD: "1x20 stale", UP: "1x20 0x60"}),
    Case("PodliftAgentDown", "it answers again", False, 60, {BUILD: "1x80", UP: "1x20 0x9 1x60"}),
    Case(
        "PodliftAgentDown",
        "another program is down",
        False,
        60,
        {BUILD: "1x80", 'up{instance="b",job="other"}': "0x80"},
    ),
    Case("PodliftDaemonSetIncomplete", "two of three", True, 30, _daemonset("node-agent", "3x60", "2x60")),
    Case("PodliftDaemonSetIncomplete", "all", False, 30, _daemonset("podlift", "3x60", "3x60")),
    Case("PodliftDaemonSetIncomplete", "another's", False, 30, _daemonset("proxy", "3x60", "2x60")),
    Case("PodliftDaemonSetIncomplete", "rolled out", False, 30, _daemonset("podlift", "3x60", "3x5 2x9 3x60")),
    Case("PodliftAgentNotReady", "for long", True, 30, _flat("podlift_ready", 0, 60)),
    Case("PodliftAgentNotReady", "at its start", False, 30, {"podlift_ready": "0x3 1x60"}),
    Case("PodliftInternalError", "one", True, 30, {"podlift_internal_errors_total": "0x20 1x30"}),
    Case("PodliftInternalError", "none", False, 30, _flat("podlift_internal_errors_total", 0, 60)),
    Case("PodliftScrubFailed", "it failed", True, 5, _flat(JOB, 1, 9)),
    Case("PodliftScrubFailed", "it did not", False, 5, _flat(JOB, 0, 9)),
    Case("PodliftScrubFailed", "another's", False, 5, _flat(JOB.replace("podlift-scrub", "x"), 1, 9)),
    Case("PodliftScrubLate", "eleven days ago", True, 11 * DAY, _flat(LAST, 0, 12 * 24)),
    Case("PodliftScrubLate", "three days ago", False, 11 * DAY, _flat(LAST, 8 * DAY * 60, 12 * 24)),
]  # fmt: skip
