#!/bin/sh
# Makes the virtual environment: tools/make_venv.sh PYTHON FOLDER, where PYTHON may be empty for any that is new enough.
# Everything comes from requirements.lock.
set -eu
venv=$2

python=
for candidate in ${1:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "expected Python 3.11 or newer as ${1:-python3}, found: $("${1:-python3}" --version 2>&1 || true)" >&2
    echo "install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=python3.12" >&2
    exit 1
fi

# Debian keeps venv's pip in a package of its own.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq "python$version-venv" >/dev/null
    else
        echo "this Python has no venv: install it first (Debian: apt-get install python$version-venv)" >&2
        exit 1
    fi
fi

echo "setting up $venv ($("$python" --version)): about 8 GB, a minute or a few ..."
rm -rf "$venv"
"$python" -m venv "$venv"
uv=$(grep '^uv==' requirements.lock)
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$uv"
# The lock is complete (--no-deps): it overrides what one package says of aiohttp, see pyproject.toml.
# Compiled here once: where PYTHONDONTWRITEBYTECODE is set, as in many containers, each of the service's dozen Python
# processes would compile Ray and torch anew, and the start would take twice as long.
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --compile-bytecode \
    --requirement requirements.lock
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
echo "set up $venv"
