import pytest

from tools.audit import CLEAN, UNKNOWN, VULNERABLE, verdict

FINE = {"name": "fine", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"], "aliases": []}]}
UNSEEN = {"name": "unseen", "skip_reason": "Dependency not found and could not be audited: unseen (3.0)"}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([FINE], CLEAN, "1 packages looked up, 0 known"),
        ([FINE, BAD], VULNERABLE, "bad 2.0: CVE-1, fixed in 2.1"),
        ([BAD, UNSEEN], VULNERABLE, "INCOMPLETE: 1 of 2 not looked up: unseen"),
        ([FINE, UNSEEN], UNKNOWN, "INCOMPLETE: 1 of 2 not looked up: unseen"),
        ([UNSEEN], UNKNOWN, "NOT DONE: none of 1 packages"),
        ([], UNKNOWN, "NOT DONE: none of 0 packages"),
    ],
)
def test_a_package_that_was_not_looked_up_is_not_called_safe(packages, status, said):
    lines, found = verdict({"dependencies": packages, "fixes": []})
    assert found == status
    assert said in "\n".join(lines)
