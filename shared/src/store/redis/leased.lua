-- KEYS: each task's record.
-- Answers for each: 1 when an attempt's lease lives, 0 when none does and the task has not ended, 2 when it has ended, 3 when
-- there is no record.

local now = clock()
local answers = {}

for number, key in ipairs(KEYS) do
  local record = record_at(key)
  if not record then
    answers[number] = 3
  else
    local at = run_of(record)
    local _, held, _, lease = attempt_of(record, at)
    if byte(record, at) >= SUCCEEDED then
      answers[number] = 2
    else
      answers[number] = held > 0 and lease > now and 1 or 0
    end
  end
end
return answers
