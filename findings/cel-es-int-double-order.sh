#!/usr/bin/env bash
# Assumption: in CEL, two numbers that are `<=` and `>=` are equal, and exactly one of `<`, `==`, `>` is true.
# Result: a large int and the nearest double are compared in two ways. `==` is exact, and false; `<` and `>`
# round the int to a double first, and are also false. So none of the three is true, while `<=` and `>=` both are.
# The language definition orders all numbers on one number line; the conformance tests of the specification require rounding.
# Version: @bufbuild/cel 0.6.1 (npm).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo '{"private": true, "type": "module"}' >package.json
npm install --silent --ignore-scripts --no-audit --no-fund @bufbuild/cel@0.6.1
npm ls --depth=0 | grep '@bufbuild/cel@'
cat >compare.js <<'JS'
import { run } from "@bufbuild/cel";

for (const [a, b] of [["9007199254740993", "9007199254740992.0"], ["9223372036854775807", "9223372036854775808.0"]]) {
  const said = ["<", "==", ">", "!=", "<=", ">="].map((operator) => `${operator} ${run(`dyn(${a}) ${operator} ${b}`)}`);
  console.log(`${a} and ${b}: ${said.join(", ")}`);
}
JS
node compare.js >saw
cat >wanted <<'TEXT'
9007199254740993 and 9007199254740992.0: < false, == false, > false, != true, <= true, >= true
9223372036854775807 and 9223372036854775808.0: < false, == false, > false, != true, <= true, >= true
TEXT
echo "saw:"
cat saw
diff wanted saw || { echo "changed" >&2; exit 1; }
