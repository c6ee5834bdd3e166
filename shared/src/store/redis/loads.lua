-- KEYS: the index of reports. ARGV: prefix of reports.
-- Answers the reports that have not expired.

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', (clock()))
local answer = {}
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local report = redis.call('GET', ARGV[1] .. worker)
  if report then
    answer[#answer + 1] = report
  end
end
return answer
