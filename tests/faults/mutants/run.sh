#!/usr/bin/env bash
# Whether the ledger sees what is broken: builds the project with each of the patches beside this file, or those that are named,
# runs the ledger over it, and says which rules it found broken.
#
#     tests/faults/mutants/run.sh [NAME...]
#
# A patch says before its changes what it breaks, which rules may be the ones that show it (`Red:`), and in what form the ledger is
# run (`Run:`, `Test:`). Exit code 1 when one is not found out, or no longer applies. Everything is below $TASKYARD_MUTANTS_DIR
# (/tmp/taskyard-mutants): a copy of the tree, its target folder, and what the runs printed.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=${TASKYARD_MUTANTS_DIR:-/tmp/taskyard-mutants}
tree=$work/tree
mkdir -p "$tree" "$work/ledgers"

# What our crates are built with: the fastest to build.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$work/target} CARGO_INCREMENTAL=1
export CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_OPT_LEVEL=0 CARGO_PROFILE_TEST_DEBUG=0
export RUST_BACKTRACE=0 TASKYARD_TEST_REQUIRE_SERVERS=1 TASKYARD_FAULTS_DIR=$work/ledgers

# Cargo goes by the times of files: one that differs is written anew, and the others are left as they are.
copy() {
    (cd "$root" && git ls-files -z --cached --others --exclude-standard) | while IFS= read -r -d '' file; do
        [ -f "$root/$file" ] || continue
        if ! cmp -s "$root/$file" "$tree/$file"; then
            mkdir -p "$(dirname "$tree/$file")"
            cp "$root/$file" "$tree/$file"
        fi
    done
}

said() { sed -n "1,/^diff /s/^$1: //p" "$here/$2.patch"; }

try() {
    local name=$1 log=$work/$1.log verdict
    if ! git -C "$tree" apply --whitespace=nowarn "$here/$name.patch" 2>"$log"; then
        printf '%-30s no longer applies: %s\n' "$name" "$log"
        return 1
    fi
    local test
    test=$(said Test "$name")
    local built=0
    (cd "$tree" && ${TASKYARD_MUTANTS_BUILD:-} cargo test --quiet --locked --test faults --no-run) >"$log" 2>&1 || built=$?
    if [ "$built" = 0 ]; then
        (cd "$tree" && env $(said Run "$name") ${TASKYARD_MUTANTS_RUN:-} cargo test --quiet --locked --test faults -- --nocapture \
            "${test:-three_thousand}") >>"$log" 2>&1 || true
    fi
    git -C "$tree" apply -R --whitespace=nowarn "$here/$name.patch"
    if [ "$built" != 0 ]; then
        printf '%-30s cannot be built: %s\n' "$name" "$log"
        return 1
    fi
    verdict=$(sed -n 's/^  verdict *//p' "$log")
    case $verdict in
    "") printf '%-30s came to no verdict: %s\n' "$name" "$log"; return 1 ;;
    good) printf '%-30s GREEN: the ledger does not see it: %s\n' "$name" "$log"; return 1 ;;
    esac
    local rule
    for rule in $(said Red "$name" | tr -d ,); do
        if [[ $verdict == *"$rule:"* ]]; then
            printf '%-30s red: %s\n' "$name" "$verdict"
            return 0
        fi
    done
    printf '%-30s red, but not for its own sake: %s: %s\n' "$name" "$verdict" "$log"
    return 1
}

# The tree is no repository of its own, or git would look at the one around it.
copy
[ -d "$tree/.git" ] || git -C "$tree" init --quiet
names=("$@")
if [ ${#names[@]} = 0 ]; then
    for patch in "$here"/*.patch; do names+=("$(basename "$patch" .patch)"); done
fi
failed=0
for name in "${names[@]}"; do
    try "$name" || failed=1
done
rm -rf "$work/ledgers"
exit $failed
