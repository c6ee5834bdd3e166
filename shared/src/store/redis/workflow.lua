-- KEYS: a workflow's record, its summary, the list, when its members end.
-- ARGV: what to do, milliseconds to keep; then, but for `cancel`, the record, the summary, and most listed.
--
-- A record is one string: its marks (1 when it has ended, plus 2 when somebody asked to cancel it), 16 bytes of fingerprint, and
-- JSON. Where a workflow was to be cancelled that has no record, there are the marks alone, for a while.
--
-- The list has workflows by their places: the later one was taken in, the greater. It shows the summary, which is kept as long as
-- the record. Who leaves the list does so once its record is forgotten, or when it is the oldest of too many.
--
-- accept: creates it, unless it is known. Answers { 0 new | 1 known | 2 known with another content, marks and all }.
-- write:  writes it, unless it has ended. Answers { 0 it had ended | 1 it is written, marks and all }.
-- cancel: marks it, unless it has ended. Answers { 0 there is none | 1 its marks and all }.

local ENDED, UNWANTED = 1, 2
local DO, KEEP, new, SUMMARY, LISTED = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local LIST, ENDS = KEYS[3], KEYS[4]
-- Forgotten ones that leave the list in one call: more than come in, and yet few.
local SWEEP = 64

local known = redis.call('GET', KEYS[1])
local marks = known and byte(known, 1) or 0
local is_unwanted, is_there = marks >= UNWANTED, known and #known > 1

local function marked(record)
  local marks = byte(record, 1)
  return pack('<B', marks % 2 + (is_unwanted and UNWANTED or 0)) .. sub(record, 2)
end

local function leave(ids)
  if #ids > 0 then
    redis.call('ZREM', LIST, unpack(ids))
    redis.call('ZREM', ENDS, unpack(ids))
  end
end

local function write_and_list()
  redis.call('SET', KEYS[1], new, 'PX', KEEP)
  local is_new = redis.call('EXISTS', KEYS[2]) == 0
  redis.call('SET', KEYS[2], SUMMARY, 'PX', KEEP)
  local id, now = sub(KEYS[1], -32), clock()
  if is_new then
    local newest = redis.call('ZREVRANGE', LIST, 0, 0, 'WITHSCORES')
    redis.call('ZADD', LIST, (tonumber(newest[2]) or 0) + 1, id)
    redis.call('ZADD', ENDS, now + KEEP, id)
  else
    -- It may have been one too many.
    redis.call('ZADD', ENDS, 'XX', now + KEEP, id)
  end
  leave(redis.call('ZRANGEBYSCORE', ENDS, '-inf', now, 'LIMIT', 0, SWEEP))
  local most = math.min(redis.call('ZCARD', LIST) - LISTED, SWEEP)
  if most > 0 then
    leave(redis.call('ZRANGE', LIST, 0, most - 1))
  end
  -- With the last record the list goes too.
  local last = redis.call('ZREVRANGE', ENDS, 0, 0, 'WITHSCORES')[2]
  if last then
    redis.call('PEXPIREAT', LIST, last)
    redis.call('PEXPIREAT', ENDS, last)
  end
end

if DO == 'accept' then
  if is_there then
    return { sub(known, 2, 17) == sub(new, 2, 17) and 1 or 2, known }
  end
  new = marked(new)
  write_and_list()
  return { 0, sub(new, 1, 1) }
elseif DO == 'write' then
  if is_there and marks % 2 == ENDED then
    return { 0, known }
  end
  new = marked(new)
  write_and_list()
  return { 1, sub(new, 1, 1) }
end
if not is_there then
  redis.call('SET', KEYS[1], pack('<B', UNWANTED), 'PX', KEEP)
  return { 0, '' }
end
if marks % 2 ~= ENDED and not is_unwanted then
  is_unwanted = true
  known = marked(known)
  redis.call('SET', KEYS[1], known, 'KEEPTTL')
end
return { 1, known }
