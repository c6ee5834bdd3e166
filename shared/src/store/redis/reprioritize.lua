-- KEYS: each task's record. ARGV: milliseconds to keep; then for each task: its priority plus one, 0 for the one that it
-- was accepted with.
-- Answers for each: its record, false when there is none. One that waits has the priority then.

local answers = {}

for number, key in ipairs(KEYS) do
  local record = record_at(key)
  local at = record and run_of(record)
  if record and byte(record, at) <= QUEUED then
    record = marked(record, at, marks_of(record, at) % 16 + 16 * tonumber(ARGV[number + 1]))
    write(key, record, at, ARGV[1])
  end
  answers[number] = record or false
end
return answers
