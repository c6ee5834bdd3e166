-- KEYS: each task's record. ARGV: milliseconds to keep; then for each task: model.
-- Answers for each: 1 when it is marked, 0 when it was left alone.

local _, now_us = clock()
local answers = {}

for number, key in ipairs(KEYS) do
  local held = redis.call('HMGET', key, 'state', 'alias')
  if held[1] == 'queued' or held[1] == 'dispatched' then
    redis.call('HSET', key, 'state', 'dispatched', 'model', ARGV[number + 1], 'sent', now_us)
    keep(key, held[2], ARGV[1])
    answers[number] = 1
  else
    answers[number] = 0
  end
end
return answers
