-- KEYS: each task's record. ARGV: milliseconds to keep; then for each lease: nonce, milliseconds.
-- Answers for each: 1 when it is renewed, 0 when it is lost, 2 when there is no record.

local now = clock()
local answers = {}

for number, key in ipairs(KEYS) do
  local held = redis.call('HMGET', key, 'state', 'nonce', 'alias')
  if held[2] == ARGV[number * 2] and not ENDED[held[1]] then
    redis.call('HSET', key, 'lease', now + tonumber(ARGV[number * 2 + 1]))
    keep(key, held[3], ARGV[1])
    answers[number] = 1
  else
    answers[number] = held[1] and 0 or 2
  end
end
return answers
