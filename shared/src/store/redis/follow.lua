-- KEYS: each task's record. ARGV: milliseconds to keep, most followers, follower.
-- Answers for each: a view.

local answers = {}

for number, key in ipairs(KEYS) do
  local held = redis.call('HMGET', key, 'state', 'alias')
  if held[1] and not ENDED[held[1]] then
    follow(key, ARGV[3], tonumber(ARGV[2]))
    keep(key, held[2], ARGV[1])
  end
  answers[number] = view(key)
end
return answers
