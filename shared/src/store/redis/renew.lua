-- KEYS: each task's record. ARGV: milliseconds to keep; then for each lease: nonce, milliseconds.
-- Answers for each: 1 when it is renewed, 0 when it is lost, 2 when there is no record, 3 when it is renewed and to be cancelled.

local now = clock()
local answers = {}

for number, key in ipairs(KEYS) do
  local record = record_at(key)
  local at = record and run_of(record)
  local _, held, holder
  if record then
    _, held, holder = attempt_of(record, at)
  end
  if record and held > 0 and holder == ARGV[number * 2] and byte(record, at) < SUCCEEDED then
    local until_ms = pack('<I8', now + tonumber(ARGV[number * 2 + 1]))
    write(key, sub(record, 1, at + 21) .. until_ms .. sub(record, at + 30), at, ARGV[1])
    answers[number] = unwanted(record, at) and 3 or 1
  else
    answers[number] = record and 0 or 2
  end
end
return answers
