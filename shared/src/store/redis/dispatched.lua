-- KEYS: each task's record. ARGV: milliseconds to keep; then for each task: model.
-- Answers for each: 1 when it is marked, 0 when it was left alone.

local _, now_us = clock()
local answers = {}

for number, key in ipairs(KEYS) do
  local record, model = record_at(key), ARGV[number + 1]
  local at = record and run_of(record)
  local state = record and byte(record, at)
  if state == QUEUED or state == DISPATCHED then
    local old, worker = unpack_of('<I2I2', record, at + 46)
    write(key, sub(record, 1, at - 1) .. pack('<B', DISPATCHED) .. sub(record, at + 1, at + 37)
      .. pack('<I8I2I2', now_us, #model, worker) .. model .. sub(record, at + 50 + old), at, ARGV[1])
    answers[number] = 1
  else
    answers[number] = 0
  end
end
return answers
