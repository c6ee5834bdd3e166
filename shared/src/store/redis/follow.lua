-- KEYS: each task's record. ARGV: milliseconds to keep, most followers, follower with a line feed on either side.
-- Answers for each: its record.

local answers = {}

for number, key in ipairs(KEYS) do
  local record = record_at(key)
  local at = record and run_of(record)
  if record and byte(record, at) < SUCCEEDED then
    record, at = follow(record, at, ARGV[3], tonumber(ARGV[2]))
    write(key, record, at, ARGV[1])
  end
  answers[number] = record or false
end
return answers
