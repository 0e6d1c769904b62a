# Print the first Python that mserve supports, or nothing. Some names are shims that exist and do
# not run, so each is asked for its version.
for name in python3.11 python3.12 python3.13 python3 python; do
    if "$name" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        >/dev/null 2>&1; then
        command -v "$name"
        exit 0
    fi
done
