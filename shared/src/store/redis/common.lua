-- What the scripts share; it stands before each of them.
--
-- A task's record is a hash. Fields:
--   record  the task as accepted, or its result once it has ended: JSON, never looked into here
--   state   as results have it: `queued`, `running`, …
--   print   fingerprint; empty when only a settlement made the record
--   tries   attempts begun
--   nonce   of the attempt that holds the task, or that settled it; empty when nobody does
--   lease   until when that attempt holds it, milliseconds since the epoch
--   worker, began (microseconds since the epoch)   of that attempt
--   model, sent (microseconds since the epoch)     from the dispatch
--   tell    followers: JSON, each between line feeds
--   alias   key of its idempotency key

local ENDED = { succeeded = true, failed = true, cancelled = true, expired = true, rejected = true }

-- Milliseconds and microseconds since the epoch: every lease is judged by this one clock.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000000 + time[2]
end

-- A record and the key that leads to it are kept for so long from now, in milliseconds.
local function keep(key, alias, ms)
  redis.call('PEXPIRE', key, ms)
  if alias and alias ~= '' then
    redis.call('PEXPIRE', alias, ms)
  end
end

-- What a look-up needs of a record.
local function view(key)
  return redis.call('HMGET', key, 'state', 'record', 'tries', 'model', 'sent', 'began', 'worker')
end

-- Adds a follower that is not there yet, while there are fewer than `most`.
local function follow(key, follower, most)
  local tell = redis.call('HGET', key, 'tell') or '\n'
  if string.find(tell, '\n' .. follower .. '\n', 1, true) then
    return
  end
  local _, lines = string.gsub(tell, '\n', '')
  if lines - 1 < most then
    redis.call('HSET', key, 'tell', tell .. follower .. '\n')
  end
end

-- Lists tasks, each a score and an id after one another, and forgets the oldest beyond `most`.
local function list(key, entries, most)
  if #entries > 0 then
    redis.call('ZADD', key, unpack(entries))
    redis.call('ZREMRANGEBYRANK', key, 0, -most - 1)
  end
end
