-- KEYS: each task's record. ARGV: milliseconds to keep; then for each attempt: nonce, 1 when it counts and 0 otherwise.
-- Answers for each: 1 when it is released or there is no record, 0 when it is another's or has ended. What nobody holds is marked by
-- the nonce as well: a claim of that attempt which is still on its way comes too late.

local answers = {}

for number, key in ipairs(KEYS) do
  local record = record_at(key)
  local at = record and run_of(record)
  local tries, held, holder
  if record then
    tries, held, holder = attempt_of(record, at)
  end
  local nonce, counts = ARGV[number * 2], ARGV[number * 2 + 1] ~= '0'
  if record and byte(record, at) < SUCCEEDED and (held == 0 or holder == nonce) then
    if held > 0 and not counts then
      tries = tries - 1
    end
    local run = pack('<BI4Bc16I8', QUEUED, tries, marks_but_alone(record, at), nonce, 0)
    write(key, sub(record, 1, at - 1) .. run .. sub(record, at + 30), at, ARGV[1])
    answers[number] = 1
  else
    answers[number] = record and 0 or 1
  end
end
return answers
