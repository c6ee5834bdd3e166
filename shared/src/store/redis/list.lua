-- One stretch of the list, newest first. A place in it counts all tasks that ever were listed, from 0.
-- KEYS: the list, its counter.
-- ARGV: prefix of records, place to begin before or '', most tasks to look at, number of the state to show or '', bytes
--       of records after which to stop.
-- Answers: place of the last one that was looked at, 0 when there is none further back; then place, id and record of each
-- task to show, one after another.

local PREFIX, MOST, STATE, BYTES = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local length = redis.call('LLEN', KEYS[1])
local gone = tonumber(redis.call('GET', KEYS[2]) or 0) - length
local to = math.min(length, (tonumber(ARGV[2]) or math.huge) - gone)
local from = math.max(0, to - MOST)
local answer, bytes = { gone + from }, 0

if from < to then
  local entries = redis.call('LRANGE', KEYS[1], from, to - 1)
  for at = #entries, 1, -1 do
    local entry = entries[at]
    local id = sub(entry, 1, 32)
    local record = record_at(PREFIX .. id)
    -- It may be forgotten, or accepted anew: then it is further up.
    if record and sub(record, 2, 9) == sub(entry, 33) and (not STATE or byte(record, run_of(record)) == STATE) then
      answer[#answer + 1] = gone + from + at - 1
      answer[#answer + 1] = id
      answer[#answer + 1] = record
      bytes = bytes + #record
      if bytes >= BYTES then
        answer[1] = gone + from + at - 1
        break
      end
    end
  end
end
if answer[1] <= gone then
  answer[1] = 0
end
return answer
