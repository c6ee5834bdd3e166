-- One stretch of the list, newest first.
-- KEYS: the list.
-- ARGV: prefix of records, id to begin behind or '', its score, most tasks to look at, state to show or '', bytes of
--       records after which to stop.
-- Answers: 1 when the list ends here, else 0; then id, score and view of each task to show, one after another;
-- then id and score of the last one that was looked at, when there was one.

local LIST, PREFIX, MOST, STATE, BYTES = KEYS[1], ARGV[1], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

local from = 0
if ARGV[2] ~= '' then
  if redis.call('ZSCORE', LIST, ARGV[2]) == ARGV[3] then
    from = redis.call('ZREVRANK', LIST, ARGV[2]) + 1
  else
    -- It was forgotten since, or accepted anew: begin where it was.
    local mark = ARGV[2] .. '-'
    redis.call('ZADD', LIST, ARGV[3], mark)
    from = redis.call('ZREVRANK', LIST, mark)
    redis.call('ZREM', LIST, mark)
  end
end

local found = redis.call('ZREVRANGE', LIST, from, from + MOST - 1, 'WITHSCORES')
local answer, gone, bytes = { 0 }, {}, 0
local looked = 0
for at = 1, #found, 2 do
  local task = view(PREFIX .. found[at])
  looked = looked + 1
  if not task[1] then
    gone[#gone + 1] = found[at]
  elseif STATE == '' or task[1] == STATE then
    answer[#answer + 1] = found[at]
    answer[#answer + 1] = found[at + 1]
    answer[#answer + 1] = task
    bytes = bytes + #task[2]
    if bytes >= BYTES then
      break
    end
  end
end
if looked < MOST and looked * 2 == #found then
  answer[1] = 1
end
if looked > 0 then
  answer[#answer + 1] = found[looked * 2 - 1]
  answer[#answer + 1] = found[looked * 2]
end
if #gone > 0 then
  redis.call('ZREM', LIST, unpack(gone))
end
return answer
