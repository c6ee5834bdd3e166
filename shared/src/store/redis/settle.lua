-- KEYS: the list, then each task's record.
-- ARGV: milliseconds to keep, most listed; then for each task: nonce or '' for one that nobody holds, attempt or ''
--       for a first one that need not have claimed, state, result, id, microseconds it was accepted at.
-- Answers for each: 0 when it is stale, 1 or the followers when it is done, { 2, followers or nil } when this attempt
-- had settled it before, { 3, result } when another had.

local KEEP, LISTED = ARGV[1], tonumber(ARGV[2])
local now = clock()
local answers, entries = {}, {}

for number = 1, #KEYS - 1 do
  local at = number * 6 - 4
  local key, nonce, state, result = KEYS[number + 1], ARGV[at + 1], ARGV[at + 3], ARGV[at + 4]
  local held = redis.call('HMGET', key, 'state', 'tries', 'nonce', 'lease', 'alias', 'tell')
  local attempt = ARGV[at + 2]
  local first = attempt == ''
  local own = nonce ~= '' and held[3] == nonce and (first or held[2] == attempt)

  if not held[1] then
    redis.call('HSET', key, 'print', '', 'state', state, 'tries', first and 1 or attempt, 'nonce', nonce, 'record', result)
    redis.call('PEXPIRE', key, KEEP)
    entries[#entries + 1] = ARGV[at + 6]
    entries[#entries + 1] = ARGV[at + 5]
    answers[number] = 1
  elseif ENDED[held[1]] then
    if own then
      answers[number] = { 2, held[6] }
    else
      answers[number] = { 3, redis.call('HGET', key, 'record') }
    end
  elseif own or ((first or nonce == '') and tonumber(held[4] or 0) <= now) then
    redis.call('HSET', key, 'state', state, 'nonce', nonce, 'record', result)
    if first and held[2] == '0' then
      redis.call('HSET', key, 'tries', 1)
    end
    -- The result says it all now, and is kept for long.
    redis.call('HDEL', key, 'lease', 'worker', 'began', 'model', 'sent')
    keep(key, held[5], KEEP)
    answers[number] = held[6] or 1
  else
    answers[number] = 0
  end
end

list(KEYS[1], entries, LISTED)
return answers
