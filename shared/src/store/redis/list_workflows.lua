-- One stretch of the list of workflows, newest first.
-- KEYS: the list. ARGV: prefix of summaries, place to begin before or '', most workflows to look at.
-- Answers: place of the last one that was looked at, 0 when there is none further back; then place and summary of each that
-- there is, one after another.

local PREFIX, MOST = ARGV[1], tonumber(ARGV[3])
local before = ARGV[2] == '' and '+inf' or '(' .. ARGV[2]
local entries = redis.call('ZREVRANGEBYSCORE', KEYS[1], before, '-inf', 'WITHSCORES', 'LIMIT', 0, MOST + 1)
local looked_at = math.min(#entries / 2, MOST)
local answer = { 0 }

for number = 1, looked_at do
  local id, place = entries[2 * number - 1], tonumber(entries[2 * number])
  local summary = redis.call('GET', PREFIX .. id)
  if summary then
    answer[#answer + 1] = place
    answer[#answer + 1] = summary
  end
  if #entries > 2 * MOST then
    answer[1] = place
  end
end
return answer
