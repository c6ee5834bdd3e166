-- KEYS: for each bucket its key. ARGV: for each bucket how many are wanted, how many come in a second, most that it holds.
-- Answers for each bucket how many were taken, and in how many milliseconds there is one more.
--
-- A bucket is its level when it was last looked at, and when that was in microseconds. One that is not there is full.

local _, now = clock()
local answers = {}
for place, key in ipairs(KEYS) do
  local wanted, rate, most = tonumber(ARGV[place * 3 - 2]), tonumber(ARGV[place * 3 - 1]), tonumber(ARGV[place * 3])
  local level, at = most, now
  local bucket = redis.call('GET', key)
  if bucket and #bucket == 16 then
    level, at = unpack_of('<dd', bucket)
  end
  level = math.min(most, level + math.max(now - at, 0) * rate / 1000000)
  local taken = math.min(wanted, math.floor(level))
  level = level - taken
  -- By then it is full again, which is what one is that is not there.
  local full_ms = math.min(math.ceil((most - level) / rate * 1000) + 1000, 86400000)
  redis.call('SET', key, pack('<dd', level, now), 'PX', string.format('%.0f', full_ms))
  local next_ms = 0
  if taken < wanted then
    next_ms = math.min(math.ceil((1 - math.min(level, 1)) / rate * 1000), 86400000)
  end
  answers[#answers + 1] = { taken, next_ms }
end
return answers
