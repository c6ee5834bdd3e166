-- KEYS: each task's record. ARGV: milliseconds to keep; then for each attempt: nonce, 1 when it counts and 0 otherwise.
-- Answers for each: 1 when it is released or there is no record, 0 when it was not the record's.

local answers = {}

for number, key in ipairs(KEYS) do
  local held = redis.call('HMGET', key, 'state', 'nonce', 'tries', 'alias')
  if held[2] == ARGV[number * 2] and not ENDED[held[1]] then
    local tries = tonumber(held[3])
    if ARGV[number * 2 + 1] == '0' then
      tries = tries - 1
    end
    redis.call('HSET', key, 'state', 'queued', 'nonce', '', 'lease', 0, 'tries', tries)
    keep(key, held[4], ARGV[1])
    answers[number] = 1
  else
    answers[number] = held[1] and 0 or 1
  end
end
return answers
