-- KEYS: the count of wishes, then each task's record. ARGV: milliseconds to keep, milliseconds that a task without a record is remembered for.
-- Answers for each: its record, false when there is none. One that has not ended is marked.

local answers = {}

for number = 2, #KEYS do
  local key = KEYS[number]
  local record = record_at(key)
  local at = record and run_of(record)
  if not record then
    redis.call('SET', key, '\2', 'PX', ARGV[2])
  elseif byte(record, at) < SUCCEEDED and not unwanted(record, at) then
    record = marked(record, at, marks_of(record, at) + 4)
    write(key, record, at, ARGV[1])
    redis.call('INCR', KEYS[1])
  end
  answers[number - 1] = record or false
end
return answers
