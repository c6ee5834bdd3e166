-- KEYS: each task's record.
-- ARGV: milliseconds to keep; then for each claim: worker, nonce, milliseconds of the lease, most attempts, attempts
--       that the envelope knows of.
-- Answers for each: the attempt to run (from 1), 0 for a record that is unknown, -n when it is busy for n milliseconds,
-- { attempts } when it is exhausted, or { result, followers or nil } when it has ended.

local KEEP = ARGV[1]
local now, now_us = clock()
local answers = {}

for number, key in ipairs(KEYS) do
  local at = number * 5 - 4
  local nonce, lease_ms = ARGV[at + 2], tonumber(ARGV[at + 3])
  local held = redis.call('HMGET', key, 'state', 'tries', 'nonce', 'lease', 'alias')
  local tries, lease = tonumber(held[2] or 0), tonumber(held[4] or 0)

  if not held[1] then
    answers[number] = 0
  elseif ENDED[held[1]] then
    answers[number] = redis.call('HMGET', key, 'record', 'tell')
  elseif held[3] == nonce then
    redis.call('HSET', key, 'lease', now + lease_ms)
    keep(key, held[5], KEEP)
    answers[number] = tries
  elseif lease > now then
    answers[number] = now - lease
  else
    tries = math.max(tries, tonumber(ARGV[at + 5]))
    if tries >= tonumber(ARGV[at + 4]) then
      answers[number] = { tries }
    else
      redis.call('HSET', key, 'state', 'running', 'tries', tries + 1, 'nonce', nonce, 'lease', now + lease_ms,
        'worker', ARGV[at + 1], 'began', now_us)
      keep(key, held[5], KEEP)
      answers[number] = tries + 1
    end
  end
end
return answers
