-- KEYS: each task's record. ARGV: milliseconds to keep; then for each attempt: nonce, 1 when it counts and 0 otherwise.
-- Answers for each: 1 when it is released or there is no record, 0 when it was not the record's.

local answers = {}

for number, key in ipairs(KEYS) do
  local record = record_at(key)
  local at = record and run_of(record)
  local tries, held, holder
  if record then
    tries, held, holder = attempt_of(record, at)
  end
  if record and held > 0 and holder == ARGV[number * 2] and byte(record, at) < SUCCEEDED then
    if ARGV[number * 2 + 1] == '0' then
      tries = tries - 1
    end
    local run = pack('<BI4Bc16I8', QUEUED, tries, marks_but_alone(record, at), holder, 0)
    write(key, sub(record, 1, at - 1) .. run .. sub(record, at + 30), at, ARGV[1])
    answers[number] = 1
  else
    answers[number] = record and 0 or 1
  end
end
return answers
