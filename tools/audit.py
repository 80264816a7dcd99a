"""Looks every pinned package of requirements.lock up in the vulnerability database, with pip-audit.

pip-audit itself says "no known vulnerabilities" of packages that it could not look up, so this counts them. Exit
status: 0 all looked up and none known to be vulnerable, 1 some known to be vulnerable, 2 some not looked up.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 2
TIMEOUT_S = 600


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--requirement", str(LOCK)]
    command += ["--no-deps", "--disable-pip", "--progress-spinner", "off"]  # the lock is complete
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        report = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        print(f"audit: NOT DONE: no answer from the vulnerability database within {TIMEOUT_S} s", file=sys.stderr)
        return UNKNOWN
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"audit: NOT DONE: pip-audit ended with status {done.returncode}: {reason}", file=sys.stderr)
        return UNKNOWN
    lines, status = verdict(report)
    print("\n".join(lines), file=sys.stderr if status else sys.stdout)
    return status


def verdict(report: dict[str, Any]) -> tuple[list[str], int]:
    """What pip-audit's JSON report means, in lines for people and as an exit status."""
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    vulnerable = [package for package in packages if package.get("vulns")]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package in vulnerable
        for found in package["vulns"]
    ]
    if not packages or len(skipped) == len(packages):
        lines.append(f"audit: NOT DONE: none of {len(packages)} packages could be looked up: no database?")
    elif skipped:
        lines.append(f"audit: INCOMPLETE: {len(skipped)} of {len(packages)} not looked up: {', '.join(skipped)}")
    lines.append(f"audit: {len(packages) - len(skipped)} packages looked up, {len(vulnerable)} known to be vulnerable")
    return lines, VULNERABLE if vulnerable else UNKNOWN if skipped or not packages else CLEAN


if __name__ == "__main__":
    sys.exit(main())
