"""Does a served model answer as it should? Suites of questions with checks, and lm-eval's tasks.

suite    what is asked: JSON lines, the demo's own in ``suites``
judge    one answer against one check
client   one question over HTTP
run      all questions, some at a time
tally    answers to rates with intervals, and floors under them
harness  lm-eval as a library, where it is installed
record   what is left of a run
"""

from mserve.evaluate.client import Answer, AskClient
from mserve.evaluate.harness import check_tasks, run_tasks, task_scores
from mserve.evaluate.judge import judge
from mserve.evaluate.record import Record, Unanswered, Wrong, unanswered_of, wrong_of
from mserve.evaluate.run import Outcome, run_cases
from mserve.evaluate.suite import (
    Case,
    Check,
    first_of_parts,
    load_suite,
    load_suites,
    suite_names,
)
from mserve.evaluate.tally import (
    Floor,
    FloorResult,
    Score,
    check_floors,
    parse_floor,
    score_names,
    scores_of,
    wilson,
)

__all__ = [
    "Answer",
    "AskClient",
    "Case",
    "Check",
    "Floor",
    "FloorResult",
    "Outcome",
    "Record",
    "Score",
    "Unanswered",
    "Wrong",
    "check_floors",
    "check_tasks",
    "first_of_parts",
    "judge",
    "load_suite",
    "load_suites",
    "parse_floor",
    "run_cases",
    "run_tasks",
    "score_names",
    "scores_of",
    "suite_names",
    "task_scores",
    "unanswered_of",
    "wilson",
    "wrong_of",
]
